"""A chapter opened elsewhere: where its links lead, what its first cell installs."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import launch
import pytest
import record

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "address",
    ["https://github.com/ada/unet-book", "https://github.com/ada/unet-book.git/"],
)
def test_a_repository_on_github_is_opened_on_colab_and_binder(address):
    assert launch.links(address, "main", "data") == {
        "Colab": "https://colab.research.google.com/github/ada/unet-book/blob/main/"
        "notebooks/data.ipynb",
        "Binder": "https://mybinder.org/v2/git/"
        "https%3A%2F%2Fgithub.com%2Fada%2Funet-book/main"
        "?urlpath=lab/tree/notebooks/data.ipynb",
    }


def test_a_repository_elsewhere_is_opened_on_binder_alone():
    links = launch.links("https://example.org/a/unet-book", "a/b", "data")
    assert list(links) == ["Binder"]
    assert "/https%3A%2F%2Fexample.org%2Fa%2Funet-book/a%2Fb?" in links["Binder"]


def test_the_first_cell_fetches_the_repository_if_it_has_an_address():
    source = record.setup_code("https://example.org/unet-book")
    assert "git clone --quiet --depth 1 https://example.org/unet-book " in source
    assert "git" not in record.setup_code("")
    for address in ("", "https://example.org/unet-book"):
        assert "%pip install" in record.setup_code(address)


PAGE = """\
# Page

```{code-cell} ipython3
:tags: [hide-input]

1 + 1
```
"""


def test_the_first_cell_has_the_address_of_the_setting(tmp_path, monkeypatch):
    page, config = tmp_path / "page.md", tmp_path / "_config.yml"
    page.write_text(PAGE, "utf-8")
    monkeypatch.setattr(record, "BOOK", tmp_path)
    monkeypatch.setattr(record, "CONFIG", config)
    for address in ("", "https://example.org/a", "https://example.org/b"):
        config.write_text(f'repository:\n  url: "{address}"\n', "utf-8")
        for _ in range(2):  # the second time changes nothing
            record.tidy("page")
            first, other = record.code_cells(record.read_page("page"))
            assert first.source == record.setup_code(address)
            assert record.is_setup(first)
            assert other.source == "1 + 1"


def run_cell(python, source, folder, environment):
    """Run a cell with this Python's IPython, as a notebook in the folder would."""
    script = folder / "cell.ipy"
    script.write_text(source)
    return subprocess.run(
        [python, "-m", "IPython", "--quick", "--no-term-title", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def installed(tmp_path):
    """The environment of a process that can import unet_lib."""
    return os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}


def book_in(folder):
    """A folder like the book's as far as the first cell looks; where notebooks lie."""
    (folder / "unet_lib").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    return folder / "notebooks"


def test_the_first_cell_does_nothing_where_the_package_is(tmp_path, installed):
    # pip would fail here: there is nothing to install in the folder above.
    source = record.setup_code("https://example.org/nothing")
    run = run_cell(sys.executable, source, book_in(tmp_path), installed)
    assert run.returncode == 0
    assert run.stdout + run.stderr == ""


def test_the_first_cell_finds_what_an_earlier_session_fetched(tmp_path, installed):
    """As after a restart on Colab: unet_lib is there, but the folder is another one."""
    book_in(tmp_path / "unet-book")
    source = record.setup_code("https://example.org/nothing")
    code = f"{source}\n\nprint(Path('../unet_lib').exists())"
    run = run_cell(sys.executable, code, tmp_path, installed)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"


@pytest.mark.parametrize("missing", [True, False])
def test_a_notebook_alone_says_what_it_needs(tmp_path, installed, missing):
    if missing:
        (tmp_path / "unet_lib.py").write_text("raise ModuleNotFoundError('unet_lib')")
    run = run_cell(sys.executable, record.setup_code(""), tmp_path, installed)
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert "open it in the folder notebooks of the book's repository" in said
    assert "pip" not in said.partition("FileNotFoundError: This")[2]


# What Colab has, as google-colab requires it; a notebook must leave it in its place.
COLAB = ["ipython==7.34.0", "ipykernel==6.17.1", "ipywidgets==7.7.1"]


@pytest.fixture
def elsewhere(tmp_path):
    """An environment that has `packages` alone, and a repository to fetch the book of.

    Calling it gives the environment's Python, the variables of its processes, and the
    repository's address.
    """
    if not os.environ.get("UNET_BOOK_BARE"):
        pytest.skip("it takes minutes: set the variable UNET_BOOK_BARE to run it")

    def make(packages):
        bare = tmp_path / "bare"
        venv.create(bare, with_pip=True)
        python = bare / ("Scripts" if os.name == "nt" else "bin") / "python"
        variables = os.environ | {"IPYTHONDIR": str(tmp_path)}
        variables["UNET_BOOK_DATA"] = "synthetic"
        variables.pop("PYTHONPATH", None)
        install = [python, "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(install, env=variables).returncode:
            pytest.skip("no package registry can be reached")
        repository = tmp_path / "repository"
        ignored = shutil.ignore_patterns(".git", ".*cache", ".venv", "_build", "runs")
        shutil.copytree(ROOT, repository, ignore=ignored)  # git leaves out the data
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            subprocess.run([*git, *command], cwd=repository, check=True)
        return python, variables, repository.as_uri()

    return make


@pytest.mark.network
def test_the_first_cell_makes_an_environment_run_the_book(tmp_path, elsewhere):
    python, variables, address = elsewhere(["ipython"])
    folder = tmp_path / "alone"
    folder.mkdir()
    code = "from unet_lib import data\ndata.load_or_stand_in()\nprint(data.__file__)"
    source = f"{record.setup_code(address)}\n\n{code}"
    run = run_cell(python, source, folder, variables | {"MPLBACKEND": "agg"})
    assert run.returncode == 0, run.stderr
    assert record.STAND_IN in run.stdout
    assert str(tmp_path / "bare") in run.stdout
    assert (folder / "unet-book" / "notebooks" / "index.ipynb").exists()


@pytest.mark.network
def test_every_notebook_runs_alone_on_colab(tmp_path, monkeypatch, elsewhere):
    """Each in a folder of its own, in a kernel with Colab's versions of its parts."""
    python, variables, address = elsewhere(COLAB)
    kernel = tmp_path / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": command, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(specification), "utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    moved = 0
    for name in record.pages():
        notebook = record.read_page(name)
        record.code_cells(notebook)[0].source = record.setup_code(address)
        folder = tmp_path / name
        folder.mkdir()
        record.execute(notebook, variables, "colab", folder)
        outputs = [one for cell in record.code_cells(notebook) for one in cell.outputs]
        moved += sum(record.WIDGET in one.get("data", {}) for one in outputs)
    assert moved  # ipywidgets' controls, as a live notebook shows them
    found = subprocess.run(
        [python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {*COLAB} <= {*found}
