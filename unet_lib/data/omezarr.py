"""OME-Zarr images larger than memory: read and written in parts.

They need the extra ``zarr``: ``pip install "unet-lib[zarr]"``.
"""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unet_lib.data import _numbers
from unet_lib.data._raster import Raster, one_sentence, resolved
from unet_lib.data.images import Images

__all__ = ["is_zarr", "read_zarr", "written_zarr"]

CHUNK = 1024  # pixels per side of what is written
MOST = 2**20  # pixels per side, and slices
LARGEST_CHUNK = 2**30  # bytes that one chunk may take in memory
RECORD = "blocks.json"
UNITS = {
    "nanometer": "nm",
    "micrometer": "µm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "inch": "inch",
    "angstrom": "Å",
}


class _Slices:
    """A Zarr array as ``(slices, height, width)`` or with channels before these two.

    It is indexed as in `blocks.predict_into`: by the number of a slice of the stack,
    then with a Python slice for each other axis.
    """

    def __init__(self, array: Any, axes: str, channel: int | None = None) -> None:
        self.array, self.axes, self.dtype = array, axes, array.dtype
        lengths = dict(zip(axes, array.shape, strict=True))
        self.lead = {
            axis: lengths[axis]
            for axis in "TZ"  # as in a TIFF of Fiji
            if lengths.get(axis, 1) > 1
        }
        self.fixed = dict.fromkeys(axes, 0)
        self.channels = lengths.get("C", 1)
        if channel is not None:
            self.fixed["C"], self.channels = channel - 1, 1
        middle = (self.channels,) if self.channels > 1 else ()
        slices = math.prod(self.lead.values())
        self.shape = (slices, *middle, lengths["Y"], lengths["X"])
        self.ndim = len(self.shape)

    def _at(self, place: tuple[Any, ...]) -> tuple[Any, ...]:
        number, *rest = place
        numbers = np.unravel_index(number, tuple(self.lead.values()) or (1,))
        where = self.fixed | dict(zip(self.lead, map(int, numbers), strict=False))
        where |= dict(zip("CYX"[-len(rest) :], rest, strict=True))
        return tuple(where[axis] for axis in self.axes)

    def __getitem__(self, place: tuple[Any, ...]) -> np.ndarray:
        return np.asarray(self.array[self._at(place)])

    def __setitem__(self, place: tuple[Any, ...], numbers: np.ndarray) -> None:
        self.array[self._at(place)] = numbers


def is_zarr(path: str | Path) -> bool:
    """Whether a path is a Zarr folder, by its name or by the file that describes it."""
    path = resolved(path)
    inside = any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
    return path.suffix.lower() == ".zarr" or inside


def read_zarr(
    path: str | Path,
    channel: int | None = None,
    value_range: tuple[float, float] | Literal["auto"] | None = None,
) -> tuple[Images, tuple[float, float]]:
    """Open an OME-Zarr image at its full resolution; pixels are read when asked for.

    Args:
        path: a folder with one multiscale image, of version 0.4 or 0.5.
        channel: the one channel to use, counted from 1.
        value_range: the values that become 0 and 1, as for `images.read_images`, but
            not ``"auto"``. Without it, all pixels are read once to find their range.

    Returns:
        `Images`, whose `pixels` are the values as stored, for `blocks.predict_into`,
        and the two values that become 0 and 1.

    Raises:
        ValueError: if the folder is not such an image, or could mean more than one
            thing; the message says what to do.
        ImportError: if the extra is not installed.
        OSError: if the folder cannot be opened.

    Warns:
        UserWarning: as for `images.read_images`.
    """
    path = resolved(path)
    zarr = _library()
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no folder {path}: expected an OME-Zarr image."
        )
    with one_sentence(path, "Zarr image"):
        group = zarr.open_group(path, mode="r")
        said = group.attrs.get("ome", group.attrs).get("multiscales")
        if not said:
            raise ValueError(
                "it describes no image (no multiscales); name the "
                "folder in it that does, such as 0"
            )
        image = said[0]
        axes = "".join(axis["name"] for axis in image["axes"]).upper()
        array = group[image["datasets"][0]["path"]]
        _check_array(array, axes)
        pixel_size, unit = _calibration(image, axes)
    if channel is not None:
        found = dict(zip(axes, array.shape, strict=True)).get("C", 1)
        _numbers.check_channel(str(path), found, channel)
    pixels: Any = _Slices(array, axes, channel)
    if value_range == "auto":
        raise ValueError(
            "An OME-Zarr image is not read as a whole, so its percentiles are not "
            "known: give two values, value_range=(LOW, HIGH) (--range LOW HIGH)."
        )
    ends = np.zeros(2, array.dtype)
    if not value_range:
        import dask.array

        every = dask.array.from_zarr(array)
        if channel is not None and "C" in axes:
            every = dask.array.take(every, channel - 1, axis=axes.index("C"))
        low_and_high = every.min(), every.max()
        ends = np.array(dask.compute(*low_and_high, scheduler="synchronous"))
    raster = Raster(ends[None], "YX")
    limits = _numbers.value_limits([raster], value_range, str(path))
    images = Images(
        pixels=pixels,
        axes="".join(pixels.lead) + "C" * (pixels.channels > 1) + "YX",
        lengths=tuple(pixels.lead.values()),
        names=(path.name,) * pixels.shape[0],
        pixel_size=pixel_size,
        unit=unit,
    )
    return images, limits


@contextmanager
def written_zarr(
    path: str | Path, images: Images, classes: int | None = None
) -> Iterator[tuple[Any, Path]]:
    """Write a result for these images as an OME-Zarr image, in parts.

    The folder gets its name once everything is written. Until then, and after an
    interruption, it is called PATH.partial, and the next call continues there. At the
    end, a pyramid of levels of half the resolution each is added, with axes and pixel
    size.

    Args:
        path: the folder; an existing one is replaced.
        images: the result has their shape, axes and pixel size.
        classes: the number of classes, if the result has an axis for them.

    Yields:
        A target for `blocks.predict_into`, ``(slices, height, width)`` or ``(slices,
        classes, height, width)``, float32; and the path for its record.

    Raises:
        ValueError: if PATH.partial holds another result.
        ImportError: if the extra is not installed.
        OSError: if something cannot be written.
    """
    path = resolved(path)
    zarr = _library()
    partial = path.with_name(path.name + ".partial")
    lead = images.axes.removesuffix("YX").removesuffix("C")
    assert not isinstance(images.pixels, list)
    lengths = (*images.lengths, *images.pixels.shape[-2:])
    sizes = dict(zip(lead + "YX", lengths, strict=True))
    if classes:
        sizes["C"] = classes
    axes = "".join(sorted(sizes, key="TCZYX".index))
    shape = tuple(sizes[axis] for axis in axes)
    group = zarr.open_group(partial, mode="a")
    if "0" not in group:
        _create(group, "0", shape, axes)
    if group["0"].shape != shape:
        raise ValueError(
            f"{partial} holds part of another result, of shape {group['0'].shape} and "
            f"not {shape}: delete it, or give another name for the output."
        )
    yield _Slices(group["0"], axes), partial / RECORD
    _add_pyramid(group, axes, images, path.stem)
    (partial / RECORD).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)


def _library() -> Any:
    try:
        import ome_zarr  # noqa: F401 - asked for before the work
        import zarr
    except ImportError as error:
        raise ImportError(
            f'OME-Zarr images need {error.name}: run `pip install "unet-lib[zarr]"`.'
        ) from None
    return zarr


def _check_array(array: Any, axes: str) -> None:
    """ValueError for an array that could not be read safely, part by part."""
    lengths = dict(zip(axes, array.shape, strict=True))
    if not {"Y", "X"} <= set(axes) <= set("TCZYX") or axes[-2:] != "YX":
        raise ValueError(f"its axes are {axes}, expected some of TCZYX, in this order")
    slices = lengths.get("T", 1) * lengths.get("Z", 1)
    if 0 in array.shape or max(lengths["Y"], lengths["X"], slices) > MOST:
        raise ValueError(f"its shape is {array.shape}, expected sides up to {MOST}")
    chunk = math.prod(array.shards or array.chunks) * array.dtype.itemsize
    if chunk > LARGEST_CHUNK:
        raise ValueError(
            f"its chunks, {array.shards or array.chunks}, take {chunk} bytes in memory "
            f"each, expected {LARGEST_CHUNK} at most. Store it in smaller ones"
        )


def _calibration(
    image: dict[str, Any], axes: str
) -> tuple[tuple[float | None, float, float] | None, str | None]:
    """Pixel size and unit, as `Images` has them; None for what is not stated."""
    scale = np.ones(len(axes))
    for said in (image["datasets"][0], image):
        for one in said.get("coordinateTransformations", []):
            if one["type"] == "scale":
                scale = scale * np.array(one["scale"], float)
    sizes = dict(zip(axes, scale.tolist(), strict=True))
    units = {
        name: axis.get("unit") for name, axis in zip(axes, image["axes"], strict=True)
    }
    unit = units["Y"]
    known = all(0 < sizes[axis] < math.inf for axis in "YX")
    if not known or units["X"] != unit or (unit is None and sizes["X"] == 1):
        return None, None
    depth = sizes.get("Z") if units.get("Z") == unit else None
    depth = depth if depth and 0 < depth < math.inf else None
    return (depth, sizes["Y"], sizes["X"]), UNITS.get(str(unit), unit)


def _create(group: Any, name: str, shape: tuple[int, ...], axes: str) -> Any:
    sides = (min(CHUNK, n) for n in shape[-2:])
    return group.create_array(
        name,
        shape=shape,
        chunks=(*(1 for _ in shape[:-2]), *sides),
        dtype="float32",
        dimension_names=[*axes.lower()],
        overwrite=True,
    )


def _add_pyramid(group: Any, axes: str, images: Images, name: str) -> None:
    """Add levels of half the size each, down to one chunk, and their metadata."""
    import dask.array
    from ome_zarr.writer import write_multiscales_metadata

    level = group["0"]
    factors = [np.ones(level.ndim)]  # of each level, by axis
    while max(level.shape[-2:]) > CHUNK:
        ends = range(level.ndim - 2, level.ndim)
        halves = {axis: min(2, level.shape[axis]) for axis in ends}
        pixels = dask.array.from_zarr(level)
        pixels = dask.array.coarsen(np.mean, pixels, halves, trim_excess=True)
        factors.append(factors[-1] * [halves.get(n, 1) for n in range(level.ndim)])
        level = _create(group, str(len(factors) - 1), pixels.shape, axes)
        dask.array.store(pixels.rechunk(level.chunks), level, lock=False)
    depth, height, width = images.pixel_size or (None, 1.0, 1.0)
    sizes = {"Z": depth or 1.0, "Y": height, "X": width}
    size = np.array([sizes.get(axis, 1.0) for axis in axes])
    datasets = []
    for number, times in enumerate(factors):
        scale = {"type": "scale", "scale": (size * times).tolist()}
        middle = (size * (times - 1) / 2).tolist()  # of the first pixel
        shift = {"type": "translation", "translation": middle}
        part = {"path": str(number), "coordinateTransformations": [scale, shift]}
        datasets.append(part)
    unit = {short: long for long, short in UNITS.items()}.get(images.unit or "")
    kinds = {"T": "time", "C": "channel"}
    described: list[dict[str, str]] = []
    for axis in axes:
        described.append({"name": axis.lower(), "type": kinds.get(axis, "space")})
        if unit and (axis in "YX" or (axis == "Z" and depth)):
            described[-1]["unit"] = unit
    write_multiscales_metadata(group, datasets, axes=described, name=name)
