"""Weight maps, against one distance transform for each cell."""

import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import find_boundaries
from timing import compare

from unet_lib.data import Stacks
from unet_lib.weights import label_cells, weight_map


def naive_weight_map(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0):
    """One distance transform of the whole slice for each cell, then a sort."""
    cells = label_cells(labels)
    distances = np.stack(
        [
            ndimage.distance_transform_edt(cells != number)
            for number in range(1, cells.max() + 1)
        ]
    )
    nearest, second = np.sort(distances, axis=0)[:2]
    share = np.mean(labels == 1)
    balance = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    term = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return balance + np.where(labels == 1, 0, term)


def windowed_weight_map(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0):
    """One distance transform for each cell, in a window as far as the term reaches."""
    reach = int(np.ceil(sigma * np.sqrt(2 * np.log(1e7))))
    cells = np.pad(label_cells(labels), reach)
    nearest, second = np.full((2, *cells.shape), np.inf)
    for number, (rows, columns) in enumerate(ndimage.find_objects(cells), start=1):
        window = (
            slice(rows.start - reach, rows.stop + reach),
            slice(columns.start - reach, columns.stop + reach),
        )
        distance = ndimage.distance_transform_edt(cells[window] != number)
        farther = np.maximum(nearest[window], distance)
        second[window] = np.minimum(second[window], farther)
        nearest[window] = np.minimum(nearest[window], distance)
    inner = (slice(reach, -reach), slice(reach, -reach))
    cell = labels > 0
    balance = np.where(cell, 0.5 / cell.mean(), 0.5 / (1 - cell.mean()))
    term = w0 * np.exp(-((nearest + second)[inner] ** 2) / (2 * sigma**2))
    return balance + np.where(cell, 0, term)


def many_cells(size: int, count: int) -> np.ndarray:
    """Labels of a large slice: each pixel belongs to the nearest of random seeds."""
    seeds = np.zeros(size**2, np.int32)
    places = np.random.default_rng(0).choice(size**2, count, replace=False)
    seeds[places] = np.arange(1, count + 1)
    seeds = seeds.reshape(size, size)
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    cells = seeds[tuple(nearest)]
    return np.where(find_boundaries(cells), 0, cells)


def weight_maps(
    stacks: Stacks, device: str, size: int = 2048, repeats: int = 7
) -> list[dict]:
    """On one core: a slice of the stack, and a large one with 2,000 cells."""
    torch.set_num_threads(1)
    naive = (naive_weight_map, "a transform a cell, whole slice, sorted")
    windowed = (windowed_weight_map, "a transform a cell, in a window")
    labels, large = stacks.train_labels[0], many_cells(size, size**2 // 2097)
    rows = []
    for slice_labels, (other, name) in (
        (labels, naive),
        (labels, windowed),
        (large, windowed),
    ):
        np.testing.assert_allclose(
            weight_map(slice_labels), other(slice_labels), rtol=1e-5, atol=2e-6
        )
        row = compare(
            lambda s=slice_labels: weight_map(s),
            lambda s=slice_labels, other=other: other(s),
            repeats,
        )
        side, cells = len(slice_labels), label_cells(slice_labels).max()
        what = f"weight map, {side}×{side}, {cells:,} cells, one core"
        rows.append(row | {"what": what, "other": name})
    return rows
