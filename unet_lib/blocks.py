"""Prediction of images larger than memory, block by block.

The tiles are those that `predict.predict` would cut the whole image into, so the
probabilities are the same. A block consists of some of these tiles; the border that
they need is read with it, and mirrored where the image ends. Used in
:doc:`own-images`.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from unet_lib._checks import found, is_real, is_whole
from unet_lib._files import read_json, write_text
from unet_lib.model import UNet, input_size, output_size, unwrapped
from unet_lib.predict import MAX_PIXELS, Axis, at_work, check_input, plan_tiles, stitch

__all__ = ["halo", "predict_into"]

ROUNDING = 1e-5  # may leave a float this far outside 0 to 1


def halo(network: nn.Module) -> int:
    """The number of pixels around a block that its prediction needs.

    Pass it as the depth to `dask.array.map_overlap`, and dask predicts the chunks of an
    image on all the machines that it has. The chunks join exactly

    - if each is at least as large as the halo: with ``allow_rechunk=False`` dask
      refuses smaller ones, which it would otherwise cut again at arbitrary pixels;
    - if the sides of all but the last are multiples of 2**depth, 16 in the paper;
    - if dask adds no pixels where the image ends, as `predict.predict` mirrors there.

    The halo is the border that unpadded convolutions take away, 92 pixels for the
    paper's network, or the 94 that padded ones see, rounded up to a multiple of
    2**depth: 96. With 92, the windows of the max pooling would start at other pixels.

    Args:
        network: a `UNet`, also in a wrapper.

    Example:
        >>> import dask.array
        >>> from unet_lib import UNet, predict
        >>> halo(UNet(base_channels=1))
        96
        >>> network = UNet(base_channels=2, depth=2)
        >>> image = dask.array.random.random((100, 90), chunks=((40, 60), (40, 50)))
        >>> cell = dask.array.map_overlap(
        ...     lambda part: predict(network, part), image, depth=halo(network),
        ...     boundary="none", allow_rechunk=False, dtype="float32",
        ...     meta=np.empty((0, 0), "float32"))
        >>> cell.compute().shape
        (100, 90)
    """
    depth = unwrapped(network).depth
    step = 2**depth
    size = input_size(step, depth)
    border = (size - output_size(size, depth)) // 2
    return step * math.ceil((border + 2) / step)


@torch.inference_mode()
def predict_into(
    network: nn.Module,
    source: Any,
    target: Any,
    block: int = 2048,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    record: str | Path | None = None,
    progress: bool = False,
) -> None:
    """Write the probabilities of an image that need not fit into memory.

    The probabilities equal those of `predict.predict` up to rounding. Source and target
    can be anything that has a shape and a dtype and can be sliced: a NumPy memory map,
    a Zarr array or an HDF5 dataset; the source can also be a dask array. One block at a
    time is in memory. There is no test-time augmentation, since the tiles of a rotated
    image do not lie in its blocks.

    Args:
        network: as for `predict.predict`, in its own precision. With ``padding="same"``
            one tile must cover the image; dask can take its blocks, with their `halo`.
        source: shaped like the images of `predict.predict`, real numbers of any type.
        target: float32, shaped like its result.
        block: the largest height and width of a block in pixels. Both are rounded down
            to whole tiles, but a block has at least one tile. A larger block means
            fewer reads and more memory.
        value_range: the values that become 0 and 1; what lies outside is clipped. It
            must be given for integers: ``(0, 255)`` for 8 bits. By default the source
            must lie between 0 and 1 already.
        max_pixels: as for `predict.predict`.
        record: a JSON file that says which blocks are done. If it exists, these blocks
            are compared with it and skipped: a source that has changed is refused, and
            a block whose result is not in the target is predicted again. By default no
            record is written.
        progress: show a bar with the time left.

    Raises:
        ValueError: if the source or the target has the wrong shape or type, or they
            share memory, if values are out of range, or if the record is of another
            network or source.
        OSError: if the target or the record cannot be written.
        MemoryError: if the memory of the network's device does not hold one pass.

    Example:
        >>> from unet_lib import UNet, predict
        >>> network = UNet(base_channels=2, depth=2)
        >>> image = np.arange(90 * 70).reshape(90, 70) / 6300  # or a memory map
        >>> target = np.zeros(image.shape, np.float32)  # or np.lib.format.open_memmap
        >>> predict_into(network, image, target, block=32, max_pixels=80 * 80)
        >>> bool((target == predict(network, image, max_pixels=80 * 80)).all())
        True
    """
    unet = unwrapped(network)
    _check_source(unet, source, value_range)
    if not is_whole(block) or block < 1:
        raise ValueError(f"block must be an integer from 1 on, not {block!r}.")
    lead = source.shape[: -2 if unet.arguments["in_channels"] == 1 else -3]
    classes = unet.arguments["num_classes"]
    maps = () if classes == 2 else (classes,)
    _check_target(target, (*lead, *maps, *source.shape[-2:]))
    arrays = isinstance(source, np.ndarray) and isinstance(target, np.ndarray)
    if source is target or (arrays and np.shares_memory(source, target)):
        raise ValueError(
            "Expected a target apart from the source, since a block is read with "
            "pixels around it that the block before has written: pass another array."
        )
    plan = _plan(unet, source.shape[-2:], max_pixels)
    blocks = list(_blocks(lead, source.shape[-2:], plan, block))
    done = _Record(record, unet, source, blocks, value_range)
    used = max(max_pixels, plan[0].tile * plan[1].tile)
    with at_work(network, source.shape[-2:], used):
        for one in tqdm(blocks, unit="block", disable=not progress):
            part = _read(source, one)
            into = (*one.number, *[slice(None)] * len(maps), *one.output)
            if done.holds(one, part, target, into):
                continue
            padded = _gray(part, value_range, one.output)
            padded = padded.reshape(1, -1, *padded.shape[-2:])
            rows, columns = one.axes
            seen = stitch(network, padded, rows, columns, max_pixels)[0]
            height, width = (side.stop - side.start for side in one.output)
            result = seen[:, :height, :width].astype(np.float32)
            result = result if maps else result[0]
            target[into] = result
            done.add(one, part, result)


class _Block(NamedTuple):
    """Some tiles of an image."""

    number: tuple[int, ...]  # of its slice, if there are several
    output: tuple[slice, slice]  # rows and columns that it writes
    axes: tuple[Axis, Axis]  # its tiles

    @property
    def name(self) -> str:
        """The number of its slice, then its corner: "2, 0, 2048"."""
        corner = (side.start for side in self.output)
        return ", ".join(map(str, (*self.number, *corner)))


def _plan(unet: UNet, size: tuple[int, int], max_pixels: int) -> tuple[Axis, Axis]:
    """The tiles that `predict.predict` takes."""
    whole = math.prod(unet.input_size(length) for length in size)
    if unet.padding == "same" and is_whole(max_pixels) and whole > max_pixels:
        raise ValueError(
            "The tiles of a padded network do not join without seams, and a single "
            f"tile for the image has {whole} pixels, above {max_pixels}: pass "
            f"max_pixels={whole}, or let dask predict blocks with a halo "
            "(unet_lib.blocks.halo says how)."
        )
    return plan_tiles(unet, size, max_pixels=max_pixels)


def _blocks(
    lead: tuple[int, ...], size: tuple[int, int], plan: tuple[Axis, Axis], block: int
) -> Iterator[_Block]:
    sides = []
    for length, axis in zip(size, plan, strict=True):
        most = max(1, block // axis.stride) if axis.stride else 1
        side = []
        for first in range(0, axis.tiles, most):
            tiles = min(most, axis.tiles - first)
            last = first + tiles == axis.tiles
            stop = length if last else (first + tiles) * axis.stride
            padded = (tiles - 1) * axis.stride + axis.tile
            part = axis._replace(tiles=tiles, padded=padded)
            side.append((slice(first * axis.stride, stop), part))
        sides.append(side)
    for number in np.ndindex(*lead):
        for (rows, row_axis), (columns, column_axis) in itertools.product(*sides):
            yield _Block(number, (rows, columns), (row_axis, column_axis))


def _check_source(
    unet: UNet, source: Any, value_range: tuple[float, float] | None
) -> None:
    shape, dtype = getattr(source, "shape", None), getattr(source, "dtype", None)
    if shape is None or dtype is None or isinstance(source, torch.Tensor):
        raise ValueError(
            "Expected a source with a shape, a dtype and slices, as np.load(path, "
            "mmap_mode='r') and zarr.open_array give one, got a "
            f"{type(source).__name__}."
        )
    check_input(unet, source, "source")
    kind = np.dtype(dtype).kind
    if kind not in "biuf":
        raise ValueError(f"Expected a source of real numbers, got {dtype}.")
    if value_range is None and kind in "biu":
        top = 1 if kind == "b" else np.iinfo(dtype).max
        raise ValueError(
            f"Expected a source of floats from 0 to 1, got {dtype}: give the values "
            f"that become 0 and 1, such as value_range=(0, {top})."
        )
    if value_range is not None:
        ends = list(value_range) if np.iterable(value_range) else []
        whole = len(ends) == 2 and all(map(is_real, ends))
        if not whole or not -math.inf < ends[0] < ends[1] < math.inf:
            raise ValueError(
                "Expected a value_range of two finite numbers (low, high), the lower "
                f"first, got {value_range!r}."
            )


def _check_target(target: Any, shape: tuple[int, ...]) -> None:
    said = [getattr(target, name, None) for name in ("shape", "dtype")]
    dask = hasattr(target, "__dask_graph__")
    unfit = dask or isinstance(target, torch.Tensor) or said[0] != shape
    if unfit or np.dtype(said[1]).newbyteorder("=") != np.float32:
        got = "a dask array" if dask else f"{said[1]} of shape {said[0]}"
        raise ValueError(
            f"Expected a target of shape {shape} and type float32 that can be written, "
            f"got {got}: np.lib.format.open_memmap(path, 'w+', np.float32, {shape}) "
            "makes one, and so does zarr.create_array."
        )
    corner = (*[0] * (len(shape) - 2), slice(0, 1), slice(0, 1))
    try:
        target[corner] = target[corner]
    except Exception as error:  # each kind of target has its own
        raise OSError(
            f"The target cannot be written ({error}): open it for writing, as with "
            "mode='r+'."
        ) from error


def _read(source: Any, block: _Block) -> np.ndarray:
    """The pixels of a block's tiles as stored, mirrored where the image ends."""
    around, mirrored = [], []
    for side, axis, length in zip(
        block.output, block.axes, source.shape[-2:], strict=True
    ):
        start = side.start - axis.border
        period = max(1, 2 * (length - 1))  # there and back, the end pixels once
        where = np.arange(start, start + axis.padded) % period
        where = np.minimum(where, period - where)
        around.append(slice(int(where.min()), int(where.max()) + 1))
        mirrored.append(where - where.min())
    channels = len(source.shape) - len(block.number) - 2
    place = (*block.number, *[slice(None)] * channels, *around)
    rows, columns = mirrored
    return np.asarray(source[place])[..., rows[:, None], columns]


def _gray(
    part: np.ndarray,
    value_range: tuple[float, float] | None,
    output: tuple[slice, slice],
) -> np.ndarray:
    """Floats from 0 to 1, as `predict.predict` takes them."""
    rows, columns = (f"{side.start} to {side.stop - 1}" for side in output)
    where = f"in and around rows {rows} and columns {columns} of the source"
    if not np.isfinite(part).all():
        raise ValueError(
            f"Expected finite numbers, got {found(part)} {where}: replace NaN and "
            "infinite pixels there by a gray value."
        )
    if value_range is not None:
        low, high = map(float, value_range)
        scaled = (part.astype(np.float64) - low) / (high - low)
        return scaled.clip(0, 1).astype(np.float32)
    if part.min() < -ROUNDING or part.max() > 1 + ROUNDING:
        raise ValueError(
            f"Expected a source from 0 to 1, got {found(part)} {where}: give the "
            "values that become 0 and 1, such as value_range=(0, 255)."
        )
    precision = np.float64 if part.dtype.itemsize > 4 else np.float32
    return part.clip(0, 1).astype(precision, copy=False)


class _Record:
    """The blocks that are done, in a JSON file, with what they were made from."""

    def __init__(
        self,
        path: str | Path | None,
        unet: UNet,
        source: Any,
        blocks: list[_Block],
        value_range: tuple[float, float] | None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[str, Any] = {}
        if self.path is None:
            return
        self.run = {
            "network": _fingerprint(unet),
            "shape": list(source.shape),
            "type": str(source.dtype),
            "value_range": value_range and [float(value) for value in value_range],
            "tiles": hashlib.sha256(repr(blocks).encode()).hexdigest()[:16],
        }
        if self.path.exists():
            known = read_json(self.path)
            known = known if isinstance(known, dict) else {}
            for name, value in self.run.items():
                if known.get(name) != value:
                    raise ValueError(
                        f"{self.path} is the record of another run: {name} was "
                        f"{known.get(name)} and is {value}. Use the network, the "
                        "source and the options of that run, or delete the file to "
                        "predict all blocks again."
                    )
            self.done = dict(known.get("blocks", {}))
        self._write()

    def holds(
        self, block: _Block, part: np.ndarray, target: Any, into: tuple[Any, ...]
    ) -> bool:
        """Whether a block is done, and source and target are as it left them."""
        known = self.done.get(block.name)
        if known is None:
            return False
        if known[0] != _digest(part):
            raise ValueError(
                f"{self.path} is the record of a run on another source: its block at "
                f"{block.name} had other values. Use the source of that run, or "
                "delete the file to predict all blocks again."
            )
        return known[1] == _digest(np.asarray(target[into]))

    def add(self, block: _Block, part: np.ndarray, result: np.ndarray) -> None:
        if self.path is not None:
            self.done[block.name] = [_digest(part), _digest(result)]
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        write_text(self.path, json.dumps(self.run | {"blocks": self.done}))


def _fingerprint(unet: UNet) -> str:
    """A SHA-256 of a network's arguments and weights."""
    digest = hashlib.sha256(json.dumps(unet.arguments, sort_keys=True).encode())
    for name, tensor in unet.state_dict().items():
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(numbers.numpy())
    return digest.hexdigest()


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
