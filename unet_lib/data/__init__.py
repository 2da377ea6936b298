"""The ISBI 2012 stacks as arrays: load, split, export.

Built in :doc:`data`.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image

from unet_lib._checks import check_binary, check_images
from unet_lib.data import isbi2012
from unet_lib.data.dic_hela import load_dic_hela as load_dic_hela
from unet_lib.data.dic_hela import load_hela_or_stand_in as load_hela_or_stand_in
from unet_lib.data.dic_hela import synthetic_cells as synthetic_cells
from unet_lib.data.isbi2012 import VARIABLE, CacheError, DataError, DownloadError
from unet_lib.data.synthetic import kept_em
from unet_lib.data.synthetic import synthetic_em as synthetic_em

__all__ = [
    "VARIABLE",
    "CacheError",
    "DataError",
    "DownloadError",
    "Stacks",
    "export_slices",
    "folds",
    "load_dic_hela",
    "load_hela_or_stand_in",
    "load_isbi2012",
    "load_or_stand_in",
    "synthetic_cells",
    "synthetic_em",
    "synthetic_stacks",
]


@dataclass(frozen=True)
class Stacks:
    """The stacks as arrays, ``(slices, height, width)`` each.

    Images are float32 from 0 to 1; labels are uint8, 1 = cell and 0 = membrane.
    `test_labels` is None where they are not at hand. `source` is ``"ISBI 2012"`` or
    ``"synthetic"``.

    Raises:
        ValueError: for anything else, naming the stack.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray | None
    source: str

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            shape = np.shape(getattr(self, f"{name}_images"))
            self._check(f"{name}_images", check_images, shape)
            if name == "train" or self.test_labels is not None:
                self._check(f"{name}_labels", check_binary, shape)

    def _check(self, name: str, check: Callable, shape: tuple[int, ...]) -> None:
        stack = getattr(self, name)
        array = isinstance(stack, np.ndarray) and stack.ndim == 3 and stack.size > 0
        if not array or stack.shape != shape:
            like = ", of the shape of its images" if "labels" in name else ""
            raise ValueError(
                f"Expected {name} as an array (slices, height, width){like}, got "
                f"{type(stack).__name__} of shape {np.shape(stack)}."
            )
        object.__setattr__(self, name, check(stack, name))


def load_isbi2012(folder: str | Path | None = None) -> Stacks:
    """Load the ISBI 2012 stacks and check every pixel.

    They come from `folder`; else from the folder that the environment variable
    ``UNET_BOOK_DATA`` names; else from the user's cache; else from the organizers'
    zip, which is then kept in the cache.
    Source: https://imagej.net/events/isbi-2012-segmentation-challenge.

    Args:
        folder: that holds the organizers' TIFF files.

    Returns:
        `Stacks`.

    Raises:
        DataError: for a file that is missing, unreadable or other than published,
            naming it.
        DownloadError: where the zip cannot be fetched.
    """
    if folder is None:
        folder = os.environ.get(VARIABLE)
        if folder == "synthetic":
            raise DataError(
                f"{VARIABLE} is the word 'synthetic', which asks for the stand-in: "
                "call load_or_stand_in() or `unet-lib data --synthetic`; or set "
                f"{VARIABLE} to the folder of the ISBI 2012 stacks."
            )
    files = isbi2012.read_folder(folder) if folder else isbi2012.read_or_fetch()
    test_labels = files.get(isbi2012.TEST_LABELS)
    # Labels are 0 and 255 in the files, 0 and 1 in the arrays.
    return Stacks(
        train_images=files["train-volume.tif"] / np.float32(255),
        train_labels=files["train-labels.tif"] // 255,
        test_images=files["test-volume.tif"] / np.float32(255),
        test_labels=None if test_labels is None else test_labels // 255,
        source="ISBI 2012",
    )


def load_or_stand_in() -> Stacks:
    """Load the real stacks where they are to be had, else the stand-in.

    Prints one line where it is the stand-in. Where ``UNET_BOOK_DATA`` is the word
    ``synthetic``, nothing else is tried.

    Returns:
        `Stacks`.

    Raises:
        DataError: where a folder or the cache holds a wrong file: then there is no
            silent stand-in.
    """
    if os.environ.get(VARIABLE) == "synthetic":
        stacks = synthetic_stacks()
        reason = f"as {VARIABLE} asks"
    else:
        try:
            stacks = load_isbi2012()
        except CacheError as problem:
            stacks = synthetic_stacks()
            reason = f"since the real stacks cannot be kept ({problem.__cause__})"
        except DownloadError as problem:
            stacks = synthetic_stacks()
            reason = "since the real stacks are not here and could not be fetched"
            if isinstance(problem.__cause__, ModuleNotFoundError):
                reason = "since pooch, which fetches the real stacks, is not installed"
    if stacks.source == "synthetic":
        print(
            f"Data: the synthetic stand-in, {reason}. Pictures and numbers differ "
            "from the book's."
        )
    return stacks


def synthetic_stacks() -> Stacks:
    """Return `Stacks` of `synthetic_em`, to stand in for ISBI 2012's."""
    train_images, train_labels = kept_em(seed=0)
    test_images, _ = kept_em(seed=1)
    return Stacks(train_images, train_labels, test_images, None, "synthetic")


def folds(slices: int = 30, k: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split slices into `k` contiguous blocks, each held out once.

    Neighboring slices look alike, so a random split would test on near copies
    of what it trained on.

    Args:
        slices: how many there are.
        k: how many blocks; their sizes differ by one slice at the most.

    Returns:
        A list of `k` pairs, training indices and held-out indices, int arrays in
        rising order.

    Raises:
        ValueError: unless 2 <= k <= slices.

    Example:
        >>> training, held_out = folds(slices=30, k=5)[4]
        >>> held_out
        array([24, 25, 26, 27, 28, 29])
    """
    whole = isinstance(k, Integral) and isinstance(slices, Integral)
    if not whole or not 2 <= k <= slices:
        raise ValueError(
            f"folds needs integers, 2 <= k <= slices; got k={k} and slices={slices}. "
            "Choose k so that every block has a slice and one block is left to train."
        )
    everything = np.arange(slices)
    return [
        (np.setdiff1d(everything, held_out), held_out)
        for held_out in np.array_split(everything, k)
    ]


def export_slices(stacks: Stacks, folder: str | Path) -> None:
    """Write the stacks as one 8-bit PNG a slice, for other tools.

    They go to ``train/images``, ``train/labels``, ``test/images`` and, where present,
    ``test/labels``, named ``00.png``, ``01.png`` and so on; labels are 255 = cell and
    0 = membrane. All slices are there at the end, or nothing is.

    Args:
        stacks: `Stacks`.
        folder: a new one, or an empty one.

    Raises:
        ValueError: for anything but `Stacks`.
        FileExistsError: where `folder` is a file or is not empty.
    """
    if not isinstance(stacks, Stacks):
        raise ValueError(
            f"Expected Stacks, got {type(stacks).__name__}: load_isbi2012() gives them."
        )
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there already and is not an empty folder. Name a new "
            "folder, or empty this one; nothing was written."
        )
    parts = {
        "train/images": np.rint(255 * stacks.train_images),
        "train/labels": 255 * stacks.train_labels,
        "test/images": np.rint(255 * stacks.test_images),
    }
    if stacks.test_labels is not None:
        parts["test/labels"] = 255 * stacks.test_labels
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as work:
        whole = Path(work) / "slices"
        for part, stack in parts.items():
            (whole / part).mkdir(parents=True)
            for number, image in enumerate(stack.astype(np.uint8)):
                path = whole / part / f"{number:02d}.png"
                Image.fromarray(image).save(path)
        if folder.exists():
            folder.rmdir()  # empty; Windows would not replace it
        os.replace(whole, folder)
