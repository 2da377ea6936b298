"""The challenge's figures, as its own software computes them.

Built in chapter 6, *Overlap-tile evaluation*.
"""

from typing import NamedTuple

import numpy as np

# 0.0, 0.1, ... by repeated addition, as the challenge's software counts: the
# last ones are 0.7999999999999999, 0.8999999999999999, 0.9999999999999999.
THRESHOLDS = np.cumsum([0.0] + [0.1] * 10)


class Curve(NamedTuple):
    """A figure over the thresholds. `error` is the figure that is reported."""

    error: float
    threshold: float  # where `error` is taken
    errors: np.ndarray  # float64, one for each of `thresholds`
    thresholds: np.ndarray


def pixel_error(labels: np.ndarray, probabilities: np.ndarray) -> Curve:
    """1 - F of the cell pixels, least over the thresholds 0.0, 0.1, ..., 1.0.

    A pixel is called cell where its probability is above the threshold. True
    and false ones are summed over all slices before F = 2PR/(P+R). This is the
    challenge's pixel error (Table 1 of the paper), not the share of wrong
    pixels.

    Args:
        labels: ``(height, width)`` or ``(slices, height, width)``, 1 = cell.
        probabilities: the same shape, float, 0 to 1, of cell.

    Raises:
        ValueError: for unlike or empty shapes, labels other than 0 and 1,
            probabilities that are not finite or not from 0 to 1.
    """
    labels, probabilities = _checked(labels, probabilities)
    cell = labels == 1
    scores = [
        f_score(np.sum(cell & called), np.sum(~cell & called), np.sum(cell & ~called))
        for called in (probabilities > threshold for threshold in THRESHOLDS)
    ]
    errors = 1 - np.array(scores)
    best = int(np.argmin(errors))
    return Curve(float(errors[best]), float(THRESHOLDS[best]), errors, THRESHOLDS)


def f_score(true_positive: float, false_positive: float, false_negative: float):
    """F = 2PR/(P+R), with P = 1 or R = 1 where there is nothing false."""
    precision = (
        true_positive / (true_positive + false_positive) if false_positive else 1.0
    )
    recall = true_positive / (true_positive + false_negative) if false_negative else 1.0
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


def _checked(labels, probabilities) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.shape != probabilities.shape or labels.ndim not in (2, 3):
        raise ValueError(
            "Expected labels and probabilities of one shape, (height, width) or "
            f"(slices, height, width), got {labels.shape} and {probabilities.shape}."
        )
    if labels.size == 0:
        raise ValueError(f"Expected at least one pixel, got shape {labels.shape}.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "Expected labels of 0 (membrane) and 1 (cell), got values from "
            f"{labels.min()} to {labels.max()}; for 0 and 255 pass labels > 0."
        )
    # In double precision: a float32 is not compared as its threshold rounds.
    probabilities = probabilities.astype(np.float64)
    if not np.isfinite(probabilities).all():
        raise ValueError("Expected finite probabilities, got NaN or infinity.")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            "Expected probabilities from 0 to 1, got values from "
            f"{probabilities.min():g} to {probabilities.max():g}; divide a map in "
            "0..255 by 255."
        )
    return labels, probabilities
