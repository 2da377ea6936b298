"""A synthetic stand-in for the stacks, for machines that do not have them.

Shown in :doc:`data`.
"""

import hashlib
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from unet_lib._checks import is_whole
from unet_lib._files import written
from unet_lib.data.isbi2012 import cache_folder

__all__ = ["synthetic_em"]


def synthetic_em(
    slices: int = 30, size: int = 512, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a stack that looks like EM of neural tissue, with its labels.

    Irregular cells drift from slice to slice. Their membranes are dark, vary in
    strength, and are smeared in places as if cut at a slant; in the labels they are
    about 5 pixels wide, as in the real labels. The cytoplasm is grainy and holds
    vesicles and mitochondria, whose membranes are not labeled. Gray values have the
    mean and the spread of the real training stack. The same arguments give the same
    stack. Made for this project.

    Args:
        slices: the number of slices.
        size: height and width of a slice, at least 16.
        seed: seed of everything that is random.

    Returns:
        Images and labels, both ``(slices, size, size)``. Images are float32 from 0 to
        1; labels are uint8, 1 = cell and 0 = membrane, which covers about 22%.

    Raises:
        ValueError: if an argument is not an integer, or is below these bounds.
    """
    check_drawn("synthetic_em", 16, slices, size, seed)
    rng = np.random.default_rng(seed)

    def noise(*spacing: float) -> np.ndarray:
        return _smooth_noise(rng, (slices, size, size), spacing)

    cells = _partition(rng, slices, size)
    border = _border_distance(cells, size)
    slant = (noise(1.2, 16, 16) - 2.0).clip(0, 1.2)
    half_width = 2.45 + 0.35 * noise(2, 20, 20).clip(-2, 2) + 9 * slant
    labels = (border > half_width).astype(np.uint8)

    tone = rng.normal(0, 0.055, cells.max() + 1).astype(np.float32)
    images = tone[cells].repeat(2, axis=1).repeat(2, axis=2)[:, :size, :size]
    images += 0.085 * noise(1, 1.5, 1.5) + 0.06 * noise(1, 4, 4)
    images += 0.03 * noise(1, 30, 30)
    width = 2.1 + 0.4 * noise(1, 20, 20).clip(-2, 2)
    strength = (0.42 + 0.1 * noise(1, 12, 12)).clip(0.2)
    images -= strength * np.exp(-(((border - 0.8).clip(0) / width) ** 2))
    images -= (0.5 * slant).clip(0, 0.25) * np.exp(-((border / (4 + 9 * slant)) ** 2))
    _paint_vesicles(rng, images, border)
    _paint_mitochondria(rng, images, border)

    images = 0.495 + 0.173 * (images - images.mean()) / images.std()
    # 8 bits, as a microscope gives, so that an export keeps every value.
    images = np.rint(255 * images.clip(0, 1)) / np.float32(255)
    return images.astype(np.float32), labels


def kept_em(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `synthetic_em(seed=seed)`, which takes seconds, from the user's cache.

    The first call draws the stack and stores it there; so does the first call after
    this file has changed.
    """
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    kept = cache_folder() / f"synthetic-{seed}-{code}.npz"
    unreadable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with suppress(*unreadable), open(kept, "rb") as file:
        stack = np.load(file)
        return stack["images"] / np.float32(255), stack["labels"]
    images, labels = synthetic_em(seed=seed)
    with suppress(OSError):  # a disk that is full costs the next run seconds
        kept.parent.mkdir(parents=True, exist_ok=True)
        with written(kept) as part, part.open("wb") as file:
            np.savez(file, images=np.rint(255 * images).astype(np.uint8), labels=labels)
    return images, labels


def check_drawn(name: str, least: int, slices: int, size: int, seed: int) -> None:
    """ValueError for a stack that a function cannot draw."""
    bounds = ((slices, 1), (size, least), (seed, 0))
    if not all(is_whole(value) and value >= low for value, low in bounds):
        raise ValueError(
            f"{name} needs integers slices >= 1 and size >= {least}, and a seed >= 0; "
            f"got slices={slices!r}, size={size!r}, seed={seed!r}."
        )


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> np.ndarray:
    """Gaussian noise, mean 0 and variance 1, smooth over `spacing` voxels an axis."""
    z, y, x = (
        _spline_basis(rng, n, step) for n, step in zip(shape, spacing, strict=True)
    )
    knots = (z.shape[1], y.shape[1], x.shape[1])
    values = rng.standard_normal(knots, dtype=np.float32)
    return y @ np.tensordot(z, values, axes=1) @ x.T


def _spline_basis(rng: np.random.Generator, length: int, spacing: float) -> np.ndarray:
    """Cubic B-splines, `spacing` apart, at `length` points; rows of norm 1."""
    position = np.arange(length) / spacing + rng.random() + 1
    knots = np.arange(int(position[-1]) + 3)
    t = np.abs(position[:, None] - knots)
    basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clip(0) ** 3 / 6)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    return basis.astype(np.float32)


def _partition(rng: np.random.Generator, slices: int, size: int) -> np.ndarray:
    """Number the cells at half the resolution, (slices, size / 2, size / 2)."""
    depth = 9.0  # one slice further counts as this many pixels
    margin = 40
    low = np.full(3, -margin)
    span = np.array([depth * slices, size, size]) + 2 * margin
    waves = np.array([[20, 12, -10], [10, -15, 20], [13, 18, 17]]) / 1000
    phase = 2 * np.pi * rng.random(3)

    def draw(density: float) -> np.ndarray:
        # Crowded and sparse places, for small and large cells.
        points = low + span * rng.random((int(density * span.prod()), 3))
        crowd = np.sin(points @ waves + phase).sum(axis=1)
        kept = rng.random(len(points)) < np.exp(1.3 * (crowd - 1.2))
        kept[:2] = True  # a tiny stack may lie where nearly none is kept
        return points[kept]

    # A voxel belongs to its nearest seed, a seed to its nearest center: cells of
    # several seeds are not convex. Warped coordinates bend their borders.
    centers, seeds = draw(2.0e-5), draw(3.2e-5)
    _, owner = KDTree(centers).query(seeds)
    shape = (slices, (size + 1) // 2, (size + 1) // 2)
    points: np.ndarray = np.empty((*shape, 3), np.float32)
    points[..., 0] = depth * np.arange(slices)[:, None, None]
    points[..., 1] = np.arange(0, size, 2)[:, None]
    points[..., 2] = np.arange(0, size, 2)
    for axis in (1, 2):
        coarse, fine = (
            _smooth_noise(rng, shape, spacing)
            for spacing in ((5, 20, 20), (1.5, 4.5, 4.5))
        )
        points[..., axis] += 8 * coarse + 1.6 * fine
    _, nearest = KDTree(seeds).query(points.reshape(-1, 3))
    return owner[nearest].reshape(points.shape[:3])


def _border_distance(cells: np.ndarray, size: int) -> np.ndarray:
    """Distance in pixels to the next cell, (slices, size, size) float32."""
    inner = np.ones(cells.shape, bool)
    inner[:, :-1] &= cells[:, :-1] == cells[:, 1:]
    inner[:, :, :-1] &= cells[:, :, :-1] == cells[:, :, 1:]
    # A slice that is one cell has no border: the size stands for "far".
    distance = np.stack(
        [
            ndimage.distance_transform_edt(one) if not one.all() else one * size
            for one in inner
        ]
    ).astype(np.float32)
    distance = 2 * ndimage.gaussian_filter(distance, (0, 0.8, 0.8))
    for axis in (1, 2):  # twice the resolution, linearly between the old samples
        old = np.moveaxis(distance, axis, 0)
        new = np.repeat(old, 2, axis=0)
        new[1:-1:2] = (old[:-1] + old[1:]) / 2
        distance = np.moveaxis(new[:size], 0, axis)
    return np.ascontiguousarray(distance)


def _paint_vesicles(
    rng: np.random.Generator, images: np.ndarray, border: np.ndarray
) -> None:
    y, x = np.mgrid[-8:9, -8:9]
    from_center = np.hypot(y, x)
    size = images.shape[1]
    centers = rng.integers(0, images.shape, (images.size // 1200, 3))
    for z, y, x in centers:
        radius, strength = rng.uniform(2, 5), rng.uniform(0.1, 0.3)
        inside = min(y, x) >= 8 and max(y, x) < size - 8
        if inside and border[z, y, x] > radius + 6:
            ring = np.exp(-((from_center - radius) ** 2))
            core = 0.5 * np.exp(-(from_center**2))
            images[z, y - 8 : y + 9, x - 8 : x + 9] -= strength * (ring + core)


def _paint_mitochondria(
    rng: np.random.Generator, images: np.ndarray, border: np.ndarray
) -> None:
    slices, size, _ = images.shape
    centers = rng.integers(0, images.shape, (images.size // 8000, 3))
    for z, y, x in centers:
        radius = min(border[z, y, x] - 5, rng.uniform(10, 20))
        angle, flatness = rng.uniform(0, np.pi), rng.uniform(0.7, 1)
        if radius < 9:
            continue
        rows = slice(max(y - 24, 0), y + 25)
        columns = slice(max(x - 24, 0), x + 25)
        dy = np.arange(size)[rows, None] - y
        dx = np.arange(size)[columns] - x
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = (np.cos(angle) * dy - np.sin(angle) * dx) / flatness
        from_center = np.hypot(along, across)
        for s in range(max(z - 2, 0), min(z + 3, slices)):
            here = radius * np.sqrt(1 - ((s - z) / 3) ** 2)
            body = 1 / (1 + np.exp(from_center - here))
            cristae = np.sin(1.3 * across + 2 * np.sin(along / 6) + s)
            rim = np.exp(-((from_center - here) ** 2) / 2.5)
            change = body * (0.09 * cristae - 0.16) - 0.2 * rim
            images[s, rows, columns] += change * (border[s, rows, columns] > 4)
