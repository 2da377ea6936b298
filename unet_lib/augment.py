"""Random tiles: deformed, rotated, shifted, with varied gray values (section 3.1).

Everything that moves pixels is combined into one map of coordinates, and images, labels
and weights are sampled through this map once. So labels stay aligned with their image.
Built in :doc:`augmentation`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from unet_lib._checks import (
    UNKNOWN,
    as_stack,
    check_images,
    check_labels,
    check_pairs,
    check_weights,
    is_whole,
)
from unet_lib.config import Augmentation

__all__ = [
    "Augmentation",
    "Draw",
    "TileSampler",
    "deform",
    "displacement_field",
    "resample",
]


class Draw(NamedTuple):
    """The random numbers of one tile."""

    slice: int
    center: np.ndarray  # (2,) row and column in the slice, pixels
    matrix: np.ndarray  # (2, 2) rotation and mirroring
    grid: np.ndarray  # (2, 3, 3) displacement vectors, pixels
    contrast: float
    brightness: float


@lru_cache(maxsize=32)
def spline_matrix(size: int, points: int = 3) -> torch.Tensor:
    """The weight of each of `points` grid values at each of `size` pixels.

    This is bicubic interpolation along one axis: a cubic B-spline through the grid
    values, mirrored at its ends, with the first and last point on the first and last
    pixel. It is linear in the grid values, so for a fixed size it is a matrix.

    Returns:
        float32 ``(size, points)``; its rows sum to 1.
    """
    places = np.linspace(0, points - 1, size)
    columns = [
        ndimage.map_coordinates(unit, [places], order=3, mode="mirror")
        for unit in np.eye(points)
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def displacement_field(grid: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A smooth field from displacement vectors on a coarse grid (section 3.1).

    Args:
        grid: ``(batch, 2, points, points)``, row and column displacements in pixels;
            the paper's grid has 3x3 points. Its corners lie on those of the field.
        size: height and width of the field.

    Returns:
        ``(batch, 2, height, width)``, pixels, on the grid's device.
    """
    if grid.ndim != 4 or grid.shape[1] != 2 or min(grid.shape[2:]) < 2:
        raise ValueError(
            "Expected a grid of shape (batch, 2, points, points) with at least two "
            f"points a side, got {tuple(grid.shape)}."
        )
    if not grid.is_floating_point():
        raise ValueError(f"Expected a grid of floats, got {grid.dtype}.")
    rows, columns = (
        spline_matrix(pixels, points).to(grid)
        for pixels, points in zip(size, grid.shape[2:], strict=True)
    )
    return rows @ grid @ columns.T


def resample(
    maps: torch.Tensor, coordinates: torch.Tensor, mode: str = "bilinear"
) -> torch.Tensor:
    """Sample maps at coordinates; beyond the edge, the maps continue mirrored.

    Args:
        maps: ``(batch, channel, height, width)``, float.
        coordinates: ``(batch, 2, height', width')``, rows and columns in pixels.
        mode: ``"bilinear"`` for images and weights, ``"nearest"`` for labels,
            whose values must not mix.

    Returns:
        ``(batch, channel, height', width')``.
    """
    if maps.ndim != 4 or coordinates.ndim != 4 or coordinates.shape[1] != 2:
        raise ValueError(
            "Expected maps (batch, channel, height, width) and coordinates (batch, 2, "
            f"height, width), got {tuple(maps.shape)}, {tuple(coordinates.shape)}."
        )
    if len(maps) != len(coordinates) or 0 in maps.shape:
        raise ValueError(
            "Expected one set of coordinates for each of at least one map, got "
            f"{tuple(maps.shape)} and {tuple(coordinates.shape)}."
        )
    if not maps.is_floating_point():
        raise ValueError(
            f"Expected maps of floats, got {maps.dtype}: pass labels as floats, with "
            'mode="nearest".'
        )
    last = torch.tensor(maps.shape[2:], device=maps.device).sub(1).clamp(min=1)
    normalized = coordinates * (2 / last).view(1, 2, 1, 1) - 1
    return _read(maps, normalized.flip(1).to(maps), mode)


def _read(maps: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    """At places ``(batch, 2, height, width)`` as grid_sample counts them.

    That is from -1 to 1 between the border pixels, the column first.
    """
    return F.grid_sample(
        maps,
        places.permute(0, 2, 3, 1),
        mode=mode,
        padding_mode="reflection",
        align_corners=True,
    )


def deform(
    images: torch.Tensor, grid: torch.Tensor, mode: str = "bilinear"
) -> torch.Tensor:
    """Deform images, or labels with ``mode="nearest"``, by vectors on a grid.

    Each output pixel is sampled at its own position plus the displacement there. The
    same grid moves an image and its labels alike.

    Args:
        images: ``(batch, channel, height, width)``, float.
        grid: ``(batch, 2, points, points)``, in pixels, as for `displacement_field`.
    """
    if images.ndim != 4:
        raise ValueError(
            "Expected images of shape (batch, channel, height, width), got "
            f"{tuple(images.shape)}."
        )
    height, width = images.shape[2:]
    field = displacement_field(grid, (height, width))
    pixels = torch.from_numpy(np.indices(images.shape[2:], np.float32)).to(field)
    return resample(images, pixels + field, mode)


class TileSampler:
    """Random tiles of a labeled stack, cut and augmented on one device.

    The center of a tile is drawn uniformly from the whole slice, and what reaches
    beyond the edge is mirrored. So every pixel is seen equally often, except for the
    outermost ones, which the mirror does not repeat: they are seen half as often. If
    slices differ in size, each is drawn in proportion to its number of pixels.

    Args:
        images: ``(slices, height, width)`` or ``(slices, channels, height, width)``,
            float, 0 to 1; or a list of such slices, which may differ in size.
        labels: the same shape without channels, integer: the class of each pixel, or
            -1 where it is unknown. In a tile, an unknown pixel gets the class 0 and the
            weight 0, whatever the weights of its neighbors.
        weights: the shape of `labels`, float, not negative, as from
            `weights.weight_map`.
        tile: height and width of the image tiles, as the network takes them.
        output: height and width of the tiles of labels and weights, the output size of
            the network for `tile`.
        augmentation: how the tiles vary; the default is the paper's.
        seed: with the same seed, tile i is always the same, in any order and batch;
            between batches of different sizes, up to the rounding of float32.
        device: the device that holds the slices, each once, and makes the tiles.

    Example:
        >>> stack = np.zeros((30, 64, 64), np.float32)
        >>> sampler = TileSampler(
        ...     stack, stack.astype(int), stack + 1, tile=44, output=4
        ... )
        >>> images, labels, weights = sampler.batch(range(3))
        >>> images.shape, labels.shape
        (torch.Size([3, 1, 44, 44]), torch.Size([3, 4, 4]))
    """

    def __init__(
        self,
        images: np.ndarray | list[np.ndarray],
        labels: np.ndarray | list[np.ndarray],
        weights: np.ndarray | list[np.ndarray],
        tile: int,
        output: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        given = {"images": images, "labels": labels, "weights": weights}
        stacks = {name: as_stack(one) for name, one in given.items()}
        check_pairs(**stacks)
        whole = all(is_whole(n) for n in (tile, output, seed))
        if not whole or not 0 < output <= tile or (tile - output) % 2 or seed < 0:
            raise ValueError(
                "Expected integers, 0 < output <= tile, an even number apart, and a "
                f"seed from 0 on, got {output!r}, {tile!r} and {seed!r}: take tile and "
                "UNet.output_size(tile)."
            )
        self.tile, self.output, self.seed = tile, output, seed
        self.augmentation = augmentation or Augmentation()
        self.device = torch.device(device)
        self.basis = _basis(tile).to(self.device)
        self.sizes = [one.shape[-2:] for one in stacks["images"]]
        self.maps: torch.Tensor | list[torch.Tensor]
        self.shares: np.ndarray | None = None  # of the slices, in what is drawn
        if isinstance(stacks["images"], list):
            parts = enumerate(zip(*stacks.values(), strict=True))
            maps = [_maps(a, b, c, f"[{n}]") for n, (a, b, c) in parts]
            self.maps = [one.to(self.device) for one in maps]
            pixels = np.prod(self.sizes, axis=1)
            self.shares = pixels / pixels.sum()
        else:
            self.maps = _maps(*stacks.values()).to(self.device)

    def draw(self, index: int) -> Draw:
        """Draw the random numbers of tile `index` from the seed and the index alone."""
        random = np.random.default_rng([self.seed, index])
        chosen = self.augmentation
        angle = random.uniform(0, 2 * np.pi) if chosen.rotation else 0.0
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = np.array([[cosine, -sine], [sine, cosine]])
        if chosen.mirror and random.random() < 0.5:
            matrix[:, 0] *= -1
        slices = len(self.sizes)
        if self.shares is None:
            number = int(random.integers(slices))
        else:
            number = int(random.choice(slices, p=self.shares))
        height, width = self.sizes[number]
        return Draw(
            slice=number,
            center=random.uniform(0, [height - 1, width - 1]),
            matrix=matrix,
            grid=random.normal(0, 1, (2, 3, 3)) * chosen.deformation,
            contrast=1 + random.uniform(-1, 1) * chosen.contrast,
            brightness=random.uniform(-1, 1) * chosen.brightness,
        )

    def batch(
        self, indices: list[int] | range
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make the tiles with these numbers.

        Returns:
            images ``(batch, channels, tile, tile)`` float32, labels ``(batch, output,
            output)`` int64 and weights of that shape, float32.
        """
        draws = [self.draw(index) for index in indices]
        if not draws:
            raise ValueError("Expected at least one index, got none.")
        motions = np.array([_motion(one, self.sizes[one.slice]) for one in draws])
        moved = self._on_device(motions.astype(np.float32))
        places = self.basis @ moved @ self.basis.T
        if isinstance(self.maps, list):  # of different sizes, read one by one
            read = [
                self._cut(self.maps[one.slice][None], places[number : number + 1])
                for number, one in enumerate(draws)
            ]
            images, labels, weights = map(torch.cat, zip(*read, strict=True))
        else:
            numbers = self._on_device(np.array([draw.slice for draw in draws]))
            images, labels, weights = self._cut(self.maps[numbers], places)
        # c (v - 0.5) + 0.5 + b
        gray = [(d.contrast, 0.5 - 0.5 * d.contrast + d.brightness) for d in draws]
        factor, addend = self._on_device(np.array(gray, np.float32)).T[
            :, :, None, None, None
        ]
        return images.mul_(factor).add_(addend), labels, weights

    def _cut(
        self, maps: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, labels and weights of tiles, read from a map for each of them."""
        border = (self.tile - self.output) // 2
        middle = slice(border, border + self.output)
        inner = places[:, :, middle, middle]
        images = _read(maps[:, :-2], places, "bilinear")
        labels = _read(maps[:, -2:-1], inner, "nearest")[:, 0]
        weights = _read(maps[:, -1:], inner, "bilinear")[:, 0]
        # The weights between an unknown pixel and a known one are a mixture of theirs.
        known = labels != UNKNOWN
        return images, (labels * known).long(), weights * known

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            # MPS would go on reading memory that is free again (pytorch#189690).
            return tensor.to(self.device)
        # Copied from pinned memory, the host need not wait for the device.
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _maps(
    images: np.ndarray, labels: np.ndarray, weights: np.ndarray, which: str = ""
) -> torch.Tensor:
    """Checked slices as ``(..., channels + 2, height, width)``, one map a channel.

    In float32, which holds the number of a class exactly. `which` names a slice of a
    list in errors.
    """
    images = check_images(images, f"images{which}")
    labels = check_labels(labels, f"labels{which}", unknown=True)
    weights = check_weights(weights, f"weights{which}")
    if images.ndim == labels.ndim:
        images = images[..., None, :, :]
    maps = images, labels[..., None, :, :], weights[..., None, :, :]
    joined = np.concatenate([one.astype(np.float32, copy=False) for one in maps], -3)
    return torch.from_numpy(joined)


@lru_cache(maxsize=8)
def _basis(size: int) -> torch.Tensor:
    """Along one side: the weights of the three grid values, and the pixel's place.

    float32 ``(size, 4)``; the place is counted from the middle of the tile.
    """
    places = torch.arange(size) - (size - 1) / 2
    return torch.cat([spline_matrix(size), places[:, None]], dim=1)


def _motion(draw: Draw, size: tuple[int, int]) -> np.ndarray:
    """Where a tile is read, as numbers between the two sides' bases.

    Center + matrix x place + field is linear in each side's basis, so it is
    basis @ motion @ basis.T: one pass over the pixels, where adding the parts
    would take one each. As grid_sample counts: column first, from -1 to 1.

    Args:
        draw: of the tile.
        size: height and width of the slice.

    Returns:
        float64 ``(2, 4, 4)``.
    """
    motion = np.zeros((2, 4, 4))
    # A side's spline weights sum to 1: what is the same everywhere joins the grid.
    motion[:, :3, :3] = draw.grid + draw.center[:, None, None]
    motion[:, 3, :3] = draw.matrix[:, :1]
    motion[:, :3, 3] = draw.matrix[:, 1:]
    motion *= 2 / np.maximum(np.array(size) - 1, 1)[:, None, None]
    motion[:, :3, :3] -= 1
    return motion[::-1]
