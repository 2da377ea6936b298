"""Plain Markdown for what MyST marks up, so that a notebook reads like its page.

JupyterLab, VS Code and Colab know nothing of this book's boxes, captions, figure
numbers and sources. So `record.py` writes pages and notebooks with links, quotes and
bold text in their place, and the book turns these back when it is built:

    MyST                                  plain
    {numref}`fig-one`, {eq}`eq-one`      [Figure 3.1](#fig-one), [Equation 3.1](#eq-one)
    {cite}`luo2016`, {cite:t}`luo2016`   ([Luo et al., 2016](https://…)), without ( )
    {doc}`data`, {term}`cells <cell>`    [Data](data.ipynb), [cells](…glossary.md#cell)
    a caption in a cell's metadata       **Figure 3.1.** and the caption, below the cell
    an admonition, an exercise           > **title** and the text, as a quotation
    a box that holds cells, a solution   > **title** before them and *** after them
    {container} facts                    a paragraph that begins with **25 minutes.**

What an author writes either way is kept; the tool puts in the numbers.
"""

import functools
import re
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import nbformat
import yaml
from pybtex.database import parse_file

BOOK = Path(__file__).resolve().parent.parent
CLASSES = {
    "What the paper says": "paper",
    "Keep this": "keep",
    "What it was worth": "worth",
    "Going deeper": "deeper dropdown",
}
GLOSSARY = "../book/glossary.md#"
# Labels where they are given, in both forms, and what they are numbers of.
LABELS = re.compile(
    r"\bname: (?P<Figure>fig-[\w-]+)|\$\$ \((?P<Equation>eq-[\w-]+)\)"
    r"|^(?::label: |> \*\*\[Exercise[ \d.]*\]\(#)(?P<Exercise>ex-[\w-]+)",
    re.MULTILINE,
)
ROLE = re.compile(r"\{(numref|eq|cite|cite:t|doc|term)\}`([^`]+)`")
LINK = r"\[([^][]+)\]\(([^()\s]+)\)"
SOURCES = re.compile(rf"\({LINK}(?:; {LINK})*\)|{LINK}")
BOX = re.compile(
    r"^:::\{(admonition|box-start|exercise|solution-start)\} ([^\n]*)\n"
    r"((?::\w+: [^\n]*\n)*)(.*?)^:::$|^:::\{(?:box|solution)-end\}\n:::$",
    re.MULTILINE | re.DOTALL,
)
FACTS = re.compile(r"^:::\{container\} facts\n(.*?)\n:::$", re.MULTILINE | re.DOTALL)
# A title in a quotation, and the quotation.
QUOTED = r"^> \*\*(.*)\*\*$((?:\n>.*)*)"
PLAIN_FACTS = re.compile(r"(?<!facts\n)^\*\*\d+ minutes\.\*\*.*(?:\n.+)*", re.MULTILINE)
MARK = re.compile(rf"{QUOTED}|^\*\*\*$", re.MULTILINE)
CAPTION = re.compile(r"\*\*Figure [\d.]+\.\*\* ((?:.+\n?)+)\s*")

Cells = list[nbformat.NotebookNode]


@functools.cache
def numbers() -> dict[str, str]:
    """Return what a label is called: fig-one is Figure 3.1, as Sphinx numbers it."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8"))
    found, counted = {}, Counter()
    pages = [("", contents["root"])]
    for part in contents.get("parts", []):
        pages += [
            (f"{number}." if part.get("numbered") else "", chapter["file"])
            for number, chapter in enumerate(part["chapters"], start=1)
        ]
    for chapter, name in pages:
        page = BOOK / f"{name}.md"
        text = page.read_text("utf-8") if page.exists() else ""
        for label in LABELS.finditer(text):
            kind = label.lastgroup
            counted[kind, chapter] += 1
            found[label[kind]] = f"{kind} {chapter}{counted[kind, chapter]}"
    return found


@functools.cache
def sources() -> dict[str, tuple[str, str, str]]:
    """Return each source's authors, year and address, by its key."""
    found = {}
    for key, entry in parse_file(BOOK / "references.bib").entries.items():
        names = [" ".join(one.last_names) for one in entry.persons["author"]]
        who = f"{names[0]} et al." if names[2:] else " and ".join(names)
        who = re.sub(r"[{}]", "", who)
        fields = entry.fields
        address = fields.get("url") or f"https://arxiv.org/abs/{fields.get('eprint')}"
        if "doi" in fields:
            address = f"https://doi.org/{fields['doi']}"
        found[key] = who, fields["year"], quote(address, safe=":/?=&%#")
    return found


@functools.cache
def terms() -> dict[str, str]:
    """Return the glossary's terms by their place in it: skip-connection."""
    text = (BOOK / "glossary.md").read_text("utf-8")
    blocks = re.findall(r"^```\{glossary\}\n(.*?)^```$", text, re.M | re.S)
    found = re.findall(r"^\S.*", "\n".join(blocks), re.MULTILINE)
    return {slug(term): term for term in found}


def slug(term: str) -> str:
    return quote("-".join(term.lower().split()))


def title(page: str) -> str:
    text = (BOOK / f"{page}.md").read_text("utf-8")
    return re.search("^# (.*)", text, re.MULTILINE)[1].replace("`", "")


def file_of(page: str) -> str:
    text = (BOOK / f"{page}.md").read_text("utf-8")
    code = text.startswith("---\njupytext:")
    return f"{page}.ipynb" if code else f"../book/{page}.md"


def plain_role(role: re.Match) -> str:
    """Return a role as a link, or as it is where it is not known."""
    kind, content = role.groups()
    shown, *target = re.split(r"\s+<", content.removesuffix(">"), maxsplit=1)
    target = " ".join((target or [shown])[0].split())
    if kind in ("numref", "eq"):
        number = numbers().get(target)
        return f"[{number}](#{target})" if number else role[0]
    if kind == "doc":
        if not (BOOK / f"{target}.md").exists():
            return role[0]
        return f"[{title(target) if shown == content else shown}]({file_of(target)})"
    if kind == "term":
        place = slug(target)
        return f"[{shown}]({GLOSSARY}{place})" if place in terms() else role[0]
    keys = [key.strip() for key in content.split(",")]
    if not set(keys) <= set(sources()):
        return role[0]
    return cited(keys, kind)


def cited(keys: list[str], kind: str) -> str:
    """Return links to sources: in parentheses, or for cite:t as part of a sentence."""
    links = []
    for key in keys:
        names, year, address = sources()[key]
        separator = ", " if kind == "cite" else " "
        links.append(f"[{names}{separator}{year}]({address})")
    return f"({'; '.join(links)})" if kind == "cite" else links[0]


def role_of(link: re.Match) -> str:
    """Return a link that stands for a role as that role."""
    parts = re.findall(LINK, link[0])
    keys = {value[2]: key for key, value in sources().items()}
    found = [keys.get(address) for _, address in parts]
    if all(found):
        kind = "cite" if link[0].startswith("(") else "cite:t"
        if cited(found, kind) == link[0]:
            return f"{{{kind}}}`{', '.join(found)}`"
    return re.sub(LINK, simple_role_of, link[0])


def simple_role_of(link: re.Match) -> str:
    shown, address = link.groups()
    label, name = address.removeprefix("#"), Path(address).stem
    if address.startswith(("#fig-", "#ex-")):
        return f"{{numref}}`{label}`"
    if address.startswith("#eq-"):
        return f"{{eq}}`{label}`"
    if address.startswith(GLOSSARY):
        term = terms().get(address.removeprefix(GLOSSARY), "")
        same = " ".join(shown.lower().split()) == term.lower()
        return f"{{term}}`{shown}`" if same else f"{{term}}`{shown} <{term}>`"
    if re.fullmatch(r"[\w-]+\.ipynb|\.\./book/[\w-]+\.md", address):
        same = " ".join(shown.split()) == title(name)
        return f"{{doc}}`{name}`" if same else f"{{doc}}`{shown} <{name}>`"
    return link[0]


def class_of(title: str) -> str | None:
    if "mistake" in title.lower():
        return "mistake"
    return next((CLASSES[one] for one in CLASSES if title.startswith(one)), None)


def plain_box(box: re.Match) -> str:
    """Return a box, or its start, as a quotation; one of another class as it is."""
    kind, title, options, body = box.groups()
    options = dict(re.findall(r"^:(\w+): (.*)$", options, re.MULTILINE))
    if kind == "solution-start" and options == {"class": "dropdown"}:
        title = f"Solution of [{numbers().get(title, 'Exercise')}](#{title})"
    elif kind == "exercise" and set(options) == {"label"}:
        label = options["label"]
        title = f"[{numbers().get(label, 'Exercise')}](#{label}). {title}"
    elif options != {"class": class_of(title)}:
        return box[0]
    body = body.strip("\n")
    lines = [f"**{title}**", *(["", *body.split("\n")] if body else [])]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def box_of(quoted: re.Match) -> str:
    """Return a quotation that stands for a box as that box, or its start."""
    title, body = quoted[1], re.sub("^> ?", "", quoted[2] or "", flags=re.M).strip("\n")
    exercise = re.fullmatch(r"\[[^]]*\]\(#([\w-]+)\)\. (.*)", title)
    solution = re.fullmatch(r"Solution of \[[^]]*\]\(#([\w-]+)\)", title)
    if solution:
        found = f":::{{solution-start}} {solution[1]}\n:class: dropdown"
    elif exercise:
        found = f":::{{exercise}} {exercise[2]}\n:label: {exercise[1]}\n\n{body}"
    elif body and class_of(title):
        found = f":::{{admonition}} {title}\n:class: {class_of(title)}\n{body}"
    elif class_of(title):
        found = f":::{{box-start}} {title}\n:class: {class_of(title)}"
    else:
        return quoted[0]
    return f"{found}\n:::"


def hidden(cell: nbformat.NotebookNode) -> dict:
    """Return what collapses a cell's output, or text, in Jupyter."""
    jupyter = cell.metadata.get("jupyter", {})
    folded = cell.cell_type == "markdown" or "outputs_hidden" in jupyter
    return {"source_hidden": True} if jupyter and folded else {}


def to_plain(cells: Cells) -> Cells:
    """Return the cells of a page in plain Markdown."""
    found, plain = [], []  # whether the boxes that are open have become plain

    def box(written: re.Match) -> str:
        if written[1] is None:
            return "***" if plain and plain.pop() else written[0]
        changed = plain_box(written)
        if written[1].endswith("-start"):
            plain.append(changed != written[0])
        return changed

    for cell in cells:
        if cell.cell_type != "code":
            text = ROLE.sub(plain_role, cell.source)
            cell.source = FACTS.sub(r"\1", BOX.sub(box, text))
            last = found[-1] if found else None
            if last and last.get("caption") and hidden(cell) == hidden(last):
                found.pop()
                cell.source = f"{last.source}\n\n{cell.source}"
            found.append(cell)
            continue
        found.append(cell)
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if figure.get("caption") and (number := numbers().get(figure.get("name"))):
            text = ROLE.sub(plain_role, figure.pop("caption").strip())
            below = nbformat.v4.new_markdown_cell(f"**{number}.** {text}")
            below.metadata["jupyter"] = hidden(cell)
            below["caption"] = True
            found.append(below)
    for cell in found:
        cell.pop("caption", None)
    return found


def to_myst(cells: Cells) -> Cells:
    """Return the cells of a page as MyST; a text that was a caption alone is empty."""
    figure, ends = None, []

    def mark(found: re.Match) -> str:
        if found[0] == "***" and ends:
            return f":::{{{ends.pop()}-end}}\n:::"
        box = box_of(found) if found[0] != "***" else found[0]
        if start := re.match(r":::\{(box|solution)-start", box):
            ends.append(start[1])
        return box

    for cell in cells:
        if cell.cell_type == "code":
            figure = cell.metadata.get("mystnb", {}).get("figure")
            continue
        if figure and "caption" not in figure and (c := CAPTION.match(cell.source)):
            name = figure.pop("name")
            figure["caption"] = SOURCES.sub(role_of, " ".join(c[1].split()))
            figure["name"] = name
            cell.source = cell.source[c.end() :]
        figure = None
        text = MARK.sub(mark, cell.source)
        text = PLAIN_FACTS.sub(facts, text)
        cell.source = SOURCES.sub(role_of, text)
    return cells


def facts(found: re.Match) -> str:
    return f":::{{container}} facts\n{found[0]}\n:::"
