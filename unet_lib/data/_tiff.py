"""TIFF by tifffile: pixels as stored, upright, and what the file says of them."""

import re
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element

import numpy as np
import tifffile

from unet_lib.data import _whole
from unet_lib.data._raster import Raster, one_sentence, resolved

COLORS = {"RGB": 3, "SEPARATED": 4}
JPEG = (6, 7)
# Other words for a unit, in lower case.
UNITS = {"um": "µm", "micron": "µm", "microns": "µm", "μm": "µm"}


def read_raster(path: str | Path) -> Raster:
    """Read one image or one stack; ValueError for what is not whole or not clear."""
    path = resolved(path)
    with open(path, "rb") as opened, one_sentence(path, "TIFF"):
        return decode(opened, path)


def decode(opened: BinaryIO, path: Path | None = None) -> Raster:
    """Read an open file; whatever is wrong with it is raised, in many types.

    With its `path`, an OME-TIFF finds the other files of its set.
    """
    with _whole.nothing_repaired(), tifffile.TiffFile(path or opened) as file:
        _whole.check_chain(file)
        ome = _whole.check_ome(file) if file.is_ome else None
        parts = file.series
        for series in parts:
            _whole.check_series(file, series)
        kinds = {(series.shape, series.axes, series.dtype) for series in parts}
        if not parts or (len(parts) > 1 and (len(kinds) > 1 or parts[0].axes != "YX")):
            found = ", ".join(str(series.shape) for series in parts[:4])
            raise ValueError(
                f"it holds {len(parts)} images or stacks, of shapes {found}, "
                "expected one. Save the one you mean by itself"
            )
        page = parts[0].keyframe
        pixels, axes = _arranged(parts)
        pixels = _upright(pixels, page)
        pixel_size, unit = _calibration(file, page, ome)
        meaning, alpha = _meaning(page)
        if alpha is None:
            axes, alpha = axes.replace("S", "C"), False
        bits = page.bitspersample if isinstance(page.bitspersample, int) else None
        if ome is not None and ome.get("SignificantBits"):
            bits = min(int(ome.get("SignificantBits", 0)), bits or 64)
        return Raster(
            _as_signed(file, pixels),
            axes,
            meaning,
            alpha,
            bits,
            None if page.colormap is None else np.asarray(page.colormap).T,
            bool(file.is_imagej),
            lossy=page.compression in JPEG,
            of_set=bool(parts[0].is_multifile),
            pixel_size=pixel_size,
            unit=unit,
            name=str(path),
        )


def _arranged(parts: list[tifffile.TiffPageSeries]) -> tuple[np.ndarray, str]:
    """Decode; height and width last, channels before them, no axis of length one."""
    pixels, axes = parts[0].asarray(), parts[0].axes
    if len(parts) > 1:
        pixels, axes = np.stack([series.asarray() for series in parts]), "Q" + axes
    # By name, since a file may have a third axis behind height and width.
    order = sorted(range(len(axes)), key=lambda at: "CSYX".find(axes[at]))
    kept = [at for at in order if axes[at] in "YX" or pixels.shape[at] > 1]
    names = "".join(axes[at] for at in kept)
    if {"C", "S"} <= {*names}:
        raise ValueError("it has channels and colors at once: save one or the other")
    pixels = pixels.transpose(order).reshape([pixels.shape[at] for at in kept])
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")), names


def _meaning(page: tifffile.TiffPage) -> tuple[str, bool | None]:
    """What the numbers mean, and whether the last sample is opacity.

    None, where further samples are channels, of which the file does not say more.
    """
    meaning = getattr(page.photometric, "name", str(page.photometric))
    if meaning == "YCBCR" and page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
        meaning = "RGB"  # the codec converts
    if page.dtype == bool and page.software == "tifffile.py":
        meaning = "MINISBLACK"  # it marks truth values MINISWHITE, and keeps them
    extra = page.samplesperpixel - COLORS.get(meaning, 1)
    kinds = [int(kind) for kind in page.extrasamples]
    if extra >= 1 and meaning == "MINISBLACK" and not any(kinds):
        return meaning, None
    if not 0 <= extra <= 1:
        raise ValueError(
            f"it is {meaning} of {page.samplesperpixel} samples a pixel, which is not "
            "clear: save it as a stack of channels"
        )
    return meaning, extra == 1


def _upright(pixels: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """Turn and mirror as the Orientation tag says."""
    orientation = page.tags.valueof(274, 1)
    if orientation not in range(1, 9):
        raise ValueError(f"its Orientation is {orientation}, expected 1 to 8")
    if orientation >= 5:  # rows are columns
        pixels = pixels.swapaxes(-2, -1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels)


def _as_signed(file: tifffile.TiffFile, pixels: np.ndarray) -> np.ndarray:
    """Undo Fiji's calibration of signed 16-bit images; refuse any other."""
    said = file.imagej_metadata or {}
    if "cf" not in said and "c0" not in said:
        return pixels
    line = (said.get("cf"), said.get("c0"), said.get("c1"))
    if line == (0, -32768.0, 1.0) and pixels.dtype == np.uint16:
        return (pixels.astype(np.int32) - 32768).astype(np.int16)
    raise ValueError(
        f"Fiji's calibration function (cf, c0, c1 = {line}) gives its numbers another "
        "meaning. In Fiji, choose None under Analyze > Calibrate, and save it again"
    )


Calibration = tuple[tuple[float | None, float, float] | None, str | None]


def _calibration(
    file: tifffile.TiffFile, page: tifffile.TiffPage, ome: Element | None
) -> Calibration:
    """Pixel size and unit; None for what the file does not say."""
    if ome is not None and ome.get("PhysicalSizeX") and ome.get("PhysicalSizeY"):
        return _calibration_of_ome(ome)
    said = file.imagej_metadata or {}
    code = page.tags.valueof(296, 2)
    word = said.get("unit") or {2: "inch", 3: "cm"}.get(int(code), "")
    # Fiji escapes letters such as µ and Å.
    word = re.sub(r"\\u([\da-fA-F]{4})", lambda c: chr(int(c[1], 16)), f"{word}")
    unit = None if word in ("", "pixel", "pixels") else UNITS.get(word.lower(), word)
    lengths = []
    for tag in (283, 282):  # pixels a unit, of Y and of X
        top, below = page.tags.valueof(tag, (0, 1))
        lengths.append(below / top if top and below else 0.0)
    if not all(lengths) or (unit is None and lengths == [1, 1]):
        return None, None
    # 72 per inch is what programs write that do not know, also to Fiji.
    if unit == "inch" and "unit" not in said and round(1 / lengths[1]) == 72:
        return None, None
    if page.tags.valueof(274, 1) >= 5:
        lengths.reverse()
    spacing = said.get("spacing")
    depth = float(spacing) if isinstance(spacing, int | float) and spacing > 0 else None
    return (depth, lengths[0], lengths[1]), unit


def _calibration_of_ome(ome: Element) -> Calibration:
    width, height, depth = (float(ome.get(f"PhysicalSize{a}") or 0) for a in "XYZ")
    unit, other, deep = (ome.get(f"PhysicalSize{a}Unit", "µm") for a in "XYZ")
    if unit != other:
        return None, None
    known = depth > 0 and deep == unit
    return (depth if known else None, height, width), UNITS.get(unit.lower(), unit)
