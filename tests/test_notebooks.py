"""Each page of the book and its recording: equal, executed, clean, runnable."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import readable
import record
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.cli import jupytext as jupytext_cli
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from tornado.web import HTTPError

PAGES = record.pages()


def recording(name):
    path = record.NOTEBOOKS / f"{name}.ipynb"
    assert path.exists(), f"run: python book/record.py {name}"
    return nbformat.read(path, as_version=4)


def cells(notebook):
    return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]


def test_there_are_pages():
    assert PAGES


def test_each_recording_has_a_page():
    assert {path.stem for path in record.NOTEBOOKS.glob("*.ipynb")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page_and_recording_are_equal(name):
    assert cells(recording(name)) == cells(record.read_page(name)), (
        f"{name}.md has changed since; run: python book/record.py {name} "
        "(with --text if no code has changed)"
    )


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_tool_leaves_it(name, tmp_path, monkeypatch):
    page = (record.BOOK / f"{name}.md").read_text("utf-8")
    monkeypatch.setattr(record, "BOOK", tmp_path)
    (tmp_path / f"{name}.md").write_text(page, "utf-8")
    record.tidy(name)
    assert (tmp_path / f"{name}.md").read_text("utf-8") == page, (
        f"run: python book/record.py --text {name}"
    )


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with pages, recordings and Jupytext's settings, as a clone has them."""
    for folder, kind in ((record.BOOK, "md"), (record.NOTEBOOKS, "ipynb")):
        (tmp_path / folder.name).mkdir()
        for name in PAGES:
            shutil.copy(folder / f"{name}.{kind}", tmp_path / folder.name)
    shutil.copy(record.BOOK.parent / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jupyter():
    """What `jupyter lab` opens and saves files with in this folder, Jupytext's part."""
    return build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=".")


@pytest.mark.parametrize("name", PAGES)
def test_jupytext_finds_page_and_recording_equal(clone, capsys, name):
    jupytext_cli(["--diff", "--quiet", f"book/{name}.md", f"notebooks/{name}.ipynb"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", PAGES)
def test_opening_and_saving_in_jupyter_changes_nothing(clone, name):
    page, notebook = f"book/{name}.md", f"notebooks/{name}.ipynb"
    before = [Path(path).read_bytes() for path in (page, notebook)]
    # As after a `git pull` that brings the recording alone, which is then newer.
    os.utime(page, (0, 0))
    for path in (notebook, page):
        manager = jupyter()
        manager.save(manager.get(path), path)
        assert [Path(path).read_bytes() for path in (page, notebook)] == before


def test_a_recording_of_another_page_is_refused(clone):
    """That the test above could fail."""
    page = clone / "book" / "data.md"
    page.write_text(page.read_text("utf-8").replace("# Data", "# Other"), "utf-8")
    os.utime(page, (0, 0))
    with pytest.raises(HTTPError, match="more recent"):
        jupyter().get("notebooks/data.ipynb")


SOLUTION = """\
# Page

First text.

```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  figure:
    name: fig-one
    caption: |
      Two lines:
      one text.
---
first
```

An exercise.

:::{solution-start} ex-one
:class: dropdown
:::

Think.

```{code-cell} ipython3
second
```

:::{solution-end}
:::

More text.

```{code-cell} ipython3
third
```
"""


def test_what_the_book_hides_is_collapsed_in_jupyter(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "BOOK", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(SOLUTION, "utf-8")
    record.tidy("page")
    notebook = record.read_page("page")
    assert notebook.cells[0].source == "# Page\n\nFirst text."
    setup, first, second, third = record.code_cells(notebook)
    hidden = {"source_hidden": True}
    assert record.is_setup(setup)
    assert setup.metadata["jupyter"] == first.metadata["jupyter"] == hidden
    assert first.metadata["mystnb"]["figure"]["caption"] == "Two lines: one text."
    assert second.metadata["jupyter"] == {**hidden, "outputs_hidden": True}
    assert second.metadata["collapsed"] is True
    assert third.metadata == {}
    collapsed = {c.source: c.metadata for c in notebook.cells if c.cell_type != "code"}
    assert collapsed == {
        "# Page\n\nFirst text.": {},
        "An exercise.": {},
        "> **Solution of [Exercise](#ex-one)**": {},
        "Think.": {"jupyter": hidden},
        "***": {},
        "More text.": {},
    }
    # What is no longer hidden is opened again.
    text = page.read_text("utf-8").replace("tags: [hide-input]\n", "", 1)
    page.write_text(text, "utf-8")
    record.tidy("page")
    assert "jupyter" not in record.code_cells(record.read_page("page"))[1].metadata


def text_of(cells):
    return [" ".join(f"{c.cell_type} {c.metadata} {c.source}".split()) for c in cells]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_stays_what_it_is_as_plain_text_and_back(name):
    myst = record.read_myst(name).cells
    plain = readable.to_plain(copy.deepcopy(myst))
    assert text_of(plain) == text_of(record.read_page(name).cells)
    again = [one for one in readable.to_myst(plain) if one.source]
    assert text_of(again) == text_of(myst)


MARKUP = re.compile(r"\{[a-z:-]+\}`|^:::|^```\{", re.MULTILINE)


@pytest.mark.parametrize("name", sorted({*PAGES} - {"index"}))
def test_a_notebook_is_read_without_the_book(name):
    """But the first page, whose cards and buttons are made for the book."""
    for cell in recording(name).cells:
        if cell.cell_type == "markdown":
            assert not MARKUP.search(cell.source), cell.source
        assert "caption" not in cell.metadata.get("mystnb", {}).get("figure", {})
        for output in cell.get("outputs", []):  # tables that code has made
            made = output.get("data", {}).get("text/markdown", "")
            assert not MARKUP.search(made), made


PLAIN = {
    "See {numref}`fig-weight-map`.": "See [Figure 3.1](#fig-weight-map).",
    "{eq}`eq-weight-map`": "[Equation 3.1](#eq-weight-map)",
    "{cite}`luo2016`": "([Luo et al., 2016](https://arxiv.org/abs/1701.04128))",
    "{cite:t}`luo2016`": "[Luo et al. 2016](https://arxiv.org/abs/1701.04128)",
    "{doc}`data`": "[Data](data.ipynb)",
    "the {doc}`list <reference>`": "the [list](../book/reference.md)",
    "{term}`cells <cell>`": "[cells](../book/glossary.md#cell)",
    "{term}`held-out <held out>`": "[held-out](../book/glossary.md#held-out)",
    "{numref}`fig-nowhere`": "{numref}`fig-nowhere`",
    ":::{container} facts\n**9 minutes.** Two\nlines.\n:::\n\nMore.": (
        "**9 minutes.** Two\nlines.\n\nMore."
    ),
    ":::{admonition} Keep this\n:class: keep\nText.\n\nMore.\n:::": (
        "> **Keep this**\n>\n> Text.\n>\n> More."
    ),
    ":::{box-start} Going deeper: a\n:class: deeper dropdown\n:::\n\nText.\n\n"
    ":::{box-end}\n:::": "> **Going deeper: a**\n\nText.\n\n***",
    **{
        text: text
        for text in (
            ":::{box-start} A\n:class: own\n:::\n\n:::{box-end}\n:::\n\n***",
            "> **A quotation**\n> of its own",
            "[elsewhere](https://example.org/a), $$ x $$",
        )
    },
}


@pytest.mark.parametrize("myst", PLAIN)
def test_what_plain_text_takes_its_place(myst):
    (cell,) = readable.to_plain([nbformat.v4.new_markdown_cell(myst)])
    assert cell.source == PLAIN[myst]
    (cell,) = readable.to_myst([cell])
    assert cell.source == myst


@pytest.mark.parametrize("name", PAGES)
def test_recording_is_one_run_from_top_to_bottom(name):
    code = record.code_cells(recording(name))
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", PAGES)
def test_recording_is_of_the_real_stacks(name):
    assert not record.on_stand_in(recording(name))


def test_a_run_on_the_stand_in_is_not_recorded(monkeypatch, tmp_path):
    def execute(notebook, environment):
        code = "from unet_lib import data; data.load_or_stand_in()"
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        output = nbformat.v4.new_output("stream", text=said)
        record.code_cells(notebook)[0].outputs = [output]

    monkeypatch.setenv("UNET_BOOK_DATA", "synthetic")
    monkeypatch.setattr(record, "execute", execute)
    monkeypatch.setattr(record, "NOTEBOOKS", tmp_path)
    with pytest.raises(record.RecordingError, match="real stacks"):
        record.record(PAGES[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAGES)
def test_recording_is_small_and_free_of_this_machine(name):
    path = record.NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size <= record.LARGEST
    notebook = recording(name)
    assert notebook.metadata == record.METADATA
    for cell in record.code_cells(notebook):
        for output in cell.outputs:
            for text in record.texts(output):
                assert record.machine_path(text) is None
            assert record.WIDGET not in output.get("data", {})


@pytest.mark.parametrize("name", PAGES)
def test_lines_of_code_fit_the_page(name):
    for cell in record.code_cells(record.read_page(name)):
        for line in cell.source.splitlines():
            assert len(line) <= 80, line


@pytest.mark.notebooks
@pytest.mark.parametrize("name", PAGES)
def test_page_runs_on_the_synthetic_stand_in(name):
    command = [sys.executable, str(record.BOOK / "record.py"), "--check", name]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "text",
    [
        "read /home/ada/stacks/train-volume.tif",
        "'/tmp/ipykernel_12/1.py:3: UserWarning'",
        "C:\\Users\\ada",
        "<b>in</b> /Users/ada",
    ],
)
def test_an_absolute_path_is_seen(text):
    assert record.machine_path(text)


@pytest.mark.parametrize(
    "text",
    [
        "<table><tr><td>1/2</td></tr></table>",
        "https://downloads.imagej.net/ISBI-2012-challenge.zip",
        "../results/quarter/metrics.json and/or results/a/b",
        "V-Rand / V-Info / error",
        "<br/><img/>",
    ],
)
def test_other_slashes_are_let_be(text):
    assert record.machine_path(text) is None


def run_of(*sources):
    """A notebook of these code cells, executed and cleaned as record.py does it."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    record.name_cells(notebook)
    return notebook


def output_of(data):
    return nbformat.v4.new_output("display_data", data=data)


def test_a_control_is_dropped_where_a_picture_stands_for_it():
    notebook = run_of("slider")
    notebook.cells[0].outputs = [
        output_of({record.WIDGET: {}, "text/plain": "interactive(…)"}),
        output_of({record.WIDGET: {}, "text/html": "<input>", "text/plain": "-"}),
    ]
    record.clean(notebook)
    assert [output.data for output in notebook.cells[0].outputs] == [
        {"text/html": "<input>", "text/plain": "-"}
    ]


def test_a_control_alone_is_refused():
    notebook = run_of("slider")
    notebook.cells[0].outputs = [output_of({record.WIDGET: {}, "text/plain": "-"})]
    with pytest.raises(record.RecordingError, match="live control alone"):
        record.clean(notebook)


def test_a_path_in_an_output_is_refused():
    notebook = run_of("print(path)")
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="/home/ada/stacks\n")
    ]
    with pytest.raises(record.RecordingError, match="path of this machine"):
        record.clean(notebook)


def test_of_a_progress_bar_the_last_state_is_kept():
    assert record.after_carriage_returns("\r 10 %\r 50 %\r100 %\nend\r\n") == (
        "100 %\nend\n"
    )


def test_ids_of_cells_depend_on_their_text_alone():
    before = [cell.id for cell in run_of("a", "b", "b").cells]
    after = [cell.id for cell in run_of("new", "a", "b", "b").cells]
    assert len(set(before)) == 3
    assert after[1:] == before


def test_a_recording_that_is_too_large_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(record, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(record, "LARGEST", 100)
    with pytest.raises(record.RecordingError, match="more than 100"):
        record.write(run_of("a" * 200), "page")
    assert list(tmp_path.iterdir()) == []
