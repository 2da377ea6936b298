"""From numbers as stored to gray values and labels, by what the file says of them."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from unet_lib._checks import is_real, is_whole
from unet_lib.data._raster import Raster

# Of red, green and blue in a gray value: ITU-R BT.601, as in Pillow and in Fiji's
# weighted conversion.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Rounding may leave a float this far outside 0 to 1.
ROUNDING = 1e-5
PERCENTILES = (0.5, 99.5)
# An image whose largest value is at most this part of the type's is taken to have
# been stored in a larger type than it needs.
DARK = 0.25
RANGE = "value_range=({}, {}) (--range {} {} on the command line)"
DIVIDE = (
    "Scale them to 0 to 1 and save them as floats: divide a map of 0 to 255 by 255, "
    "and of logits take the sigmoid."
)
CHOOSE = "choose one channel with channel=1 (--channel 1)"
AUTO = 'value_range="auto" (--range auto)'
INVERT = "in Fiji, choose Image > Lookup Tables > Invert LUT"
SLICES = (
    "If they are slices, say so (in Fiji under Image > Properties, with "
    "tifffile.imwrite by metadata={'axes': 'ZYX'})"
)
SAVE = "save what you mean as a gray image"


def visible(raster: Raster) -> Raster:
    """Turn stored numbers into intensities: large is light.

    Raises:
        ValueError: where the file does not say how.
    """
    if raster.meaning in ("MINISBLACK", "RGB"):
        return raster
    pixels = raster.pixels
    if raster.meaning == "MINISWHITE":
        if pixels.dtype.kind not in "bu":
            raise ValueError(
                f"{raster.name} says that small values are white (MinIsWhite), but "
                f"{pixels.dtype} has no largest value: {INVERT}, and save it again."
            )
        pixels = ~pixels if pixels.dtype.kind == "b" else largest(raster) - pixels
        return replace(raster, pixels=pixels, meaning="MINISBLACK")
    if raster.meaning == "PALETTE":
        table, indices = _table(raster)
        if not np.ptp(table[np.unique(indices)], axis=1).any():
            pixels = table[:, 0][indices]
            return replace(raster, pixels=pixels, meaning="MINISBLACK", bits=8)
        if not raster.false_color:
            pixels = np.moveaxis(table[indices], -1, -3)
            axes = raster.lead + "SYX"
            return replace(raster, pixels=pixels, axes=axes, meaning="RGB", bits=8)
    raise ValueError(
        f"{raster.name} stores its pixels as {raster.meaning}, not as intensities: in "
        "Fiji, choose Image > Type > 8-bit, or Image > Lookup Tables > Grays, and save "
        "it again."
    )


def _table(raster: Raster) -> tuple[np.ndarray, np.ndarray]:
    """The color table and the indices into it."""
    table, indices = raster.palette, raster.pixels
    whole = table is not None and indices.dtype.kind in "bu"
    if table is None or not whole or indices.max(initial=0) >= len(table):
        raise ValueError(
            f"{raster.name} has indices that its color table does not hold."
        )
    if table.max(initial=0) > 255:  # TIFF has 16 bits, of which the upper 8 count
        table = table >> 8
    return table.astype(np.uint8), indices.astype(np.uint16)


def largest(raster: Raster) -> int | np.ndarray:
    """The largest value of an unsigned type, or of the bits that are used of it."""
    whole = 8 * raster.pixels.dtype.itemsize
    bits = min(raster.bits or whole, whole)
    return raster.pixels.dtype.type(2**bits - 1)


def check_channel(name: str, found: int, channel: int) -> None:
    """ValueError for a channel that a file does not have."""
    if not isinstance(channel, int) or not 1 <= channel <= found:
        raise ValueError(
            f"{name} has {found} channel{'s' * (found > 1)}, counted from 1: there is "
            f"no channel {channel!r}."
        )


def choose(raster: Raster, channel: int) -> Raster:
    """One channel of a raster, counted from 1."""
    found = raster.pixels.shape[-3] if raster.channel_axis else 1
    check_channel(raster.name, found, channel)
    if not raster.channel_axis:
        return raster
    meaning = "MINISBLACK" if raster.meaning == "RGB" else raster.meaning
    return replace(raster.samples(channel - 1), alpha=False, meaning=meaning)


def opaque(raster: Raster, otherwise: str) -> Raster:
    """Leave out an opacity that says nothing; refuse one that does.

    What to do `otherwise` than flatten it ends the sentence.
    """
    if not raster.alpha:
        return raster
    opacity = raster.pixels[..., -1, :, :]
    full = largest(raster) if opacity.dtype.kind == "u" else 1
    if (opacity != full).any():
        raise ValueError(
            f"{raster.name} has an alpha channel, by which pixels are transparent: "
            f"flatten it where it was drawn, or {otherwise}."
        )
    return replace(raster.samples(slice(0, -1)), alpha=False)


def value_limits(
    rasters: Sequence[Raster],
    value_range: tuple[float, float] | Literal["auto"] | None,
    where: str,
    probabilities: bool = False,
) -> tuple[float, float]:
    """The values that become 0 and 1; for probabilities nobody can choose them.

    Raises:
        ValueError: for what is not finite, and where the type has no range of its own
            and the values are not from 0 to 1.
    """
    low = min(raster.pixels.min().item() for raster in rasters)
    high = max(raster.pixels.max().item() for raster in rasters)
    dtype, top = rasters[0].pixels.dtype, 1
    if dtype.kind not in "buif" or not np.isfinite([low, high]).all():
        raise ValueError(
            f"{where} holds {dtype} values from {low} to {high}: expected finite real "
            "numbers. Replace NaN and infinite pixels, or take the absolute value of "
            "complex ones, and save it again."
        )
    if value_range is not None:
        return _asked(rasters, value_range, where)
    if dtype.kind in "ui":
        top = int(largest(rasters[0]) if dtype.kind == "u" else np.iinfo(dtype).max)
    said = f"{where} holds {dtype} values from {low:g} to {high:g}"
    outside = low < -ROUNDING or (dtype.kind == "f" and high > 1 + ROUNDING)
    dark = dtype.kind in "ui" and high <= DARK * top
    advice = _advice(low, high, top)
    if outside or (dark and probabilities):
        advice = DIVIDE if probabilities else advice
        raise ValueError(f"{said}: expected values from 0 to {top}. {advice}")
    if dark:
        warnings.warn(
            f"{said}, of a range of 0 to {top}: nearly black. {advice}",
            UserWarning,
            stacklevel=4,
        )
    return 0, top


def _full(high: int) -> int:
    """The largest number of as many bits: 4095 for 3900; 255 at least."""
    return max(255, 2 ** high.bit_length() - 1)


def _advice(low: float, high: float, top: int) -> str:
    """What to ask for: 0 to the largest number of as many bits, where that may be."""
    low = min(low, 0)
    if low == 0 and high > 2 and not 2 < top <= 255:
        high = _full(int(high))
    numbers = [f"{value:.9g}" for value in (low, high)] * 2
    return f"Say which values become 0 and 1: {RANGE.format(*numbers)}, or {AUTO}."


def _asked(
    rasters: Sequence[Raster],
    value_range: tuple[float, float] | Literal["auto"],
    where: str,
) -> tuple[float, float]:
    if isinstance(value_range, str) and value_range == "auto":
        every = np.concatenate([raster.pixels.ravel() for raster in rasters])
        low, high = np.percentile(every, PERCENTILES).tolist()
        if low < high:
            return low, high
        numbers = RANGE.format(*(0, _full(int(high))) * 2)
        raise ValueError(
            f"{where} is nearly one gray value: the percentiles {PERCENTILES} are "
            f"{low:g} and {high:g}, which leaves no range. Give one, such as {numbers}."
        )
    try:
        low, high = value_range
        valid = is_real(low) and is_real(high) and -np.inf < low < high < np.inf
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "Expected a value_range of two numbers LOW < HIGH (--range LOW HIGH) or "
            f'"auto", got {value_range!r}.'
        )
    return float(low), float(high)


def scaled(raster: Raster, low: float, high: float) -> Raster:
    """float32, `low` at 0 and `high` at 1, clipped."""
    # In float64 only where float32 would round the numbers themselves.
    pixels = raster.pixels
    exact = np.result_type(pixels.dtype, np.float32) == np.float32
    work = np.float32 if exact else np.float64
    values = np.empty(pixels.shape, np.float32)
    flat = values.reshape(-1, *values.shape[-2:])
    for out, plane in zip(flat, pixels.reshape(flat.shape), strict=True):
        out[...] = ((plane.astype(work) - work(low)) / work(high - low)).clip(0, 1)
    return replace(raster, pixels=values)


def luma(raster: Raster) -> Raster:
    """Gray values of red, green and blue; gray ones stay as they are."""
    if not raster.channel_axis:
        return raster
    if raster.meaning != "RGB":
        raise ValueError(
            f"{raster.name} has {raster.pixels.shape[-3]} channels that are not red, "
            f"green and blue, which gray=True (--gray) would mix: {CHOOSE}."
        )
    gray = np.einsum("c,...cyx->...yx", LUMA, raster.pixels).clip(0, 1)
    return replace(raster, pixels=gray, axes=raster.lead + "YX", meaning="MINISBLACK")


def label_numbers(raster: Raster) -> Raster:
    """The numbers of a label image, which are not intensities.

    Raises:
        ValueError: where the file's tags leave open which number is which.
    """
    name = raster.name
    if raster.meaning not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE"):
        raise ValueError(
            f"{name} stores its pixels as {raster.meaning}: expected labels as a gray "
            "image."
        )
    raster = opaque(raster, SAVE)
    if raster.meaning == "RGB" and raster.channel_axis:
        if np.ptp(raster.pixels, axis=-3).max(initial=0) > 0:
            raise ValueError(
                f"{name} holds colors: expected labels as numbers. Save it as a gray "
                "image of 0 and 255, or of the numbers of classes or cells."
            )
        return replace(raster.samples(0), meaning="MINISBLACK")
    if raster.channel_axis:
        raise ValueError(
            f"{name} has {raster.pixels.shape[-3]} channels: expected labels of one. "
            f"Save the one you mean by itself. {SLICES}."
        )
    if raster.meaning == "MINISWHITE":
        raise ValueError(
            f"{name} says that 0 is white (MinIsWhite), so that it is not clear which "
            f"pixels are labeled: {INVERT}, check that cells are white, and save it "
            "again."
        )
    if raster.meaning == "PALETTE":
        table, indices = _table(raster)
        used = np.unique(indices)
        if table[0].any() or not table[used[used > 0]].any(axis=1).all():
            raise ValueError(
                f"{name} has a color table that shows 0 in a color or another label in "
                "black: it is not clear which is the background. In Fiji, choose Image "
                "> Lookup Tables > Grays, which keeps the numbers, check that the "
                "background is black, and save it again."
            )
        return replace(raster, meaning="MINISBLACK")
    return raster


def check_unknown(unknown: int | None, binary: bool) -> None:
    """ValueError if it cannot be the number that marks unknown pixels of labels."""
    if unknown is None:
        return
    if binary:
        raise ValueError(
            "unknown (--unknown) is for labels that number cells or classes (evaluate "
            "--instances, binary=False): leave it out for binary labels."
        )
    if not is_whole(unknown) or unknown < 1:
        raise ValueError(
            "Expected unknown (--unknown) as an integer from 1 on, such as 255, got "
            f"{unknown!r}: -1 is unknown in any case, and 0 is background."
        )


def check_whole_numbers(raster: Raster, least: int = 0) -> None:
    """ValueError unless labels are whole numbers, `least` or above."""
    labels, name = raster.pixels, raster.name
    if labels.dtype.kind not in "buif":
        raise ValueError(f"{name} holds {labels.dtype}: expected labels as integers.")
    wrong = ~(labels >= least)  # NaN too
    if labels.dtype.kind == "f":
        wrong |= np.isinf(labels) | (labels != np.rint(labels))
    if wrong.any():
        raise ValueError(
            f"{name} has {_count(wrong)} labeled {labels[wrong][0]:g}: expected whole "
            f"numbers from {least}. Where this marks pixels without a label, "
            f"{'store -1 there' if least else 'label them first'}; labels at them are "
            "not taken for background."
        )


def binary(raster: Raster) -> Raster:
    """0 and 1 of labels that are 0 and 1, or 0 and 255."""
    labels, name = raster.pixels, raster.name
    cell = labels > 0
    for one in (1, 255):
        if (labels[cell] == one).all():
            return replace(raster, pixels=cell)
    values = np.unique(labels[cell])
    others = values[~np.isin(values, (1, 255))]
    if not others.size:
        raise ValueError(
            f"{name} has {_count(labels == 1)} of 1 and {_count(labels == 255)} of "
            "255: expected labels of 0 (membrane) and one of them (cell). If 255 marks "
            "pixels without a label, label them first."
        )
    wrong = np.isin(labels, others)
    raise ValueError(
        f"{name} has {_count(wrong)} of {len(others)} other "
        f"value{'s' * (len(others) > 1)}, such as {others[0]:g}: expected labels of 0 "
        "(membrane) and 1 or 255 (cell). Grays come from JPEG, resizing or soft "
        "brushes: save what is above a threshold as 255. Numbers of cells or classes "
        "are not binary labels: save labels > 0."
    )


def _count(wrong: np.ndarray) -> str:
    number = int(np.count_nonzero(wrong))
    return f"{number} pixel{'s' * (number != 1)}"
