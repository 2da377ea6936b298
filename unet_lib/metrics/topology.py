"""Thinning and warping: the parts of the challenge's metrics that go pixel by pixel.

Both are sequential by definition: what happens to a pixel depends on the pixels before
it, so no array operation gives the same result. Their two loops are compiled by numba
if it is installed (``pip install "unet-lib[fast]"``); without it, the same code runs as
plain Python, with the same result, several times slower.

Built in :doc:`metrics`.
"""

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from unet_lib._checks import check_plane, check_scored

__all__ = [
    "HOLE_ADDITION",
    "HOLE_DELETION",
    "MERGE",
    "OBJECT_ADDITION",
    "OBJECT_DELETION",
    "SPLIT",
    "mismatches",
    "simple_points",
    "thin",
    "warp",
]

Places = tuple[np.ndarray, np.ndarray]  # columns and rows of a turned slice's pixels

# What a pixel is that differs from the proposal after warping, as the challenge's
# software numbers it. Only merges and splits count in the warping error.
MERGE, SPLIT, HOLE_ADDITION = 1, 2, 4
OBJECT_DELETION, OBJECT_ADDITION, HOLE_DELETION = 8, 16, 32

# Of the flood: membrane that is still to be reached, that waits in the queue, and
# the frame around the slice. Cells are above 0 and dams are 0.
MASK, IN_QUEUE, OUTSIDE = -1, -2, -3

# Half of the window in which a white pixel is taken away to see whether it splits.
RADIUS = 20


def compiled(function: Callable) -> Callable:
    """Have numba compile a function at its first call; without numba, leave it plain.

    Compiling takes a second per process. The machine code is not kept on disk:
    numba would read it back by unpickling.
    """
    lock = threading.Lock()

    @functools.cache
    def fastest() -> Callable:
        try:
            from numba import njit
        except ImportError:
            return plain
        return njit(nogil=True)(function)

    def plain(*arguments: Any) -> Any:
        # Python reads a list several times faster than an array.
        lists = [one.tolist() if np.ndim(one) else one for one in arguments]
        result = function(*lists)
        for array, values in zip(arguments, lists, strict=True):
            if np.ndim(array):
                array[:] = values
        return result

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with lock:  # each thread would compile a function of its own
            fast = fastest()
        return fast(*arguments)

    return call


def thin(cell: np.ndarray) -> np.ndarray:
    """Grow the cells of a proposal until one-pixel dams are left between them.

    The membranes are flooded from the cells, first come, first served, in the
    order of the challenge's software; a watershed puts its lines elsewhere.

    Args:
        cell: boolean ``(height, width)``, true where the proposal has cell.

    Returns:
        int32 ``(height, width)``: the numbers of the cells from 1 on, and 0 on the
        dams; 1 everywhere if the proposal has no cell.

    Example:
        >>> thin(np.array([[1, 0, 0, 0, 0, 1]]) > 0)
        array([[1, 1, 1, 0, 2, 2]], dtype=int32)
    """
    cell = check_plane(cell, "cell") > 0
    return np.ascontiguousarray(thinned(label(cell.T)).T)


def warp(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """Warp labels toward a proposal, as long as no cell appears, splits or merges.

    Pixels that differ are flipped if they are simple, that is, if the flip changes no
    connection. Those whose probability is farthest from the threshold come first.

    Args:
        labels: ``(height, width)``, 1 = cell, 0 = membrane.
        probabilities: ``(height, width)``, of cell; the proposal consists of the pixels
            above the threshold.
        threshold: compared with the probabilities in double precision.

    Returns:
        uint8 ``(height, width)``, 1 = cell.
    """
    cell, probabilities = _checked_pair(labels, probabilities)
    warped, _ = warp_turned(cell, probabilities, threshold)
    return np.ascontiguousarray(warped.T)


def mismatches(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """Say for each pixel that still differs after warping what is wrong there.

    Args:
        labels, probabilities, threshold: as for `warp`.

    Returns:
        uint8 ``(height, width)``: 0 where warped labels and proposal agree, otherwise
        ``MERGE`` or ``SPLIT``, which the warping error counts, or ``HOLE_ADDITION``,
        ``HOLE_DELETION``, ``OBJECT_ADDITION`` or ``OBJECT_DELETION``, which it does
        not.
    """
    cell, probabilities = _checked_pair(labels, probabilities)
    kinds = np.zeros(cell.shape, np.uint8)
    positions, found = mismatches_turned(cell, probabilities, threshold)
    kinds[positions] = found
    return np.ascontiguousarray(kinds.T)


# What follows takes slices turned, (width, height): the challenge's software goes
# through a slice column by column, and so does the order of a turned array.


def label(cell: np.ndarray) -> np.ndarray:
    """Number the 4-connected components of a boolean slice, int32, from 1 on."""
    return ndimage.label(cell)[0]


def thinned(components: np.ndarray) -> np.ndarray:
    """`thin` of a turned slice whose cells are numbered already."""
    cell = components > 0
    if not cell.any():
        return np.ones_like(components)
    reached = ndimage.binary_dilation(cell) & ~cell
    pixels = np.where(reached, IN_QUEUE, np.where(cell, components, MASK))
    pixels = framed(pixels, OUTSIDE)
    queue = np.empty(np.count_nonzero(~cell), np.int64)
    first = np.flatnonzero(pixels == IN_QUEUE)
    queue[: len(first)] = first
    flood(pixels.ravel(), queue, len(first), pixels.shape[1])
    return pixels[1:-1, 1:-1]


def framed(image: np.ndarray, value: int) -> np.ndarray:
    """The slice with one pixel of `value` around it, int32, in C order."""
    return np.pad(np.ascontiguousarray(image, np.int32), 1, constant_values=value)


@compiled
def flood(pixels: np.ndarray, queue: np.ndarray, filled: int, stride: int) -> None:
    """Give each pixel in the queue the number of a neighbor, or make it a dam.

    Args:
        pixels: flat and framed by OUTSIDE; changed in place.
        queue: indices into `pixels`; has room for every pixel of membrane.
        filled: how many are in the queue at first.
        stride: from a pixel to the next one along x.
    """
    dammed = False  # lasts from pixel to pixel, as in the challenge's software
    served = 0
    while served < filled:
        pixel = queue[served]
        served += 1
        for step in (-stride, -1, 1, stride):  # left, up, right, down
            neighbor = pixels[pixel + step]
            here = pixels[pixel]
            if neighbor > 0:
                if here == IN_QUEUE or (here == 0 and dammed):
                    pixels[pixel] = neighbor
                elif here > 0 and here != neighbor:
                    pixels[pixel] = 0
                    dammed = False
            elif neighbor == 0:
                if here == IN_QUEUE:
                    pixels[pixel] = 0
                    dammed = True
            elif neighbor == MASK:
                pixels[pixel + step] = IN_QUEUE
                queue[filled] = pixel + step
                filled += 1


def simple_points() -> np.ndarray:
    """Whether a pixel may flip, for each of its 256 possible surroundings.

    Bit k of a surrounding is the k-th of the eight neighbors in reading order.
    A pixel is simple if the cells among them have one 4-connected component that
    touches it along an edge, and the membrane has one 8-connected component.

    Returns:
        bool ``(256,)``.
    """
    simple = np.zeros(256, bool)
    edges = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    for bits in range(256):
        ring = [bits >> k & 1 for k in range(8)]
        cell = np.array([*ring[:4], 0, *ring[4:]], bool).reshape(3, 3)
        membrane = ~cell
        membrane[1, 1] = False
        touching = np.unique(label(cell)[edges & cell])
        _, count = ndimage.label(membrane, np.ones((3, 3)))
        simple[bits] = len(touching) == 1 and count == 1
    return simple


SIMPLE = simple_points()


@compiled
def flip(cells: np.ndarray, order: np.ndarray, simple: np.ndarray, stride: int) -> int:
    """Flip simple points in turn, pass after pass, until a pass flips none.

    Args:
        cells: flat, framed by 0; changed in place.
        order: the indices that differ; those left are moved to its front.
        simple: `SIMPLE`.
        stride: from a pixel to the next one along x.

    Returns:
        How many are left.
    """
    remaining = len(order)
    while True:
        kept = 0
        for k in range(remaining):
            pixel = order[k]
            bits = (
                cells[pixel - stride - 1]
                + 2 * cells[pixel - stride]
                + 4 * cells[pixel - stride + 1]
                + 8 * cells[pixel - 1]
                + 16 * cells[pixel + 1]
                + 32 * cells[pixel + stride - 1]
                + 64 * cells[pixel + stride]
                + 128 * cells[pixel + stride + 1]
            )
            if simple[bits]:
                cells[pixel] = 1 - cells[pixel]
            else:
                order[kept] = pixel
                kept += 1
        if kept == remaining:
            return remaining
        remaining = kept


def warp_turned(
    cell: np.ndarray, probabilities: np.ndarray, threshold: float
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """`warp` of a turned slice, and where it still differs: two index arrays."""
    x, y = np.nonzero(cell != (probabilities > threshold))
    distance = np.abs(probabilities[x, y] - threshold).astype(np.float32)
    farthest_first = np.argsort(-distance, kind="stable")
    # A flipped pixel agrees with the proposal and never differs again, so the
    # list of the next pass is what is left of this one, in the same order.
    pixels = framed(cell, 0)
    order = ((x + 1) * pixels.shape[1] + y + 1)[farthest_first]
    remaining = flip(pixels.ravel(), order, SIMPLE, pixels.shape[1])
    x, y = np.unravel_index(np.sort(order[:remaining]), pixels.shape)
    return pixels[1:-1, 1:-1].astype(np.uint8), (x - 1, y - 1)


def mismatches_turned(
    cell: np.ndarray, probabilities: np.ndarray, threshold: float
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """`mismatches` of a turned slice: where they are, and what each is."""
    warped, (x, y) = warp_turned(cell, probabilities, threshold)
    if cell.all():
        # The challenge's software scales a slice to 8 bits here, and one that
        # was all cell becomes all 0: whatever is left is black on black.
        return (x, y), np.full(len(x), OBJECT_ADDITION, np.uint8)
    components = label(warped)
    ids = framed(components, -1)
    around = np.stack(
        [ids[x + i, y + j] for i in range(3) for j in range(3) if (i, j) != (1, 1)],
        axis=-1,
    )
    around.sort(axis=-1)
    different = (np.diff(around) > 0).sum(axis=-1) + (around[:, 0] >= 0)
    white = warped[x, y] > 0
    on_membrane = around[:, -1] <= 0
    kinds = np.select(
        [different >= 3, different == 2, on_membrane],
        [
            np.where(white, SPLIT, MERGE),
            np.where(white, HOLE_DELETION, HOLE_ADDITION),
            np.where(white, OBJECT_DELETION, OBJECT_ADDITION),
        ],
        np.where(white, HOLE_ADDITION, HOLE_DELETION),
    ).astype(np.uint8)
    thin_spots = np.flatnonzero(white & (different == 2))
    kinds[thin_spots[splits(warped, x[thin_spots], y[thin_spots])]] = SPLIT
    return (x, y), kinds


def splits(warped: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether removing each white pixel splits its cell, as seen in a window."""
    # In a slice that is narrower than half of it, the window is the whole slice.
    right, down = warped.shape if min(warped.shape) < RADIUS else (RADIUS, RADIUS)
    padded = np.pad(warped, [(right, right), (down, down)])
    windows = sliding_window_view(padded, (2 * right + 1, 2 * down + 1))
    within = np.zeros((3, 3, 3), bool)  # 4-connected, and no window to the next
    within[1] = ndimage.generate_binary_structure(2, 1)
    together = max(1, 2**21 // math.prod(windows.shape[2:]))  # some megabytes
    parted = np.empty(len(x), bool)
    for first in range(0, len(x), together):
        some = slice(first, first + together)
        pixels = windows[x[some], y[some]]
        pixels[:, right, down] = 0
        components, _ = ndimage.label(pixels, within)
        around = components[:, right - 1 : right + 2, down - 1 : down + 2]
        around = np.sort(around.reshape(-1, 9))
        parted[some] = (np.diff(around) > 0).sum(axis=-1) >= 2
    return parted


def _checked_pair(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both turned: where the labels have cell, and float64."""
    labels = check_plane(labels, "labels")
    labels, probabilities = check_scored(labels, probabilities)
    return labels.T > 0, probabilities.T.astype(np.float64)
