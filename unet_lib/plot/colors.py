"""The book's colors, and pictures as arrays: tints, cells, overlays.

The colors of roles and of curves are from Okabe and Ito's palette, those of cells from
Paul Tol's *muted* scheme: people with any common color blindness can tell them apart.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from scipy import ndimage

from unet_lib._checks import check_labels, check_plane, check_range, is_real

__all__ = [
    "COLORS",
    "PALETTE",
    "color_cells",
    "color_stack",
    "overlay",
    "overlay_labels",
]

COLORS = {  # each for its role alone, on every page
    "cell": "#56B4E9",
    "membrane": "#E69F00",
    "merge": "#D55E00",  # two true cells that became one
    "split": "#0072B2",  # one true cell that became several
    "tile": "#F0E442",
    "held out": "#CC79A7",
    "contracting": "#4B4299",  # the network's path down,
    "expanding": "#009E73",  # its path up,
    "skip": "#8C8C8C",  # and the copies from one to the other
    "weight": "inferno",  # a colormap: dark is low, and ordered in gray too
}
PALETTE = (  # of curves; yellow, faint on white, comes last
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#F0E442"),
)
CELLS = (  # of cells
    *("#88CCEE", "#CC6677", "#DDCC77", "#44AA99"),
    *("#AA4499", "#999933", "#117733", "#882255"),
)
MEMBRANE_GRAY = 0.1  # between colored cells
NEIGHBOR_REACH = 10  # pixels; most membranes in the labels are thinner


def overlay(
    image: np.ndarray, mask: np.ndarray, color: str, alpha: float = 0.5
) -> np.ndarray:
    """Tint a gray image where the mask is set.

    Args:
        image: ``(height, width)``, 0 to 1.
        mask: the same shape; nonzero pixels are tinted.
        color: a key of ``COLORS`` or any matplotlib color.
        alpha: opacity of the tint; 0 leaves the image as it is, 1 hides it.

    Returns:
        ``(height, width, 3)`` float32, 0 to 1.
    """
    mask = check_plane(mask, "mask")
    colors = np.broadcast_to(rgb(color), (*mask.shape, 3))
    return _blend(image, colors, alpha, mask)


def overlay_labels(
    image: np.ndarray,
    labels: np.ndarray,
    alpha: float = 0.4,
    colors: np.ndarray | None = None,
) -> np.ndarray:
    """Lay colored cells over a gray image.

    Args:
        image: ``(height, width)``, 0 to 1.
        labels: as for `color_cells`.
        alpha: opacity of the cells; 0 shows only the image, 1 only the cells.
        colors: the picture of the cells, from `color_cells` or `color_stack`, if cells
            should have the same colors as elsewhere; by default, it is made here.

    Returns:
        ``(height, width, 3)`` float32, 0 to 1.
    """
    return _blend(image, color_cells(labels) if colors is None else colors, alpha)


def color_cells(
    labels: np.ndarray, seed: int = 0, like: np.ndarray | None = None
) -> np.ndarray:
    """Give each cell a color that differs from those of its neighbors.

    Cells are neighbors if they have pixels at most ``NEIGHBOR_REACH`` apart, that is,
    ten pixels.

    Args:
        labels: ``(height, width)``; either 1 = cell and 0 = membrane, in which case
            the 4-connected components are the cells, or integers that number the
            cells, at least one of them above 1.
        seed: seed of the choice among the colors that a cell can have.
        like: the picture that this function made of a neighboring slice, or of another
            segmentation of the same slice. A cell keeps the color that most of it has
            there, unless a neighbor with a larger overlap has taken it.

    Returns:
        ``(height, width, 3)`` float32, 0 to 1; membrane is nearly black.
    """
    cells, count = _numbered(labels)
    neighbors: list[set[int]] = [set() for _ in range(count + 1)]
    for first, second in _neighbor_pairs(cells, NEIGHBOR_REACH):
        neighbors[first].add(second)
        neighbors[second].add(first)
    random = np.random.default_rng(seed)
    chosen: dict[int, int] = {}
    for cell, color in [] if like is None else _claims(cells, count, like):
        if all(chosen.get(other) != color for other in neighbors[cell]):
            chosen.setdefault(cell, color)
    # The cell with most neighbors first: it has the fewest colors to choose from.
    for cell in sorted(range(1, count + 1), key=lambda cell: -len(neighbors[cell])):
        if cell not in chosen:
            taken = {chosen[other] for other in neighbors[cell] if other in chosen}
            free = set(range(len(CELLS))) - taken or {max(taken, default=0) + 1}
            chosen[cell] = int(random.choice(sorted(free)))
    table = np.full((count + 1, 3), MEMBRANE_GRAY, dtype=np.float32)
    shades = _shades(max(chosen.values(), default=0) + 1)
    for cell, color in chosen.items():
        table[cell] = shades[color]
    return table[cells]


def color_stack(stack: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Color the cells of consecutive slices; each cell keeps its color across slices.

    Args:
        stack: ``(slices, height, width)``, labels as for `color_cells`.
        seed: as for `color_cells`.

    Returns:
        ``(slices, height, width, 3)`` float32, 0 to 1.
    """
    picture, pictures = None, []
    for labels in stack:
        picture = color_cells(labels, seed, like=picture)
        pictures.append(picture)
    return np.stack(pictures)


def rgb(color: Any) -> tuple[float, float, float]:
    """Return a key of ``COLORS`` or a matplotlib color as red, green and blue."""
    found = COLORS.get(color, color) if isinstance(color, str) else color
    if not matplotlib.colors.is_color_like(found):
        names = ", ".join(name for name in COLORS if name != "weight")
        raise ValueError(f"Expected {names} or a matplotlib color, got {color!r}.")
    return matplotlib.colors.to_rgb(found)


def check_picture(image: Any) -> np.ndarray:
    """``(height, width)`` or ``(height, width, 3)`` from 0 to 1."""
    image = np.asarray(image)
    if image.ndim != 2 and image.shape[2:] != (3,):
        raise ValueError(
            "Expected an image of shape (height, width) or (height, width, 3), got "
            f"shape {image.shape}; one image goes into a list."
        )
    return check_range(image, "image")


def _numbered(labels: Any) -> tuple[np.ndarray, int]:
    """Return the cells numbered from 1, 0 for membrane, and how many there are."""
    labels = check_labels(check_plane(labels, "labels"))
    if labels.max() <= 1:
        return ndimage.label(labels)  # 4-connected by default
    names, cells = np.unique(labels, return_inverse=True)
    cells = cells.reshape(labels.shape) + (names[0] != 0)
    return cells, int(cells.max())


def _shades(count: int) -> np.ndarray:
    """Return so many colors for cells: past the palette's end it repeats, darker."""
    palette = np.array([matplotlib.colors.to_rgb(name) for name in CELLS])
    rounds, place = np.divmod(np.arange(count), len(palette))
    return (palette[place] * 0.75 ** rounds[:, None]).astype(np.float32)


def _claims(cells: np.ndarray, count: int, like: Any) -> Iterator[tuple[int, int]]:
    """Yield (cell, color) by falling overlap with the colors of another picture."""
    like = np.asarray(like)
    if like.shape != (*cells.shape, 3):
        raise ValueError(
            "Expected like as a picture of colored cells of the labels' size, "
            f"{(*cells.shape, 3)}, got shape {like.shape}."
        )
    shades = _shades(4 * len(CELLS))
    found, inverse = np.unique(like.reshape(-1, 3), axis=0, return_inverse=True)
    distances = np.abs(found[:, None] - shades).max(axis=2)
    which = np.where(distances.min(axis=1) < 1e-3, distances.argmin(axis=1), -1)
    there = which[inverse.ravel()].reshape(cells.shape)
    both = (cells > 0) & (there >= 0)
    pixels = np.zeros((count + 1, len(shades)), dtype=int)
    np.add.at(pixels, (cells[both], there[both]), 1)
    colors = pixels.argmax(axis=1)
    overlap = pixels.max(axis=1)
    for cell in np.argsort(-overlap, kind="stable"):
        if overlap[cell]:
            yield int(cell), int(colors[cell])


def _neighbor_pairs(cells: np.ndarray, reach: int) -> list[tuple[int, int]]:
    """Return the pairs of different cells that have pixels at most `reach` apart."""
    codes = set()  # first * base + second
    base = int(cells.max(initial=0)) + 1
    height, width = cells.shape
    padded = np.pad(cells, reach)
    # Half of the disk is enough: the other half gives the same pairs.
    for down, right in itertools.product(range(reach + 1), range(-reach, reach + 1)):
        if down**2 + right**2 <= reach**2:
            top, left = reach + down, reach + right
            there = padded[top : top + height, left : left + width]
            differ = (cells != there) & (cells > 0) & (there > 0)
            found = cells[differ].astype(np.int64) * base + there[differ]
            codes.update(np.unique(found).tolist())
    return [divmod(code, base) for code in codes]


def _blend(image: Any, colors: Any, alpha: float, mask: Any = True) -> np.ndarray:
    image = check_range(check_plane(image, "image"), "image")
    over = np.shape(colors)[:2]
    if image.shape != over:
        raise ValueError(
            f"Expected one shape, got an image {image.shape} and {over} over it."
        )
    if not is_real(alpha) or not 0 <= alpha <= 1:
        raise ValueError(f"Expected alpha from 0 to 1, got {alpha!r}.")
    share = np.where(mask, alpha, 0)[..., None]
    blended = image[..., None] * (1 - share) + colors * share
    return np.clip(blended, 0, 1).astype(np.float32)
