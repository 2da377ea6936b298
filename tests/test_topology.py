"""Thinning and warping against the challenge's own software and slow transcriptions.

metrics-golden/NAME.steps_th0.5.npz holds what the challenge's plugin gave at the
threshold 0.5 for the cases beside it.
"""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import measure

from unet_lib.metrics import topology
from unet_lib.metrics.topology import MERGE, SPLIT, mismatches, thin, warp

GOLDEN = Path(__file__).parent / "metrics-golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", EXPECTED["cases"])
def test_golden(case):
    with (
        np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file,
        np.load(GOLDEN / f"{case}.steps_th0.5.npz", allow_pickle=False) as steps,
    ):
        labels, probabilities = file["label"] // 255, file["prob"]
        for k, (cell, map_) in enumerate(zip(labels, probabilities, strict=True)):
            called = map_.astype(np.float64) > 0.5
            np.testing.assert_array_equal(thin(called), steps["wshed"][k])
            np.testing.assert_array_equal(warp(cell, map_) * 255, steps["warped"][k])
            found = mismatches(cell, map_)
            np.testing.assert_array_equal(found, steps["mismatch_class"][k])


def neighbors(x, y, pixels):
    """Left, up, right, down, in bounds."""
    around = [(x - 1, y), (x, y - 1), (x + 1, y), (x, y + 1)]
    return [pixel for pixel in around if pixel in pixels]


def slow_thin(cell):
    """The flood from its rules, pixel by pixel, over a dictionary."""
    height, width = cell.shape
    if not cell.any():
        return np.ones(cell.shape, int)
    numbers = measure.label(cell, connectivity=1)
    state = {
        (x, y): int(numbers[y, x]) or "mask"
        for x in range(width)
        for y in range(height)
    }
    waiting = deque()
    for pixel in list(state):
        around = neighbors(*pixel, state)
        if state[pixel] == "mask" and any(cell[y, x] for x, y in around):
            state[pixel] = "queued"
            waiting.append(pixel)
    flag = False
    while waiting:
        pixel = waiting.popleft()
        for other in neighbors(*pixel, state):
            if state[other] == "mask":
                state[other] = "queued"
                waiting.append(other)
            elif state[other] == "queued":
                continue
            elif state[other] > 0:
                if state[pixel] == "queued" or (state[pixel] == 0 and flag):
                    state[pixel] = state[other]
                elif state[pixel] != 0 and state[pixel] != state[other]:
                    state[pixel], flag = 0, False
            elif state[pixel] == "queued":
                state[pixel], flag = 0, True
    return np.array([[state[x, y] for x in range(width)] for y in range(height)])


def is_simple(patch):
    """Does flipping the center leave both kinds of components as they are?"""
    on, off = patch.copy(), patch.copy()
    on[1, 1], off[1, 1] = True, False
    pieces = [measure.label(image, connectivity=1).max() for image in (on, off)]
    euler = [measure.euler_number(image, connectivity=1) for image in (on, off)]
    return pieces[0] == pieces[1] and euler[0] == euler[1]


def test_simple_points_of_all_surroundings():
    for bits in itertools.product([False, True], repeat=9):
        patch = np.array(bits).reshape(3, 3)
        ring = np.delete(patch.ravel(), 4)
        number = int(np.sum(ring * 2 ** np.arange(8)))
        assert topology.SIMPLE[number] == is_simple(patch), patch


def slow_warp(labels, probabilities, threshold):
    source = np.pad(labels > 0, 1)
    target = np.pad(probabilities.astype(float) > threshold, 1)
    distance = abs(np.pad(probabilities.astype(float), 1) - threshold)
    distance = distance.astype(np.float32)
    flipped = True
    while flipped:
        flipped = False
        differing = np.argwhere((source != target).T).tolist()
        for x, y in sorted(differing, key=lambda xy: -distance[xy[1], xy[0]]):
            if is_simple(source[y - 1 : y + 2, x - 1 : x + 2]):
                source[y, x] = not source[y, x]
                flipped = True
    return source[1:-1, 1:-1], target[1:-1, 1:-1]


def slow_mismatches(labels, probabilities, threshold):
    """The classes as their rules have them, the window labeled for each pixel."""
    warped, target = slow_warp(labels, probabilities, threshold)
    components = measure.label(warped, connectivity=1)
    height, width = warped.shape
    kinds = np.zeros(warped.shape, int)

    def around(image, y, x):
        box = range(max(y - 1, 0), y + 2), range(max(x - 1, 0), x + 2)
        places = [place for place in itertools.product(*box) if place != (y, x)]
        inside = [
            (j, i) for j, i in places if j < image.shape[0] and i < image.shape[1]
        ]
        return {int(image[place]) for place in inside}

    for y, x in np.argwhere(warped != target):
        ids = around(components, y, x)
        if labels.all():
            kinds[y, x] = 16
        elif len(ids) >= 3:
            kinds[y, x] = 2 if warped[y, x] else 1
        elif len(ids) == 2 and not warped[y, x]:
            kinds[y, x] = 4
        elif len(ids) == 2:
            image = np.pad(warped, 0 if min(height, width) < 20 else 20)
            row, column = (y, x) if image.shape == warped.shape else (20, 20)
            if image.shape != warped.shape:
                image = image[y : y + 41, x : x + 41]
            image[row, column] = False
            parts = around(measure.label(image, connectivity=1), row, column)
            kinds[y, x] = 2 if len(parts) > 2 else 32
        elif max(ids, default=0) == 0:
            kinds[y, x] = 8 if warped[y, x] else 16
        else:
            kinds[y, x] = 4 if warped[y, x] else 32
    return kinds


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
tenths = st.sampled_from([float(np.float32(n / 10)) for n in range(11)])


@given(shapes.flatmap(lambda shape: arrays(bool, shape)))
@settings(max_examples=150)
def test_thin_equals_the_slow_flood(cell):
    thinned = thin(cell)
    expected = slow_thin(cell)
    # The same pixels; the numbers of the cells may be others.
    pairs = set(zip(thinned.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(set(thinned.ravel())) == len(set(expected.ravel()))
    assert (0, 0) in pairs or (thinned > 0).all()
    assert thinned.dtype == np.int32


@given(st.data(), shapes, st.sampled_from([0.0, 0.30000000000000004, 0.5]))
@settings(max_examples=100)
def test_warp_and_mismatches_equal_the_slow_ones(data, shape, threshold):
    labels = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    elements = tenths | st.floats(0, 1, width=32)
    probabilities = data.draw(arrays(np.float32, shape, elements=elements))
    warped, _ = slow_warp(labels, probabilities, threshold)
    np.testing.assert_array_equal(warp(labels, probabilities, threshold), warped)
    found = mismatches(labels, probabilities, threshold)
    expected = slow_mismatches(labels, probabilities, threshold)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(19, 70), (20, 60), (50, 45), (1, 80), (2, 33)])
def test_windows_of_larger_slices(shape):
    """On both sides of the size at which the window is the whole slice."""
    random = np.random.default_rng(shape[0])
    labels = (random.random(shape) < 0.8).astype(np.uint8)
    probabilities = np.round(random.random(shape), 2).astype(np.float32)
    found = mismatches(labels, probabilities, 0.4)
    np.testing.assert_array_equal(found, slow_mismatches(labels, probabilities, 0.4))


def ring(size, thickness=1):
    labels = np.zeros((size, size), np.uint8)
    labels[2:-2, 2:-2] = 1
    labels[2 + thickness : -2 - thickness, 2 + thickness : -2 - thickness] = 0
    return labels


def test_the_window_decides_what_a_split_is():
    """Within 20 pixels a cut ring is in one piece if the window holds all of it."""
    for size, kind in [(21, topology.HOLE_DELETION), (90, SPLIT)]:
        labels = ring(size)
        probabilities = labels.astype(float)
        probabilities[2, size // 2] = 0
        found = mismatches(labels, probabilities)
        assert found[2, size // 2] == kind
        assert np.count_nonzero(found) == 1


def test_a_merge_and_a_split_are_found_where_they_are():
    labels = np.ones((30, 40), np.uint8)
    labels[:, 20] = 0
    gap = labels.astype(float)
    gap[12:15, 20] = 1
    found = mismatches(labels, gap)
    assert set(map(tuple, np.argwhere(found == MERGE))) == {
        (row, 20) for row in (12, 13, 14)
    }
    wall = labels.astype(float)
    wall[10, :20] = 0
    found = mismatches(labels, wall)
    assert (found == SPLIT).any()
    assert not (found == MERGE).any()
    assert np.argwhere(found)[:, 0].tolist() == [10] * np.count_nonzero(found)


@given(st.data(), shapes)
@settings(max_examples=60)
def test_warping_keeps_the_topology(data, shape):
    labels = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    probabilities = data.draw(arrays(np.float64, shape, elements=st.floats(0, 1)))
    warped = warp(labels, probabilities)
    for one, other in [(labels, warped), (np.pad(labels, 1), np.pad(warped, 1))]:
        assert measure.label(one, connectivity=1).max() == (
            measure.label(other, connectivity=1).max()
        )
    assert measure.euler_number(np.pad(labels, 1), connectivity=1) == (
        measure.euler_number(np.pad(warped, 1), connectivity=1)
    )


def test_dams_part_the_cells():
    random = np.random.default_rng(1)
    cell = random.random((60, 50)) < 0.5
    thinned = thin(cell)
    assert (thinned[cell] > 0).all()
    for axis in (0, 1):
        one = np.moveaxis(thinned, axis, 0)
        step = (one[:-1] > 0) & (one[1:] > 0)
        assert (one[:-1][step] == one[1:][step]).all()


def test_compiled_and_plain_give_the_same_pixels(monkeypatch):
    pytest.importorskip("numba")
    random = np.random.default_rng(2)
    labels = random.random((40, 50)) < 0.7
    probabilities = random.random((40, 50))
    compiled = [thin(probabilities > 0.4), mismatches(labels, probabilities)]
    assert hasattr(topology.flood, "__wrapped__")
    for name in ("flood", "flip"):
        monkeypatch.setattr(topology, name, getattr(topology, name).__wrapped__)
    plain = [thin(probabilities > 0.4), mismatches(labels, probabilities)]
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_compile_a_loop_once(monkeypatch):
    numba = pytest.importorskip("numba")
    compilations, start = [], threading.Barrier(16)

    def slow(**options):
        compilations.append(options)
        time.sleep(0.05)  # the others come in meanwhile
        return lambda function: function

    monkeypatch.setattr(numba, "njit", slow)
    double = topology.compiled(lambda number: 2 * number)

    def work(number):
        start.wait()
        return double(number)

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(work, range(16))) == [2 * n for n in range(16)]
    assert compilations == [{"nogil": True}]


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # importing it raises ImportError
import numpy as np
from unet_lib.metrics import evaluate
file = np.load(sys.argv[1], allow_pickle=False)
scores = evaluate(file["label"][:3] // 255, file["prob"][:3])
print([curve.values.tolist() for curve in scores.curves.values()])
"""


def test_everything_runs_without_numba():
    path = GOLDEN / "tiny_random_binary.npz"
    command = [sys.executable, "-c", WITHOUT_NUMBA, str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    from unet_lib.metrics import evaluate

    with np.load(path, allow_pickle=False) as file:
        scores = evaluate(file["label"][:3] // 255, file["prob"][:3])
    assert json.loads(run.stdout) == [c.values.tolist() for c in scores.curves.values()]


def test_what_is_given_is_not_changed():
    labels, probabilities = np.eye(6, dtype=np.uint8), np.full((6, 6), 0.7)
    cell = labels > 0
    thin(cell)
    warp(labels, probabilities)
    mismatches(labels, probabilities)
    np.testing.assert_array_equal(labels, np.eye(6))
    np.testing.assert_array_equal(cell, np.eye(6) > 0)


def test_refused():
    with pytest.raises(ValueError, match="one slice"):
        thin(np.ones((2, 3, 4), bool))
    with pytest.raises(ValueError, match="one slice"):
        warp(np.ones((0, 3)), np.ones((0, 3)))
    for labels, map_ in [(2, 0.5), (1, 2.0), (1, np.nan)]:
        with pytest.raises(ValueError, match=r"(labels of 0|probabilities from 0)"):
            warp(np.full((2, 3), labels), np.full((2, 3), map_))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        mismatches(np.ones((2, 3)), np.ones((3, 2)))
