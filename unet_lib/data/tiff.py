"""TIFF stacks: read as Fiji, tifffile and others write them, and written for Fiji."""

import math
import re
from pathlib import Path

import numpy as np
import tifffile

from unet_lib._files import written
from unet_lib.data._raster import resolved
from unet_lib.data._tiff import read_raster

__all__ = ["read_tiff", "write_tiff"]

# In the order in which Fiji stores them.
AXES = ("YX", "ZYX", "TYX", "CYX", "ZCYX", "TCYX", "TZYX", "TZCYX")


def read_tiff(path: str | Path) -> np.ndarray:
    """Read one image or one stack, with its values as stored.

    Axes of length one are dropped, except height and width, so a stack of one slice
    becomes an image. Pages of the same size that were written one by one are a stack.
    Colors and channels come right before height and width. `images.read_images` builds
    on this function: it tells colors from slices and knows what the values mean.

    Args:
        path: the file to read.

    Returns:
        ``(height, width)``, ``(slices, height, width)`` or more axes, with the type of
        the file in the byte order of the machine, upright if the file says how.

    Raises:
        ValueError: if the file is not a TIFF, is damaged or incomplete, or holds
            several images of different sizes or several stacks.
        OSError: if the file cannot be opened.
    """
    return read_raster(path).pixels


def write_tiff(
    path: str | Path,
    pixels: np.ndarray,
    axes: str,
    pixel_size: tuple[float | None, float, float] | None = None,
    unit: str | None = None,
) -> None:
    """Write an image or a stack as a TIFF that Fiji opens with its axes right.

    Args:
        path: the file to write; it is written completely or not at all.
        pixels: float32, as `predict.predict` returns and the challenge asked for, or
            uint8 or uint16, as in label images.
        axes: one letter for each axis: ``"YX"``, ``"ZYX"`` for slices, ``"TYX"`` for
            time points, ``"CYX"`` or ``"ZCYX"`` for several classes, up to
            ``"TZCYX"``.
        pixel_size: ``(depth, height, width)`` of a pixel; the depth is None if it is
            not known.
        unit: the unit of the pixel size, such as ``"µm"``.

    Raises:
        ValueError: if the type is another one, the axes do not fit the shape, or the
            pixel size is not positive.
        OSError: if the file cannot be written.
    """
    types = (np.float32, np.uint8, np.uint16)
    if pixels.dtype not in types or pixels.ndim != len(axes) or axes not in AXES:
        raise ValueError(
            f"Expected float32, uint8 or uint16 pixels with axes of {', '.join(AXES)}, "
            f"got {pixels.dtype} of shape {pixels.shape} and {axes!r}."
        )
    metadata: dict[str, object] = {"axes": axes}
    resolution = None
    if pixel_size is not None:
        depth, height, width = pixel_size
        if not all(length is None or 0 < length < math.inf for length in pixel_size):
            raise ValueError(
                "Expected a pixel size of positive numbers (depth, height, width), got "
                f"{pixel_size}."
            )
        resolution = (1 / width, 1 / height)
        metadata |= {} if depth is None else {"spacing": depth}
        if unit is not None:  # in ASCII, as Fiji escapes letters such as µ and Å
            metadata["unit"] = re.sub(
                "[^ -~]", lambda letter: f"\\u{ord(letter[0]):04X}", unit
            )
    with written(resolved(path)) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            imagej=True,
            photometric="minisblack",
            metadata=metadata,
            resolution=resolution,
            resolutionunit=None if resolution is None else "NONE",
        )
