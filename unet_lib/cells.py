"""Cells as instance labels: found in a probability map, measured, scored.

Each cell of a slice has a number of its own, from 1 on; 0 is background. Each slice is
treated by itself, in 2D. Built in :doc:`touching-cells`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from unet_lib._checks import (
    UNKNOWN,
    as_array,
    check_labels,
    check_range,
    check_slices,
    is_real,
    is_whole,
)

__all__ = [
    "COUNTS",
    "SCORES",
    "CellScores",
    "find_cells",
    "measure_cells",
    "score_cells",
]

SCORES = ("seg", "iou", "dice", "ap50", "f1")  # 1 is best
COUNTS = ("both", "either", "true", "false", "missed", "merges", "splits")
# What `measure_cells` takes from scikit-image, and what it calls it.
COLUMNS = {
    "area": "area_px",
    "centroid-0": "centroid_y",
    "centroid-1": "centroid_x",
    "equivalent_diameter_area": "diameter_px",
    "axis_major_length": "major_px",
    "axis_minor_length": "minor_px",
}
FOUR = ndimage.generate_binary_structure(2, 1)  # neighbors share a side


def find_cells(
    probabilities: ArrayLike,
    threshold: float = 0.5,
    watershed: float | None = None,
    smallest: int = 0,
) -> np.ndarray:
    """Number the cells of a probability map.

    Cells are the 4-connected components of the pixels above the threshold, as in the
    metrics of this book. A watershed splits components further at their necks: it
    floods the distance to the background from its h-maxima, so that two lobes are
    separated if the distance at the neck is lower than in either lobe by more than h
    pixels. A smaller h splits more.

    Args:
        probabilities: ``(height, width)`` or ``(slices, height, width)``, of cell, 0
            to 1, as from `predict.predict`.
        threshold: a pixel belongs to a cell if its probability is above this.
        watershed: h in pixels, above 0; None leaves the components as they are.
        smallest: cells of fewer pixels are removed.

    Returns:
        int32 of the same shape; cells are numbered from 1 on in each slice.

    Raises:
        ValueError: if the shape is wrong, if probabilities or the threshold lie outside
            0 to 1, if h is not above 0, or if the smallest size is below 0.
        ImportError: if a watershed is asked for without scikit-image.

    Example:
        >>> probabilities = [[0.9, 0.8, 0.2, 0.1, 0.7], [0.9, 0.9, 0.1, 0.3, 0.2]]
        >>> find_cells(probabilities)
        array([[1, 1, 0, 0, 2],
               [1, 1, 0, 0, 0]], dtype=int32)
        >>> find_cells(probabilities, smallest=2).max()
        1
    """
    maps = check_range(check_slices(probabilities, "probabilities"), "probabilities")
    if not is_real(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"Expected a threshold from 0 to 1, got {threshold!r}.")
    if watershed is not None and not (is_real(watershed) and 0 < watershed < math.inf):
        raise ValueError(
            f"Expected watershed as a number of pixels above 0, got {watershed!r}: "
            "pass None for connected components."
        )
    if not is_whole(smallest) or smallest < 0:
        raise ValueError(
            f"Expected smallest as a number of pixels from 0 on, got {smallest!r}."
        )
    found = np.zeros(maps.shape, np.int32)
    for one, cells in zip(_each(maps), _each(found), strict=True):
        inside = one.astype(np.float64) > threshold  # as the metrics do
        parts = ndimage.label(inside)[0]
        if watershed is not None:
            parts = _split(inside, float(watershed))
        kept = np.bincount(parts.ravel()) >= smallest
        kept[0] = False
        cells[...] = (np.cumsum(kept) * kept)[parts]
    return found


def measure_cells(
    labels: ArrayLike, pixel_size: tuple[float, float] | None = None, unit: str = "µm"
) -> dict[str, np.ndarray]:
    """Measure cells: a table with one row per cell.

    Args:
        labels: ``(height, width)`` or ``(slices, height, width)``, as from
            `find_cells`.
        pixel_size: ``(height, width)`` of a pixel in `unit`.
        unit: the unit of the pixel size.

    Returns:
        Columns of equal length: ``slice``, counted from 0, ``label``, ``area_px``,
        ``centroid_y`` and ``centroid_x`` in pixels from the center of the first pixel,
        ``diameter_px``, that of a circle of this area, and ``major_px`` and
        ``minor_px``, the axes of an ellipse of the same second moments; with a pixel
        size also ``area_UNIT2`` and ``diameter_UNIT``, such as ``area_µm2``.

    Raises:
        ValueError: if the shape or the type is wrong, or a pixel size is not positive.
        ImportError: if scikit-image is not installed.

    Example:
        >>> table = measure_cells([[7, 7, 0], [7, 7, 2]], pixel_size=(0.5, 0.5))
        >>> table["label"].tolist(), table["area_px"].tolist()
        ([2, 7], [1, 4])
        >>> table["area_µm2"].tolist()
        [0.25, 1.0]
    """
    cells = check_labels(check_slices(labels, "labels"))
    sizes = np.atleast_1d((1, 1) if pixel_size is None else pixel_size)
    if [is_real(n) and 0 < n < math.inf for n in sizes] != [True, True]:
        raise ValueError(
            f"Expected pixel_size as (height, width) of a pixel, got {pixel_size!r}."
        )
    numbers, rows = zip(*map(_measured, _each(cells)), strict=True)
    counts = [len(one) for one in numbers]
    table = {
        "slice": np.repeat(np.arange(len(cells) if cells.ndim == 3 else 1), counts),
        "label": np.concatenate(numbers),
    }
    for name, title in COLUMNS.items():
        table[title] = np.concatenate([row[name] for row in rows])
    table["area_px"] = table["area_px"].astype(np.int64)
    if pixel_size is not None:
        pixel = float(np.prod(pixel_size))
        table[f"area_{unit}2"] = table["area_px"] * pixel
        table[f"diameter_{unit}"] = table["diameter_px"] * math.sqrt(pixel)
    return table


@dataclass(frozen=True, eq=False)
class CellScores:
    """How well found cells agree with those of a reference, from `score_cells`.

    Attributes:
        jaccard: for each reference cell, in the order of slices and numbers, the
            Jaccard index with the found cell that covers more than half of it, or 0
            if none does.
        both: known pixels that are cell in both.
        either: known pixels that are cell in at least one of the two.
        true: pairs of a reference and a found cell with a Jaccard index above 0.5.
        false: found cells in no such pair, except those mostly on unknown pixels.
        missed: reference cells in no such pair.
        merges: found cells that cover more than half of each of several reference
            cells.
        splits: reference cells that hold more than half of each of several found cells.
        per_slice: the scores of each slice by itself; empty for one slice.
    """

    jaccard: np.ndarray
    both: int
    either: int
    true: int
    false: int
    missed: int
    merges: int
    splits: int
    per_slice: tuple["CellScores", ...] = ()

    @property
    def seg(self) -> float:
        """The mean of `jaccard`, the Cell Tracking Challenge's SEG."""
        return _ratio(float(self.jaccard.sum()), self.jaccard.size)

    @property
    def iou(self) -> float:
        """Intersection over union of the pixels of all cells."""
        return _ratio(self.both, self.either)

    @property
    def dice(self) -> float:
        """Dice coefficient of the pixels of all cells."""
        return _ratio(2 * self.both, self.both + self.either)

    @property
    def ap50(self) -> float:
        """TP / (TP + FP + FN) of `true`, `false` and `missed`."""
        return _ratio(self.true, self.true + self.false + self.missed)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) of `true`, `false` and `missed`."""
        return _ratio(2 * self.true, 2 * self.true + self.false + self.missed)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; a score that has no value is None."""
        scores = {name: getattr(self, name) for name in SCORES}
        fields = {name: None if math.isnan(n) else n for name, n in scores.items()}
        fields |= {name: getattr(self, name) for name in COUNTS}
        fields["jaccard"] = self.jaccard.tolist()
        if self.per_slice:
            fields["per_slice"] = [one.to_dict() for one in self.per_slice]
        return fields


def score_cells(reference: ArrayLike, found: ArrayLike) -> CellScores:
    """Compare found cells with those of a reference.

    SEG is the score of the Cell Tracking Challenge (Maška et al. 2014): the mean, over
    all reference cells of all slices, of the Jaccard index (intersection over union) of
    a reference cell and the found cell that covers more than half of it; at most one
    can. A reference cell without one counts 0; found cells that match nothing do
    not count. AP50 and F1 count pairs with a Jaccard index above 0.5; a cell can be in
    at most one of them. AP50 is the average precision of StarDist and Cellpose at that
    threshold. Over slices, cells, pairs and pixels are pooled, not scores.

    Reference pixels of -1 are unknown. IoU and Dice leave them out; a found cell that
    is in no pair and has more than half of its pixels there is not counted as false.
    Jaccard indices use all pixels of a cell, as in the challenge, so a found cell that
    extends from a reference cell into unknown pixels has a lower one.

    Args:
        reference: ``(height, width)`` or ``(slices, height, width)``, integers: one
            number per cell, 0 = background, -1 = unknown.
        found: the same shape, integers from 0 on, as from `find_cells`.

    Returns:
        `CellScores`. A score without a value, such as SEG without reference cells, is
        NaN.

    Raises:
        ValueError: if shapes differ, are empty or look like color, or if numbers are
            not integers from 0 on (from -1 on in the reference).

    Example:
        A cell of which three of four pixels are found, and one that is missed:

        >>> scores = score_cells([[1, 1, 1, 1, 0, 2]], [[0, 5, 5, 5, 0, 0]])
        >>> scores.seg, scores.ap50
        (0.375, 0.5)
    """
    reference = check_slices(reference, "reference")
    reference = check_labels(reference, "reference", unknown=True)
    unknown = reference == UNKNOWN
    cells = np.where(unknown, 0, reference)
    found = as_array(found, "found")
    if found.shape != reference.shape:
        raise ValueError(
            "Expected reference and found labels of one shape, got "
            f"{reference.shape} and {found.shape}: compare the same slices, cropped "
            "alike."
        )
    found = check_labels(found, "found")
    slices = [*map(_score_slice, _each(cells), _each(unknown), _each(found))]
    return slices[0] if reference.ndim == 2 else _pooled(slices)


def _each(stack: np.ndarray) -> np.ndarray:
    """The slices of a stack, or the one."""
    return stack if stack.ndim == 3 else stack[None]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _skimage() -> Any:
    try:
        import skimage.measure
        import skimage.morphology
        import skimage.segmentation
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            "Watersheds and sizes of cells need scikit-image: run `pip install "
            '"unet-lib[cells]"`, or find connected components, which need no other '
            "package."
        ) from problem
    return skimage


def _measured(cells: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The numbers of one slice's cells, and their sizes as scikit-image names them."""
    # Without gaps: regionprops makes room for each number up to the largest.
    numbers, whole = _without_gaps(cells)
    wanted = {name.partition("-")[0] for name in COLUMNS}
    table = _skimage().measure.regionprops_table(whole, properties=tuple(wanted))
    return numbers[1:], table


def _without_gaps(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, 0 among them in any case, and which of them each pixel has."""
    every = np.append(0, cells.astype(np.int64))  # with uint64 it would be floats
    numbers, places = np.unique(every, return_inverse=True)
    return numbers, places.reshape(-1)[1:].reshape(cells.shape)


def _split(inside: np.ndarray, h: float) -> np.ndarray:
    """Components split by a watershed of the distance from its h-maxima."""
    skimage = _skimage()
    if inside.all():  # no background to be distant from
        return inside.astype(np.int32)
    distance = ndimage.distance_transform_edt(inside)
    # Lower than any lowered pixel, so that no component runs into the background.
    ceiling = np.where(inside, distance, -h - 1)
    floor = np.where(inside, distance - h, -h - 1)
    lowered = skimage.morphology.reconstruction(floor, ceiling, footprint=FOUR)
    maxima = skimage.morphology.local_maxima(lowered, connectivity=1) & inside
    seeds = ndimage.label(maxima)[0]
    return skimage.segmentation.watershed(-distance, seeds, mask=inside)


def _score_slice(
    reference: np.ndarray, unknown: np.ndarray, found: np.ndarray
) -> CellScores:
    row, column = (_without_gaps(one)[1].ravel() for one in (reference, found))
    of_row, of_column = np.bincount(row, minlength=1), np.bincount(column, minlength=1)
    width = len(of_column)
    pairs, shared = np.unique(row * width + column, return_counts=True)
    cell, one = np.divmod(pairs, width)
    both = (cell > 0) & (one > 0)
    cell, one, shared = cell[both], one[both], shared[both]
    jaccard = shared / (of_row[cell] + of_column[one] - shared)
    covers, holds = 2 * shared > of_row[cell], 2 * shared > of_column[one]
    true = jaccard > 0.5
    # At most one found cell covers more than half of a reference cell.
    of_cells = np.bincount(cell, np.where(covers, jaccard, 0), len(of_row))
    elsewhere = np.bincount(column[unknown.ravel()], minlength=width)
    false = 2 * elsewhere <= of_column
    false[one[true]] = False
    called = (found > 0) & ~unknown
    return CellScores(
        jaccard=of_cells[1:],
        both=np.count_nonzero(called & (reference > 0)),
        either=np.count_nonzero(called | (reference > 0)),
        true=np.count_nonzero(true),
        false=np.count_nonzero(false[1:]),
        missed=len(of_row) - 1 - np.count_nonzero(true),
        merges=np.count_nonzero(np.bincount(one[covers]) > 1),
        splits=np.count_nonzero(np.bincount(cell[holds]) > 1),
    )


def _pooled(slices: Sequence[CellScores]) -> CellScores:
    return CellScores(
        jaccard=np.concatenate([one.jaccard for one in slices]),
        **{name: sum(getattr(one, name) for one in slices) for name in COUNTS},
        per_slice=tuple(slices),
    )
