"""Overlap-tile prediction of images of any size (section 2, Figure 2).

Built in :doc:`overlap-tile`.
"""

import itertools
import math
import sys
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from tqdm.auto import tqdm

from unet_lib.model import UNet

# Input pixels of one pass unless the caller says otherwise: 1024 x 1024 takes
# about 1 GB with 64 base channels in float32.
MAX_PIXELS = 1024 * 1024


class Axis(NamedTuple):
    """How one side of an image is covered by tiles."""

    tile: int  # input pixels of a tile
    output: int  # output pixels of a tile
    stride: int  # from one tile to the next
    tiles: int
    border: int  # mirrored pixels before the first output pixel
    padded: int  # length of the mirrored whole


def plan_axis(network: UNet, length: int, tile: int) -> Axis:
    """Cover `length` pixels with tiles of `tile` input pixels.

    The stride is the largest multiple of 2**depth that leaves no gap. Only then
    does each tile's pooling fall on the same pixels as in a single large tile,
    so that stitched tiles equal the whole. With the paper's 572 and 388 the
    stride is 384, not 388.

    Example:
        >>> plan = plan_axis(UNet(base_channels=2), length=512, tile=572)
        >>> plan.output, plan.stride, plan.tiles
        (388, 384, 2)
    """
    if length < 1:
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
        network: the network, whose size arithmetic decides.
        size: height and width of the image.
        tile: input size of the tiles, if it is to be a given one: the paper's
            is 572. Default: the cheapest.
        max_pixels: the most input pixels of one tile; bounds the memory. Not
            looked at where `tile` is given.

    Raises:
        ValueError: for an illegal tile, or a bound below the smallest tile.
    """
    if tile is not None:
        return plan_axis(network, size[0], tile), plan_axis(network, size[1], tile)
    choices = [_smallest_tiles(network, length) for length in size]
    plans = [
        (rows, columns)
        for rows, columns in itertools.product(*choices)
        if rows.tile * columns.tile <= max_pixels
    ]
    if not plans:
        height, width = (min(axis.tile for axis in axes) for axes in choices)
        raise ValueError(
            f"max_pixels={max_pixels} is below the smallest tile of {height} x {width} "
            f"pixels: allow at least {height * width}."
        )
    return min(plans, key=lambda plan: math.prod(a.tiles * a.tile for a in plan))


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
    network: UNet,
    images: np.ndarray,
    tile: int | None = None,
    max_pixels: int = MAX_PIXELS,
    versions: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Probabilities of cell for slices of any size, by the overlap-tile strategy.

    Each slice is mirrored at its borders once, cut into overlapping tiles, and
    the outputs are placed side by side. They equal the network's output on the
    mirrored whole.

    Args:
        network: on its device and in its precision (``network.bfloat16()`` is
            faster on a new GPU); it is put into evaluation mode. One with
            ``padding="same"`` sees each slice in one tile, mirrored up to a size
            that it can take, since its tiles would not join without seams.
        images: ``(height, width)`` or ``(slices, height, width)``, float, 0 to 1.
            For a network of several input channels ``(channels, height, width)``
            or ``(slices, channels, height, width)``.
        tile: input size of the tiles, as for `plan_tiles`.
        max_pixels: the most input pixels of one pass through the network, and so
            the bound of the memory. As many tiles go through together as it
            lets; a given `tile` goes through whatever it is.
        versions: 1; 7, the paper's average over rotated versions of the slice,
            which by our reading are turned by k/7 of a full circle about its
            centre, bilinear there and back; or 8, the quarter turns, each as it
            is and mirrored, a deviation that needs no interpolation.
        progress: show a bar.

    Returns:
        float32 of the shape of `images`, without their channels, 0 to 1: the
        soft-max of class 1. For a network of more than two classes that of all
        of them, ``(classes, height, width)`` or ``(slices, classes, height,
        width)``.

    Raises:
        ValueError: for images of another rank, empty or not finite, for a
            network of a single class, for an illegal tile, and for a padded
            network if one tile does not cover the slice.

    Example:
        >>> network = UNet(base_channels=2, depth=2)
        >>> predict(network, np.zeros((40, 51), np.float32)).shape
        (40, 51)
    """
    stack = _checked(network, images)
    if versions not in (1, 7, 8):
        raise ValueError(f"versions must be 1, 7 or 8, not {versions!r}.")
    network.eval()
    slices, channels, *size = stack.shape
    classes = network.arguments["num_classes"]
    maps = 1 if classes == 2 else classes
    probabilities = np.zeros((slices, maps, *size), np.float32)
    # As many slices at a time as their tiles go through together.
    rows, columns = plan_tiles(network, size, tile, max_pixels)
    covered = math.prod(axis.tiles * axis.tile for axis in (rows, columns))
    together = max(1, max_pixels // covered)
    with tqdm(total=slices * versions, unit="pass", disable=not progress) as bar:
        for start in range(0, slices, together):
            some = slice(start, start + together)
            total = np.zeros(probabilities[some].shape)
            for version in range(versions):
                look = _look_rotated if versions == 7 else _look_turned
                total += look(network, stack[some], version, tile, max_pixels)
                bar.update(len(total))
            probabilities[some] = total / versions
    if maps == 1:
        probabilities = probabilities[:, 0]
    is_stack = np.ndim(images) == (3 if channels == 1 else 4)
    return probabilities if is_stack else probabilities[0]


def _checked(network: UNet, images: np.ndarray) -> np.ndarray:
    """The images as ``(slices, channels, height, width)``."""
    images = np.asarray(images)
    channels = network.arguments["in_channels"]
    lead = () if channels == 1 else (channels,)
    inner = images.shape[-2 - len(lead) : -2]
    if images.ndim - len(lead) not in (2, 3) or inner != lead or images.size == 0:
        names = "height, width" if channels == 1 else f"{channels}, height, width"
        raise ValueError(
            f"Expected images of shape ({names}) or (slices, {names}) with at least "
            f"one pixel, got {images.shape}."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"Expected images of floats from 0 to 1, got {images.dtype}; divide 0..255 "
            "by 255."
        )
    # In these words NaN is refused too.
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            "Expected images from 0 to 1, got values from "
            f"{images.min():g} to {images.max():g}; divide 0..255 by 255."
        )
    if network.arguments["num_classes"] < 2:
        raise ValueError(
            f"Expected a network of at least two classes, got {network.arguments}."
        )
    # In this machine's byte order, and in a precision that SciPy and torch share.
    precision = np.float64 if images.dtype.itemsize > 4 else np.float32
    images = images.astype(precision, copy=False)
    return images.reshape(-1, channels, *images.shape[-2:])


def mirror_pad(images: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """Images ``(..., height, width)`` with the mirrored borders the tiles need."""
    pads = [(0, 0)] * (images.ndim - 2) + [
        (axis.border, axis.padded - axis.border - length)
        for axis, length in zip((rows, columns), images.shape[-2:], strict=True)
    ]
    return np.pad(images, pads, mode="reflect")


def _stitch(
    network: UNet, padded: np.ndarray, rows: Axis, columns: Axis, together: int
) -> torch.Tensor:
    """Scores ``(slices, classes, height, width)``, `together` tiles a pass."""
    images = torch.from_numpy(padded).to(next(network.parameters()))
    scores = images.new_empty(
        len(images),
        network.arguments["num_classes"],
        (rows.tiles - 1) * rows.stride + rows.output,
        (columns.tiles - 1) * columns.stride + columns.output,
    )
    corners = [
        (image, row * rows.stride, column * columns.stride)
        for image, row, column in itertools.product(
            range(len(images)), range(rows.tiles), range(columns.tiles)
        )
    ]
    for start in range(0, len(corners), together):
        here = corners[start : start + together]
        tiles = [
            images[image, :, top : top + rows.tile, left : left + columns.tile]
            for image, top, left in here
        ]
        outputs = network(torch.stack(tiles))
        for (image, top, left), output in zip(here, outputs, strict=True):
            place = scores[image, :, top : top + rows.output]
            place[..., left : left + columns.output] = output
    return scores


def _soft_max(
    network: UNet, padded: np.ndarray, rows: Axis, columns: Axis, max_pixels: int
) -> np.ndarray:
    """Of all that is covered, ``(slices, maps, height, width)``; of two, class 1."""
    together = max(1, max_pixels // (rows.tile * columns.tile))
    scores = _stitch(network, padded, rows, columns, together)
    wide = torch.promote_types(scores.dtype, torch.float32)
    probabilities = torch.softmax(scores, dim=1, dtype=wide)
    if probabilities.shape[1] == 2:
        probabilities = probabilities[:, 1:]
    return probabilities.cpu().numpy()


def _look_turned(
    network: UNet, images: np.ndarray, version: int, tile: int | None, max_pixels: int
) -> np.ndarray:
    """Turned by `version` quarter turns, from the fifth on mirrored too."""
    turned = np.rot90(images, version % 4, axes=(2, 3))
    turned = turned[..., ::-1] if version >= 4 else turned
    height, width = turned.shape[2:]
    axes = plan_tiles(network, (height, width), tile, max_pixels)
    seen = _soft_max(network, mirror_pad(turned, *axes), *axes, max_pixels)
    seen = seen[..., :height, :width]
    seen = seen[..., ::-1] if version >= 4 else seen
    return np.rot90(seen, -(version % 4), axes=(2, 3))


def _look_rotated(
    network: UNet, images: np.ndarray, version: int, tile: int | None, max_pixels: int
) -> np.ndarray:
    """Turned by `version` sevenths of a circle, on a canvas that holds it whole."""
    angle = 2 * math.pi * version / 7
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    size = np.array(images.shape[2:])
    canvas = np.ceil(np.abs(turn) @ (size - 1)).astype(int) + 1
    axes = plan_tiles(network, tuple(map(int, canvas)), tile, max_pixels)
    border = [axis.border for axis in axes]
    middle, canvas_middle = (size - 1) / 2, (canvas - 1) / 2

    def resample(maps, matrix, offset, shape):
        flat = [
            ndimage.affine_transform(one, matrix, offset, shape, order=1, mode="mirror")
            for one in maps.reshape(-1, *maps.shape[2:])
        ]
        return np.reshape(flat, (*maps.shape[:2], *shape))

    # The border is read from the mirrored slice too, not from a mirrored canvas.
    offset = middle - turn @ (canvas_middle + border)
    padded = resample(images, turn, offset, tuple(axis.padded for axis in axes))
    seen = _soft_max(network, padded, *axes, max_pixels)
    return resample(seen, turn.T, canvas_middle - turn.T @ middle, tuple(size))


class _Callable(ModuleType):
    """This module, which is also the function: both are `unet_lib.predict`."""

    def __call__(self, *arguments, **options) -> np.ndarray:
        return predict(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
