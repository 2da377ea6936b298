"""The ISBI 2012 stacks as arrays: load, split, export.

Built in :doc:`data`.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unet_lib._checks import check_binary, check_images, is_whole
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
    """The four stacks as arrays, each ``(slices, height, width)``.

    Images are float32 from 0 to 1; labels are uint8, 1 = cell and 0 = membrane.
    `test_labels` is None if they are not available. `source` is ``"ISBI 2012"`` or
    ``"synthetic"``.

    Raises:
        ValueError: if a stack is anything else; the message names it.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray | None
    source: str

    def __post_init__(self) -> None:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            stack, labels = getattr(self, name), name.endswith("labels")
            if name == "test_labels" and stack is None:
                continue
            shape = np.shape(getattr(self, name.replace("labels", "images")))
            array = isinstance(stack, np.ndarray) and stack.ndim == 3 and stack.size > 0
            if not array or stack.shape != shape:
                like = ", of the shape of its images" * labels
                raise ValueError(
                    f"Expected {name} as an array (slices, height, width){like}, got "
                    f"{type(stack).__name__} of shape {np.shape(stack)}."
                )
            check = check_binary if labels else check_images
            object.__setattr__(self, name, check(stack, name))


def load_isbi2012(folder: str | Path | None = None) -> Stacks:
    """Load the ISBI 2012 stacks and check every pixel.

    The files are read from `folder`, or else from the folder that the environment
    variable ``UNET_BOOK_DATA`` names, or else from the user's cache. If none of these
    has them, the organizers' zip is downloaded and kept in the cache.
    Source: https://imagej.net/events/isbi-2012-segmentation-challenge.

    Args:
        folder: the folder with the organizers' TIFF files.

    Returns:
        `Stacks`.

    Raises:
        DataError: if a file is missing, unreadable or differs from what was published;
            the message names it.
        DownloadError: if the zip cannot be downloaded.
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
    """Load the real stacks if they are available, otherwise the stand-in.

    If it is the stand-in, one line is printed. If ``UNET_BOOK_DATA`` is the word
    ``synthetic``, the stand-in is used without looking for the real stacks.

    Returns:
        `Stacks`.

    Raises:
        DataError: if a folder or the cache holds a wrong file. In this case the
            stand-in is not used.
    """
    reason = f"as {VARIABLE} asks"
    if os.environ.get(VARIABLE) != "synthetic":
        try:
            return load_isbi2012()
        except CacheError as problem:
            reason = f"since the real stacks cannot be kept ({problem.__cause__})"
        except DownloadError as problem:
            reason = "since the real stacks are not here and could not be fetched"
            if isinstance(problem.__cause__, ModuleNotFoundError):
                reason = "since pooch, which fetches the real stacks, is not installed"
    print(
        f"Data: the synthetic stand-in, {reason}. Pictures and numbers differ from the "
        "book's."
    )
    return synthetic_stacks()


def synthetic_stacks() -> Stacks:
    """Return `Stacks` drawn by `synthetic_em`, a stand-in for those of ISBI 2012."""
    train_images, train_labels = kept_em(seed=0)
    test_images, _ = kept_em(seed=1)
    return Stacks(train_images, train_labels, test_images, None, "synthetic")


def folds(slices: int = 30, k: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split slices into `k` contiguous blocks, each held out once.

    Neighboring slices look alike, so a random split would test on near copies of the
    slices that it trained on.

    Args:
        slices: the number of slices.
        k: the number of blocks; their sizes differ by at most one slice.

    Returns:
        A list of `k` pairs: the training indices and the held-out indices, both int
        arrays in ascending order.

    Raises:
        ValueError: unless 2 <= k <= slices.

    Example:
        >>> training, held_out = folds(slices=30, k=5)[4]
        >>> held_out
        array([24, 25, 26, 27, 28, 29])
    """
    if not is_whole(k) or not is_whole(slices) or not 2 <= k <= slices:
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
    """Write the stacks as 8-bit PNG files, one per slice, for other tools.

    The files go to ``train/images``, ``train/labels``, ``test/images`` and, if there
    are test labels, ``test/labels``. They are named ``00.png``, ``01.png`` and so on;
    labels are 255 = cell and 0 = membrane. Either all slices are written, or none.

    Args:
        stacks: the stacks to write.
        folder: a folder that is new or empty.

    Raises:
        ValueError: if `stacks` is not a `Stacks`.
        FileExistsError: if `folder` is a file or is not empty.
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
