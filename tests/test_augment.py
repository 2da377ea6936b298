"""Tiles: the field, the joint resampling, and what a seed fixes."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from unet_lib import augment
from unet_lib.augment import (
    Augmentation,
    TileSampler,
    deform,
    displacement_field,
    resample,
    spline_matrix,
)

NOTHING = Augmentation(deformation=0, rotation=False, contrast=0, brightness=0)


def stack(slices=2, height=50, width=60, seed=0):
    """Smooth images, striped labels and positive weights."""
    random = np.random.default_rng(seed)
    coarse = random.random((slices, 6, 7))
    images = map_coordinates(
        coarse,
        np.stack(
            np.meshgrid(
                np.arange(slices),
                np.linspace(0, 5, height),
                np.linspace(0, 6, width),
                indexing="ij",
            )
        ),
        order=1,
    ).astype(np.float32)
    labels = (images > 0.5).astype(np.uint8)
    return images, labels, (1 + 9 * random.random(images.shape)).astype(np.float32)


def sampler(images, labels, weights, tile=32, output=20, **options):
    return TileSampler(images, labels, weights, tile, output, **options)


def fixed(tiles, monkeypatch, **changes):
    """Let the sampler draw just this: a slice's center moved by nothing else."""
    height, width = tiles.maps.shape[2:]
    draw = augment.Draw(
        slice=0,
        center=np.array([(height - 1) / 2, (width - 1) / 2]),
        matrix=np.eye(2),
        grid=np.zeros((2, 3, 3)),
        contrast=1.0,
        brightness=0.0,
    )._replace(**changes)
    monkeypatch.setattr(tiles, "draw", lambda index: draw)
    return tiles.batch([0])


# The field.


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 572])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_field_is_scipys_spline(size, points):
    grid = np.random.default_rng(size).normal(0, 10, (2, 2, points, points))
    other = 11
    places = np.meshgrid(
        np.linspace(0, points - 1, size),
        np.linspace(0, points - 1, other),
        indexing="ij",
    )
    expected = [
        [map_coordinates(part, places, order=3, mode="mirror") for part in one]
        for one in grid
    ]
    field = displacement_field(torch.from_numpy(grid), (size, other))
    assert field.dtype == torch.float64
    assert field.shape == (2, 2, size, other)
    # The matrices are kept in float32.
    np.testing.assert_allclose(field, expected, atol=2e-5)


def test_spline_matrix():
    matrix = spline_matrix(9)
    assert matrix.shape == (9, 3)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix.sum(1), torch.ones(9))
    # It goes through the grid's points, which are the first, middle, last pixel.
    torch.testing.assert_close(matrix[[0, 4, 8]], torch.eye(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 40), (57, 33), (33, 90)])
@pytest.mark.parametrize("points", [3, 5])
def test_deform_equals_elasticdeform(shape, points):
    elasticdeform = pytest.importorskip("elasticdeform")
    random = np.random.default_rng(points)
    grid = random.normal(0, 3, (2, points, points))
    images, *_ = stack(1, *shape)
    ours = deform(torch.from_numpy(images)[None], torch.from_numpy(grid)[None])[0, 0]
    expected = elasticdeform.deform_grid(images[0], grid, order=1, mode="mirror")
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    # Its field, read off two ramps that reach far beyond the border.
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(float)
    moved = elasticdeform.deform_grid(
        [rows, columns], grid, order=1, mode="mirror", axis=[(0, 1)] * 2
    )
    field = displacement_field(torch.from_numpy(grid)[None], shape)[0].numpy()
    inside = (
        (rows + field[0] > 0)
        & (rows + field[0] < shape[0] - 1)
        & (columns + field[1] > 0)
        & (columns + field[1] < shape[1] - 1)
    )
    assert inside.mean() > 0.5
    for part, place, ramp in zip(field, moved, (rows, columns), strict=True):
        np.testing.assert_allclose(part[inside], (place - ramp)[inside], atol=1e-5)


def test_same_grid_as_elasticdeforms_random_one(monkeypatch):
    elasticdeform = pytest.importorskip("elasticdeform")
    images, *_ = stack(1, 48, 44)
    grids = []
    original = elasticdeform.deform_grid

    def spy(image, displacement, *rest, **options):
        grids.append(displacement)
        return original(image, displacement, *rest, **options)

    # The package hides the module behind the function of its name.
    module = sys.modules["elasticdeform.deform_grid"]
    monkeypatch.setattr(module, "deform_grid", spy)
    np.random.seed(5)  # noqa: NPY002, its own random state
    expected = elasticdeform.deform_random_grid(
        images[0], sigma=4, points=3, order=1, mode="mirror"
    )
    (grid,) = grids
    ours = deform(torch.from_numpy(images)[None], torch.from_numpy(grid)[None])
    np.testing.assert_allclose(ours[0, 0], expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (17, 30)])
def test_resample_equals_scipy(shape):
    random = np.random.default_rng(1)
    maps = random.random((2, 3, *shape))
    coordinates = random.uniform(-40, 60, (2, 2, 12, 13))
    ours = resample(torch.from_numpy(maps), torch.from_numpy(coordinates))
    for one, places, result in zip(maps, coordinates, ours, strict=True):
        for channel, values in zip(one, result, strict=True):
            expected = map_coordinates(channel, places, order=1, mode="mirror")
            np.testing.assert_allclose(values, expected, atol=1e-6)


def test_nearest_takes_the_nearest():
    random = np.random.default_rng(2)
    maps = random.random((1, 1, 9, 14))
    # Away from the halves, where the nearest is a matter of taste.
    whole, rest = random.integers(-20, 30, (1, 2, 15, 15)), random.uniform(-0.45, 0.45)
    ours = resample(torch.from_numpy(maps), torch.from_numpy(whole + rest), "nearest")
    rows, columns = (
        np.abs((n + size - 1) % max(2 * size - 2, 1) - size + 1)
        for n, size in zip(whole[0], (9, 14), strict=True)
    )
    np.testing.assert_array_equal(ours[0, 0], maps[0, 0, rows, columns])


# Image, labels and weights together.


@given(seed=st.integers(0, 1000), sigma=st.floats(0, 6))
@settings(max_examples=15)
def test_an_image_of_labels_deforms_as_labels(seed, sigma):
    _, labels, _ = stack(1, 40, 36, seed)
    labels = torch.from_numpy(labels).float()[None]
    grid = torch.from_numpy(np.random.default_rng(seed).normal(0, sigma, (1, 2, 3, 3)))
    as_labels = deform(labels, grid, "nearest")
    as_image = deform(labels, grid)
    assert set(as_labels.unique().tolist()) <= {0.0, 1.0}
    # The bilinear mixture of the four neighbors is rounded by the nearest one
    # wherever they agree.
    sure = (as_image < 1e-4) | (as_image > 1 - 1e-4)
    assert sure.float().mean() > 0.5
    assert torch.equal(as_image[sure].round(), as_labels[sure])


@given(seed=st.integers(0, 1000), mirror=st.booleans(), index=st.integers(0, 10_000))
@settings(max_examples=15)
def test_image_labels_and_weights_move_together(seed, mirror, index):
    """One map in all three places comes out as one map."""
    images, labels, _ = stack(3, seed=seed)
    options = Augmentation(deformation=5, mirror=mirror, contrast=0, brightness=0)
    tiles = sampler(
        images, labels, images, tile=30, output=14, augmentation=options, seed=seed
    )
    image, label, weight = tiles.batch([index])
    torch.testing.assert_close(image[:, 0, 8:-8, 8:-8], weight, rtol=0, atol=1e-6)
    tiles = sampler(
        labels.astype(np.float32),
        labels,
        labels.astype(np.float32),
        30,
        14,
        augmentation=options,
        seed=seed,
    )
    image, again, weight = tiles.batch([index])
    assert torch.equal(label, again)
    for moved in (image[:, 0, 8:-8, 8:-8], weight):
        sure = (moved < 1e-3) | (moved > 1 - 1e-3)
        assert torch.equal(moved[sure].round().long(), label[sure])


def test_a_marked_spot_is_marked_in_all_three():
    """The classic error, the mask that stays behind, cannot happen."""
    images = np.zeros((1, 64, 64), np.float32)
    images[0, 28:35, 39:46] = 1
    tiles = sampler(
        images,
        images.astype(np.uint8),
        1 + 9 * images,
        tile=48,
        output=40,
        augmentation=Augmentation(mirror=True, contrast=0, brightness=0),
    )
    seen = 0
    for index in range(12):
        image, label, weight = (part[0].double() for part in tiles.batch([index]))
        image = image[0, 4:-4, 4:-4]
        if label.sum() < 20:
            continue
        seen += 1
        rows, columns = torch.meshgrid(
            torch.arange(40.0), torch.arange(40.0), indexing="ij"
        )
        spots = [
            [float((part * axis).sum() / part.sum()) for axis in (rows, columns)]
            for part in (image, label, (weight - 1) / 9)
        ]
        assert spots[0] == pytest.approx(spots[1], abs=0.4)
        assert spots[0] == pytest.approx(spots[2], abs=1e-3)
    assert seen >= 4


def test_labels_stay_in_their_set():
    images, _, weights = stack()
    labels = np.random.default_rng(3).choice([0, 3, 200], images.shape).astype(np.uint8)
    tiles = sampler(images, labels, weights, augmentation=Augmentation(mirror=True))
    _, label, weight = tiles.batch(range(8))
    assert label.dtype == torch.int64
    assert set(label.unique().tolist()) == {0, 3, 200}
    assert weight.dtype == torch.float32
    assert weights.min() - 1e-5 <= weight.min() <= weight.max() <= weights.max() + 1e-5


# What a tile is.


@pytest.mark.parametrize("center", [(25, 30), (0, 0), (49, 2), (-30, 200)])
@pytest.mark.parametrize(("tile", "output"), [(33, 21), (91, 1)])
def test_with_everything_off_a_tile_is_a_crop(monkeypatch, center, tile, output):
    images, labels, weights = stack()
    tiles = sampler(images, labels, weights, tile, output, augmentation=NOTHING)
    image, label, weight = fixed(tiles, monkeypatch, slice=1, center=np.array(center))

    def crop(whole, size):
        margin = 400
        padded = np.pad(whole[1], margin, mode="reflect")
        top, left = (margin + c - size // 2 for c in center)
        return padded[top : top + size, left : left + size]

    np.testing.assert_allclose(image[0, 0], crop(images, tile), atol=1e-4)
    np.testing.assert_array_equal(label[0], crop(labels, output))
    np.testing.assert_allclose(weight[0], crop(weights, output), atol=1e-3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_equal_rot90(monkeypatch, turns):
    images, labels, weights = stack(1, 41, 41)
    tiles = sampler(images, labels, weights, tile=41, output=21, augmentation=NOTHING)
    angle = turns * np.pi / 2
    matrix = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image, label, weight = fixed(tiles, monkeypatch, matrix=np.array(matrix))
    middle = slice(10, 31)
    # The tile is turned over the slice, so what it shows turns the other way.
    expected = [np.rot90(part[0], -turns) for part in (images, labels, weights)]
    np.testing.assert_allclose(image[0, 0], expected[0], atol=1e-3)
    np.testing.assert_array_equal(label[0], expected[1][middle, middle])
    np.testing.assert_allclose(weight[0], expected[2][middle, middle], atol=1e-2)


def test_mirrored_tile(monkeypatch):
    images, labels, weights = stack(1, 41, 41)
    tiles = sampler(images, labels, weights, tile=41, output=41, augmentation=NOTHING)
    image, label, weight = fixed(tiles, monkeypatch, matrix=np.diag([-1.0, 1.0]))
    np.testing.assert_allclose(image[0, 0], images[0, ::-1], atol=1e-4)
    np.testing.assert_array_equal(label[0], labels[0, ::-1])
    np.testing.assert_allclose(weight[0], weights[0, ::-1], atol=1e-3)


def test_one_resampling_is_deformation_after_rotation(monkeypatch):
    """The coordinates of a full draw, written out for scipy."""
    images, labels, weights = stack(1, 44, 52)
    tiles = sampler(images, labels, weights, tile=36, output=20, seed=4)
    draw = tiles.draw(7)
    image, _, weight = tiles.batch([7])
    rows, columns = np.mgrid[:36, :36] - 17.5
    places = np.linspace(0, 2, 36)
    places = np.meshgrid(places, places, indexing="ij")
    coordinates = [
        draw.center[axis]
        + draw.matrix[axis, 0] * rows
        + draw.matrix[axis, 1] * columns
        + map_coordinates(draw.grid[axis], places, order=3, mode="mirror")
        for axis in (0, 1)
    ]
    expected = map_coordinates(
        images[0].astype(float), coordinates, order=1, mode="mirror"
    )
    expected = 0.5 + draw.contrast * (expected - 0.5) + draw.brightness
    np.testing.assert_allclose(image[0, 0], expected, atol=1e-3)
    expected = map_coordinates(
        weights[0].astype(float), coordinates, order=1, mode="mirror"
    )
    np.testing.assert_allclose(weight[0], expected[8:-8, 8:-8], atol=5e-3)


# What a seed fixes.


def test_a_tile_is_the_same_in_any_batch():
    tiles = sampler(*stack(), augmentation=Augmentation(mirror=True), seed=3)
    together = tiles.batch([5, 1, 9, 5])
    for place, index in enumerate([5, 1, 9, 5]):
        image, label, weight = (part[0] for part in tiles.batch([index]))
        torch.testing.assert_close(together[0][place], image, rtol=0, atol=1e-5)
        # A label may sit on the very edge between two pixels.
        assert (together[1][place] != label).float().mean() < 0.005
        torch.testing.assert_close(together[2][place], weight, rtol=0, atol=1e-3)
    again = sampler(*stack(), augmentation=Augmentation(mirror=True), seed=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002, not to matter
    for part, same in zip(together, again.batch([5, 1, 9, 5]), strict=True):
        assert torch.equal(part, same)


def test_a_gpu_makes_the_same_tiles(gpu):
    arrays, moves = stack(), Augmentation(mirror=True)
    ours = sampler(*arrays, augmentation=moves, device=gpu).batch(range(6))
    expected = sampler(*arrays, augmentation=moves).batch(range(6))
    assert all(part.device.type == gpu for part in ours)
    images, labels, weights = (part.cpu() for part in ours)
    torch.testing.assert_close(images, expected[0], rtol=0, atol=1e-4)
    # A label may sit on the very edge between two pixels.
    assert (labels != expected[1]).float().mean() < 0.005
    torch.testing.assert_close(weights, expected[2], rtol=0, atol=1e-2)
    grid = torch.randn(2, 2, 3, 3)
    field = displacement_field(grid.to(gpu), (40, 50)).cpu()
    torch.testing.assert_close(field, displacement_field(grid, (40, 50)))


class Batches(torch.utils.data.Dataset):
    """Three batches of a sampler, for the workers of a data loader."""

    def __init__(self, tiles):
        self.tiles = tiles

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return self.tiles.batch(range(4 * number, 4 * number + 4))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_is_the_same_whoever_makes_it(workers):
    batches = Batches(sampler(*stack(), augmentation=Augmentation(mirror=True), seed=3))
    options = {"batch_size": None, "num_workers": workers}
    loaded = list(torch.utils.data.DataLoader(batches, **options))
    assert len(loaded) == 3
    for number, batch in enumerate(loaded):
        for part, same in zip(batch, batches[number], strict=True):
            assert torch.equal(part, same)


def test_other_numbers_and_seeds_are_other_tiles():
    first, second = (sampler(*stack(), seed=seed) for seed in (0, 1))
    assert not torch.equal(first.batch([0])[0], first.batch([1])[0])
    assert not torch.equal(first.batch([0])[0], second.batch([0])[0])


def test_draws_have_the_papers_spread():
    tiles = sampler(*stack(slices=4), augmentation=Augmentation(mirror=True))
    draws = [tiles.draw(index) for index in range(600)]
    grids = np.array([draw.grid for draw in draws])
    assert grids.std() == pytest.approx(10, rel=0.03)
    assert abs(grids.mean()) < 0.3
    assert {draw.slice for draw in draws} == {0, 1, 2, 3}
    centers = np.array([draw.center for draw in draws])
    assert (centers >= 0).all()
    assert (centers <= [49, 59]).all()
    assert centers.min(0) == pytest.approx([0, 0], abs=1)
    assert centers.max(0) == pytest.approx([49, 59], abs=1)
    matrices = np.array([draw.matrix for draw in draws])
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1),
        np.broadcast_to(np.eye(2), (600, 2, 2)),
        atol=1e-12,
    )
    assert np.linalg.det(matrices).mean() == pytest.approx(0, abs=0.15)
    quarters = np.histogram(np.arctan2(*matrices[:, ::-1, 1].T), 4)[0]
    assert quarters.min() > 110
    contrasts = [draw.contrast for draw in draws]
    assert 0.75 <= min(contrasts) < 0.76 < 1.24 < max(contrasts) <= 1.25
    brightness = [draw.brightness for draw in draws]
    assert -0.1 <= min(brightness) < -0.09 < 0.09 < max(brightness) <= 0.1


def test_defaults_do_not_mirror():
    tiles = sampler(*stack())
    draws = [tiles.draw(index) for index in range(50)]
    assert all(np.linalg.det(draw.matrix) > 0 for draw in draws)


def test_what_is_switched_off_is_off():
    draw = sampler(*stack(), augmentation=NOTHING).draw(3)
    np.testing.assert_array_equal(draw.matrix, np.eye(2))
    assert not draw.grid.any()
    assert (draw.contrast, draw.brightness) == (1, 0)


def test_the_stacks_are_not_changed():
    arrays = stack()
    before = [array.copy() for array in arrays]
    sampler(*arrays).batch(range(4))
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# Slices of different sizes, with channels, with pixels that are unknown.


def different_sizes():
    small, large = stack(1, 30, 36), stack(1, 61, 72, seed=1)
    return [[small[n][0], large[n][0]] for n in range(3)]


def test_a_tile_of_a_list_is_that_of_its_slice(monkeypatch):
    """As a stack of one would give it, drawn alike."""
    images, labels, weights = different_sizes()
    tiles = sampler(images, labels, weights, seed=3)
    draws = [tiles.draw(index) for index in range(20)]
    assert {draw.slice for draw in draws} == {0, 1}
    together = tiles.batch(range(20))
    for number, draw in enumerate(draws):
        n = draw.slice
        alone = sampler(images[n][None], labels[n][None], weights[n][None])
        monkeypatch.setattr(alone, "draw", lambda _, d=draw: d._replace(slice=0))
        for part, same in zip(together, alone.batch([0]), strict=True):
            torch.testing.assert_close(part[number], same[0], rtol=0, atol=1e-5)


def test_pixels_are_drawn_alike_whatever_the_size_of_their_slice():
    tiles = sampler(*different_sizes())
    draws = [tiles.draw(index) for index in range(3000)]
    share = 30 * 36 / (30 * 36 + 61 * 72)
    assert np.mean([d.slice == 0 for d in draws]) == pytest.approx(share, abs=0.02)
    for number, size in enumerate([(30, 36), (61, 72)]):
        centers = np.array([d.center for d in draws if d.slice == number])
        assert centers.min(0) == pytest.approx([0, 0], abs=1)
        assert centers.max(0) == pytest.approx(np.subtract(size, 1), abs=1)


def test_a_list_of_one_size_is_a_stack():
    arrays = stack(3)
    listed = sampler(*map(list, arrays)).batch(range(5))
    for part, same in zip(listed, sampler(*arrays).batch(range(5)), strict=True):
        assert torch.equal(part, same)


@pytest.mark.parametrize("listed", [False, True])
def test_channels_move_together(listed):
    images, labels, weights = stack(2, 40, 44)
    colored = np.stack([images, 1 - images, images**2], 1)
    given = [colored, labels, weights]
    if listed:
        given = [[one[0], one[1][..., :33]] for one in given]
    image, _, _ = sampler(*given, augmentation=Augmentation(contrast=0)).batch(range(4))
    assert image.shape == (4, 3, 32, 32)
    for channel in range(3):
        one = [[c[channel] for c in given[0]], *given[1:]]
        same, _, _ = sampler(*one, augmentation=Augmentation(contrast=0)).batch(
            range(4)
        )
        torch.testing.assert_close(image[:, channel], same[:, 0], rtol=0, atol=1e-5)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_no_unknown_pixel_gets_weight(seed):
    """Where the nearest pixel is unknown, though its neighbors weigh a lot."""
    images, labels, weights = stack(2, 40, 44, seed)
    unknown = np.random.default_rng(seed).random(labels.shape) < 0.3
    given = np.where(unknown, -1, labels.astype(np.int8) + 2)
    moves = Augmentation(deformation=4, mirror=True)
    tiles = sampler(images, given, weights, augmentation=moves, seed=seed)
    _, label, weight = tiles.batch(range(4))
    assert set(label.unique().tolist()) == {0, 2, 3}  # 0 is of no known pixel
    assert 0.15 < (label == 0).float().mean() < 0.45
    assert (weight[label == 0] == 0).all()
    assert (weight[label > 0] >= 1 - 1e-4).all()
    # The known ones are as they would be without.
    _, whole, weighed = sampler(
        images, labels, weights, augmentation=moves, seed=seed
    ).batch(range(4))
    assert torch.equal(label[label > 0] - 2, whole[label > 0])
    assert torch.equal(weight[label > 0], weighed[label > 0])


# What is refused by torch; the rest stands in test_refusals.py.


def test_ways_of_reading():
    floats, grid = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"bilinear.*nearest.*cubic"):
        deform(floats, grid, "cubic")
