"""Execute pages of the book and record their outputs in notebooks/.

    python book/record.py                    every page that has code
    python book/record.py data training      these pages
    python book/record.py --check data       on synthetic stacks; writes nothing
    python book/record.py --text data        only text has changed: runs nothing

A page is book/<name>.md, its recording notebooks/<name>.ipynb. A recording is written
only if every cell of the page ran and nothing in it depends on the machine or the day:
no times, no widget state, no absolute path. A page's first cell, which the book hides,
gets what is missing where somebody opens the notebook elsewhere; it is put into the
page here, with the address that _config.yml has.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

BOOK = Path(__file__).resolve().parent
sys.path.append(str(BOOK / "_ext"))
import readable  # noqa: E402

# The folder of the recordings, and where a page runs: a notebook opened there
# by hand finds the same files.
NOTEBOOKS = BOOK.parent / "notebooks"
CONFIG = BOOK.parent / "_config.yml"
LARGEST = 2_400_000  # bytes of a recording
STAND_IN = "Data: the synthetic stand-in"
WIDGET = "application/vnd.jupyter.widget-view+json"
# What a page and its recording say of themselves, so that Jupytext finds them equal
# whatever its version: opening and saving them in Jupyter changes nothing.
METADATA = {
    "jupytext": {
        "default_lexer": "ipython3",
        "notebook_metadata_filter": "-jupytext.text_representation.jupytext_version",
    },
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
# The cell that gets what a notebook needs where there is the notebook alone: on Colab,
# or downloaded into an empty folder. After a restart there unet_lib is installed, but
# the working directory is that of the notebook again.
SETUP = """\
# Only where the book's folder or unet_lib is missing: gets them.
from pathlib import Path

if not Path("../unet_lib").exists():
    {alone}
try:
    import unet_lib
except ModuleNotFoundError:
    %pip install --quiet "..[book,fast]"
"""
FETCH = """\
if not Path("unet-book").exists():
        !git clone --quiet --depth 1 {address} unet-book
    %cd -q unet-book/notebooks"""
REFUSE = """\
raise FileNotFoundError(
        "This notebook needs files of the book: "
        "open it in the folder notebooks of the book's repository."
    )"""
SETUP_TAGS = ["remove-cell", "setup"]
# Before and after a solution's title and its end.
SOLUTION = re.compile(
    r"\n+(?=:::\{solution-(?:start|end)\})"
    r"|(?:(?<=:class: dropdown\n:::)|(?<=\{solution-end\}\n:::))\n+(?=.)",
    re.DOTALL,
)
# Code that the book hides or folds is collapsed in Jupyter too.
HIDING = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
# Two or more parts from the root: /home/name, C:\Users; not https://a/b, not </b>.
ABSOLUTE_PATH = re.compile(
    r"""(?<![\w.:/<~-])/[\w.-]+/[\w.-]+ | \b[A-Za-z]:\\+\w+""", re.VERBOSE
)
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\\\s]+")


class RecordingError(Exception):
    """A page cannot be recorded as it stands."""


def pages() -> list[str]:
    """Return the names of the pages that have code, in alphabetical order."""
    return sorted(
        page.stem
        for page in BOOK.glob("*.md")
        if page.read_text("utf-8").startswith("---\njupytext:")
    )


def read_page(name: str) -> nbformat.NotebookNode:
    """Return book/<name>.md as a notebook that has not been run."""
    page = BOOK / f"{name}.md"
    if not page.exists():
        raise RecordingError(f"no page {page.name}; the pages are {', '.join(pages())}")
    notebook = jupytext.read(page, fmt="md:myst")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    name_cells(notebook)
    for cell in notebook.cells:
        if "outputs_hidden" in cell.metadata.get("jupyter", {}):
            cell.metadata["collapsed"] = True  # its older name, which JupyterLab adds
    return notebook


def tidy(name: str) -> None:
    """Write the page as Jupytext would, its first code cell the one that installs.

    Its text becomes plain Markdown (see readable.py). Metadata gets the order and the
    line breaks that a recording has, and what Jupyter needs to collapse what the book
    hides or folds.
    """
    notebook = read_myst(name)
    address = yaml.safe_load(CONFIG.read_text("utf-8"))["repository"]["url"]
    cells = [cell for cell in split(notebook.cells) if not is_setup(cell)]
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    setup = nbformat.v4.new_code_cell(setup_code(address))
    setup.metadata["tags"] = SETUP_TAGS
    notebook.cells = [*cells[:first], setup, *cells[first:]]
    in_solution = False
    for cell in notebook.cells:
        in_solution = in_solution and not cell.source.startswith(":::{solution-end}")
        hidden = {}
        if in_solution or HIDING & set(cell.metadata.get("tags", [])):
            hidden["source_hidden"] = True
        if in_solution and cell.cell_type == "code":
            hidden["outputs_hidden"] = True
        changed = {"jupyter": hidden or None, "collapsed": None}
        cell.metadata = nbformat.from_dict(in_order(dict(cell.metadata) | changed))
        in_solution = in_solution or cell.source.startswith(":::{solution-start}")
    notebook.cells = readable.to_plain(notebook.cells)
    page = BOOK / f"{name}.md"
    text = jupytext.writes(notebook, fmt="md:myst")
    if text != page.read_text("utf-8"):
        page.write_text(text, "utf-8")


def read_myst(name: str) -> nbformat.NotebookNode:
    """Return a page as the book reads it, its boxes and links as MyST."""
    notebook = read_page(name)
    notebook.cells = [cell for cell in readable.to_myst(notebook.cells) if cell.source]
    return notebook


def split(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Give a solution's title and its end cells, to collapse what is between."""
    parts = []
    for cell in cells:
        sources = SOLUTION.split(cell.source) if cell.cell_type != "code" else []
        if len(sources) > 1:
            parts += [nbformat.v4.new_markdown_cell(source) for source in sources]
        else:
            parts.append(cell)
    return parts


def in_order(value: object) -> object:
    """Sort metadata as a recording's are, and put each text on one line."""
    if isinstance(value, dict):
        items = sorted(value.items())
        return {key: in_order(one) for key, one in items if one is not None}
    return " ".join(value.split()) if isinstance(value, str) else value


def name_cells(notebook: nbformat.NotebookNode) -> None:
    """Give each cell an id made from its text: a new cell leaves the others' alone."""
    taken = set()
    for cell in notebook.cells:
        copies = 0
        while True:
            text = f"{cell.cell_type} {copies} {cell.source}"
            cell.id = hashlib.sha256(text.encode()).hexdigest()[:8]
            if cell.id not in taken:
                break
            copies += 1
        taken.add(cell.id)


def execute(
    notebook: nbformat.NotebookNode,
    environment: dict[str, str],
    kernel: str = "python3",
    folder: Path = NOTEBOOKS,
) -> None:
    """Run all cells in a fresh kernel in a folder; print the progress."""
    folder.mkdir(exist_ok=True)
    total = len(code_cells(notebook))
    done = 0
    begun = time.perf_counter()

    def report(cell: nbformat.NotebookNode, **_: object) -> None:
        nonlocal done, begun
        done += 1
        now = time.perf_counter()
        first_line = cell.source.strip().partition("\n")[0][:50]
        print(f"  {done}/{total}  {now - begun:6.1f} s  {first_line}", flush=True)
        begun = now

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name=kernel,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        on_cell_executed=report,
    )
    client.execute(env=environment)
    # Without what the run added: the kernel's version, the state of controls.
    notebook.metadata = nbformat.from_dict(METADATA)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop from the outputs what a static page cannot show; refuse what it must not."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        drop_live_controls(cell, number)
        for output in cell.outputs:
            if output.output_type == "error":
                raise RecordingError(
                    f"code cell {number} ends in {output.ename}; show a mistake with "
                    "try and except, and print its message"
                )
            if output.output_type == "stream":
                output.text = after_carriage_returns(output.text)
            output.get("metadata", {}).pop("execution", None)
            for text in texts(output):
                if found := machine_path(text):
                    raise RecordingError(
                        f"code cell {number} shows a path of this machine ({found}); "
                        "print a name or a relative path"
                    )


def drop_live_controls(cell: nbformat.NotebookNode, number: int) -> None:
    """Remove what needs a kernel to be seen, where the cell shows more than that."""
    shown = []
    for output in cell.outputs:
        live = output.get("data", {}).pop(WIDGET, None) is not None
        if not live or set(output.data) - {"text/plain"}:
            shown.append(output)
    if cell.outputs and not shown:
        raise RecordingError(
            f"code cell {number} shows a live control alone; a page without a kernel "
            "needs text/html or an image beside it"
        )
    cell.outputs = shown


def after_carriage_returns(text: str) -> str:
    """Return what a terminal shows in the end: of a progress bar, its last state."""
    return "\n".join(line.rstrip("\r").split("\r")[-1] for line in text.split("\n"))


def texts(output: nbformat.NotebookNode) -> list[str]:
    """Return all text of an output, images left out."""
    if output.output_type == "stream":
        return [output.text]
    return [
        EMBEDDED.sub("", str(value))
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/") or kind == "image/svg+xml"
    ]


def machine_path(text: str) -> str | None:
    """Return the first absolute path in the text, None if it has none."""
    found = ABSOLUTE_PATH.search(text)
    return found.group() if found else None


def on_stand_in(notebook: nbformat.NotebookNode) -> bool:
    """Whether a page says, as `data.load_or_stand_in` does, that it had no stacks."""
    return any(
        output.get("text", "").startswith(STAND_IN)
        for cell in code_cells(notebook)
        for output in cell.outputs
    )


def setup_code(address: str) -> str:
    """Return the code of the cell that gets what is missing.

    Args:
        address: of the repository, for `git clone`; if it is empty, the notebook
            has to lie in a clone.
    """
    alone = FETCH.format(address=address) if address else REFUSE
    return SETUP.format(alone=alone).rstrip()


def write(notebook: nbformat.NotebookNode, name: str) -> int:
    """Write notebooks/<name>.ipynb whole or not at all; return its bytes."""
    text = nbformat.writes(notebook) + "\n"
    size = len(text.encode())
    if size > LARGEST:
        raise RecordingError(
            f"the recording has {size:,} bytes, more than {LARGEST:,}; "
            "draw smaller or fewer figures"
        )
    temporary = NOTEBOOKS / f".{name}.ipynb.part"
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, NOTEBOOKS / f"{name}.ipynb")
    finally:
        temporary.unlink(missing_ok=True)
    return size


def record(name: str, check: bool = False) -> None:
    """Execute one page and, unless it is a check, write its recording.

    A check runs on the synthetic stand-in (UNET_BOOK_DATA=synthetic) and writes
    nothing. Raises RecordingError or nbclient's CellExecutionError.
    """
    environment = dict(os.environ)
    # Figures are drawn by the notebook's own backend, as by hand in Jupyter.
    environment.pop("MPLBACKEND", None)
    if check:
        environment["UNET_BOOK_DATA"] = "synthetic"
    else:
        tidy(name)
    notebook = read_page(name)
    print(name, flush=True)
    execute(notebook, environment)
    clean(notebook)
    if not check:
        if on_stand_in(notebook):
            raise RecordingError(
                "it ran on the synthetic stand-in; recordings are of the real stacks: "
                "name their folders in UNET_BOOK_DATA and, for the HeLa cells, in "
                "UNET_BOOK_HELA"
            )
        print(f"  notebooks/{name}.ipynb: {write(notebook, name):,} bytes")


def take_over_text(name: str) -> None:
    """Write changed text into a recording whose code still is the page's.

    The first cell may be renewed: it does nothing where a page is recorded.
    """
    tidy(name)
    page = read_page(name)
    recording = NOTEBOOKS / f"{name}.ipynb"
    if not recording.exists():
        raise RecordingError("there is no recording yet; record it without --text")
    recorded = code_cells(nbformat.read(recording, as_version=4))
    written = code_cells(page)
    if sources(written) != sources(recorded):
        raise RecordingError("its code has changed; record it without --text")
    for cell, run in zip(written, recorded, strict=True):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    print(f"{name}\n  notebooks/{name}.ipynb: {write(page, name):,} bytes")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_setup(cell: nbformat.NotebookNode) -> bool:
    return cell.metadata.get("tags") == SETUP_TAGS


def sources(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Return the code of the cells, of the first that installs only its place."""
    return ["" if is_setup(cell) else cell.source for cell in cells]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="pages; without a name, all")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--check", action="store_true", help="run on synthetic stacks, write nothing"
    )
    mode.add_argument(
        "--text", action="store_true", help="keep the outputs: only text has changed"
    )
    options = parser.parse_args()
    failed = []
    for name in options.names or pages():
        try:
            if options.text:
                take_over_text(name)
            else:
                record(name, check=options.check)
        except (RecordingError, CellExecutionError) as error:
            print(f"{name} was not recorded: {error}", file=sys.stderr)
            failed.append(name)
    if failed:
        print("Not recorded:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
