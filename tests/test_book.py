"""The book builds from its recordings alone, whole and with nothing from elsewhere."""

import base64
import functools
import hashlib
import html.parser
import inspect
import re
import shutil
import tomllib
import types

import launch
import nbformat
import pybtex.database
import pytest
import readable
import record
import recorded
import reference
import yaml

from unet_lib import UNet
from unet_lib.augment import Augmentation
from unet_lib.config import TrainConfig
from unet_lib.results.table import read_table

pytestmark = pytest.mark.book

TOC = yaml.safe_load((record.BOOK / "_toc.yml").read_text("utf-8"))


def entries(branch):
    """Return the names of all pages below a branch of the contents."""
    names = [branch[key] for key in ("root", "file") if key in branch]
    if "glob" in branch:
        names += sorted(path.stem for path in record.BOOK.glob(f"{branch['glob']}.md"))
    for key in ("parts", "chapters", "sections"):
        for twig in branch.get(key, []):
            names += entries(twig)
    return names


PAGES = entries(TOC)


# The attributes by which an element of a page loads something.
LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
    "embed": "src",
}


class Page(html.parser.HTMLParser):
    """What a page loads, shows as images, and says in its article outside of code."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.images, self.scripts, self.words = [], [], [], []
        self.inside = {"article": 0, "pre": 0, "code": 0, "script": 0, "style": 0}
        self.feed(path.read_text("utf-8"))
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in self.inside:
            self.inside[tag] += 1
        if address := attributes.get(LOADS.get(tag, "")):
            self.loads.append(address)
        if tag == "img" and self.inside["article"]:
            self.images.append(attributes)

    def handle_endtag(self, tag):
        if tag in self.inside:
            self.inside[tag] -= 1

    def handle_data(self, text):
        if self.inside["script"] or self.inside["style"]:
            self.scripts.append(text)
        elif self.inside["article"] and not (self.inside["pre"] or self.inside["code"]):
            self.words.append(text)


read_page = functools.cache(Page)


@pytest.fixture
def page(site, name):
    return read_page(site / f"{name}.html")


def test_each_page_with_code_is_in_the_contents():
    assert set(record.pages()) <= set(PAGES)
    assert len(PAGES) == len(set(PAGES))


@pytest.mark.parametrize("name", PAGES)
def test_each_entry_of_the_contents_has_its_page(site, name):
    assert (site / f"{name}.html").stat().st_size > 0


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_from_another_server(site, page):
    elsewhere = re.compile(r"(https?:)?//")
    assert not [address for address in page.loads if elsewhere.match(address)]
    assert not re.search(r"https?://(?!www\.w3\.org/)", " ".join(page.scripts))
    for address in page.loads:
        if address.partition("?")[0].endswith(".css"):
            style = (site / address.partition("?")[0]).read_text("utf-8")
            assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style)


@pytest.mark.parametrize("name", PAGES)
def test_formulas_are_set_by_a_script_of_the_book(site, page):
    if r"\(" in page.text or r"\[" in page.text:
        (script,) = [address for address in page.loads if "mathjax" in address]
        assert (site / script).stat().st_size > 100_000


@pytest.mark.parametrize("name", PAGES)
def test_no_markup_shows_through(page):
    raw = re.compile(r"\{[a-z:-]+\}`|:::|```|\$\$|\{code-cell\}|\bundefined\b")
    found = raw.search(page.text)
    assert not found, page.text[max(0, found.start() - 80) : found.end() + 80]


@pytest.mark.parametrize("name", PAGES)
def test_each_image_is_there_and_described(site, page):
    for image in page.images:
        if not image["src"].startswith("data:"):
            assert (site / image["src"]).stat().st_size > 0
        description = image.get("alt", "")
        assert len(description) > 10, f"no alternative text: {image['src']}"
        assert not description.endswith(".png"), f"no alternative text: {description}"


@pytest.mark.parametrize("name", record.pages())
def test_each_recorded_picture_is_shown(site, page, name):
    notebook = nbformat.read(record.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    hidden = {"remove-output", "remove-cell"}
    recorded = {
        hashlib.sha256(base64.b64decode(output.data["image/png"])).hexdigest()
        for cell in record.code_cells(notebook)
        if not hidden & set(cell.metadata.get("tags", []))
        for output in cell.outputs
        if "image/png" in output.get("data", {}) and "text/html" not in output.data
    }
    shown = {
        hashlib.sha256((site / image["src"]).read_bytes()).hexdigest()
        for image in page.images
        if not image["src"].startswith("data:")
    }
    assert recorded <= shown


@pytest.mark.parametrize("name", record.pages())
def test_the_recording_can_be_downloaded(site, name):
    recording = (record.NOTEBOOKS / f"{name}.ipynb").read_bytes()
    assert (site / "_sources" / f"{name}.ipynb").read_bytes() == recording
    assert f'href="_sources/{name}.ipynb"' in (site / f"{name}.html").read_text("utf-8")


MODULES = list(reference.modules(reference.load(record.BOOK.parent)))
ENTRIES = [one for module in MODULES for one in reference.entries(module)]
CHAPTERS = re.compile(r":doc:`([^`]*)`")


def test_an_entry_its_source_and_its_chapter_are_linked_both_ways(site):
    linked = 0
    for entry in ENTRIES:
        name = reference.page(entry.module)
        shown = (site / f"{name}.html").read_text("utf-8")
        assert f'id="{entry.path}"' in shown
        source = f"_modules/{entry.module.path.replace('.', '/')}.html"
        assert f'href="{source}#{entry.name}"' in shown, entry.path
        back = f'{name}.html#{entry.path}"'
        assert back in (site / source).read_text("utf-8")
        for chapter in CHAPTERS.findall(reference.sentence(entry)):
            assert f'href="{chapter}.html"' in shown
            back = f'href="{name}.html#{entry.path}"'
            assert back in (site / f"{chapter}.html").read_text("utf-8")
            linked += 1
    assert linked > 50


@pytest.mark.parametrize("name", [name for name in PAGES if "reference-" in name])
def test_the_sections_of_the_docstrings_are_read(page, name):
    assert "Parameters" in page.text
    assert not re.search(r"\b(Args|Raises|Returns):\s+\w+:", page.text)


def test_an_entry_shows_its_module_and_its_formula(site):
    shown = (site / "reference-weights.html").read_text("utf-8")
    words = re.sub(r"<[^>]*>", "", shown)
    assert "unet_lib.weights.weight_map(" in words
    assert r"w_0 \exp(-(d_1(x) + d_2(x))^2" in words
    commands = (site / "commands.html").read_text("utf-8")
    assert 'id="cmdoption-unet-lib-train-steps"' in commands


def test_what_notebooks_are_numbered_is_what_the_book_counts(site):
    shown = "".join((site / f"{name}.html").read_text("utf-8") for name in PAGES)
    other = r'(?:(?! id="(?:fig|ex)-).)*?'
    captions = re.compile(
        rf'id="((?:fig|ex)-[\w-]+)"{other}"caption-number">([\w .]+)', re.DOTALL
    )
    found = {label: number.strip(" .") for label, number in captions.findall(shown)}
    expected = readable.numbers()
    assert len(found) > 50
    assert found == {label: expected[label] for label in found}
    equations = re.findall(r'id="equation-(eq-[\w-]+)".*?\(([\d.]+)\)', shown, re.S)
    assert equations
    for label, number in equations:
        assert expected[label] == f"Equation {number}"


REFERENCES = pybtex.database.parse_file(record.BOOK / "references.bib").entries


@pytest.mark.parametrize("key", REFERENCES)
def test_a_source_is_shown_with_a_link_to_it(site, key):
    fields = REFERENCES[key].fields
    addresses = []
    if "doi" in fields:
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"])
        addresses.append(f"https://doi.org/{fields['doi']}")
    if "eprint" in fields:
        addresses.append(f"https://arxiv.org/abs/{fields['eprint']}")
    if "url" in fields:
        addresses.append(fields["url"])
    assert addresses
    shown = (site / "bibliography.html").read_text("utf-8")
    assert [f'href="{one}"' in shown for one in addresses] == [True] * len(addresses)


def test_each_term_of_the_glossary_is_linked_from_a_chapter(site):
    glossary = (record.BOOK / "glossary.md").read_text("utf-8")
    terms = re.findall(r"^(\S.*)\n  \S", glossary, re.MULTILINE)
    assert len(terms) == glossary.count("{doc}`")  # each names its page
    chapters = "".join(
        (site / f"{name}.html").read_text("utf-8") for name in record.pages()
    )
    for term in terms:
        assert f'href="glossary.html#term-{term.replace(" ", "-")}"' in chapters, term


HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---
"""


def small_book(folder, *sources):
    """Write a book of one page with these cells; its recording has `1 + 1` alone."""
    cells = "".join(f"```{{code-cell}} ipython3\n{code}\n```\n\n" for code in sources)
    (folder / "book").mkdir()
    (folder / "book" / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (folder / "book" / "index.md").write_text(f"{HEADER}\n# Title\n\n{cells}")
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
    result = {"text/plain": "as recorded"}
    cell.outputs = [nbformat.v4.new_output("execute_result", data=result)]
    (folder / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell]), folder / "notebooks" / "index.ipynb"
    )


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        (["1 + 1"], None),
        (["1 + 2"], "differs from its recording in code cell 1"),
        (["1 + 1", "2"], "has 2 code cells, its recording 1"),
    ],
)
def test_outputs_are_taken_for_the_code_that_made_them(
    tmp_path, monkeypatch, sources, complaint
):
    small_book(tmp_path, *sources)
    warnings, dependencies = [], []
    environment = types.SimpleNamespace(
        docname="index", note_dependency=dependencies.append
    )
    running = types.SimpleNamespace(srcdir=str(tmp_path / "book"), env=environment)
    monkeypatch.setattr(recorded, "build", running, raising=False)
    monkeypatch.setattr(recorded, "warn", lambda name, reason: warnings.append(reason))

    page = recorded.read((tmp_path / "book" / "index.md").read_text())

    assert warnings == ([complaint] if complaint else [])
    outputs = [output for cell in record.code_cells(page) for output in cell.outputs]
    assert len(outputs) == (0 if complaint else 1)
    # A new recording has the page read again.
    assert dependencies == [str(tmp_path / "notebooks" / "index.ipynb")]


def add_settings(folder, address=""):
    """Give a small book the extensions, sources and settings of this one."""
    for part in ("_ext", "_static"):
        shutil.copytree(record.BOOK / part, folder / "book" / part)
    shutil.copytree(record.BOOK.parent / "unet_lib", folder / "unet_lib")
    shutil.copy(record.BOOK / "references.bib", folder / "book")
    settings, changed = re.subn(
        r"(?m)^  url: .*$", f'  url: "{address}"', record.CONFIG.read_text("utf-8")
    )
    assert changed == 1
    (folder / "_config.yml").write_text(settings, "utf-8")


ADDRESS = "https://github.com/ada/unet-book"
LINKS = launch.links(ADDRESS, "main", "index").values()


def test_a_page_is_opened_elsewhere_if_the_repository_has_an_address(build, tmp_path):
    small_book(tmp_path, "1 + 1")
    add_settings(tmp_path, ADDRESS)

    run = build(tmp_path / "book", tmp_path, tmp_path / "barred")

    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    shown = (tmp_path / "_build" / "html" / "index.html").read_text("utf-8")
    assert "as recorded" in shown
    assert 'href="_sources/index.ipynb"' in shown
    here = [ADDRESS, f"{ADDRESS}/edit/main/book/index.md", f"{ADDRESS}/issues/new?"]
    for link in [*LINKS, *here]:
        assert f'href="{link}' in shown, link


def test_a_page_that_differs_from_its_recording_fails_the_build(build, tmp_path):
    """Without an address, so that it also shows that then no link is made."""
    small_book(tmp_path, "1 + 2")
    add_settings(tmp_path)

    run = build(tmp_path / "book", tmp_path, tmp_path / "barred")

    assert run.returncode != 0
    assert "run: python book/record.py index" in run.stdout + run.stderr
    shown = (tmp_path / "_build" / "html" / "index.html").read_text("utf-8")
    assert "as recorded" not in shown
    assert not re.search(r"mybinder|colab|/edit/|issues/new|repository", shown)


# Options that are no part of the method: where it runs, on what data, what is kept,
# and the one whose own fields are options.
NO_METHOD = {"device", "held_out", "save_every", "seed", "watch_at"}
NO_METHOD |= {"in_channels", "num_classes", "instances", "augmentation"}


def test_each_option_of_the_method_is_on_the_page_of_deviations():
    page, table = (
        (record.BOOK / f"deviations.{kind}").read_text("utf-8")
        for kind in ("md", "toml")
    )
    options = {
        name
        for thing in (UNet, Augmentation, TrainConfig)
        for name in inspect.signature(thing).parameters
    }
    named = {
        word
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page + table)
        for word in re.findall(r"\w+", code)
    }
    assert options - NO_METHOD <= named


def test_what_the_deviations_are_measured_by_is_asked_for():
    rows = tomllib.loads((record.BOOK / "deviations.toml").read_text("utf-8"))["rows"]
    variants = {
        one.variant
        for one in read_table(record.BOOK.parent / "results" / "experiments.toml")
        if one.scale == "quarter-adam-2500"
    } | {"../quarter-sgd-2500/paper"}
    compared = {
        name.partition("@")[0]
        for row in rows
        for pair in row.get("measured", [])
        for name in pair
    }
    assert {"baseline", "padded"} <= compared <= variants
