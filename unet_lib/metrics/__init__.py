"""The challenge's metrics, as its own software computes them.

The challenge's first table, which the paper shows, has the pixel error, the Rand error
and the warping error. Its ranking since 2015 has V-Rand and V-Info, which hardly depend
on how wide membranes are drawn. All are computed slice by slice, in 2D.

Built in :doc:`metrics`.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from unet_lib._checks import check_scored, check_slices
from unet_lib.metrics import topology
from unet_lib.metrics.pairs import (
    Overlaps,
    f_score,
    information_f,
    overlaps,
    pair_counts,
)

__all__ = [
    "METRICS",
    "THRESHOLDS",
    "Curve",
    "Scores",
    "evaluate",
    "pixel_error",
    "rand_error",
    "v_info",
    "v_rand",
    "warping_error",
]

# 0.0, 0.1, ... by repeated addition, as the challenge's software counts: the
# last ones are 0.7999999999999999, 0.8999999999999999, 0.9999999999999999.
THRESHOLDS: np.ndarray = np.cumsum([0.0] + [0.1] * 10)

ERRORS = ("pixel_error", "rand_error", "warping_error")  # 0 is best
METRICS = (*ERRORS, "v_rand", "v_info")  # of the last two 1 is best

# Below this fraction of a slice's cell pixels called cell, the warping error is not
# to be trusted. The map of a trained network is far above it.
LEAST_CELL = 0.5


class Curve(NamedTuple):
    """A metric as a function of the threshold; `value` is the one to report."""

    value: float
    threshold: float  # the threshold of `value`
    values: np.ndarray  # float64, one per threshold; NaN for 0/0
    thresholds: np.ndarray
    per_slice: np.ndarray  # (slices, thresholds), each slice scored by itself


@dataclass(frozen=True)
class Scores:
    """The five metrics of a segmentation, from `evaluate`."""

    pixel_error: float
    rand_error: float
    warping_error: float
    v_rand: float
    v_info: float
    curves: dict[str, Curve]  # by the names above
    warnings: list[str]  # sentences that say which metrics mislead, and why

    def to_dict(self) -> dict[str, Any]:
        """Return everything in a form that JSON can hold; NaN becomes None."""
        metrics = {}
        for name, curve in self.curves.items():
            metrics[name] = {
                "value": curve.value,
                "threshold": curve.threshold,
                "values": _without_nan(curve.values),
                "thresholds": curve.thresholds.tolist(),
                "per_slice": [_without_nan(row) for row in curve.per_slice],
            }
        return {"figures": metrics, "warnings": self.warnings}


def evaluate(
    labels: ArrayLike, probabilities: ArrayLike, progress: bool = False
) -> Scores:
    """Compute all five metrics, with their curves and with warnings.

    The warnings say which metrics mislead for these data, and why.

    Args:
        labels: ``(height, width)`` or ``(slices, height, width)``, 1 = cell.
        probabilities: the same shape, 0 to 1, of cell.
        progress: show a bar over the slices.

    Raises:
        ValueError: if shapes differ, are empty or look like color, if labels are not 0
            and 1, or if probabilities lie outside 0 to 1.

    Example:
        Two cells of 8 x 4 pixels, and a hole of one pixel in the membrane between
        them. The pixel error hardly changes, but V-Rand shows a merge:

        >>> labels = np.ones((8, 9), np.uint8)
        >>> labels[:, 4] = 0
        >>> merged = labels.astype(float)
        >>> merged[3, 4] = 1
        >>> scores = evaluate(labels, merged)
        >>> round(scores.pixel_error, 3), round(scores.v_rand, 3)
        (0.008, 0.667)
    """
    labels, probabilities = check_scored(check_slices(labels, "labels"), probabilities)
    curves = _curves(labels, probabilities, METRICS, progress)
    values = {name: curve.value for name, curve in curves.items()}
    warnings = _warnings(labels, probabilities, curves["warping_error"])
    return Scores(**values, curves=curves, warnings=warnings)


def pixel_error(labels: ArrayLike, probabilities: ArrayLike) -> Curve:
    """:math:`1 - F` of the cell pixels, at the best threshold of 0.0, 0.1, ..., 1.0.

    A pixel is predicted as cell if its probability is above the threshold. True and
    false positives and negatives are summed over all slices. From these sums come the
    precision :math:`P`, the recall :math:`R` and the Dice coefficient
    :math:`F = 2 P R / (P + R)`. This is the challenge's pixel error (Table 1 of the
    paper), not the fraction of wrong pixels. Arguments and errors are as for
    `evaluate`.
    """
    return _curve("pixel_error", labels, probabilities)


def rand_error(labels: ArrayLike, probabilities: ArrayLike) -> Curve:
    """:math:`1 - F` of pairs of cell pixels, at the best threshold.

    A pair consists of two cell pixels of the labels. It is a true positive if both are
    in the same cell in the labels and in the proposal. Cells are 4-connected; a pixel
    that is membrane in the proposal is a cell of its own. Pairs are summed over all
    slices. Arguments and errors are as for `evaluate`.
    """
    return _curve("rand_error", labels, probabilities)


def warping_error(labels: ArrayLike, probabilities: ArrayLike) -> Curve:
    """Fraction of all pixels with merges and splits that no warping removes.

    It is taken at the best threshold of 0.0, 0.1, ..., 0.9. Missing and extra cells are
    not counted, so a proposal without any cell has no error except at cells with holes;
    `evaluate` warns of this. See `topology.mismatches`. Arguments and errors are as for
    `evaluate`.
    """
    return _curve("warping_error", labels, probabilities)


def v_rand(labels: ArrayLike, probabilities: ArrayLike) -> Curve:
    """:math:`F` of pairs as in `rand_error`, but after thinning, at the best threshold.

    The proposal is thinned by `topology.thin`. For each threshold, :math:`F` is
    computed per slice and averaged. Arguments and errors are as for `evaluate`.
    """
    return _curve("v_rand", labels, probabilities)


def v_info(labels: ArrayLike, probabilities: ArrayLike) -> Curve:
    """:math:`F` of the shared information, after thinning, at the best threshold.

    .. math:: P = I(A, B) / H(A), R = I(A, B) / H(B), F = 2 P R / (P + R)

    :math:`A` are the labels' cells and :math:`B` the proposal's, :math:`I` is their
    mutual information and :math:`H` the entropy. The proposal is thinned by
    `topology.thin`. For each threshold, :math:`F` is computed per slice and averaged; a
    threshold at which a slice has 0/0 is left out. Arguments and errors are as for
    `evaluate`.
    """
    return _curve("v_info", labels, probabilities)


class _Proposal:
    """One slice at one threshold; what several metrics need is computed once."""

    def __init__(
        self,
        cell: np.ndarray,
        label_cells: np.ndarray,
        probabilities: np.ndarray,
        threshold: float,
    ) -> None:
        self.cell = cell
        self.label_cells = label_cells
        self.probabilities = probabilities
        self.threshold = threshold
        self.called = probabilities > threshold

    @cached_property
    def components(self) -> np.ndarray:
        return topology.label(self.called)

    @cached_property
    def thinned(self) -> Overlaps:
        return overlaps(self.label_cells, topology.thinned(self.components))

    def pixel_error(self) -> tuple[int, int, int]:
        true = np.count_nonzero(self.cell & self.called)
        false = np.count_nonzero(self.called) - true
        return true, false, np.count_nonzero(self.cell) - true

    def rand_error(self) -> np.ndarray:
        return pair_counts(overlaps(self.label_cells, self.components))

    def warping_error(self) -> int:
        _, kinds = topology.mismatches_turned(
            self.cell, self.probabilities, self.threshold
        )
        return np.count_nonzero((kinds == topology.MERGE) | (kinds == topology.SPLIT))

    def v_rand(self) -> float:
        return f_score(*pair_counts(self.thinned))

    def v_info(self) -> float:
        return information_f(self.thinned)


def _slice_metrics(
    metrics: Sequence[str], labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """What each metric sums or averages over the slices, for each threshold."""
    cell = labels == 1
    # The labels' cells are numbered by rows, the proposal's by columns. It shows
    # in nothing but the rounding of sums, and V-Info can be nothing but that.
    label_cells = np.ascontiguousarray(topology.label(cell).T)
    # Turned, since the challenge's software goes through slices by columns.
    cell = np.ascontiguousarray(cell.T)
    # In double precision: a float32 is not compared as its threshold rounds.
    probabilities = np.ascontiguousarray(probabilities.T, dtype=np.float64)
    found: dict[str, list] = {name: [] for name in metrics}
    for threshold in THRESHOLDS:
        proposal = _Proposal(cell, label_cells, probabilities, threshold)
        for name in metrics:
            # The challenge takes the warping error at 0.0 to 0.9 alone.
            if name != "warping_error" or threshold < THRESHOLDS[-1]:
                found[name].append(getattr(proposal, name)())
    return {name: np.array(values) for name, values in found.items()}


def _curves(
    labels: np.ndarray,
    probabilities: np.ndarray,
    metrics: Sequence[str],
    progress: bool = False,
) -> dict[str, Curve]:
    if labels.ndim == 2:
        labels, probabilities = labels[None], probabilities[None]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        work = threads.map(partial(_slice_metrics, metrics), labels, probabilities)
        bar = tqdm(work, "evaluate", len(labels), unit="slice", disable=not progress)
        slices = list(bar)
    curves = {}
    for name in metrics:
        parts = np.stack([found[name] for found in slices])
        if name in ("pixel_error", "rand_error"):
            per_slice = 1 - np.array([[f_score(*one) for one in row] for row in parts])
            values = 1 - np.array([f_score(*one) for one in parts.sum(axis=0)])
        elif name == "warping_error":
            per_slice = parts / labels[0].size
            values = parts.sum(axis=0) / labels.size
        else:
            per_slice = parts
            values = parts.mean(axis=0)
        thresholds = THRESHOLDS[: len(values)]
        if name in ERRORS:
            best = int(np.argmin(values))
            value = values[best]
        else:
            candidates = np.maximum(np.nan_to_num(values), 0)
            best = int(np.argmax(candidates))
            value = candidates[best]
        curves[name] = Curve(
            float(value), float(thresholds[best]), values, thresholds, per_slice
        )
    return curves


def _curve(metric: str, labels: ArrayLike, probabilities: ArrayLike) -> Curve:
    pair = check_scored(check_slices(labels, "labels"), probabilities)
    return _curves(*pair, [metric])[metric]


def _warnings(
    labels: np.ndarray, probabilities: np.ndarray, warping: Curve
) -> list[str]:
    """What the metrics do not say by themselves.

    The warping error has a trivial zero. It does not count missing cells, and a
    proposal without cells has nothing to split or to merge: any map gets there
    whose values stay below one of the thresholds. So it is flagged where, at the
    threshold that gives it, a slice has lost most of its cell pixels.
    """
    if labels.ndim == 2:
        labels, probabilities = labels[None], probabilities[None]
    empty, full, single, missed = [], [], [], []
    on_cell, on_membrane, cell_pixels = 0.0, 0.0, np.count_nonzero(labels)
    for number, (cell, cell_probabilities) in enumerate(
        zip(labels == 1, probabilities, strict=True)
    ):
        on_cell += cell_probabilities[cell].sum(dtype=np.float64)
        on_membrane += cell_probabilities[~cell].sum(dtype=np.float64)
        if not cell.any():
            empty.append(number)
            continue
        if cell.all():
            full.append(number)
        elif topology.label(cell).max() == 1:
            single.append(number)
        called = cell_probabilities[cell].astype(np.float64) > warping.threshold
        if called.mean() < LEAST_CELL:
            missed.append(number)
    on_cell /= max(cell_pixels, 1)
    on_membrane /= max(labels.size - cell_pixels, 1)
    sentences = []
    if cell_pixels and on_cell < on_membrane:
        sentences.append(
            f"The map is lower on the labels' cells, {on_cell:.3f} on average, than "
            f"on their membranes, {on_membrane:.3f}: if it is of membrane, pass 1 - "
            "map."
        )
    if missed:
        sentences.append(
            f"The warping error, {warping.value:.6f}, is taken at the threshold "
            f"{warping.threshold:.1f}, where the map calls less than "
            f"{LEAST_CELL:.0%} of the cell pixels cell in {_named(missed)}: "
            "missing cells do not count in it, however many they are."
        )
    if empty:
        sentences.append(
            f"The labels have no cell in {_named(empty)}: that makes the Rand error "
            "of all slices 1, and adds 0 to the means V-Rand and V-Info. Leave such "
            "slices out."
        )
    if full:
        sentences.append(
            f"The labels are all cell in {_named(full)}: the challenge's software "
            "sees no splits there, and V-Info is 0."
        )
    if single:
        sentences.append(
            f"The labels have a single cell in {_named(single)}: V-Info is 0 there for "
            "any map, even a perfect one, and so lowers the mean. Leave such slices "
            "out of it, or score larger ones."
        )
    return sentences


def _named(numbers: list[int]) -> str:
    few = ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
    return f"slice{'s' if len(numbers) > 1 else ''} {few} (counted from 0)"


def _without_nan(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]
