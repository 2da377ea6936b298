"""What the tests share."""

import os

import hypothesis
import matplotlib
import pytest
import torch

# Windows of figures are not opened. Set here and not in the environment, where
# the kernels of the notebooks would take it over.
os.environ.pop("MPLBACKEND", None)
matplotlib.use("Agg")

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
def isbi2012():
    """The real stacks, where UNET_BOOK_DATA names their folder."""
    if os.environ.get("UNET_BOOK_DATA", "synthetic") == "synthetic":
        pytest.skip("UNET_BOOK_DATA names no folder with the ISBI 2012 stacks")
    from unet_lib import data

    return data.load_isbi2012(os.environ["UNET_BOOK_DATA"])
