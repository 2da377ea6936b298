"""Overlap-tile prediction of images of any size (section 2, Figure 2).

Built in chapter 6, *Overlap-tile evaluation*.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from unet_lib.model import UNet

# Input pixels of one tile unless the caller says otherwise: 1024 x 1024 takes
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
    """
    if length < 1:
        raise ValueError(f"Expected a length of at least one pixel, got {length}.")
    output = network.output_size(tile)
    step = 2**network.depth
    tiles = 1
    stride = output - output % step
    if length > output:
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
    # A tile is one of several, with an output of a stride at least, or the only one.
    least = network.input_size(min(length, 2**network.depth))
    most = max(least, network.input_size(length))
    axes = [plan_axis(network, length, n) for n in network.valid_sizes(least, most)]
    return list({axis.tiles: axis for axis in reversed(axes)}.values())


@torch.inference_mode()
def predict(
    network: UNet,
    images: np.ndarray,
    tile: int | None = None,
    max_pixels: int = MAX_PIXELS,
    eightfold: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """Probabilities of cell for slices of any size, by the overlap-tile strategy.

    Each slice is mirrored at its borders once, cut into overlapping tiles, and
    the outputs are placed side by side. They equal the network's output on the
    mirrored whole.

    Args:
        network: a `UNet` with ``padding="valid"``, on its device; it is put into
            evaluation mode.
        images: ``(height, width)`` or ``(slices, height, width)``, float, 0 to 1.
        tile, max_pixels: as for `plan_tiles`.
        eightfold: average over the four quarter turns, each as it is and
            mirrored. Deviation: the paper averages 7 rotated versions.
        progress: show a bar.

    Returns:
        float32 of the shape of `images`, 0 to 1: the soft-max of class 1.

    Raises:
        ValueError: for images of another rank, empty or not finite, for a
            padded network or one of several input channels, and for an illegal
            tile.
    """
    images = np.asarray(images)
    if images.ndim not in (2, 3) or images.size == 0:
        raise ValueError(
            "Expected images of shape (height, width) or (slices, height, width) "
            f"with at least one pixel, got {images.shape}."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"Expected images of floats from 0 to 1, got {images.dtype}; divide 0..255 "
            "by 255."
        )
    if not np.isfinite(images).all():
        raise ValueError("Expected finite images, got NaN or infinity.")
    if network.padding != "valid":
        raise ValueError(
            'Expected a network with padding="valid": the tiles of a padded one do '
            "not join without seams. Give such a network whole images instead."
        )
    if network.arguments["in_channels"] != 1 or network.arguments["num_classes"] < 2:
        raise ValueError(
            "Expected a network of one input channel and at least two classes, got "
            f"{network.arguments}."
        )
    network.eval()
    stack = images if images.ndim == 3 else images[None]
    turns = range(8) if eightfold else range(1)
    probabilities = np.zeros(stack.shape, np.float64)
    with tqdm(total=len(stack) * len(turns), disable=not progress) as bar:
        for image, total in zip(stack, probabilities, strict=True):
            for turn in turns:
                turned = _turn(image, turn)
                axes = plan_tiles(network, turned.shape, tile, max_pixels)
                scores = _stitch(network, turned, *axes)
                cell = torch.softmax(scores, dim=0)[1].cpu().double().numpy()
                total += _turn_back(cell, turn)
                bar.update()
    probabilities /= len(turns)
    return probabilities.astype(np.float32).reshape(images.shape)


def mirror_pad(image: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """The image with its mirrored borders, as large as the tiles need."""
    pads = [
        (axis.border, axis.padded - axis.border - length)
        for axis, length in zip((rows, columns), image.shape, strict=True)
    ]
    return np.pad(image, pads, mode="reflect")


def _stitch(
    network: UNet, image: np.ndarray, rows: Axis, columns: Axis
) -> torch.Tensor:
    """Scores ``(classes, height, width)`` of one image, tile by tile."""
    parameter = next(network.parameters())
    padded = torch.from_numpy(mirror_pad(image, rows, columns)).to(parameter)
    classes = network.arguments["num_classes"]
    scores = padded.new_empty(
        classes,
        (rows.tiles - 1) * rows.stride + rows.output,
        (columns.tiles - 1) * columns.stride + columns.output,
    )
    for row, column in itertools.product(range(rows.tiles), range(columns.tiles)):
        top, left = row * rows.stride, column * columns.stride
        tile = padded[None, None, top : top + rows.tile, left : left + columns.tile]
        place = scores[:, top : top + rows.output, left : left + columns.output]
        place.copy_(network(tile)[0])
    return scores[:, : image.shape[0], : image.shape[1]]


def _turn(image: np.ndarray, turn: int) -> np.ndarray:
    turned = np.rot90(image, turn % 4)
    return turned[:, ::-1].copy() if turn >= 4 else turned.copy()


def _turn_back(image: np.ndarray, turn: int) -> np.ndarray:
    return np.rot90(image[:, ::-1] if turn >= 4 else image, -(turn % 4))
