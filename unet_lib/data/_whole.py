"""Is a TIFF whole? What its numbers promise is held against the bytes that are there.

tifffile repairs or skips what is missing and only logs it, and it builds arrays and
lists from numbers in the file. So these checks come first, and read no pixels.
"""

import logging
import math
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from xml.etree import ElementTree

import tifffile

# The most bytes that one byte of a strip or tile can stand for, by TIFF's number of
# its compression: none, LZW, Deflate (old and new number), PackBits, LZMA; and for the
# others a bound that blank images reach.
RATIOS = {1: 1, 5: 2600, 8: 1032, 32946: 1032, 32773: 64, 34925: 8192}
OTHER_RATIO = 2**15

# Tags that say what numbers mean: the same in all pages, or the pages differ in kind.
SAME = {262: "PhotometricInterpretation", 274: "Orientation"}
REDUCED = 1  # a thumbnail, says NewSubfileType


@contextmanager
def nothing_repaired() -> Iterator[None]:
    """Make an error of what tifffile logs, in this thread, as a warning or worse."""
    listener = BufferingHandler(sys.maxsize)
    listener.setLevel(logging.WARNING)
    logger = logging.getLogger("tifffile")
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
    for record in listener.buffer:
        if record.thread == threading.get_ident():
            raise ValueError(
                "it is damaged, or says of itself what does not fit "
                f"({record.getMessage()}). Copy it again from where it was made, or "
                "open it in Fiji, look at every slice, and save it as a new TIFF"
            )


def _cut(said: str, file: tifffile.TiffFile) -> ValueError:
    size = file.filehandle.size
    return ValueError(
        f"{said}, and the file has {size} bytes: it did not arrive whole, copy it again"
    )


def check_chain(file: tifffile.TiffFile) -> None:
    """Follow the chain of pages to its end; ValueError where it is cut or differs."""
    tiff, handle = file.tiff, file.filehandle

    def number(offset: int, form: str, size: int) -> int:
        handle.seek(offset)
        data = handle.read(size)
        if len(data) < size:
            raise _cut("it ends in the middle of the list of its pages", file)
        return int(struct.unpack(form, data)[0])

    found: dict[int, set[bytes]] = {code: set() for code in SAME}
    seen: set[int] = set()
    # The first offset is at byte 4 of a TIFF and at 8 of a BigTIFF, as long as it is.
    offset = number(tiff.offsetsize, tiff.offsetformat, tiff.offsetsize)
    while offset:
        if offset in seen or not 8 <= offset < handle.size:
            raise _cut(f"page {len(seen) + 1} should begin at byte {offset}", file)
        seen.add(offset)
        tags = number(offset, tiff.tagnoformat, tiff.tagnosize)
        values = _values(file, handle.read(tags * tiff.tagsize))
        if not values:
            raise _cut(f"page {len(seen)} is empty", file)
        kind = values.get(254, b"\0\0")[:2]
        if not struct.unpack(tiff.byteorder + "H", kind)[0] & REDUCED:
            for code, pages in found.items():
                pages.add(values.get(code, b"")[:2])
        after = offset + tiff.tagnosize + tags * tiff.tagsize
        offset = number(after, tiff.offsetformat, tiff.offsetsize)
    for code, pages in found.items():
        if len(pages) > 1:
            raise ValueError(
                f"its pages differ in {SAME[code]}, so that the same number means "
                "different things in them: save them all alike"
            )


def _values(file: tifffile.TiffFile, block: bytes) -> dict[int, bytes]:
    """The tags of a page with their value, or the offset of it, as stored."""
    tiff, values = file.tiff, {}
    entry = tiff.byteorder + ("HHQ8s" if tiff.offsetsize == 8 else "HHI4s")
    for at in range(0, len(block) - tiff.tagsize + 1, tiff.tagsize):
        code, kind, count, value = struct.unpack_from(entry, block, at)
        size = count * struct.calcsize(tifffile.TIFF.DATA_FORMATS.get(kind, ""))
        if size > tiff.tagoffsetthreshold:
            (start,) = struct.unpack(tiff.offsetformat, value)
            if start + size > file.filehandle.size:
                raise _cut(f"tag {code} should end at byte {start + size}", file)
        values[code] = value
    return values


def check_ome(file: tifffile.TiffFile) -> ElementTree.Element:
    """Hold what OME-XML says against the files; returns its Pixels.

    Raises:
        ValueError: for files that are missing, for more planes than the files can
            hold, and for axes that are not of space, time or channels.
    """
    root = ElementTree.fromstring(file.ome_metadata or "")
    images = [one for one in root.iter() if one.tag.endswith("}Pixels")]
    if len(images) != 1:
        raise ValueError(
            f"its OME metadata describes {len(images)} images, expected one: it may be "
            "part of a set of files (then name the file that describes the set), or "
            "hold several (then save the one you mean by itself)"
        )
    if any("Modulo" in one.tag for one in root.iter()):
        raise ValueError(
            "its OME metadata names axes beside space, time and channels: save a stack "
            "of those alone"
        )
    (pixels,) = images
    folder = Path(file.filehandle.dirname)
    uuids = root.iter(f"{pixels.tag.removesuffix('Pixels')}UUID")
    names = {file.filename, *(one.get("FileName") or file.filename for one in uuids)}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing and file.filehandle.is_file:
        raise ValueError(
            f"it is one of a set of {len(names)} files, of which {len(missing)} are "
            f"not in its folder: {', '.join(missing[:3])}. Copy the whole set there"
        )
    lengths = [int(pixels.get(f"Size{axis}", 1)) for axis in "XYZCT"]
    planes = math.prod(lengths[2:])
    held = file.filehandle.size
    held += sum((folder / name).stat().st_size for name in names - {file.filename})
    numbers = [
        int(value)
        for one in pixels
        for name, value in one.attrib.items()
        if one.tag.endswith("}TiffData")
        if name in ("IFD", "PlaneCount", "NumPlanes") or name.startswith("First")
    ]
    most = held * OTHER_RATIO
    if min(lengths) < 1 or math.prod(lengths) > most or planes > held // 8:
        raise ValueError(
            f"its OME metadata promises {lengths} pixels (XYZCT), which "
            f"{held} bytes cannot hold"
        )
    if any(not 0 <= number <= planes for number in numbers):
        raise ValueError(f"its OME metadata counts beyond its {planes} planes")
    return pixels


def check_series(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """ValueError unless every plane of a series is there, within the file's bytes."""
    for kind in ("ome", "imagej", "shaped"):
        if getattr(file, f"is_{kind}") and series.kind != kind:
            raise ValueError(
                f"its description ({kind}) does not fit what it holds: it is damaged, "
                "or not whole"
            )
    if 0 in series.shape:
        raise ValueError("it holds no pixels")
    if series.dataoffset is not None:  # all planes in one piece
        end = series.dataoffset + series.nbytes
        if end > file.filehandle.size and not series.is_multifile:
            raise _cut(f"its {series.shape} pixels should end at byte {end}", file)
    else:
        planes = 0
        for page in series:
            if page is None:
                raise _cut(f"one of its {len(series)} planes is not there", file)
            check_page(page)
            planes += page.size
        if planes != math.prod(series.shape):
            raise ValueError(
                f"its planes hold {planes} pixels, its description says "
                f"{math.prod(series.shape)}"
            )
    if file.is_imagej:
        _check_imagej(file, series)


def _check_imagej(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    said = file.imagej_metadata or {}
    lengths = dict(zip(series.axes, series.shape, strict=True))
    found = math.prod(n for axis, n in lengths.items() if axis not in "YXS")
    counts = {name: said.get(name, 1) for name in ("channels", "slices", "frames")}
    if counts["channels"] == lengths.get("S"):  # colors, written as channels
        counts["channels"] = 1
    promised = max(math.prod(counts.values()), said.get("images", 1))
    if promised != found:
        raise _cut(f"Fiji says {promised} images, and {found} are there", file)


def check_page(page: tifffile.TiffPage | tifffile.TiffFrame) -> None:
    """ValueError unless all strips or tiles of a page are there and can hold it."""
    key, name = page.keyframe, f"its page {page.index + 1}"
    if key is None:
        raise ValueError(f"{name} does not describe its pixels")
    starts, counts = page.dataoffsets, page.databytecounts
    if not len(starts) == len(counts) == math.prod(key.chunked):
        raise ValueError(
            f"{name} lists {len(starts)} strips or tiles of {math.prod(key.chunked)}"
        )
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    if min(starts) < 8 or min(counts) < 1:
        raise ValueError(f"{name} does not hold all of its pixels")
    if max(ends) > page.parent.filehandle.size:
        raise _cut(f"{name} should end at byte {max(ends)}", page.parent)
    bits = key.bitspersample if isinstance(key.bitspersample, int) else 8
    ratio = RATIOS.get(key.compression, OTHER_RATIO)
    if key.size * bits // 8 > ratio * sum(counts) or (
        ratio > 1 and math.prod(key.chunks) * bits // 8 > ratio * max(counts) + 2**16
    ):
        raise ValueError(
            f"{name} promises {key.shape} pixels, which its {sum(counts)} bytes "
            "cannot hold"
        )
