"""The pixel error against the challenge's own software, and by hand.

metrics-golden/ holds synthetic cases and what the challenge's plugin gave for
them, threshold by threshold.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unet_lib.metrics import THRESHOLDS, f_score, pixel_error

GOLDEN = Path(__file__).parent / "metrics-golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def test_the_cases_are_there():
    assert len(CASES) == 10
    assert set(CASES) <= set(EXPECTED["cases"])


def test_thresholds_are_added_up():
    assert THRESHOLDS.tolist() == EXPECTED["thresholds"]


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        labels, probabilities = file["label"] // 255, file["prob"]
    expected = EXPECTED["cases"][case]
    curve = pixel_error(labels, probabilities)
    np.testing.assert_allclose(
        1 - curve.errors, expected["pixel_f_per_threshold"], rtol=1e-9, atol=1e-12
    )
    assert curve.error == pytest.approx(expected["pixel_error"], rel=1e-9, abs=1e-12)
    assert curve.thresholds.tolist() == EXPECTED["thresholds"]
    assert curve.error == curve.errors.min() == curve.errors[curve.errors.argmin()]
    assert curve.threshold == curve.thresholds[curve.errors.argmin()]


small = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


@given(st.data(), small)
@settings(max_examples=40)
def test_equals_counting(data, shape):
    labels = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    tenths = st.sampled_from([float(np.float32(n / 10)) for n in range(11)])
    elements = tenths | st.floats(0, 1, width=32)
    probabilities = data.draw(arrays(np.float32, shape, elements=elements))
    curve = pixel_error(labels, probabilities)
    pixels = list(zip(labels.ravel(), probabilities.ravel().tolist(), strict=True))
    for threshold, error in zip(curve.thresholds, curve.errors, strict=True):
        true = sum(1 for cell, p in pixels if cell and p > threshold)
        false = sum(1 for cell, p in pixels if (p > threshold) != cell)
        # F is also 2TP/(2TP + FP + FN); with no cell and none called, 1.
        expected = 1 - 2 * true / (2 * true + false) if true + false else 0.0
        assert error == pytest.approx(expected, abs=1e-12)


def test_slices_are_summed_not_averaged():
    labels = np.zeros((2, 4, 4), int)
    labels[0], labels[1, 0, 0] = 1, 1
    probabilities = np.ones((2, 4, 4))
    # 17 true and 15 false: P = 17/32, R = 1.
    assert pixel_error(labels, probabilities).error == pytest.approx(1 - 34 / 49)


def test_not_the_share_of_wrong_pixels():
    labels = np.zeros((10, 10), int)
    labels[0, :4] = 1
    probabilities = np.zeros((10, 10))
    probabilities[0, :2] = 1
    assert pixel_error(labels, probabilities).error == pytest.approx(1 / 3)


def test_a_slice_is_a_stack_of_one():
    random = np.random.default_rng(0)
    labels, probabilities = random.integers(0, 2, (9, 7)), random.random((9, 7))
    one = pixel_error(labels, probabilities)
    stack = pixel_error(labels[None], probabilities[None])
    assert one.error == stack.error
    assert pixel_error(labels > 0, probabilities).error == one.error


def test_a_float32_tenth_is_not_its_threshold():
    """float32(0.1) is a little more than 0.1, whatever NumPy compares it in."""
    probability = np.full((1, 1), 0.1, np.float32)
    errors = pixel_error(np.ones((1, 1), int), probability).errors
    assert errors.tolist() == [0, 0, *[1] * 9]


def test_f_score():
    assert f_score(6, 2, 4) == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert f_score(0, 0, 0) == 1
    assert f_score(0, 3, 2) == 0


LABELS, HALVES = np.eye(4, dtype=int), np.full((4, 4), 0.5)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (LABELS, HALVES[:3], r"got \(4, 4\) and \(3, 4\)"),
        (LABELS[0], HALVES[0], "one shape"),
        (LABELS[None, None], HALVES[None, None], "one shape"),
        (LABELS[:0], HALVES[:0], "at least one pixel"),
        (LABELS * 255, HALVES, "pass labels > 0"),
        (LABELS - 1, HALVES, "from -1 to 0"),
        (LABELS * 0.5, HALVES, "0 .membrane. and 1"),
        (LABELS * np.nan, HALVES, "0 .membrane. and 1"),
        (LABELS, HALVES * np.nan, "NaN"),
        (LABELS, HALVES * np.inf, "infinity"),
        (LABELS, HALVES * 255, "divide a map in 0..255 by 255"),
        (LABELS, HALVES - 0.6, "from -0.1 to -0.1"),
    ],
)
def test_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        pixel_error(labels, probabilities)
