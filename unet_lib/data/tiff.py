"""TIFF stacks: read as Fiji, tifffile and others write them, written for Fiji."""

import math
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
    """Read one image or one stack, its numbers as they are stored.

    Axes of length one go, but for height and width; so a stack of one slice is
    an image. Pages of one size that were written one by one are a stack. Colors
    and channels come right before height and width. `images.read_images` goes on
    from here: it tells colors from slices, and knows what the numbers mean.

    Args:
        path: of the file.

    Returns:
        ``(height, width)``, ``(slices, height, width)`` or more axes, of the
        file's type in the machine's byte order, upright if the file says how.

    Raises:
        ValueError: for what is not a TIFF, or not a readable and whole one, and for
            a file of several images of unlike sizes or of several stacks.
        OSError: for a file that cannot be opened.
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
        path: of the file; it is there whole in the end, or not at all.
        pixels: float32, as `predict.predict` gives and the challenge asked for, or
            uint8 or uint16, as label images are.
        axes: one letter for each axis: ``"YX"``, ``"ZYX"`` for slices, ``"TYX"`` for
            time points, ``"CYX"`` or ``"ZCYX"`` for several classes, up to
            ``"TZCYX"``.
        pixel_size: ``(depth, height, width)`` of a pixel; a depth of None is not
            known.
        unit: of the pixel size, as ``"µm"``.

    Raises:
        ValueError: for another type, axes that do not fit the shape, and a pixel size
            that is not positive.
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
        metadata |= {} if unit is None else {"unit": unit.replace("µ", "\\u00B5")}
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
