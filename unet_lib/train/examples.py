"""The images and labels that a run learns from, checked and made into targets.

Used in :doc:`training`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from unet_lib._checks import (
    UNKNOWN,
    as_stack,
    check_binary,
    check_images,
    check_labels,
    check_pairs,
    found,
)
from unet_lib.config import TrainConfig
from unet_lib.metrics import pixel_error
from unet_lib.weights import part, weight_map

Slices = list[np.ndarray]


def checked(config: TrainConfig, images: Any, labels: Any) -> tuple[Slices, Slices]:
    """Images and labels as `fit` takes them, slice by slice, or a ValueError.

    Images are returned with an axis for channels if there are several, and labels as
    uint8 if that holds them all, otherwise as int32.
    """
    images, labels = as_stack(images), as_stack(labels)
    _check_channels_first(config.in_channels, images)
    check_pairs(images=images, labels=labels)
    images = _each(check_images, images, "images")
    channels = images[0].shape[0] if images[0].ndim == 3 else 1
    if channels != config.in_channels:
        raise ValueError(
            f"The images have {channels} channel(s), and the configuration says "
            f"in_channels={config.in_channels}: take TrainConfig(in_channels="
            f"{channels})."
        )
    if channels == 1:
        images = [one.reshape(one.shape[-2:]) for one in images]
    labels = _each(partial(_check_labels, config), labels, "labels")
    small = all(0 <= one.min() <= one.max() <= 255 for one in labels)
    kind = np.uint8 if small else np.int32
    return images, [one.astype(kind, copy=False) for one in labels]


def _each(
    check: Callable[[np.ndarray, str], np.ndarray],
    stack: np.ndarray | Slices,
    name: str,
) -> Slices:
    """Check a stack as a whole, a list of slices one by one."""
    if isinstance(stack, list):
        return [check(one, f"{name}[{n}]") for n, one in enumerate(stack)]
    return [*check(stack, name)]


def _check_channels_first(channels: int, images: np.ndarray | Slices) -> None:
    axes, slices = (3, images) if isinstance(images, list) else (4, [images])
    for one in slices:
        last = one.ndim == axes and one.shape[-1] == channels != one.shape[-3]
        if last and channels > 1:
            raise ValueError(
                f"Expected images of shape (slices, {channels}, height, width), or a "
                f"list of ({channels}, height, width), got the channels last, "
                f"{one.shape}: pass [np.moveaxis(one, -1, 0) for one in images]."
            )


def _check_labels(config: TrainConfig, labels: np.ndarray, name: str) -> np.ndarray:
    if config.instances:
        return check_labels(labels, name, unknown=True)
    if config.num_classes == 2:
        return check_binary(labels, name, training=True)
    labels = check_labels(labels, name, unknown=True)
    if labels.max() >= config.num_classes:
        raise ValueError(
            f"Expected {name} of {config.num_classes} classes, from 0 to "
            f"{config.num_classes - 1}, or -1 (unknown), got {found(labels)}: take "
            f"TrainConfig(num_classes={int(labels.max()) + 1}), or instances=True, "
            "without num_classes, if they number cells."
        )
    return labels


def check_held_out(numbers: tuple[int, ...], labels: Slices) -> None:
    """ValueError for held-out slices that do not exist or have no known labels.

    It is also raised if no slice is left to train on.
    """
    held_out, slices = set(numbers), set(range(len(labels)))
    if not held_out < slices:
        raise ValueError(
            f"Cannot hold out slices {sorted(held_out)} of {len(slices)}: give numbers "
            "from 0 to the last slice, and leave some to train on."
        )
    if held_out and all((labels[z] == UNKNOWN).all() for z in held_out):
        raise ValueError(
            f"All labels of the held-out slices {sorted(held_out)} are -1, unknown: "
            "hold out slices with labels, by which they can be scored."
        )


def targets(config: TrainConfig, labels: Slices) -> tuple[Slices, Slices]:
    """The class of each pixel, -1 where it is unknown, and its weight in the loss.

    For instances, the class is 1 inside a cell, except in the gaps that separate cells.
    The classes are balanced over all the slices.
    """
    if config.instances:
        labels = [part(one) for one in labels]
    if config.weighting == "none":
        weights = [(one != UNKNOWN).astype(np.float32) for one in labels]
    else:
        weights = [*weight_map(labels, config.w0, config.sigma, config.num_classes)]
    classes = [np.sign(one) for one in labels] if config.instances else labels
    return classes, weights


def check_something_to_learn(classes: Slices) -> None:
    """ValueError if all known pixels are of one class."""
    known = [one[one != UNKNOWN] for one in classes]
    values = {int(v) for one in known if one.size for v in (one.min(), one.max())}
    if len(values) < 2:
        what = f"of class {values.pop()}" if values else "unknown (-1)"
        raise ValueError(
            f"There is nothing to learn: all pixels of the slices to train on are "
            f"{what}. Expected labels of background (0) and of cells or other classes "
            "(above 0); check that the files hold them and were read as labels."
        )


def score(config: TrainConfig, labels: Slices, predicted: Slices) -> dict[str, Any]:
    """How well held-out slices are predicted; unknown pixels are left out.

    For two classes, this is the pixel error with its curve. For more, it is the Dice
    coefficient of each class over all the slices, where the class of highest
    probability is the predicted one, and the mean over the classes above 0 that occur.

    Args:
        config: the configuration of the run.
        labels: as `checked` returns them.
        predicted: the probabilities of each slice, as `predict` returns them.
    """
    known = [one != UNKNOWN for one in labels]

    def joined(slices: Slices) -> np.ndarray:
        pairs = zip(slices, known, strict=True)
        return np.concatenate([one[where] for one, where in pairs])

    if config.instances:
        labels = [(part(one) > 0).astype(np.uint8) for one in labels]
    truth = joined(labels)
    if config.num_classes == 2:
        curve = pixel_error(truth[None], joined(predicted)[None])
        return {
            "pixel_error": curve.value,
            "threshold": curve.threshold,
            "thresholds": curve.thresholds.tolist(),
            "pixel_errors": curve.values.tolist(),
        }
    chosen = joined([one.argmax(axis=0) for one in predicted])
    count = partial(np.bincount, minlength=config.num_classes)
    both, total = count(truth[chosen == truth]), count(chosen) + count(truth)
    pairs = zip(both.tolist(), total.tolist(), strict=True)
    dice = [2 * hits / sizes if sizes else None for hits, sizes in pairs]
    occurring = [one for one in dice[1:] if one is not None]
    return {"mean_dice": float(np.mean(occurring or [0.0])), "dice": dice}
