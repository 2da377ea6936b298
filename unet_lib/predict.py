"""Overlap-tile prediction of images of any size (section 2, Figure 2).

Built in :doc:`overlap-tile`.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from tqdm.auto import tqdm

from unet_lib._checks import (
    as_array,
    check_images,
    check_not_color,
    is_out_of_memory,
    is_whole,
)
from unet_lib.model import UNet, move_to, unwrapped

__all__ = ["MAX_PIXELS", "Axis", "mirror_pad", "plan_axis", "plan_tiles", "predict"]

Versions = Literal[1, 7, 8]  # how many versions of a slice test-time augmentation takes
Plan = Callable[..., "tuple[Axis, Axis]"]  # of the size of images
Pass = Callable[..., np.ndarray]  # over padded images, by their plan

# Input pixels of one pass unless the caller says otherwise: 1024 x 1024 takes
# about 1 GB with 64 base channels in float32.
MAX_PIXELS = 1024 * 1024


class Axis(NamedTuple):
    """How tiles cover one axis of an image."""

    tile: int  # input pixels of a tile
    output: int  # output pixels of a tile
    stride: int  # from one tile to the next
    tiles: int
    border: int  # mirrored pixels before the first output pixel
    padded: int  # length of the image with its mirrored borders


def plan_axis(network: UNet, length: int, tile: int) -> Axis:
    """Cover `length` pixels with tiles of `tile` input pixels.

    The stride is the largest multiple of 2**depth that leaves no gap. Only then do
    the pooling windows of each tile fall on the same pixels as in a single large tile,
    so that the stitched tiles equal one pass over the whole. With the paper's sizes
    572 and 388, the stride is 384, not 388.

    Example:
        >>> plan = plan_axis(UNet(base_channels=2), length=512, tile=572)
        >>> plan.output, plan.stride, plan.tiles
        (388, 384, 2)
    """
    if not is_whole(length) or length < 1:
        raise ValueError(f"Expected a length of at least one pixel, got {length}.")
    output = network.output_size(tile)
    step = 2**network.depth
    tiles = 1
    stride = output - output % step
    if length > output:
        if network.padding == "same":
            raise ValueError(
                f"A tile of {tile} pixels does not cover {length}, and the tiles of a "
                "padded network do not join without seams: let one tile cover the "
                f"whole image, at least {network.input_size(length)} pixels."
            )
        if stride == 0:
            raise ValueError(
                f"A tile of {tile} pixels gives {output} and cannot be stitched in "
                f"steps of {step}: take at least {network.input_size(step)}."
            )
        tiles = 1 + math.ceil((length - output) / stride)
    border = (tile - output) // 2
    return Axis(tile, output, stride, tiles, border, (tiles - 1) * stride + tile)


def plan_tiles(
    network: UNet,
    size: tuple[int, int],
    tile: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Axis, Axis]:
    """The plan that computes the fewest pixels for an image of `size`.

    Args:
        network: the network, whose size arithmetic determines which tiles are valid.
        size: height and width of the image.
        tile: input size of the tiles; the paper's is 572. By default, the cheapest
            size is chosen.
        max_pixels: the largest number of input pixels in one tile. Ignored if `tile`
            is given.

    Raises:
        ValueError: if the tile is not valid, or `max_pixels` is not an integer or
            smaller than the smallest tile.
    """
    if not is_whole(max_pixels):
        raise ValueError(f"max_pixels must be an integer, not {max_pixels!r}.")
    if tile is not None:
        return plan_axis(network, size[0], tile), plan_axis(network, size[1], tile)
    choices = [_smallest_tiles(network, length) for length in size]
    plans = [
        (rows, columns)
        for rows, columns in itertools.product(*choices)
        if rows.tile * columns.tile <= max_pixels
    ]
    if not plans:
        least = _least_pixels(network, size)
        raise ValueError(
            f"max_pixels={max_pixels} is below the smallest tile: take max_pixels="
            f"{least} or more (--max-pixels {least} on the command line)."
        )
    return min(plans, key=lambda plan: math.prod(a.tiles * a.tile for a in plan))


def _least_pixels(network: UNet, size: tuple[int, int]) -> int:
    """Input pixels of the smallest tile for an image of `size`."""
    choices = [_smallest_tiles(network, length) for length in size]
    return math.prod(min(axis.tile for axis in axes) for axes in choices)


def _smallest_tiles(network: UNet, length: int) -> list[Axis]:
    """For each number of tiles that can cover `length`, the smallest tile."""
    # A tile is one of several, with an output of a stride at least, or the only one,
    # as that of a padded network must be.
    one = length if network.padding == "same" else min(length, 2**network.depth)
    least = network.input_size(one)
    most = max(least, network.input_size(length))
    axes = [plan_axis(network, length, n) for n in network.valid_sizes(least, most)]
    return list({axis.tiles: axis for axis in reversed(axes)}.values())


@torch.inference_mode()
def predict(
    network: nn.Module,
    images: np.ndarray,
    tile: int | None = None,
    max_pixels: int = MAX_PIXELS,
    versions: Versions = 1,
    progress: bool = False,
) -> np.ndarray:
    """Predict the probability of cell for slices of any size, tile by tile.

    This is the paper's overlap-tile strategy: each slice is mirrored at its edges once
    and cut into overlapping tiles, and the outputs are placed side by side. The result
    equals one pass of the network over the whole mirrored slice.

    Args:
        network: a `UNet`, also in a wrapper (DataParallel, an average of the weights,
            `torch.compile`). It runs on its own device and in its own precision
            (``network.bfloat16()`` is faster on a recent GPU) and is put into
            evaluation mode. With ``padding="same"``, one tile covers each slice,
            mirrored up to a valid size, since several tiles would show seams.
        images: ``(height, width)`` or ``(slices, height, width)``, float, 0 to 1.
            For a network with several input channels, ``(channels, height, width)``
            or ``(slices, channels, height, width)``.
        tile: input size of the tiles, as for `plan_tiles`.
        max_pixels: the largest number of input pixels in one pass through the network.
            Only the tiles of one pass are on the device at a time, as many as this
            allows, so it bounds the memory used there. If `tile` is given, it is used
            whatever its size.
        versions: test-time augmentation (TTA): predict this many versions of each
            slice and average them. 1 means no TTA. 7 is the paper's number; in our
            reading, version k is rotated by k/7 of a full circle about the center of
            the slice, with bilinear interpolation there and back. 8 is a deviation:
            the four rotations by multiples of 90 degrees and their mirror images,
            which need no interpolation.
        progress: show a progress bar.

    Returns:
        float32 with the shape of `images`, without channels, 0 to 1: the softmax of
        class 1. For a network with more than two classes, the softmax of all of them,
        ``(classes, height, width)`` or ``(slices, classes, height, width)``.

    Raises:
        ValueError: if images have another shape, type or range, or are color images
            for a network that takes gray ones; if the network has a single class; if
            the tile is not valid; or if one tile of a padded network does not cover
            the slice.
        MemoryError: if the memory of the network's device does not hold one pass.

    Example:
        >>> network = UNet(base_channels=2, depth=2)
        >>> predict(network, np.zeros((40, 51), np.float32)).shape
        (40, 51)
    """
    unet = unwrapped(network)
    images = as_array(images, "images")
    stack = _checked(unet, images)
    if versions not in get_args(Versions):
        raise ValueError(f"versions must be 1, 7 or 8, not {versions!r}.")
    slices, _, height, width = stack.shape
    classes = unet.arguments["num_classes"]
    maps = 1 if classes == 2 else classes
    probabilities = np.zeros((slices, maps, height, width), np.float32)
    # As many slices at a time as their tiles go through together.
    plan = partial(plan_tiles, unet, tile=tile, max_pixels=max_pixels)
    run = partial(stitch, network, max_pixels=max_pixels)
    rows, columns = plan((height, width))
    covered = math.prod(axis.tiles * axis.tile for axis in (rows, columns))
    together = max(1, max_pixels // covered)
    version_of = _rotated if versions == 7 else _by_quarters
    bar = tqdm(total=slices * versions, unit="pass", disable=not progress)
    used = min(slices * covered, max(max_pixels, rows.tile * columns.tile))
    with bar, at_work(network, (height, width), used):
        for start in range(0, slices, together):
            some = slice(start, start + together)
            total = np.zeros(probabilities[some].shape)
            for version in range(versions):
                total += version_of(stack[some], version, plan, run)
                bar.update(len(total))
            probabilities[some] = total / versions
    if maps == 1:
        probabilities = probabilities[:, 0]
    is_stack = images.ndim == (3 if unet.arguments["in_channels"] == 1 else 4)
    return probabilities if is_stack else probabilities[0]


def _checked(unet: UNet, images: np.ndarray) -> np.ndarray:
    """The images as ``(slices, channels, height, width)``."""
    check_input(unet, images, "images")
    images = check_images(images)
    # In this machine's byte order, and in a precision that SciPy and torch share.
    precision = np.float64 if images.dtype.itemsize > 4 else np.float32
    images = images.astype(precision, copy=False)
    return images.reshape(-1, unet.arguments["in_channels"], *images.shape[-2:])


def check_input(unet: UNet, images: Any, name: str) -> None:
    """Refuse what has another shape than a network takes, and one with one class."""
    channels, shape = unet.arguments["in_channels"], tuple(images.shape)
    axes, lengths = 3, f"{channels}, height, width"
    if channels == 1:
        axes, lengths = 2, "height, width"
        check_not_color(images, name)
    wrong = axes == 3 and shape[-3:-2] != (channels,)
    if len(shape) not in (axes, axes + 1) or 0 in shape or wrong:
        last = axes == 3 and len(shape) > 2 and shape[-1] == channels
        advice = f": pass np.moveaxis({name}, -1, -3)" if last else ""
        raise ValueError(
            f"Expected {name} of shape ({lengths}) or (slices, {lengths}) with at "
            f"least one pixel, got {shape}{advice}."
        )
    if unet.arguments["num_classes"] < 2:
        raise ValueError(
            f"Expected a network of at least two classes, got {unet.arguments}."
        )


def mirror_pad(images: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """Images ``(..., height, width)`` with the mirrored borders that the tiles need."""
    pads = [(0, 0)] * (images.ndim - 2) + [
        (axis.border, axis.padded - axis.border - length)
        for axis, length in zip((rows, columns), images.shape[-2:], strict=True)
    ]
    return np.pad(images, pads, mode="reflect")


def stitch(
    network: nn.Module, padded: np.ndarray, rows: Axis, columns: Axis, max_pixels: int
) -> np.ndarray:
    """Probabilities wherever tiles cover, ``(slices, maps, height, width)``.

    With two classes there is one map, that of class 1. Only the tiles of a pass, and
    their logits, are on the network's device.
    """
    weight = next(network.parameters())
    wide = torch.promote_types(weight.dtype, torch.float32)
    classes = unwrapped(network).arguments["num_classes"]
    first = 1 if classes == 2 else 0
    size = [axis.padded - 2 * axis.border for axis in (rows, columns)]
    probabilities = torch.empty(len(padded), classes - first, *size, dtype=wide)
    tops = [row * rows.stride for row in range(rows.tiles)]
    lefts = [column * columns.stride for column in range(columns.tiles)]
    corners = list(itertools.product(range(len(padded)), tops, lefts))
    together = max(1, max_pixels // (rows.tile * columns.tile))
    for start in range(0, len(corners), together):
        here = corners[start : start + together]
        tiles = [
            padded[image, :, top : top + rows.tile, left : left + columns.tile]
            for image, top, left in here
        ]
        # Converted before it is moved: MPS has no double precision.
        batch = torch.from_numpy(np.stack(tiles)).to(weight.dtype).to(weight.device)
        seen = torch.softmax(network(batch), dim=1, dtype=wide)[:, first:].cpu()
        for (image, top, left), output in zip(here, seen, strict=True):
            place = probabilities[image, :, top : top + rows.output]
            place[..., left : left + columns.output] = output
    return probabilities.numpy()


@contextmanager
def at_work(network: nn.Module, size: tuple[int, int], used: int) -> Iterator[None]:
    """Put a network into evaluation mode; say what to do where its memory is too small.

    Args:
        network: the network.
        size: height and width of the images.
        used: input pixels of one pass.
    """
    unet = unwrapped(network)
    network.eval()
    device = next(unet.parameters()).device
    if device.type == "mps":
        move_to(unet, device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        less = max(used // 2, _least_pixels(unet, size))
        smaller = f"max_pixels={less} (--max-pixels {less}), and no tile, or "
        why = [*str(error).splitlines(), "out of memory"][0]
        raise MemoryError(
            f"The memory of {device} does not hold a pass of {used} pixels ({why}). "
            f"Take {smaller if less < used else ''}network.bfloat16() in Python, which "
            "needs about half as much."
        ) from error


def _by_quarters(images: np.ndarray, version: int, plan: Plan, run: Pass) -> np.ndarray:
    """Rotated by `version` quarter turns, from the fifth on mirrored too."""
    turned = np.rot90(images, version % 4, axes=(2, 3))
    turned = turned[..., ::-1] if version >= 4 else turned
    height, width = turned.shape[2:]
    axes = plan((height, width))
    seen = run(mirror_pad(turned, *axes), *axes)[..., :height, :width]
    seen = seen[..., ::-1] if version >= 4 else seen
    return np.rot90(seen, -(version % 4), axes=(2, 3))


def _rotated(images: np.ndarray, version: int, plan: Plan, run: Pass) -> np.ndarray:
    """Rotated by `version` sevenths of a circle, on a canvas that holds it whole."""
    angle = 2 * math.pi * version / 7
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    size = np.array(images.shape[2:])
    canvas = np.ceil(np.abs(rotation) @ (size - 1)).astype(int) + 1
    axes = plan(tuple(map(int, canvas)))
    border = [axis.border for axis in axes]
    center, canvas_center = (size - 1) / 2, (canvas - 1) / 2

    def resample(
        maps: np.ndarray, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        flat = [
            ndimage.affine_transform(one, matrix, offset, shape, order=1, mode="mirror")
            for one in maps.reshape(-1, *maps.shape[2:])
        ]
        return np.reshape(flat, (*maps.shape[:2], *shape))

    # The border is read from the mirrored slice too, not from a mirrored canvas.
    offset = center - rotation @ (canvas_center + border)
    padded = resample(images, rotation, offset, tuple(axis.padded for axis in axes))
    seen = run(padded, *axes)
    back = canvas_center - rotation.T @ center
    return resample(seen, rotation.T, back, images.shape[2:])


class _Callable(ModuleType):
    """This module, which is also the function: both are `unet_lib.predict`."""

    def __call__(self, *arguments: Any, **options: Any) -> np.ndarray:
        return predict(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
