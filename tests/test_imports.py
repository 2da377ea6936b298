"""Imports run one way, the core needs no extras, and nothing is unpickled."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import record

import unet_lib

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(unet_lib.__path__, "unet_lib.")
)
SOURCES = sorted(
    [
        *ROOT.glob("unet_lib/**/*.py"),
        *ROOT.glob("book/**/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
    ]
)


def test_imports_run_one_way():
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


LIBRARY = sorted(ROOT.glob("unet_lib/**/*.py"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text("utf-8")
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            last = node.body[0] if ast.get_docstring(node) else node
            begun = last.end_lineno if last is not node else node.lineno - 1
            assert node.end_lineno - begun <= 60, node.name


NAMES = (
    "TrainConfig UNet evaluate fit load_network load_pretrained predict save_network"
)


def test_the_package_shows_its_names_without_torch():
    code = (
        "import sys, unet_lib\n"
        f"assert set({NAMES.split()!r}) < set(dir(unet_lib))\n"
        "assert 'torch' not in sys.modules\n"
        "import unet_lib.predict\n"
        f"for name in {NAMES.split()!r}:\n"
        "    assert callable(getattr(unet_lib, name)), name\n"
        "from importlib.metadata import version\n"
        "assert unet_lib.__version__ == version('unet-lib')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


EXTRAS = (
    *("elasticdeform", "skimage", "pooch", "IPython", "ipywidgets", "matplotlib"),
    *("onnx", "onnxscript", "onnxruntime", "bioimageio", "pydantic"),
    *("zarr", "ome_zarr", "dask"),
)
BAR = f"""
import importlib.abc, sys

class Bar(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ImportError(name + " is barred")

sys.meta_path.insert(0, Bar())
"""


def test_the_core_imports_without_extras():
    core = [name for name in MODULES if not name.startswith("unet_lib.plot")]
    code = f"{BAR}\nimport unet_lib, {', '.join(core)}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_bar_bars():
    code = f"{BAR}\nimport matplotlib.pyplot"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "matplotlib is barred" in run.stderr


# Reading these runs code out of a file, or may.
PICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "read_pickle"}


def unpickling(source):
    """Return the places in the source that read or write Python objects as such."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
            names |= {f"{node.module}.{alias.name}" for alias in node.names} & LOADERS
        elif isinstance(node, ast.Attribute):
            names = {ast.unparse(node), node.attr} & LOADERS
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            never = isinstance(node.value, ast.Constant) and node.value.value is False
            names = set() if never else {"allow_pickle"}
        else:
            continue
        found += [
            f"line {getattr(node, 'lineno', '?')}: {name}"
            for name in names & (PICKLERS | LOADERS | {"allow_pickle"})
        ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles(path):
    assert unpickling(path.read_text("utf-8")) == []


@pytest.mark.parametrize("name", record.pages())
def test_no_page_unpickles(name):
    page = jupytext.read(record.BOOK / f"{name}.md", fmt="md:myst")
    for cell in record.code_cells(page):
        code = re.sub(r"(?m)^( *)[%!].*", r"\1pass", cell.source)
        assert unpickling(code) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load('a')",
        "from torch import load",
        "import numpy\nnumpy.load('a', allow_pickle=True)",
        "import pandas\npandas.read_pickle('a')",
    ],
)
def test_unpickling_is_seen(source):
    assert unpickling(source)
