"""The HeLa cells of the paper's second experiment, and a stand-in for them.

DIC-C2DH-HeLa is a data set of the Cell Tracking Challenge (Ulman et al. 2017, Maška et
al. 2023; images by G. van Cappellen, Erasmus MC): HeLa cells on flat glass under
differential interference contrast (DIC), 512 x 512 pixels of 0.19 µm, two sequences of
84 frames, 10 minutes apart. Of these, 18 frames have reference masks. Used in
:doc:`touching-cells`.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_lib.data.isbi2012 import VARIABLE, DataError
from unet_lib.data.synthetic import check_drawn
from unet_lib.data.tiff import read_tiff

__all__ = [
    "HELA_VARIABLE",
    "Frames",
    "load_dic_hela",
    "load_hela_or_stand_in",
    "synthetic_cells",
]

ADDRESS = "https://data.celltrackingchallenge.net/training-datasets/DIC-C2DH-HeLa.zip"
HELA_VARIABLE = "UNET_BOOK_HELA"
# The frames with masks, in the order of time.
FRAMES = {
    "01": (2, 5, 21, 31, 33, 34, 39, 54, 67),
    "02": (6, 7, 14, 27, 34, 38, 42, 61, 67),
}
# SHA-256 of the decoded pixels of a sequence's frames, one after the other: images are
# uint8, masks uint16, little endian.
PIXELS_SHA256 = {
    "images-01": "bdead1e443d94be2df19e129e3916a7d92cb9803bc56fbb5b6fc88869ac8f59a",
    "masks-01": "9df6c4e57a4b10ea7c07670cbbb31eca579a0ac8ad1682d79944b6db7b0ddeb1",
    "images-02": "142e4fbc587b30ff3374d6ad736ee04e3e848133a79634290e796f5f8883ccce",
    "masks-02": "25036281a797df9b07190acabb8ce520a6fa7573dbb59820b2882dd5f7e3a3d2",
}
Boxes = dict[tuple[str, int], list[tuple[int, int, int, int]]]
# Where cells are seen that have no mask: our judgment by eye, made for this book on all
# 18 frames at twice their size before any network was trained on them. Frame 67 of 01
# has masks for 3 of about a dozen cells; elsewhere it is cells at the edge of the image
# that are left out. Of each box (top, left, bottom, right) in pixels, what has no mask
# is unknown.
WITHOUT_MASK: Boxes = {
    ("01", 2): [(0, 115, 25, 285)],
    ("01", 5): [(0, 115, 25, 255)],
    ("01", 21): [(0, 125, 50, 270), (0, 360, 65, 512)],
    ("01", 31): [(0, 120, 60, 295), (0, 370, 60, 512)],
    ("01", 33): [(0, 120, 75, 300), (0, 370, 60, 512)],
    ("01", 34): [(0, 120, 75, 300), (0, 370, 75, 512), (30, 495, 110, 512)],
    ("01", 39): [(0, 120, 80, 320), (0, 370, 70, 512)],
    ("01", 54): [(0, 110, 50, 320)],
    ("01", 67): [(0, 0, 512, 512)],
    ("02", 6): [(45, 455, 135, 512)],
    ("02", 7): [(0, 110, 60, 240), (30, 455, 120, 512)],
    ("02", 14): [(0, 105, 65, 240), (40, 495, 150, 512)],
    ("02", 34): [(0, 0, 25, 225)],
    ("02", 42): [(0, 0, 140, 75), (0, 155, 95, 270)],
    ("02", 61): [(0, 455, 65, 512), (440, 50, 512, 220)],
    ("02", 67): [(430, 40, 512, 240)],
}
# Pixels around a mask that are background whatever lies farther out: the bright and
# dark seam of a cell's edge under DIC is about 1 µm wide, which is also the paper's
# sigma. A neighbor without a mask loses no more than its own seam to it.
SEAM = 5


class Frames(NamedTuple):
    """Frames with the masks of their cells.

    `source` is ``"DIC-C2DH-HeLa"`` or ``"synthetic"``.
    """

    images: np.ndarray  # (frames, height, width), float32, 0 to 1
    # The same shape, int32: cells from 1 on, 0 background, -1 unknown.
    labels: np.ndarray
    sequences: np.ndarray  # (frames,): "01" or "02"
    numbers: np.ndarray  # (frames,): number of the frame in its sequence, from 0
    source: str = "DIC-C2DH-HeLa"


def load_dic_hela(folder: str | Path | None = None) -> Frames:
    """Load the 18 frames of DIC-C2DH-HeLa that have masks, and check every pixel.

    They are read from `folder`, or from the folder that the environment variable
    ``UNET_BOOK_HELA`` names. This is either the folder that the challenge's zip unpacks
    to, with ``01/t002.tif`` and ``01_GT/SEG/man_seg002.tif``, or one with the frames as
    stacks, ``images-01.tif`` and ``masks-01.tif``. The book does not download them. The
    data are free for use if the challenge is cited; source:
    https://celltrackingchallenge.net.

    Args:
        folder: the folder that holds the files.

    Returns:
        `Frames`: 9 of sequence 01, then 9 of sequence 02, each in the order of time.
        Where we saw cells without a mask, judging by eye, the pixels outside of masks
        and more than 5 pixels away from the nearest one are -1, unknown.

    Raises:
        DataError: if no folder is named, or if a file is missing, unreadable or differs
            from what was published; the message says which.
    """
    named = folder or os.environ.get(HELA_VARIABLE)
    if not named:
        raise DataError(
            f"The HeLa cells are not here: download and unpack {ADDRESS}, and name its "
            f"folder DIC-C2DH-HeLa, as argument or in {HELA_VARIABLE}."
        )
    place = Path(named).expanduser()
    images, masks = (
        np.concatenate([_stack(place, kind, sequence) for sequence in FRAMES])
        for kind in ("images", "masks")
    )
    return _frames(images / np.float32(255), masks, WITHOUT_MASK, "DIC-C2DH-HeLa")


def load_hela_or_stand_in() -> Frames:
    """Load the HeLa frames if ``UNET_BOOK_HELA`` names them, otherwise a stand-in.

    If it is the stand-in, one line is printed. It consists of `synthetic_cells` with
    the sizes and numbers of the real frames, and frame 67 of sequence 01 has only 3
    masks. If ``UNET_BOOK_DATA`` is the word ``synthetic``, the stand-in is always used.

    Returns:
        `Frames`.

    Raises:
        DataError: if the folder that is named holds a wrong file. In this case the
            stand-in is not used.
    """
    if os.environ.get(VARIABLE) == "synthetic":
        reason = f"as {VARIABLE} asks"
    elif os.environ.get(HELA_VARIABLE):
        return load_dic_hela()
    else:
        reason = f"since {HELA_VARIABLE} names no folder of the HeLa cells"
    print(
        f"Data: the synthetic stand-in, {reason}. Pictures and numbers differ from the "
        "book's."
    )
    images, labels = synthetic_cells(sum(map(len, FRAMES.values())), 512)
    partly = labels[len(FRAMES["01"]) - 1]  # frame 67
    partly[partly > 3] = 0
    boxes = {("01", 67): WITHOUT_MASK["01", 67]}
    return _frames(images, labels, boxes, "synthetic")


def _frames(images: np.ndarray, masks: np.ndarray, boxes: Boxes, source: str) -> Frames:
    """Frames of which what is inside the boxes and not near a cell is -1."""
    names = [(one, number) for one, all_ in FRAMES.items() for number in all_]
    labels = masks.astype(np.int32)
    for mask, name in zip(labels, names, strict=True):
        far = ndimage.distance_transform_edt(mask == 0) > SEAM
        for top, left, bottom, right in boxes.get(name, []):
            inside = np.s_[top:bottom, left:right]
            mask[inside][far[inside]] = -1
    sequences, numbers = map(np.array, zip(*names, strict=True))
    return Frames(images, labels, sequences, numbers, source)


def _stack(folder: Path, kind: str, sequence: str) -> np.ndarray:
    """The frames of a sequence, from one file or from one file per frame."""
    files = [folder / f"{kind}-{sequence}.tif"]
    if not files[0].exists():
        start = f"{sequence}/t" if kind == "images" else f"{sequence}_GT/SEG/man_seg"
        files = [folder / f"{start}{n:03d}.tif" for n in FRAMES[sequence]]
    remedy = f"Get {ADDRESS}, unpack it, and name its folder, as argument or in "
    remedy += f"{HELA_VARIABLE}."
    try:
        parts = [read_tiff(file) for file in files]
    except (OSError, ValueError) as problem:
        raise DataError(
            f"{folder} has no readable {kind} of sequence {sequence} ({problem}). "
            f"{remedy}"
        ) from problem
    pixels = [part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts]
    found = hashlib.sha256(b"".join(pixels)).hexdigest()
    if found != PIXELS_SHA256[f"{kind}-{sequence}"]:
        raise DataError(
            f"The {kind} of sequence {sequence} in {folder} differ from those "
            f"published: expected SHA-256 {PIXELS_SHA256[f'{kind}-{sequence}']} of the "
            f"decoded pixels, found {found}. {remedy}"
        )
    return np.concatenate([part.reshape(-1, 512, 512) for part in parts])


def synthetic_cells(
    slices: int = 8, size: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of round cells that touch, with a number for each cell.

    Cells have a diameter of about a sixth of the image and wavy outlines, and they form
    one crowd, in which they flatten against one another. As under DIC, light comes from
    the side: an edge is bright on one side and dark on the other, and the inside is
    grainy. The same arguments give the same images. Made for this project.

    Args:
        slices: how many images to draw, each with cells of its own.
        size: height and width of an image, 64 at least.
        seed: seed of the random generator.

    Returns:
        Images and labels, both ``(slices, size, size)``. Images are float32 from 0 to
        1; labels are int32, 0 = background, cells from 1 on, without gaps between
        those that touch.

    Raises:
        ValueError: if an argument is not an integer, or is below these bounds.
    """
    check_drawn("synthetic_cells", 64, slices, size, seed)
    rng = np.random.default_rng(seed)
    labels = np.stack([_crowd(rng, size) for _ in range(slices)])
    images = np.stack([_under_dic(rng, one) for one in labels])
    return images, labels


def _crowd(rng: np.random.Generator, size: int) -> np.ndarray:
    """Number the pixels of cells; a pixel that several reach goes to the nearest."""
    radius = size / 12
    centers = [rng.uniform(0.3, 0.7, 2) * size]
    for _ in range(300):  # a new cell beside an old one, closer than two radii
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 1.9) * radius
        beside = centers[rng.integers(len(centers))]
        center = beside + distance * np.array([np.sin(angle), np.cos(angle)])
        apart = min(np.hypot(*(center - one)) for one in centers)
        inside = (center > 0).all() and (center < size).all()
        if inside and apart > 1.5 * radius and len(centers) < 20:
            centers.append(center)
    rows, columns = np.indices((size, size))
    reach = []
    for y, x in centers:
        angle = np.arctan2(rows - y, columns - x)
        waves = sum(
            rng.normal(0, 0.05) * np.sin(k * angle + rng.uniform(0, 2 * np.pi))
            for k in (2, 3, 5)
        )
        wide = radius * rng.uniform(0.85, 1.15) * (1 + waves)
        reach.append(np.hypot(rows - y, columns - x) / wide)
    nearest = np.argmin(reach, axis=0)
    return np.where(np.min(reach, axis=0) < 1, nearest + 1, 0).astype(np.int32)


def _under_dic(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Light from the side on rounded, grained cells, 0 to 1."""
    height = np.zeros(labels.shape)
    for number in range(1, labels.max() + 1):
        inside = labels == number
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        height += inside * np.sqrt(depth.clip(0, 12))
    grains = ndimage.gaussian_filter(rng.standard_normal(labels.shape), 1.5)
    height = ndimage.gaussian_filter(height, 1) + 1.5 * grains * (labels > 0)
    light = sum(np.gradient(height))
    noise = 0.02 * rng.standard_normal(labels.shape)
    return (0.46 + 0.12 * light + noise).clip(0, 1).astype(np.float32)
