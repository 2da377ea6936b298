"""The loss: pixel-wise softmax and cross-entropy, weighted (section 3, equation 1).

Built in :doc:`weight-maps` and :doc:`training`.
"""

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["weighted_cross_entropy"]


def weighted_cross_entropy(
    scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    r"""The negative of the paper's energy (equation 1), per pixel.

    .. math:: E = \sum_x w(x) \log p_{l(x)}(x)

    :math:`p` is the softmax over the classes and :math:`l(x)` the label. The loss is
    the mean over the pixels, not the sum, so that the learning rate does not depend on
    the size of the tile. It is not divided by the sum of the weights, so that a tile
    with many borders counts for more. It is computed in float32 or better.

    Args:
        scores: ``(batch, classes, height, width)``, float: the network's logits.
        labels: ``(batch, height, width)``, int64.
        weights: ``(batch, height, width)``, float, not negative.

    Raises:
        ValueError: if shapes do not match or are empty, or if a type is another one.
            On the CPU, also if labels are not among the classes, or if weights are
            negative or not finite; on a GPU, this check would have to wait for it.
    """
    expected = (*scores.shape[:1], *scores.shape[2:])
    fit_together = scores.ndim == 4 and labels.shape == weights.shape == expected
    if not fit_together or scores.numel() == 0:
        raise ValueError(
            "Expected scores (batch, classes, height, width) and labels and weights "
            "(batch, height, width) with at least one pixel, got "
            f"{tuple(scores.shape)}, {tuple(labels.shape)}, {tuple(weights.shape)}."
        )
    if labels.dtype != torch.int64 or not scores.is_floating_point():
        raise ValueError(
            f"Expected scores of floats and labels of int64, got {scores.dtype} and "
            f"{labels.dtype}: pass labels.long()."
        )
    if labels.device.type == "cpu":
        low, high, classes = int(labels.min()), int(labels.max()), scores.shape[1]
        if low < 0 or high >= classes:
            raise ValueError(
                f"Expected labels from 0 to {classes - 1}, one of {classes} classes, "
                f"got {low} to {high}; for 0 and 255 pass (labels > 0).long()."
            )
        # In these words NaN is refused too.
        if not 0 <= weights.min() <= weights.max() < np.inf:
            raise ValueError(
                "Expected weights of 0 and above, finite, got "
                f"{weights.min():g} to {weights.max():g}."
            )
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    return (weights * F.cross_entropy(scores, labels, reduction="none")).mean()
