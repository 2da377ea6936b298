"""Tiles by other software, in the workers of a PyTorch data loader.

The same tiles as the sampler's: cut, turned, deformed, with varied gray values.
"""

import os
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset

from unet_lib.augment import Draw, TileSampler, displacement_field

try:
    import elasticdeform
except ImportError:  # it has no wheels for this Python, or needs an older NumPy
    elasticdeform = None

ORDERS = (1, 0, 1)  # of image, labels and weights: labels must not mix


def coordinates(draw: Draw, tile: int) -> np.ndarray:
    """Where each pixel of a tile is read in its slice, ``(2, tile, tile)``."""
    pixels = np.indices((tile, tile)) - (tile - 1) / 2
    field = displacement_field(torch.from_numpy(draw.grid)[None], (tile, tile))
    turned = np.einsum("ij,jyx->iyx", draw.matrix, pixels)
    return draw.center[:, None, None] + turned + field[0].numpy()


def by_scipy(maps: np.ndarray, draw: Draw, tile: int) -> list[np.ndarray]:
    """Each map ``(height, width)`` read by map_coordinates, all at the same places."""
    places = coordinates(draw, tile)
    return [
        ndimage.map_coordinates(one, places, order=order, mode="mirror")
        for one, order in zip(maps, ORDERS, strict=True)
    ]


def by_elasticdeform(maps: np.ndarray, draw: Draw, tile: int) -> list[np.ndarray]:
    """Cut first, then turned and deformed: what is outside is the tile mirrored."""
    corner = np.round(draw.center - (tile - 1) / 2).astype(int) + tile
    rows, columns = (slice(start, start + tile) for start in corner)
    mirrored = np.pad(maps, [(0, 0), (tile, tile), (tile, tile)], mode="reflect")
    cut = [np.ascontiguousarray(one[rows, columns]) for one in mirrored]
    degrees = -np.degrees(np.arctan2(draw.matrix[1, 0], draw.matrix[0, 0]))
    return elasticdeform.deform_grid(
        cut, draw.grid, order=list(ORDERS), mode="mirror", rotate=degrees
    )


MAKERS = {"SciPy map_coordinates": by_scipy}
if elasticdeform:
    MAKERS["elasticdeform"] = by_elasticdeform


class Tiles(Dataset):
    """The tiles of a sampler on the CPU, made by one of `MAKERS`."""

    def __init__(self, sampler: TileSampler, maker: str):
        self.sampler, self.maker = sampler, maker
        self.maps = sampler.maps.numpy()

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        sampler, draw = self.sampler, self.sampler.draw(index)
        maps = self.maps[draw.slice]
        moved = MAKERS[self.maker](maps, draw, sampler.tile)
        border = (sampler.tile - sampler.output) // 2
        middle = slice(border, border + sampler.output)
        image, label, weight = map(torch.from_numpy, moved)
        image = image * draw.contrast + 0.5 - 0.5 * draw.contrast + draw.brightness
        inner = (middle, middle)
        return image[None].float(), label[inner].long(), weight[inner].float()


def check_tiles(sampler: TileSampler, maker: str) -> None:
    """A few of the tiles are the sampler's, where both read inside the tile."""
    tiles, side = Tiles(sampler, maker), (sampler.tile - 1) / 2
    for index in range(3):
        draw = sampler.draw(index)
        away = coordinates(draw, sampler.tile) - draw.center[:, None, None]
        inside = (np.abs(away) <= side).all(0)
        difference = (sampler.batch([index])[0][0, 0] - tiles[index][0][0]).abs()
        assert difference[inside].max() < 1e-3, (maker, index)


def plain_batches(
    sampler: TileSampler, batch: int, device: str
) -> tuple[Iterator[tuple], int]:
    """Batches on the device without end, and how many the workers make ahead."""
    maker = list(MAKERS)[-1]
    check_tiles(sampler, maker)
    workers, ahead = os.cpu_count(), 2
    loader = DataLoader(
        Tiles(sampler, maker),
        batch,
        num_workers=workers,
        prefetch_factor=ahead,
        pin_memory=device == "cuda",
    )
    moved = ([part.to(device, non_blocking=True) for part in parts] for parts in loader)
    return moved, workers * ahead
