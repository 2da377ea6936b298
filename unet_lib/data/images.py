"""Your own images and labels from files: TIFF, PNG, JPEG, or a folder of them.

All commands read files with these functions. They return the right array, or raise a
ValueError that says in one sentence what is wrong and what to do. Used in
:doc:`own-images`.
"""

import itertools
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from unet_lib._checks import UNKNOWN
from unet_lib.data import _numbers
from unet_lib.data._pictures import read_picture
from unet_lib.data._raster import Raster, resolved
from unet_lib.data._tiff import read_raster
from unet_lib.data.tiff import write_tiff

__all__ = ["Images", "read_images", "read_labels", "read_probabilities"]

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OTHERS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
NOT_IMAGES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True, eq=False)
class Images:
    """The content of a file or a folder.

    Attributes:
        pixels: ``(slices, height, width)``, or with channels ``(slices, channels,
            height, width)``; if the images of a folder differ in size, a list with
            one array per slice.
        axes: the axes of the file, one letter each: ``"YX"`` for one image, ``"ZYX"``
            for a stack, ``"TYX"`` for time points, ``"TZYX"`` for both; ``"C"`` before
            ``"YX"`` for channels. T and Z together become the slices of `pixels`.
        lengths: the lengths of the axes that became slices: ``()`` for one image,
            ``(5,)`` for ``"ZYX"`` with five slices.
        names: the file that each slice comes from.
        colors: whether the channels are red, green and blue.
        pixel_size: ``(depth, height, width)`` of a pixel in `unit`, or None; the
            depth is None if it is not known.
        unit: the unit of `pixel_size`, such as ``"µm"``, or None.
    """

    pixels: np.ndarray | list[np.ndarray]
    axes: str
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    colors: bool = False
    pixel_size: tuple[float | None, float, float] | None = None
    unit: str | None = None

    def for_channels(self, count: int) -> np.ndarray | list[np.ndarray]:
        """The pixels for a network of `count` input channels.

        A gray image that is stored as equal red, green and blue counts as one channel.

        Raises:
            ValueError: if the file has another number of channels; the message says
                what to do.
        """
        parts = self.pixels if isinstance(self.pixels, list) else [self.pixels]
        found = parts[0].shape[-3] if "C" in self.axes else 1
        if found == count:
            return self.pixels
        equal = not any(np.ptp(part, axis=-3).any() for part in parts * self.colors)
        if count == 1 and self.colors and equal:
            gray = [part[..., 0, :, :] for part in parts]
            return gray if isinstance(self.pixels, list) else gray[0]
        kind = "colors" if self.colors else "channel" + "s" * (found > 1)
        advice = f"choose one with channel=1 to {found} (--channel on the command line)"
        if count > 1:
            advice = (
                f"take a network of {found}, or images of {count} channels, with the "
                "axis named (as tifffile.imwrite does by metadata={'axes': 'CYX'})"
            )
        elif self.colors:
            advice += ", or convert them to gray with gray=True (--gray)"
        else:
            advice += f". {_numbers.SLICES}"
        raise ValueError(
            f"{self.names[0]} has {found} {kind}, and the network takes {count}: "
            f"{advice}."
        )

    def write(
        self, path: str | Path, result: np.ndarray, classes: bool = False
    ) -> None:
        """Write a result for these images as a TIFF with their axes and pixel size.

        Args:
            path: the file to write.
            result: ``(slices, height, width)``, of a type that `tiff.write_tiff` takes.
            classes: whether `result` is ``(slices, classes, height, width)`` instead.
        """
        lead = self.axes.removesuffix("YX").removesuffix("C")
        result = result.reshape(*self.lengths, *result.shape[1:])
        axes = lead + ("C" if classes else "") + "YX"
        write_tiff(path, result, axes, self.pixel_size, self.unit)


def read_images(
    path: str | Path,
    channel: int | None = None,
    gray: bool = False,
    value_range: tuple[float, float] | Literal["auto"] | None = None,
) -> Images:
    """Read images as float32 arrays from 0 to 1, the form that a network takes.

    Args:
        path: a TIFF, PNG or JPEG file with one image or a stack, or a folder of such
            files, which are read in the order of their names, 2 before 10.
        channel: the only channel or color to use, counted from 1 as in Fiji.
        gray: whether to convert colors to gray, with the weights 0.299 for red, 0.587
            for green and 0.114 for blue.
        value_range: the two gray values that become 0 and 1; values outside this range
            are clipped. By default, integers are divided by the largest value of their
            type, or of the number of bits that the file states, and floats must lie
            between 0 and 1 already. ``"auto"`` uses the 0.5th and 99.5th percentiles
            of all pixels. This is a deviation from the paper: the gray values of the
            same tissue then depend on what else is in the images.

    Returns:
        `Images` of float32.

    Raises:
        ValueError: if a file cannot be read or could mean more than one thing; the
            message says what to do.
        OSError: if a file cannot be opened.

    Warns:
        UserWarning: if the largest value is far below the maximum of the type, as with
            12-bit values in a 16-bit file.
    """
    if channel is not None and gray:
        raise ValueError("Expected a channel or gray=True, got both: leave one out.")
    return _images(path, channel, gray, value_range)


def read_labels(
    path: str | Path, binary: bool = True, unknown: int | None = None
) -> Images:
    """Read labels.

    Args:
        path: a TIFF or PNG file, or a folder of them, as for `read_images`.
        binary: whether the labels are 0 = membrane or background and 1 or 255 = cell.
            Otherwise they are the numbers of classes or of cells, 0 = background,
            -1 = unknown.
        unknown: if labels are not binary, what marks unknown pixels beside -1.

    Returns:
        `Images`: uint8, 0 and 1, for binary labels; otherwise int32, -1 = unknown.

    Raises:
        ValueError: if a file holds another value, which the message names, or cannot
            be read; if `unknown` is not a number from 1 on, or labels are binary.
        OSError: if a file cannot be opened.
    """
    _numbers.check_unknown(unknown, binary)
    rasters = [_numbers.label_numbers(raster) for raster in _load(path, lossless=True)]
    for raster in rasters:
        _numbers.check_whole_numbers(raster, 0 if binary else -1)
    if binary:
        rasters = [_numbers.binary(raster) for raster in rasters]
    _check_alike(rasters, types=False)
    largest = max(int(raster.pixels.max(initial=0)) for raster in rasters)
    if largest > np.iinfo(np.int32).max:
        raise ValueError(
            f"{path} holds a label of {largest}: expected less than 2**31."
        )
    dtype = np.uint8 if binary else np.int32
    rasters = [replace(one, pixels=one.pixels.astype(dtype)) for one in rasters]
    if unknown is not None:
        for one in rasters:
            one.pixels[one.pixels == unknown] = UNKNOWN
    return _collected(rasters, path)


def read_probabilities(path: str | Path) -> Images:
    """Read probabilities of cell, written by `Images.write` or by another program.

    Integers are divided by the largest value of their type.

    Args:
        path: a TIFF or PNG file, or a folder of them, as for `read_images`.

    Returns:
        `Images` of float32 from 0 to 1.

    Raises:
        ValueError: if values lie outside 0 to 1, or a file cannot be read.
        OSError: if a file cannot be opened.
    """
    images = _images(path, probabilities=True)
    if "C" not in images.axes:
        return images
    try:
        pixels = images.for_channels(1)
    except ValueError:  # whose advice is on images
        count = np.shape(images.pixels[0])[0]
        raise ValueError(
            f"{path} has {count} channels: expected one, the probabilities of cell. "
            "Save that channel by itself, as a gray image or stack."
        ) from None
    lead = images.axes.replace("C", "")
    return replace(images, pixels=pixels, axes=lead, colors=False)


def auto_range(path: str | Path, channel: int | None = None) -> tuple[float, float]:
    """The two gray values that ``"auto"`` stands for, of all files of a folder."""
    return _numbers.value_limits(_intensities(path, channel), "auto", str(path))


def image_files(folder: str | Path) -> list[Path]:
    """List the image files of a folder in the order of their names, 2 before 10.

    Folders inside it and hidden files are left out.

    Raises:
        ValueError: if the folder has no images, or a file that is not an image.
        OSError: if the folder cannot be opened.
    """
    folder = resolved(folder)
    files = [
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.name.lower() not in NOT_IMAGES
    ]
    if not files:
        raise ValueError(f"{folder} holds no images: expected TIFF or PNG files in it.")
    for file in files:
        _kind(file)
    files.sort(key=lambda file: (_natural(file.name), file.name))
    if missing := _missing([file.name for file in files]):
        warnings.warn(
            f"{folder} has numbered files without {', '.join(missing)}: what is "
            "before and after a gap is read as neighbors.",
            UserWarning,
            stacklevel=2,
        )
    return files


def _missing(names: list[str]) -> list[str]:
    """The names that a folder's numbering skips, where it is clear that it skips some.

    That is, where the names differ in their last number alone, most numbers between
    the first and the last are there, and the steps are not all alike.
    """
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
    parts = [one.groups() for one in found if one]
    if len(parts) < len(names) or len({(a, c) for a, _, c in parts}) > 1:
        return []
    numbers = [int(number) for _, number, _ in parts]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    absent = numbers[-1] - numbers[0] + 1 - len(numbers)
    if len(steps) < 2 or not 0 < absent < len(numbers):
        return []
    before, first, after = parts[0]
    missing = sorted({*range(numbers[0], numbers[-1])} - {*numbers})
    return [f"{before}{number:0{len(first)}}{after}" for number in missing]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts 2 before 10, and orders a, a_2 as it does a_mask, a_2_mask."""
    parts = re.split(r"[ _-]*(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _kind(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(TIFF):
        return "TIFF"
    if head.startswith(OTHERS):
        return "other"
    raise ValueError(
        f"{path} is not a TIFF, PNG or JPEG image{'' if head else ', it is empty'}: "
        "save it as one of them or, in a folder of images, move it elsewhere."
    )


def _load(path: str | Path, lossless: bool) -> list[Raster]:
    """The file of a path, or the files of a folder."""
    path = resolved(path)
    files = image_files(path) if path.is_dir() else [path]
    rasters = []
    for file in files:
        raster = read_raster(file) if _kind(file) == "TIFF" else read_picture(file)
        if lossless and raster.lossy:
            raise ValueError(
                f"{file} is a JPEG, which changes values: save it as PNG or TIFF."
            )
        # One unnamed axis is a stack's; of two it is not known which.
        if raster.lead not in ("Q", "I") and not set(raster.lead) <= {"T", "Z"}:
            raise ValueError(
                f"{file} has axes {raster.axes} of lengths {raster.pixels.shape}: name "
                "slices and channels, in Fiji or with tifffile.imwrite(..., "
                "metadata={'axes': 'ZCYX'})."
            )
        if raster.of_set and len(files) > 1:
            raise ValueError(
                f"{file} is one of a set of OME-TIFF files that are one stack: name it "
                "instead of its folder."
            )
        height, width = raster.pixels.shape[-2:]
        if width in (2, 3, 4) and height > 8 * width and raster.lead:
            raise ValueError(
                f"{file} holds images {width} pixels wide: its last axis looks like "
                "colors. Name it, as with tifffile.imwrite(..., photometric='rgb')."
            )
        rasters.append(raster)
    return rasters


def _images(
    path: str | Path,
    channel: int | None = None,
    gray: bool = False,
    value_range: tuple[float, float] | Literal["auto"] | None = None,
    probabilities: bool = False,
) -> Images:
    rasters = _intensities(path, channel, probabilities)
    limits = _numbers.value_limits(rasters, value_range, str(path), probabilities)
    rasters = [_numbers.scaled(raster, *limits) for raster in rasters]
    if gray:
        rasters = [_numbers.luma(raster) for raster in rasters]
    return _collected(rasters, path)


def _intensities(
    path: str | Path, channel: int | None, probabilities: bool = False
) -> list[Raster]:
    """Files of one kind, as stored: large is light."""
    rasters = [_numbers.visible(one) for one in _load(path, lossless=probabilities)]
    if channel is None:
        otherwise = _numbers.SAVE if probabilities else _numbers.CHOOSE
        rasters = [_numbers.opaque(raster, otherwise) for raster in rasters]
    else:
        rasters = [_numbers.choose(raster, channel) for raster in rasters]
    _check_alike(rasters)
    return rasters


def _check_alike(rasters: list[Raster], types: bool = True) -> None:
    """ValueError unless the files of a folder have one kind of pixels."""

    def kind(raster: Raster) -> str:
        channels = raster.pixels.shape[-3] if raster.channel_axis else 1
        meaning = "gray" if raster.meaning == "MINISBLACK" else raster.meaning
        said = f"{meaning} of {channels} channel(s)"
        if types:
            dtype = raster.pixels.dtype
            said += f", {dtype} of {raster.bits or 8 * dtype.itemsize} bits"
        return said

    first = rasters[0]
    for raster in rasters:
        if kind(raster) != kind(first):
            raise ValueError(
                f"{first.name} and {raster.name} differ in their kind of pixels "
                f"({kind(first)}, and {kind(raster)}): save all files of the folder "
                "alike."
            )


def _collected(rasters: list[Raster], path: str | Path) -> Images:
    """Put the slices of all files one after the other."""
    first = rasters[0]
    channels = "C" if first.channel_axis else ""
    lead, lengths = re.sub("[QI]", "Z", first.lead), first.pixels.shape
    slices: list[np.ndarray] = []
    names: list[str] = []
    for raster in rasters:
        shape = raster.pixels.shape[len(raster.lead) :]
        slices += list(raster.pixels.reshape(-1, *shape))
        names += [Path(raster.name).name] * (len(slices) - len(names))
    if resolved(path).is_dir():
        lead, lengths = "Z", (len(slices),)
    one_size = len({one.shape for one in slices}) == 1
    sizes = {(raster.pixel_size, raster.unit) for raster in rasters}
    pixel_size, unit = sizes.pop() if len(sizes) == 1 else (None, None)
    return Images(
        pixels=np.stack(slices) if one_size else slices,
        axes=f"{lead}{channels}YX",
        lengths=lengths[: len(lead)],
        names=tuple(names),
        colors=bool(channels) and first.meaning == "RGB",
        pixel_size=pixel_size,
        unit=unit,
    )
