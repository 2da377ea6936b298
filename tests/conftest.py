"""What the tests share."""

import os
import subprocess
import sys

import hypothesis
import matplotlib
import pytest
import record
import torch
from filelock import FileLock

# Windows of figures are not opened. Set here and not in the environment, where
# the kernels of the notebooks would take it over.
os.environ.pop("MPLBACKEND", None)
matplotlib.use("Agg")

# As many processes as cores (`pytest -n auto`): one thread each, in kernels too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# Nothing is timed, and a run finds what the last one found.
hypothesis.settings.register_profile("book", deadline=None, derandomize=True)
hypothesis.settings.load_profile("book")


@pytest.fixture(scope="session")
def gpu():
    """The GPU, where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    pytest.skip("no GPU that PyTorch can use")


@pytest.fixture(scope="session")
def build():
    """Builds a book; importing torch or anything else that runs pages is barred."""

    def run(book, output, barred):
        barred.mkdir()
        for module in ("torch", "unet_lib", "matplotlib"):
            (barred / f"{module}.py").write_text(
                f"raise ImportError('the book is built without {module}')\n"
            )
        main = "from jupyter_book.cli.main import main; main()"
        command = [sys.executable, "-c", main, "build", str(book), "-W"]
        command += ["--keep-going", "--path-output", str(output)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(barred), "NO_COLOR": "1"},
        )

    return run


@pytest.fixture(scope="session")
def site(build, tmp_path_factory):
    """The folder of the built book, built once for all processes of a run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    built = shared / "site"
    with FileLock(shared / "site.lock"):
        if not built.exists():
            output = tmp_path_factory.mktemp("book")
            run = build(record.BOOK, output, output / "barred")
            assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
            (output / "_build" / "html").rename(built)
    return built


@pytest.fixture(scope="session")
def isbi2012():
    """The real stacks, where UNET_BOOK_DATA names their folder."""
    if os.environ.get("UNET_BOOK_DATA", "synthetic") == "synthetic":
        pytest.skip("UNET_BOOK_DATA names no folder with the ISBI 2012 stacks")
    from unet_lib import data

    return data.load_isbi2012(os.environ["UNET_BOOK_DATA"])


@pytest.fixture(scope="session")
def hela():
    """The frames of HeLa cells, where UNET_BOOK_HELA names their folder."""
    if not os.environ.get("UNET_BOOK_HELA"):
        pytest.skip("UNET_BOOK_HELA names no folder with the frames of HeLa cells")
    from unet_lib import data

    return data.load_dic_hela()
