"""Damage image files at random and count what the readers make of them.

    python benchmarks/fuzz_files.py [FILES] [SEED]

Each reader gets FILES files (3,000 by default) of every kind that it reads, with one to
three bytes changed, most of them in the header, and one file in five cut short. A file
that is read must have the shape that it was written with (a JPEG says its height once,
so that its shape may change); a file that is not must end in a ValueError that names
it. The counts are printed by outcome; the exit code is 1 where another one came, or
one file took more than 200 MB.
"""

import collections
import hashlib
import io
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tifffile
from memory import peak_megabytes
from PIL import Image

from unet_lib.data import isbi2012
from unet_lib.data.images import read_images, read_labels, read_probabilities

STACK = np.random.default_rng(0).integers(0, 256, (4, 24, 30)).astype(np.uint8)
CELL = np.where(STACK > 128, np.uint8(255), np.uint8(0))
TIFFS: list[dict[str, Any]] = [
    {"imagej": True, "metadata": {"axes": "ZYX"}},
    {},
    {"metadata": None},
    {"compression": "zlib"},
    {"ome": True, "metadata": {"axes": "ZYX"}},
    {"tile": (16, 16)},
    {"tile": (16, 16), "compression": "zlib", "metadata": None},
    {"bigtiff": True},
    {"byteorder": ">", "rowsperstrip": 5},
]
NAMES = tuple(isbi2012.PIXELS_SHA256)
LIMIT = 200  # MB that one file may add to what the process has taken


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack", **options)
    return file.getvalue()


def picture(pixels: np.ndarray, kind: str, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def archive(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in NAMES:
            zipped.writestr(name, tiff(pixels))
    return file.getvalue()


def read_archive(path: Path) -> None:
    """Read a zip as the download does, as if small stacks had been published."""
    digest = hashlib.sha256(STACK.tobytes()).hexdigest()
    small: dict[str, Any] = {
        "SHAPE": STACK.shape,
        "PIXELS_SHA256": dict.fromkeys(NAMES, digest),
    }
    with mock.patch.multiple(isbi2012, **small):
        try:
            contents = isbi2012._read_zip(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: {error}") from error
        isbi2012._decode_all(contents, path, "")


def readers() -> dict[str, tuple[Callable, list[bytes]]]:
    """Each reader with whole files for it."""
    tiffs = [tiff(STACK, **options) for options in TIFFS]
    modes = ("L", "RGB", "P", "1", "LA")
    pngs = [picture(STACK[0], "png", mode) for mode in modes]
    wide = picture(STACK[0].astype(np.uint16) * 257, "png", "I;16")
    jpegs = [picture(STACK[0], "jpeg", mode) for mode in ("L", "RGB")]
    return {
        "images, TIFF": (read_images, tiffs),
        "images, PNG": (read_images, [*pngs, wide]),
        "images, JPEG": (read_images, jpegs),
        "labels": (
            read_labels,
            [tiff(CELL, **options) for options in TIFFS] + [picture(CELL[0], "png")],
        ),
        "probabilities": (
            read_probabilities,
            [tiff(STACK / np.float32(255), **options) for options in TIFFS],
        ),
        "zip of the stacks": (read_archive, [archive(STACK)]),
    }


def damaged(files: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Whole files in turn, each with a few bytes changed and perhaps cut."""
    random = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(files[number % len(files)])
        for _ in range(random.integers(1, 4)):
            header = random.random() < 0.6
            at = random.integers(0, min(len(data), 400) if header else len(data))
            data[at] = random.integers(0, 256)
        if random.random() < 0.2:
            del data[random.integers(8, len(data)) :]
        yield bytes(data)


def outcome(reader: Callable, path: Path, shape: tuple[int, ...] | None) -> str:
    """What a reader makes of a file that was of this shape, in a few words."""
    before = peak_megabytes()
    try:
        with warnings.catch_warnings(record=True):
            images = reader(path)
        found = "read" if shape_of(images) == shape else "read in another shape"
    except ValueError as error:
        found = "refused" if str(path) in str(error) else "refused without its name"
    except Exception as error:
        found = f"{type(error).__module__}.{type(error).__name__}"
    taken = peak_megabytes() - before
    return "took much memory" if taken > LIMIT else found


def shape_of(images: object) -> tuple[int, ...] | None:
    return getattr(getattr(images, "pixels", None), "shape", None)


def fuzz(reader: Callable, files: list[bytes], count: int, seed: int) -> dict[str, int]:
    """Counts by outcome, the most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        shapes = []
        for data in files:
            path.write_bytes(data)
            shapes.append(shape_of(reader(path)))
        for number, data in enumerate(damaged(files, count, seed)):
            path.write_bytes(data)
            counts[outcome(reader, path, shapes[number % len(files)])] += 1
    return dict(counts.most_common())


def allowed(name: str) -> set[str]:
    """The outcomes that are right for a reader."""
    return {"read", "refused"} | (
        {"read in another shape"} if "JPEG" in name else set()
    )


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    wrong = False
    for name, (reader, files) in readers().items():
        counts = fuzz(reader, files, count, seed)
        wrong |= not set(counts) <= allowed(name)
        print(f"{name:<20}", ", ".join(f"{n} {what}" for what, n in counts.items()))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
