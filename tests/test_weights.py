"""Weight maps against one distance transform a cell over the whole slice."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.measure import label
from skimage.segmentation import expand_labels, find_boundaries

from unet_lib.weights import (
    border_distances,
    class_balance,
    label_cells,
    part,
    weight_map,
)


def naive_distances(labels):
    """d1 and d2, one distance transform a cell; cells of one value are labeled."""
    values = np.unique(labels[labels > 0])
    cells = labels if len(values) > 1 else label(labels > 0, connectivity=1)
    distances = [
        distance_transform_edt(cells != cell) for cell in np.unique(cells[cells > 0])
    ]
    distances += [np.full(labels.shape, np.inf)] * 2
    first, second = np.sort(distances, axis=0)[:2]
    return np.where(labels > 0, 0, first), np.where(labels > 0, 0, second)


def naive_weight_map(labels, w0=10.0, sigma=5.0):
    """Equation 2 in float64, its second term on the membrane alone."""
    membrane, cell = (labels == 0).sum(), (labels > 0).sum()
    total = membrane + cell
    balance = np.ones(labels.shape)
    if membrane and cell:
        balance = np.where(labels > 0, total / (2 * cell), total / (2 * membrane))
    stack = labels if labels.ndim == 3 else labels[None]
    term = np.zeros(stack.shape)
    for z, one in enumerate(stack):
        first, second = naive_distances(one)
        term[z] = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    term[stack > 0] = 0
    return balance + term.reshape(labels.shape)


def check(labels, **options):
    for ours, reference in zip(
        border_distances(labels), naive_distances(labels), strict=True
    ):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, reference, rtol=1e-14)
    weights = weight_map(labels, **options)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    np.testing.assert_allclose(
        weights, naive_weight_map(labels, **options), rtol=1e-5, atol=1e-6
    )


shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))


@given(arrays(np.uint8, shapes, elements=st.integers(0, 1)))
@example(np.zeros((5, 7), np.uint8))
@example(np.ones((5, 7), np.uint8))
@example(np.eye(6, dtype=np.uint8))  # touching at corners: six cells
@example(np.array([[1]], np.uint8))
@example(np.array([[0]], np.uint8))
@settings(max_examples=80)
def test_binary_labels(labels):
    check(labels)


@given(arrays(np.int32, shapes, elements=st.sampled_from([0, 0, 0, 1, 2, 3, 9])))
@example(np.array([[1, 0, 0, 2, 0, 1]], np.int32))  # one cell in two pieces
@example(np.array([[3, 4, 0, 0, 0]], np.int32))  # two cells that touch
@settings(max_examples=80)
def test_instance_labels(labels):
    check(labels)


@given(
    arrays(np.uint8, (9, 11), elements=st.integers(0, 1)),
    st.floats(0, 50),
    st.floats(0.1, 8),
)
@settings(max_examples=40)
def test_parameters(labels, w0, sigma):
    check(labels, w0=w0, sigma=sigma)


def voronoi(shape, count, seed):
    """Instance labels of many cells with a gap between them."""
    random = np.random.default_rng(seed)
    centers = random.uniform(0, shape, (count, 2))
    grid = np.stack(np.mgrid[: shape[0], : shape[1]], -1)[:, :, None]
    distances = np.sqrt(((grid - centers) ** 2).sum(-1))
    nearest, second = np.partition(distances, 1, axis=2)[..., :2].transpose(2, 0, 1)
    cells = distances.argmin(2).astype(np.int32) + 1
    return np.where(second - nearest < 4, 0, cells)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (90, 70)])
def test_many_cells(shape):
    cells = voronoi(shape, 40, seed=1)
    assert len(np.unique(cells)) > 8
    check(cells)
    check((cells > 0).astype(np.uint8))


def large_cells(size, count):
    """Instance labels: each pixel goes to its nearest seed, less a gap between."""
    random = np.random.default_rng(5)
    seeds = np.zeros((size, size), np.int32)
    places = random.choice(size**2, count, replace=False)
    seeds.ravel()[places] = np.arange(1, count + 1)
    nearest = distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    cells = seeds[tuple(nearest)]
    return np.where(find_boundaries(cells), 0, cells)


def windowed_weight_map(cells):
    """Like the naive one, each cell's transform in a window that the term spans."""
    reach = 29  # beyond it the term is below 1e-6 for w0 = 10, sigma = 5
    padded = np.pad(cells, reach)
    first, second = np.full((2, *padded.shape), np.inf)
    for number, (rows, columns) in enumerate(find_objects(padded), start=1):
        window = (
            slice(rows.start - reach, rows.stop + reach),
            slice(columns.start - reach, columns.stop + reach),
        )
        distance = distance_transform_edt(padded[window] != number)
        second[window] = np.minimum(second[window], np.maximum(first[window], distance))
        first[window] = np.minimum(first[window], distance)
    inner = slice(reach, -reach)
    term = 10 * np.exp(-((first + second)[inner, inner] ** 2) / 50)
    share = np.mean(cells > 0)
    return np.where(cells > 0, 0.5 / share, 0.5 / (1 - share) + term)


def test_two_thousand_cells():
    cells = large_cells(2048, 2000)
    assert len(np.unique(cells)) == 2001
    np.testing.assert_allclose(
        weight_map(cells), windowed_weight_map(cells), rtol=1e-5, atol=1e-6
    )


def test_memory_does_not_grow_with_the_cells():
    peaks = []
    for count in (20, 1000):
        cells = large_cells(512, count)
        tracemalloc.start()
        weight_map(cells)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 15 * cells.size * 8  # float64 slices
    assert peaks[1] < 1.3 * peaks[0]


def test_a_real_slice(isbi2012):
    check(isbi2012.train_labels[3, 100:340, 60:300])


def test_two_cells_by_hand():
    labels = np.zeros((1, 8), bool)
    labels[0, [0, 1, 6, 7]] = True
    first, second = border_distances(labels)
    assert first.tolist() == [[0, 0, 1, 2, 2, 1, 0, 0]]
    assert second.tolist() == [[0, 0, 4, 3, 3, 4, 0, 0]]
    expected = np.ones((1, 8))
    expected[0, 2:6] += 10 * np.exp(-(5**2) / (2 * 5**2))
    np.testing.assert_allclose(weight_map(labels), expected, rtol=1e-6)


def test_the_term_stands_on_the_membrane_alone():
    labels = (voronoi((40, 40), 12, seed=2) > 0).astype(np.uint8)
    membrane, cell = class_balance(labels)
    weights = weight_map(labels)
    assert (weights[labels == 1] == np.float32(cell)).all()
    assert weights[labels == 0].max() > membrane + 5


def test_no_and_one_cell_have_no_term():
    for labels in (np.zeros((6, 6), int), np.ones((6, 6), int), np.eye(1, 9, 4, int)):
        membrane, cell = class_balance(labels)
        expected = np.where(labels > 0, cell, membrane).astype(np.float32)
        np.testing.assert_array_equal(weight_map(labels), expected)


def test_a_stack_is_weighed_as_one():
    stack = np.stack([voronoi((30, 20), 9, seed) for seed in range(3)])
    stack[1] = 0
    weights = weight_map(stack)
    np.testing.assert_allclose(weights, naive_weight_map(stack), rtol=1e-5)
    # The term is a slice's own; only w_c is the stack's.
    alone = weight_map(stack[2]) - np.where(
        stack[2] > 0, *class_balance(stack[2])[::-1]
    )
    joint = weights[2] - np.where(stack[2] > 0, *class_balance(stack)[::-1])
    np.testing.assert_allclose(joint, alone, atol=1e-5)


def test_labels_are_not_changed():
    labels = (voronoi((30, 20), 9, 0) > 0).astype(np.uint8)
    before = labels.copy()
    weight_map(labels)
    np.testing.assert_array_equal(labels, before)


@given(arrays(np.uint8, shapes, elements=st.integers(0, 1)))
def test_class_balance(labels):
    membrane, cell = class_balance(labels)
    weights = np.where(labels > 0, cell, membrane)
    assert weights.mean() == pytest.approx(1)
    if 0 < labels.mean() < 1:
        assert weights[labels > 0].sum() == pytest.approx(weights[labels == 0].sum())


@given(arrays(np.uint8, shapes, elements=st.integers(0, 1)))
def test_cells_are_4_connected(labels):
    cells = label_cells(labels)
    reference = label(labels, connectivity=1)
    assert cells.dtype == np.int32
    # The same pieces, whatever their numbers.
    pairs = set(zip(cells.ravel().tolist(), reference.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(cells)) == len(np.unique(reference))
    np.testing.assert_array_equal(cells > 0, labels > 0)


def test_zero_and_255_are_binary_too():
    labels = (voronoi((40, 40), 12, seed=3) > 0).astype(np.uint8)
    np.testing.assert_array_equal(weight_map(255 * labels), weight_map(labels))
    np.testing.assert_array_equal(weight_map(labels > 0), weight_map(labels))
    single = np.eye(6, dtype=np.uint8)  # cells of one pixel, not gray values
    np.testing.assert_array_equal(weight_map(255 * single), weight_map(single))


def test_numbered_cells_are_kept():
    cells = np.array([[1, 0, 7, 7], [1, 0, 0, 7]], np.uint16)
    np.testing.assert_array_equal(label_cells(cells), cells)


# Cells that touch, classes, pixels that are unknown.


def slow_part(labels, gap):
    """Pixel by pixel, each neighbor of each."""
    parted = labels.copy()
    for y, x in np.ndindex(*labels.shape):
        near = labels[max(y - gap, 0) : y + gap + 1, max(x - gap, 0) : x + gap + 1]
        if labels[y, x] > 0 and ((near > 0) & (near != labels[y, x])).any():
            parted[y, x] = 0
    return parted


numbered = arrays(np.int32, shapes, elements=st.sampled_from([-1, 0, 1, 1, 2, 2, 90]))


@given(numbered, st.integers(0, 3))
@settings(max_examples=60)
def test_parted_cells(labels, gap):
    before = labels.copy()
    parted = part(labels, gap)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(parted, slow_part(labels, gap))
    assert parted.dtype == labels.dtype
    np.testing.assert_array_equal(part(np.stack([labels, parted]), gap)[0], parted)


def test_no_two_parted_cells_touch():
    """Diagonally neither; what is left is of the same cells, and nearly all of them."""
    cells = expand_labels(voronoi((60, 50), 30, seed=4), 9).astype(np.uint16)
    parted = part(cells)
    assert label(parted > 0, connectivity=2).max() >= len(np.unique(parted)) - 1
    for piece in range(1, label(parted > 0, connectivity=2).max() + 1):
        assert len(np.unique(parted[label(parted > 0, connectivity=2) == piece])) == 1
    assert (parted[parted > 0] == cells[parted > 0]).all()
    assert weight_map(parted)[(cells > 0) & (parted == 0)].min() > 5
    np.testing.assert_array_equal(part(parted), parted)  # they no longer touch
    binary = (cells > 0).astype(np.uint8)
    np.testing.assert_array_equal(part(binary), binary)  # nothing tells cells apart


def naive_weights(stack, classes, w0=10.0, sigma=5.0):
    """Equation 2 where -1 is unknown, of slices of any sizes."""
    known = np.concatenate([one[one >= 0] for one in stack])
    found = [c for c in range(classes) if (np.clip(known, 0, classes - 1) == c).any()]
    maps = []
    for one in stack:
        cells = label(one > 0, connectivity=1) if classes > 2 else np.maximum(one, 0)
        first, second = naive_distances(cells)
        weights = np.zeros(one.shape)
        for c in found:
            share = (np.clip(known, 0, classes - 1) == c).mean()
            weights[np.clip(one, 0, classes - 1) == c] = 1 / (len(found) * share)
        term = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
        weights += np.where(one == 0, term, 0)
        weights[one == -1] = 0
        maps.append(weights)
    return maps


@given(
    arrays(np.int32, (9, 11), elements=st.sampled_from([-1, 0, 0, 1, 2, 3])),
    arrays(np.int32, shapes, elements=st.sampled_from([-1, 0, 0, 1, 2])),
    st.sampled_from([2, 4, 6]),
)
@settings(max_examples=60)
def test_classes_unknown_pixels_and_sizes(first, second, classes):
    """As classes, in which label_cells would see a cell for each; or as cells (2)."""
    stack = [first, second]
    expected = naive_weights(stack, classes)
    for ours, naive in zip(
        weight_map(stack, num_classes=classes), expected, strict=True
    ):
        np.testing.assert_allclose(ours, naive, rtol=1e-5, atol=1e-6)
    alone = weight_map(first, num_classes=classes)
    np.testing.assert_allclose(alone, naive_weights([first], classes)[0], rtol=1e-5)


def test_balanced_classes():
    labels = np.repeat([0, 1, 3, -1], [50, 30, 20, 900])
    weights = class_balance(labels, 5)
    assert weights == pytest.approx((2 / 3, 10 / 9, 1, 5 / 3, 1))
    assert class_balance(np.minimum(labels, 1)) == pytest.approx((1, 1))
    assert class_balance(np.full(4, -1)) == (1, 1)
