"""What public functions ask of the arrays they are given.

Each check returns the array, or raises a ValueError that says what was expected,
what came, and an expression to pass instead.
"""

from numbers import Integral, Real
from typing import Any

import numpy as np

# From this height and width on, a last axis of 3 or 4 is taken for color: no slice is
# that many rows high and only 3 or 4 columns wide.
COLOR_SIDE = 16
UNKNOWN = -1  # the label of a pixel that is not to be learned


def is_whole(value: Any) -> bool:
    """Whether it is an integer, NumPy's among them."""
    return isinstance(value, Integral)


def is_real(value: Any) -> bool:
    """Whether it is a real number, NumPy's among them."""
    return isinstance(value, Real)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is lacking; on a CPU PyTorch has no class."""
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def found(array: Any) -> str:
    """What came, for an error: the type and its range, or else the shape."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.size == 0:
        return f"{array.dtype} of shape {array.shape}"
    if not np.isfinite(array).all():
        return f"{array.dtype} with NaN or infinity"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        return f"{array.dtype} from {low:g} to {high:g}"
    return f"{array.dtype} from {int(low)} to {int(high)}"


def as_array(array: Any, name: str) -> np.ndarray:
    """An array of anything array-like; slices of different sizes are refused."""
    try:
        return np.asarray(array)
    except ValueError:
        raise ValueError(
            f"Expected {name} as one array, got a {type(array).__name__} of arrays of "
            "different sizes: pass them one at a time, or crop them to one size."
        ) from None


def as_stack(arrays: Any) -> Any:
    """One array of anything array-like, or a list of arrays of different sizes."""
    try:
        return np.asarray(arrays)
    except ValueError:
        return [np.asarray(one) for one in arrays]


def check_slices(array: Any, name: str) -> np.ndarray:
    """``(height, width)`` or ``(slices, height, width)``, not empty, not color."""
    array = as_array(array, name)
    check_not_color(array, name)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"Expected {name} of shape (height, width) or (slices, height, width) with "
            f"at least one pixel, got {array.shape}."
        )
    return array


def check_pairs(**stacks: np.ndarray | list[np.ndarray]) -> None:
    """Refuse images and what goes with each of their pixels, if they do not match.

    The first are the images, ``(slices, height, width)``, ``(slices, channels, height,
    width)``, or a list of such slices, which may differ in size; the others are of
    their shape without channels.
    """
    names = ", ".join([*stacks][:-1]) + f" and {[*stacks][-1]}"
    every: list[Any] = [*stacks.values()]
    lead, axes, groups = 1, "slices, ", [every]
    if any(isinstance(one, list) for one in every):
        lists = [
            one if isinstance(one, list) else [*np.atleast_1d(one)] for one in every
        ]
        if len({len(one) for one in lists}) > 1:
            raise ValueError(
                f"Expected {names} of as many slices, got {[*map(len, lists)]}."
            )
        lead, axes, groups = 0, "", [list(one) for one in zip(*lists, strict=True)]
    for number, (images, *others) in enumerate(groups):
        check_not_color(images, "images" if lead else f"images[{number}]")
        size = (*images.shape[:lead], *images.shape[-2:])
        channels = images.shape[lead:-2], groups[0][0].shape[lead:-2]
        if (
            images.ndim - lead not in (2, 3)
            or any(one.shape != size for one in others)
            or channels[0] != channels[1]
        ):
            shapes = ", ".join(str(one.shape) for one in (images, *others))
            which = f" number {number}" if len(groups) > 1 else ""
            raise ValueError(
                f"Expected {names} of one shape ({axes}height, width), or images with "
                f"channels ({axes}channels, height, width), got {shapes}{which}."
            )
        if images.size == 0:
            raise ValueError(f"Expected at least one pixel, got {images.shape}.")


def check_plane(array: Any, name: str) -> np.ndarray:
    """``(height, width)`` of finite numbers, not empty."""
    array = np.asarray(array)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"Expected {name} of one slice, (height, width), with at least one pixel, "
            f"got shape {array.shape}."
        )
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"Expected {name} of finite numbers, got {found(array)}.")
    return array


def check_not_color(array: np.ndarray, name: str) -> None:
    """Refuse ``(..., height, width, 3 or 4)``, which would be read as slices."""
    *_, height, width, colors = (0, 0, 0, *array.shape)
    if colors in (3, 4) and min(height, width) >= COLOR_SIDE:
        raise ValueError(
            f"Expected {name} of shape (height, width) or (slices, height, width), but "
            f"{array.shape} looks like color (height, width, {colors}): pass "
            f"{name}[..., :3] @ np.float32([0.299, 0.587, 0.114]) for its gray values, "
            f"or {name}[..., 0] for one channel."
        )


def check_range(array: Any, name: str) -> np.ndarray:
    """Numbers from 0 to 1. What lies outside by rounding alone is clipped."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise ValueError(f"Expected {name} of floats from 0 to 1, got {found(array)}.")
    low, high = array.min(), array.max()
    if low >= 0 and high <= 1:
        return array
    rounding = 0.0
    if array.dtype.kind == "f":
        rounding = max(1e-5, 2 * float(np.finfo(array.dtype).eps))
    if low >= -rounding and high <= 1 + rounding:
        return array.clip(0, 1)
    raise ValueError(
        f"Expected {name} from 0 to 1, got {found(array)}: pass {_scaled(array, name)}."
    )


def check_images(images: Any, name: str = "images") -> np.ndarray:
    """Floats from 0 to 1. What lies outside by rounding alone is clipped."""
    images = np.asarray(images)
    if images.dtype.kind in "biu":
        raise ValueError(
            f"Expected {name} of floats from 0 to 1, got {found(images)}: pass "
            f"{_scaled(images, name)}."
        )
    return check_range(images, name)


def check_labels(
    labels: Any, name: str = "labels", unknown: bool = False
) -> np.ndarray:
    """Booleans or integers from 0 on: classes, or the numbers of cells.

    With `unknown`, -1 is allowed too.
    """
    labels = np.asarray(labels)
    expected, got = f"Expected {name} of integers from 0 on", found(labels)
    expected += ", or -1 for pixels that are unknown" * unknown
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"{expected}, got {got}.")
    whole = labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all())
    if whole and -unknown <= labels.min() and float(labels.max()) < 2**63:
        raise ValueError(f"{expected}, got {got}: pass {name}.astype(np.int64).")
    if labels.dtype.kind == "f" or labels.min() < -unknown:
        elsewhere = ""
        if labels.min() == UNKNOWN and not unknown:
            elsewhere = (
                "; -1 for unknown pixels, which training leaves out, is taken by fit, "
                "TileSampler and weight_map alone, and by the reference of score_cells"
            )
        raise ValueError(
            f"{expected}, got {got}: pass {name} > 0 if every value above 0 is cell, "
            f"and crop pixels that are not to count{elsewhere}."
        )
    if labels.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"{expected} up to {np.iinfo(np.int32).max}, got {got}: pass "
            f"skimage.segmentation.relabel_sequential({name})[0]."
        )
    return labels


def check_binary(
    labels: Any, name: str = "labels", training: bool = False
) -> np.ndarray:
    """1 for cell and 0 for membrane, of any type; uint8 comes back.

    For `training` -1 is allowed too, and int8 comes back.
    """
    labels = np.asarray(labels)
    expected = f"Expected {name} of 0 (membrane) and 1 (cell)"
    expected += ", or -1 (unknown)" * training
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"{expected}, got {found(labels)}.")
    known = labels[labels != UNKNOWN] if training else labels
    other = known[(known != 0) & (known != 1)]  # NaN among them
    if other.size:
        values = np.unique(other)
        kept = f"{name} {{}}"
        if training and (labels == UNKNOWN).any():
            kept = f"np.where({name} == -1, -1, {kept})"
        advice = f"pass {kept.format('> 0')}"
        if training and labels.dtype.kind in "iu" and len(values) > 1:
            # Those that number cells would be merged where they touch.
            advice = (
                "take TrainConfig(instances=True) if they number cells, "
                f"num_classes={int(labels.max()) + 1} if they number classes, or pass "
                f"{kept.format('> 0')}"
            )
        if not np.isfinite(values).all():
            advice += " to count NaN as membrane, or crop such pixels"
        elif len(values) > 1 or not values[0] > 1 or (labels == 1).any():
            middle = 0.5 if labels.max() <= 1 else labels.max() // 2
            advice += (
                f" if every value above 0 is cell, {kept.format(f'> {middle}')} if "
                f"they are gray values, or {kept.format('== 1')} to count the others "
                "as membrane"
            )
        raise ValueError(
            f"{expected}, got {found(labels)}, {other.size} pixel(s) of {len(values)} "
            f"other value(s) such as {values[len(values) // 2]:g}: {advice}."
        )
    return labels.astype(np.int8 if training else np.uint8, copy=False)


def check_scored(labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of cell, of one shape."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.shape != probabilities.shape:
        raise ValueError(
            "Expected labels and probabilities of one shape, got "
            f"{labels.shape} and {probabilities.shape}: compare the same slices, "
            "cropped alike."
        )
    return check_binary(labels), check_range(probabilities, "probabilities")


def check_weights(weights: Any, name: str = "weights") -> np.ndarray:
    """Finite floats from 0 on."""
    weights = np.asarray(weights)
    if weights.dtype.kind != "f" or not 0 <= weights.min() <= weights.max() < np.inf:
        raise ValueError(
            f"Expected {name} of finite floats of 0 and above, got {found(weights)}: "
            "unet_lib.weights.weight_map makes them."
        )
    return weights


def _scaled(array: np.ndarray, name: str) -> str:
    """An expression that brings an array of numbers to floats from 0 to 1."""
    if array.dtype.kind == "b" or (
        array.dtype.itemsize > 1 and 0 <= array.min() <= array.max() <= 1
    ):
        return f"{name}.astype(np.float32)"
    if not np.isfinite(array).all():
        return f"np.where(np.isfinite({name}), {name}, 0) to make such pixels black"
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low > -0.5 and high < 1.5:
        return f"np.clip({name}, 0, 1)"
    if low < 0:
        return f"({name} + {-low}) / {high - low or 1.0}"
    for bits in (8, 12, 16, 32):
        if high < 2**bits:
            break
    else:
        return f"{name} / {high}"
    return f"{name} / np.float32({2**bits - 1}) for {bits}-bit values"
