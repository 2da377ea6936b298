"""PNG and JPEG by Pillow: what they hold, as stored, or a refusal that names it."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from unet_lib.data._raster import Raster, one_sentence, resolved

# The most pixels that one byte of a file can stand for: Deflate's 1,032, and JPEG's
# blocks of 64 pixels in half a bit.
RATIOS = {"PNG": 1032 * 8, "JPEG": 128 * 16}
MEANINGS = {"RGB": "RGB", "RGBA": "RGB", "P": "PALETTE", "CMYK": "SEPARATED"}


def read_picture(path: str | Path) -> Raster:
    """Read a PNG or a JPEG, upright; ValueError for what is broken or unclear."""
    path = resolved(path)
    with open(path, "rb") as opened:
        head = opened.read(26)
        kind = "JPEG" if head.startswith(b"\xff\xd8") else "PNG"
        opened.seek(0)
        with one_sentence(path, kind), warnings.catch_warnings():
            # Its bound of pixels is held against the file's bytes below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                opened_image = Image.open(opened, formats=("PNG", "JPEG"))
            except Image.DecompressionBombError as error:
                raise ValueError(
                    f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, "
                    "the most that Pillow takes: save it as a TIFF"
                ) from error
            with opened_image as image:
                _check(image, head, path.stat().st_size * RATIOS[kind])
                image.load()
                raster = _raster(ImageOps.exif_transpose(image), head)
                return replace(raster, lossy=kind == "JPEG", name=str(path))


def _check(image: Image.Image, head: bytes, bound: int) -> None:
    """What can be known before pixels are decoded."""
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise ValueError(f"it holds {frames} images, expected one: save each by itself")
    if image.width * image.height > bound:
        raise ValueError(
            f"it promises {image.width} × {image.height} pixels, which its bytes "
            "cannot hold"
        )
    if head.startswith(b"\x89PNG") and head[24] == 16 and head[25] in (2, 4, 6):
        raise ValueError(
            "it holds 16 bits for each of several samples, of which Pillow keeps 8: "
            "save it as a TIFF, or as a gray PNG"
        )


def _raster(image: Image.Image, head: bytes) -> Raster:
    palette, bits = None, None
    if image.mode == "P":
        if (np.asarray(image.convert("RGBA"))[..., 3] < 255).any():
            raise ValueError(
                "it has a color table with transparent colors: flatten it first"
            )
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    elif image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    pixels = np.asarray(image)
    if image.mode.startswith("I"):  # 16 bits, as some versions of Pillow keep them
        pixels = pixels.astype(np.uint16)
    elif head.startswith(b"\x89PNG") and image.mode == "L" and head[24] in (2, 4):
        bits = head[24]  # Pillow has stretched them to 8
        pixels = pixels // np.uint8(255 // (2**bits - 1))
    axes = "YX"
    if pixels.ndim == 3:
        pixels, axes = np.moveaxis(pixels, -1, 0), "SYX"
    across, down = image.info.get("dpi", (0, 0))
    # 72 is what programs write that do not know.
    known = all(
        0 < value < float("inf") and round(value) != 72 for value in (across, down)
    )
    return Raster(
        np.ascontiguousarray(pixels),
        axes,
        MEANINGS.get(image.mode, "MINISBLACK"),
        alpha=image.mode in ("LA", "RGBA"),
        bits=bits,
        palette=palette,
        pixel_size=(None, 1 / down, 1 / across) if known else None,
        unit="inch" if known else None,
    )
