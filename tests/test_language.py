"""How the pages read: words to avoid, terms to find, the bounds of a main line."""

import ast
import builtins
import json
import re
from pathlib import Path

import pytest
import record
import snowballstemmer

ROOT = Path(__file__).resolve().parent.parent
# Chapters that keep the bounds of a main line. Add a page when it is done.
DONE = ["data", "architecture", "weight-maps", "augmentation", "training"]
DONE += ["overlap-tile", "metrics", "results", "touching-cells", "own-images"]
# Whatever has been cleared of the words below; grow it.
CLEAN = [
    *(f"book/{name}.md" for name in ("index", "data", "glossary", "STYLE")),
    *(f"book/{name}.md" for name in ("architecture", "weight-maps")),
    *(f"book/{name}.md" for name in ("augmentation", "results", "deviations")),
    *(f"book/{name}.md" for name in ("training", "training-faster", "overlap-tile")),
    *(f"book/{name}.md" for name in ("metrics", "touching-cells", "own-images")),
    "unet_lib/export/package.md",
    *("unet_lib/pretrained.md", "results/README.md", "README.md", "CHANGELOG.md"),
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("unet_lib/**/*.py"))),
    "book/_ext/boxes.py",
]
WORDS = """
    \\bexams?\\b; hang together; \\banew\\b; \\bmend(s|ed|ing)?\\b; \\bwhoever\\b;
    by little\\b; \\bstands? on\\b; a plane a cell; soft-max;
    (?<!there )\\b(is|are) no (?!longer|larger)[a-z]+; drop-out; cares? for;
    asks for its device; what is called; learnt by heart; shortly trained;
    \\bpen\\b; right pixels; \\blet expect\\b
"""
AVOID = re.compile(
    "|".join(f"(?:{word.strip()})" for word in WORDS.split(";")),
    re.IGNORECASE,
)
RULES = re.DOTALL | re.MULTILINE
CODE = re.compile(r"```.*?^```|`+[^`\n]+`+|(?<=\])\([^()\s]+\)", RULES)


def prose(path):
    """Return a page without its code, or a module's docstrings."""
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".py"):
        tree = ast.parse(text)
        kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
        found = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)]
        text = "\n".join(filter(None, found))
        text = re.sub(r"^\s*\w+: ", "", text, flags=re.MULTILINE)  # arguments' names
    return CODE.sub("", text)


@pytest.mark.parametrize("path", CLEAN)
def test_words_to_avoid(path):
    text = " ".join(prose(path).split())
    found = [text[max(0, m.start() - 30) : m.end() + 30] for m in AVOID.finditer(text)]
    assert found == []


# A table or a list that an editor has joined to one paragraph.
JOINED = re.compile(r"\|[ \t]+\|---|[.:;] [-*] (?:\*\*|`|[A-Z])|[.:;] \d\. [A-Z]")


@pytest.mark.parametrize("path", [one for one in CLEAN if one.endswith(".md")])
def test_tables_and_lists_have_lines_of_their_own(path):
    text = re.sub(r"```.*?^```", "", (ROOT / path).read_text("utf-8"), flags=RULES)
    assert JOINED.findall(text) == []


BRITISH = re.compile(
    r"colour|grey(?!_dilation|_erosion)|metres?\b|neighbour|centre|labell|favour"
    r"|behaviour|(?:initial|normal|optim|organ|recogn|visual)is(?!m|t)",
    re.IGNORECASE,
)
FOLDERS = ("unet_lib", "book", "tests", "benchmarks")
WRITTEN = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
WRITTEN += [*ROOT.glob("*.md"), *ROOT.glob("book/*.md"), *ROOT.glob("results/*.toml")]


def test_spelling_is_american_in_names_too():
    """A reader who has typed `optimizer` and `color` all day types them here too."""
    found = {
        f"{path.name}: {word}"
        for path in WRITTEN
        if path != Path(__file__)
        for word in BRITISH.findall(path.read_text("utf-8"))
    }
    assert found == set()


# The main line: what stands open on the page, outside of boxes that are folded and of
# exercises.
HIDDEN = re.compile(r"hide|remove|setup")
OPENS = re.compile(r"^:::\{(box-start\} Going deeper|solution-start\}|exercise\})")


def main_line(name):
    """Yield the page's open text and code, ("text", …) and ("code", …), in order."""
    closing = None  # the line that ends what is folded
    for cell in record.read_myst(name).cells:
        if cell.cell_type == "code":
            tags = " ".join(cell.metadata.get("tags", []))
            if closing is None and not HIDDEN.search(tags):
                yield "code", cell.source
            continue
        kept = []
        for line in cell.source.splitlines():
            if closing is None and (found := OPENS.match(line)):
                kind = found[1]
                closing = ":::{solution-end}" if kind.startswith("sol") else None
                closing = ":::{box-end}" if kind.startswith("box") else closing
                closing = closing or ":::"
            elif line == closing:
                closing = None
            elif closing is None and not line.startswith(":"):
                kept.append(line)
        yield "text", "\n".join(kept)


def parts(name, kind):
    return [part for found, part in main_line(name) if found == kind]


def lines_of_code(name):
    code = "\n".join(parts(name, "code"))
    return [line for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("name", DONE)
def test_a_main_line_can_be_read_in_25_minutes(name):
    words = re.findall(r"\w[\w'’-]*", " ".join(parts(name, "text")))
    assert len(words) <= 2000
    assert len(lines_of_code(name)) <= 120


@pytest.mark.parametrize("name", DONE)
def test_open_lines_fit_a_phone(name):
    assert [line for line in lines_of_code(name) if len(line) > 60] == []


def names_of(code):
    """The names that a cell binds, and those that it reads from before."""
    bound, read = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound, read - bound - set(dir(builtins))


@pytest.mark.parametrize("name", DONE)
def test_each_name_of_an_open_cell_comes_from_an_open_cell(name):
    known = set()
    for code in parts(name, "code"):
        bound, read = names_of(code)
        assert read <= known, code
        known |= bound


@pytest.mark.parametrize("name", DONE)
def test_nothing_stands_above_the_first_sentence(name):
    first, second = [
        cell
        for cell in record.read_page(name).cells
        if not (cell.cell_type == "code" and record.is_setup(cell))
    ][:2]
    assert first.cell_type == "markdown"
    assert len(first.source.split()) > 40
    assert second.cell_type == "code"


@pytest.mark.parametrize("name", DONE)
def test_a_chapter_has_its_boxes_and_exercises(name):
    cells = record.read_myst(name).cells
    text = "\n".join(cell.source for cell in cells)
    for part in (
        *("{container} facts", ":class: paper", ":class: keep", ":class: mistake"),
        *(":class: deeper dropdown", "warm-up", "Build it", "open, "),
    ):
        assert part in text, part
    solutions = [c for c in cells if c.source.startswith(":::{solution-start}")]
    assert text.count("{exercise}") == len(solutions)


# The search finds the field's words.

TERMS = """
    overfitting, training set, validation set, test set, cross-validation,
    hyperparameter, epoch, batch, DataLoader, logits, softmax, dropout,
    batch normalization, mixed precision, EMA, test-time augmentation, ablation,
    baseline, confidence interval, bootstrap, Dice, IoU, precision, recall, Rand index,
    variation of information, feature map, receptive field, instance segmentation,
    semantic segmentation, voxel, distance transform, Metrics Reloaded, nnU-Net
"""


@pytest.mark.book
@pytest.mark.parametrize("term", [term.strip() for term in TERMS.split(",")])
def test_the_search_finds_a_term(site, term):
    """As Sphinx's search does it: every stemmed word, in one and the same page."""
    script = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").removesuffix(")"))
    stem = snowballstemmer.stemmer("porter").stemWord
    pages = None
    for word in re.findall(r"\w+", term.lower()):
        if word in ("of",):
            continue
        found = set()
        for kind in ("terms", "titleterms"):
            numbers = index[kind].get(stem(word), [])
            found |= {numbers} if isinstance(numbers, int) else set(numbers)
        pages = found if pages is None else pages & found
    assert "glossary" in {index["docnames"][number] for number in pages}
