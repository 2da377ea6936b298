"""TIFF stacks: read as Fiji, tifffile and others write them, written for Fiji."""

from pathlib import Path

import numpy as np
import tifffile

from unet_lib._files import written


def read_tiff(path) -> np.ndarray:
    """Read one image or one stack.

    Axes of length one go, but for height and width; so a stack of one slice is
    an image. Pages of one size that were written one by one are a stack. Colours
    come before height and width, as channels do.

    Args:
        path: of the file.

    Returns:
        ``(height, width)``, ``(slices, height, width)`` or more axes, of the
        file's type in the machine's byte order.

    Raises:
        ValueError: for what is no TIFF, or no readable one, and for a file of
            several images of unlike sizes or of several stacks.
        OSError: for a file that cannot be opened.
    """
    try:
        with tifffile.TiffFile(path) as file:
            parts = [_pixels(series) for series in file.series]
    except tifffile.TiffFileError as error:
        raise ValueError(f"{path} is not a TIFF image: {error}.") from error
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a TIFF: {error}.") from error
    if len(parts) == 1:
        return parts[0]
    kinds = {(part.shape, part.dtype) for part in parts}
    if len(kinds) == 1 and parts[0].ndim == 2:
        return np.stack(parts)
    found = ", ".join(str(part.shape) for part in parts[:4])
    raise ValueError(
        f"{path} holds {len(parts)} images or stacks, of shapes {found}"
        f"{' and so on' if len(parts) > 4 else ''}: expected one. Save the one you "
        "mean by itself."
    )


def write_tiff(path: str | Path, pixels: np.ndarray, axes: str) -> None:
    """Write an image or a stack as a TIFF that Fiji opens with its axes right.

    Args:
        path: of the file; it is there whole in the end, or not at all.
        pixels: float32, what `predict.predict` gives and the challenge asked for.
        axes: one letter for each axis: ``"YX"``, ``"ZYX"`` for slices,
            ``"CYX"`` or ``"ZCYX"`` for several classes.

    Raises:
        ValueError: for another type, or axes that do not fit the shape.
        OSError: if the file cannot be written.
    """
    known = ("YX", "ZYX", "CYX", "ZCYX")
    if pixels.dtype != np.float32 or pixels.ndim != len(axes) or axes not in known:
        raise ValueError(
            f"Expected float32 pixels with axes of {', '.join(known)}, got "
            f"{pixels.dtype} of shape {pixels.shape} and {axes!r}."
        )
    with written(Path(path)) as temporary:
        tifffile.imwrite(temporary, pixels, imagej=True, metadata={"axes": axes})


def _pixels(series) -> np.ndarray:
    pixels = series.asarray()
    # By name, since a file may have a third axis behind height and width.
    places = [series.axes.index("Y"), series.axes.index("X")]
    pixels = np.moveaxis(pixels, places, (-2, -1))
    lead = tuple(length for length in pixels.shape[:-2] if length > 1)
    pixels = pixels.reshape(lead + pixels.shape[-2:])
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
