"""What a reader of one format gives: pixels as stored, and what the file says of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

CODECS = 'pip install "unet-lib[codecs]"'


@dataclass(frozen=True)
class Raster:
    """One image or one stack.

    Attributes:
        pixels: as stored; height and width are the last two axes.
        axes: a letter for each axis, as tifffile names them: T time, Z depth, Q or I
            unnamed, then C channels or S samples (colors), Y, X. None but Y and X
            is of length one.
        meaning: of the numbers, in TIFF's words: MINISBLACK, MINISWHITE, RGB, PALETTE
            or a name that `images` refuses.
        alpha: whether the last sample is opacity.
        bits: how many of the type's bits hold the value, for unsigned integers.
        palette: ``(entries, 3)``, for PALETTE.
        false_color: whether the palette only shows intensities, as Fiji's do.
        lossy: whether the format changes values when it stores them (JPEG).
        of_set: whether the pixels come from a set of files.
        pixel_size: ``(depth, height, width)`` of a pixel in `unit`; a depth of None is
            not known.
        name: of the file, for errors.
    """

    pixels: np.ndarray
    axes: str
    meaning: str = "MINISBLACK"
    alpha: bool = False
    bits: int | None = None
    palette: np.ndarray | None = None
    false_color: bool = False
    lossy: bool = False
    of_set: bool = False
    pixel_size: tuple[float | None, float, float] | None = None
    unit: str | None = None
    name: str = ""

    @property
    def channel_axis(self) -> str:
        """``"C"``, ``"S"`` or nothing."""
        return self.axes[-3:-2] if self.axes[-3:-2] in ("C", "S") else ""

    @property
    def lead(self) -> str:
        """The axes along which slices follow one another."""
        return self.axes.removesuffix(self.channel_axis + "YX")

    def samples(self, chosen: slice | int) -> Self:
        """Keep some of the channels; one alone has no axis."""
        pixels = self.pixels[..., chosen, :, :]
        axes = self.axes
        if isinstance(chosen, int) or pixels.shape[-3] == 1:
            pixels = pixels.reshape(*self.pixels.shape[:-3], *pixels.shape[-2:])
            axes = self.lead + "YX"
        return replace(self, pixels=pixels, axes=axes)


@contextmanager
def one_sentence(path: object, kind: str) -> Iterator[None]:
    """Turn whatever a broken file raises into a ValueError that names the file."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(
            f"{path} needs more memory than this machine has: cut it into parts, or "
            "scale it down."
        ) from error
    except Exception as error:  # a broken file breaks the reader in many ways
        said = " ".join(str(error).split()) or type(error).__name__
        if "imagecodecs" in said:
            said += (
                f". {CODECS} installs it; or save the file without compression, in "
                "8, 16 or 32 bits"
            )
        raise ValueError(
            f"{path} cannot be read as a {kind}: {said.rstrip('.')}."
        ) from error


def resolved(path: str | Path) -> Path:
    """The path with its ``~``."""
    return Path(path).expanduser()
