"""Gives each page of the book the outputs recorded in notebooks/.

MyST-NB reads a notebook from a page's text with a reader. This one reads as
usual, then copies the outputs of notebooks/<name>.ipynb into the code cells,
and execution is switched off. So the build needs no kernel, no torch and no
data, and cannot execute by accident: a page whose code differs from its
recording is a warning, which -W makes an error. (MyST-NB's own cache mode
would run such a page anew, and would not rebuild a page when its recording
alone has changed.)
"""

import shutil
from pathlib import Path

import nbformat
import readable
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
# The running build; MyST-NB hands its readers the text of a page and no more.
build: Sphinx


def read(text: str) -> nbformat.NotebookNode:
    """Return the page as a notebook, its code cells with their recorded outputs."""
    page = read_myst_markdown_notebook(text, add_source_map=True)
    if not is_myst_markdown_notebook(text):
        return page
    page.cells = readable.to_myst(page.cells)
    name = build.env.docname
    recording = Path(build.srcdir).parent / "notebooks" / f"{name}.ipynb"
    build.env.note_dependency(str(recording))
    if not recording.exists():
        warn(name, "is not recorded")
        return page
    recorded = nbformat.reads(recording.read_text("utf-8"), as_version=4)
    written_cells, recorded_cells = code_cells(page), code_cells(recorded)
    if len(written_cells) != len(recorded_cells):
        warn(
            name,
            f"has {len(written_cells)} code cells, its recording {len(recorded_cells)}",
        )
        return page
    for number, (written, run) in enumerate(
        zip(written_cells, recorded_cells, strict=True), start=1
    ):
        if written.source.strip() != run.source.strip():
            warn(name, f"differs from its recording in code cell {number}")
            return page
        written.outputs = run.outputs
        written.execution_count = run.execution_count
    page.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return page


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def warn(name: str, reason: str) -> None:
    LOGGER.warning(
        f"{name}.md {reason}; run: python book/record.py {name}",
        location=name,
        type="recorded",
    )


def offer_recording(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object
) -> None:
    """Put the recording beside the page, for the theme's download button."""
    recording = Path(app.srcdir).parent / "notebooks" / f"{pagename}.ipynb"
    if doctree is not None and recording.exists():
        target = Path(app.outdir) / "_sources" / recording.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recording, target)
        context["ipynb_source"] = recording.name


def setup(app: Sphinx) -> dict:
    global build
    build = app
    app.config.nb_custom_formats = {".md": "recorded.read"}
    # Before the theme makes its buttons.
    app.connect("html-page-context", offer_recording, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
