"""How well two ways to number the cells of a slice agree: by pairs, by information.

Built in :doc:`metrics`.
"""

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Overlaps", "f_score", "information_f", "overlaps", "pair_counts"]


def f_score(
    true_positive: float, false_positive: float, false_negative: float
) -> float:
    """:math:`F = 2 P R / (P + R)`; without false positives P is 1, likewise R."""
    precision = (
        true_positive / (true_positive + false_positive) if false_positive else 1.0
    )
    recall = true_positive / (true_positive + false_negative) if false_negative else 1.0
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


class Overlaps(NamedTuple):
    """How the cell pixels of the labels divide among true and proposed cells."""

    pixels: int  # n, the number of pixels in the labels' cells
    shares: np.ndarray  # p_ij > 0: fraction of n in label cell i and proposal cell j
    proposed: np.ndarray  # j of each share; 0 = no cell of the proposal
    rows: np.ndarray  # a_i, sums of the shares over all j
    columns: np.ndarray  # b_j, sums of the shares over all i, including b_0


def overlaps(label_cells: np.ndarray, proposal_cells: np.ndarray) -> Overlaps:
    """Count the overlaps of two numberings of one slice; 0 = no cell."""
    inside = label_cells > 0
    pixels = np.count_nonzero(inside)
    size = int(proposal_cells.max()) + 1
    pairs = label_cells[inside].astype(np.int64) * size + proposal_cells[inside]
    # Neighboring pixels are mostly of one pair: sort runs instead of pixels.
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    lengths = np.diff(starts, append=pixels)
    found, run = np.unique(pairs[starts], return_inverse=True)
    shares = np.bincount(run, lengths) / max(pixels, 1)
    label_of, proposed = np.divmod(found, size)
    rows = np.bincount(label_of, shares)[1:]
    columns = np.bincount(proposed, shares, minlength=1)
    return Overlaps(pixels, shares, proposed, rows, columns)


def pair_counts(counted: Overlaps) -> np.ndarray:
    """True positive, false positive and false negative pairs; NaN without labels."""
    n = counted.pixels
    if n == 0:
        return np.full(3, np.nan)  # 0/0 in the challenge's software
    alone = counted.columns[0] / n  # z/n
    joint = _sum(counted.shares[counted.proposed > 0] ** 2) + alone
    true = n * n * joint
    by_proposal = n * n * (_sum(counted.columns[1:] ** 2) + alone)
    by_labels = n * n * _sum(counted.rows**2)
    return np.array([true, by_proposal - true, by_labels - true])


def information_f(counted: Overlaps) -> float:
    """:math:`F` of the information that labels and proposal share; NaN for 0/0."""
    n = counted.pixels
    if n == 0:
        return 0.0
    alone = counted.columns[0] * math.log(n)  # z ln n
    rows = _sum_x_log_x(counted.rows)
    columns = _sum_x_log_x(counted.columns[1:]) - alone
    joint = _sum_x_log_x(counted.shares[counted.proposed > 0]) - alone
    if rows == 0 or columns == 0:
        return 0.0
    precision = (-rows - (columns - joint)) / -rows
    recall = (-columns - (rows - joint)) / -columns
    total = precision + recall
    return 2 * precision * recall / total if total != 0 else math.nan


def _sum(values: np.ndarray | list[float]) -> float:
    """Add one after the other, as the challenge's software does.

    Where the true sum is zero, the order decides what is left of it.
    """
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _sum_x_log_x(shares: np.ndarray) -> float:
    # Not np.log, which gives other last digits on other processors.
    return _sum([share * math.log(share) for share in shares.tolist() if share > 0])
