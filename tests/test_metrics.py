"""The challenge's metrics against its own software, by counting and by properties.

metrics-golden/ holds synthetic cases and what the challenge's plugin gave for
them, threshold by threshold.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion
from scipy.stats import entropy

from unet_lib import metrics
from unet_lib.data import synthetic_em
from unet_lib.metrics import METRICS, THRESHOLDS, evaluate, pairs, pixel_error, topology
from unet_lib.metrics.pairs import f_score

GOLDEN = Path(__file__).parent / "metrics-golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
CASES = list(EXPECTED["cases"])


def load(case):
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        return file["label"] // 255, file["prob"]


def test_the_cases_are_there():
    assert len(CASES) == 12
    assert all((GOLDEN / f"{case}.npz").is_file() for case in CASES)


def test_thresholds_are_added_up():
    assert THRESHOLDS.tolist() == EXPECTED["thresholds"]


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    labels, probabilities = load(case)
    expected = EXPECTED["cases"][case]
    curves = evaluate(labels, probabilities).curves
    splits, mergers = (
        np.array(expected[f"{kind}_pixels_per_threshold"])
        for kind in ("split", "merger")
    )
    lists = {
        "pixel_error": (1 - curves["pixel_error"].values, "pixel_f_per_threshold"),
        "rand_error": (1 - curves["rand_error"].values, "rand_f_per_threshold"),
        "v_rand": (curves["v_rand"].values, "v_rand_per_threshold"),
        "v_info": (curves["v_info"].values, "v_info_per_threshold"),
    }
    for values, name in lists.values():
        # What rounding leaves of a zero hangs on the machine's logarithm.
        wanted = np.array(expected[name], float)
        np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-15)
    warping = curves["warping_error"].values * labels.size
    np.testing.assert_allclose(warping, splits + mergers, rtol=1e-12)
    for name in METRICS:
        assert curves[name].value == pytest.approx(expected[name], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("case", ["blur_noise", "label_slice_all_membrane"])
def test_a_curve_holds_its_own_figure(case):
    labels, probabilities = load(case)
    scores = evaluate(labels, probabilities)
    assert list(scores.curves) == list(METRICS)
    for name, curve in scores.curves.items():
        length = 10 if name == "warping_error" else 11
        best = (
            curve.values.argmin() if name in metrics.ERRORS else curve.values.argmax()
        )
        assert curve.thresholds.tolist() == THRESHOLDS[:length].tolist()
        assert curve.values.shape == (length,)
        assert curve.per_slice.shape == (len(labels), length)
        assert curve.value == curve.values[best] == getattr(scores, name)
        assert curve.threshold == curve.thresholds[best]
        alone = getattr(metrics, name)(labels, probabilities)
        np.testing.assert_array_equal(alone.per_slice, curve.per_slice)
        for k, values in enumerate(curve.per_slice):
            one = getattr(metrics, name)(labels[k], probabilities[k])
            np.testing.assert_allclose(one.values, values, rtol=1e-12)


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
    for threshold, error in zip(curve.thresholds, curve.values, strict=True):
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
    assert pixel_error(labels, probabilities).value == pytest.approx(1 - 34 / 49)


def test_not_the_share_of_wrong_pixels():
    labels = np.zeros((10, 10), int)
    labels[0, :4] = 1
    probabilities = np.zeros((10, 10))
    probabilities[0, :2] = 1
    assert pixel_error(labels, probabilities).value == pytest.approx(1 / 3)


def test_a_slice_is_a_stack_of_one():
    random = np.random.default_rng(0)
    labels, probabilities = random.integers(0, 2, (9, 7)), random.random((9, 7))
    one = pixel_error(labels, probabilities)
    stack = pixel_error(labels[None], probabilities[None])
    assert one.value == stack.value
    assert pixel_error(labels > 0, probabilities).value == one.value


def test_a_float32_tenth_is_not_its_threshold():
    """float32(0.1) is a little more than 0.1, whatever NumPy compares it in."""
    probability = np.full((1, 1), 0.1, np.float32)
    errors = pixel_error(np.ones((1, 1), int), probability).values
    assert errors.tolist() == [0, 0, *[1] * 9]


def test_f_score():
    assert f_score(6, 2, 4) == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert f_score(0, 0, 0) == 1
    assert f_score(0, 3, 2) == 0


def all_pairs(label_cells, proposal_cells):
    """True and false pairs by looking at each: of a pixel with itself as well."""
    cells = list(zip(label_cells.ravel(), proposal_cells.ravel(), strict=True))
    inside = [pair for pair in cells if pair[0] > 0]
    true = false = missed = 0
    for k, (a, b) in enumerate(inside):
        for m, (c, d) in enumerate(inside):
            together = k == m or b == d > 0
            true += together and a == c
            false += together and a != c
            missed += not together and a == c
    return true, false, missed


def shared_information(label_cells, proposal_cells):
    """H(A), H(B) and I(A,B) from the contingency table."""
    inside = label_cells > 0
    a, b = label_cells[inside], proposal_cells[inside].astype(int)
    alone = b == 0
    b[alone] = b.max() + 1 + np.arange(np.count_nonzero(alone))
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    of_a, of_b, joint = (
        entropy(t.ravel()) for t in (table.sum(1), table.sum(0), table)
    )
    shared = of_a + of_b - joint
    return of_a, of_b, shared


numbered = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays(np.int32, shape, elements=st.integers(0, 3)),
        arrays(np.int32, shape, elements=st.integers(0, 4)),
    )
)


@given(numbered)
def test_pairs_equal_looking_at_each(cells):
    assume(cells[0].any())
    found = pairs.pair_counts(pairs.overlaps(*cells))
    np.testing.assert_allclose(found, all_pairs(*cells), rtol=1e-12, atol=1e-9)


@given(numbered)
def test_information_equals_entropies(cells):
    assume(cells[0].any())
    found = pairs.information_f(pairs.overlaps(*cells))
    of_a, of_b, shared = shared_information(*cells)
    if min(of_a, of_b) < 1e-9:
        assert found == pytest.approx(0, abs=1e-9)
    elif shared > 1e-9:
        precision, recall = shared / of_a, shared / of_b
        expected = 2 * precision * recall / (precision + recall)
        assert found == pytest.approx(expected, rel=1e-9)
    else:
        assert np.isnan(found) or abs(found) < 1e-9


@given(numbered, st.permutations([1, 2, 3]), st.permutations([1, 2, 3, 4]))
def test_numbering_does_not_matter(cells, of_labels, of_proposal):
    assume(cells[0].any())
    again = np.array([0, *of_labels])[cells[0]], np.array([0, *of_proposal])[cells[1]]
    one, other = pairs.overlaps(*cells), pairs.overlaps(*again)
    np.testing.assert_allclose(
        pairs.pair_counts(one), pairs.pair_counts(other), rtol=1e-12, atol=1e-9
    )
    # Where nothing is shared rounding decides between 0/0 and about 0.
    values = np.nan_to_num([pairs.information_f(one), pairs.information_f(other)])
    assert values[0] == pytest.approx(values[1], abs=1e-9)


stacks = st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, shape, elements=st.integers(0, 1)),
        arrays(np.float32, shape, elements=st.floats(0, 1, width=32)),
    )
)


@given(stacks)
@settings(max_examples=25)
def test_the_order_of_slices_does_not_matter(pair):
    forth, back = evaluate(*pair), evaluate(pair[0][::-1], pair[1][::-1])
    for name, curve in forth.curves.items():
        other = back.curves[name]
        np.testing.assert_allclose(curve.values, other.values, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(curve.per_slice, other.per_slice[::-1])


@given(stacks)
@settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
def test_perfect_input(pair):
    labels, _ = pair
    assume(all(topology.label(one == 1).max() >= 2 for one in labels))
    scores = evaluate(labels, labels.astype(float))
    found = [getattr(scores, name) for name in METRICS]
    assert found == pytest.approx([0, 0, 0, 1, 1], abs=1e-12)


@given(stacks)
@settings(max_examples=25)
def test_types_do_not_matter(pair):
    labels, probabilities = pair
    half = probabilities.astype(np.float16)
    one = evaluate(labels, half)
    for other in (
        evaluate(labels > 0, half.astype(np.float64)),
        evaluate(labels.astype(">i4"), half.astype(">f4")),
    ):
        for name, curve in one.curves.items():
            np.testing.assert_array_equal(curve.values, other.curves[name].values)
            assert curve.value == other.curves[name].value


def chequered(width, size=96, cell=16):
    """Square cells between walls; `width` is that of the walls, in pixels."""
    distance = (np.arange(size) + width // 2) % cell
    free = distance >= width
    return (free[:, None] & free).astype(np.uint8)


def test_width_of_borders():
    """V-Rand and V-Info hardly see it, the Rand and the pixel error do."""
    labels = chequered(1)
    scores = [evaluate(labels, chequered(width).astype(float)) for width in (1, 3, 5)]
    for wider in scores[1:]:
        assert wider.v_rand > 0.995
        assert wider.v_info > 0.995
        assert wider.warping_error == 0
    errors = [[one.rand_error, one.pixel_error] for one in scores]
    assert errors[0] == [0, 0]
    assert (np.diff(errors, axis=0) > 0.05).all()


def test_width_of_borders_between_cells_of_all_sizes():
    _, labels = synthetic_em(slices=1, size=256, seed=0)
    scores = [
        evaluate(labels[0], binary_erosion(labels[0], iterations=wider).astype(float))
        for wider in (1, 2, 3)
    ]
    rand_errors = [score.rand_error for score in scores]
    assert rand_errors[0] > 0.03
    assert np.diff(rand_errors).min() > 0.03  # by each pixel of width
    assert min(score.v_rand for score in scores) > 0.997


def test_width_of_borders_as_the_plugin_has_it():
    scores = evaluate(*load("thick_borders"))
    assert 1 - scores.v_rand < 0.0015
    assert scores.rand_error > 0.1


def grades(changes):
    """The figures of chequered cells with more and more changes."""
    labels = chequered(2)
    probabilities = labels.astype(float)
    steps = []
    for place, value in [(None, None), *changes]:
        if place is not None:
            probabilities[place] = value
        scores = evaluate(labels, probabilities)
        steps.append([getattr(scores, name) for name in METRICS])
    return np.array(steps)


MERGES = [((slice(16 * k + 2, 16 * k + 14), slice(0, 40)), 1) for k in (0, 2, 4)]
SPLITS = [((slice(0, 95), slice(16 * k + 7, 16 * k + 9)), 0) for k in (1, 3, 4)]


@pytest.mark.parametrize("changes", [MERGES, SPLITS])
def test_added_merges_and_splits_make_all_figures_worse(changes):
    steps = grades(changes)
    worse = np.diff(steps, axis=0)
    assert (worse[:, :3] > 0).all()
    assert (worse[:, 3:] < 0).all()


def warned(labels, probabilities):
    return " ".join(evaluate(labels, probabilities).warnings)


def test_the_trivial_zero_is_flagged():
    """All-membrane, inverted and shrunken maps, and a map with one empty slice."""
    labels, probabilities = load("blur_noise")
    assert evaluate(labels, probabilities).warnings == []
    zero = evaluate(labels, np.zeros_like(probabilities))
    shrunken = evaluate(labels, probabilities * np.float32(0.9))
    inverted = evaluate(*load("inverted"))
    for scores in (zero, shrunken, inverted):
        assert scores.warping_error == 0
        assert any("The warping error, 0.000000, is" in one for one in scores.warnings)
    empty = probabilities.copy()
    empty[1] = 0
    assert "in slice 1 (counted from 0)" in warned(labels, empty)
    assert "if it is of membrane" in warned(*load("inverted"))


@pytest.mark.parametrize(
    "case", ["perfect", "thick_borders", "merged_cells", "split_cells", "prob_all_cell"]
)
def test_nothing_is_flagged_that_the_figures_show(case):
    assert evaluate(*load(case)).warnings == []


def test_labels_without_cell_and_without_membrane_are_named():
    assert "no cell in slice 1 (" in warned(*load("label_slice_all_membrane"))
    assert "all cell in slice 0 (" in warned(*load("label_all_cell"))
    labels = np.zeros((20, 4, 4), np.uint8)
    labels[3, :2] = 1
    assert "slices 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, ..." in warned(labels, labels)


def test_a_single_cell_is_named():
    """V-Info is 0 there for the perfect map: one cell holds no information."""
    labels = np.zeros((3, 24, 24), np.uint8)
    labels[0, 3:12, 3:12] = 1
    labels[1:, 2:22, 2:22] = 1
    labels[1:, :, 11:13] = 0
    scores = evaluate(labels, labels.astype(np.float32))
    assert scores.v_info == pytest.approx(2 / 3)
    assert len(scores.warnings) == 1
    assert "a single cell in slice 0 (counted from 0): V-Info is 0" in warned(
        labels, labels
    )
    assert evaluate(labels[1:], labels[1:]).warnings == []
    # At a corner two cells do not touch.
    assert evaluate(np.eye(4, dtype=int), np.eye(4)).warnings == []
    (full,) = evaluate(np.ones((9, 9), int), np.ones((9, 9))).warnings
    assert "all cell" in full


def test_the_stand_in_s_own_images_are_not_flagged_as_membrane():
    images, labels = synthetic_em(1, 128, seed=3)
    assert "of membrane" not in warned(labels, images)
    assert "of membrane" in warned(labels, 1 - images)


def test_the_maximum_starts_from_zero_and_skips_nan(monkeypatch):
    """As in the challenge's software: less than 0 is what rounding leaves of it."""
    labels = np.eye(4, dtype=int)
    for left, value in [(-1e-16, 0.0), (np.nan, 0.0), (0.25, 0.25)]:
        monkeypatch.setattr(metrics, "information_f", lambda _, left=left: left)
        assert metrics.v_info(labels, labels).value == value


def test_to_dict_is_json():
    labels = np.zeros((1, 6, 6), np.uint8)
    labels[0, :2], labels[0, 4:] = 1, 1
    scores = evaluate(labels, np.ones_like(labels))
    record = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert list(record) == ["figures", "warnings"]
    assert list(record["figures"]) == list(METRICS)
    figure = record["figures"]["rand_error"]
    assert figure["value"] == scores.rand_error
    assert figure["values"] == scores.curves["rand_error"].values.tolist()
    curve = scores.curves["v_info"]._replace(values=np.array([np.nan, 0.5]))
    scores.curves["v_info"] = curve
    assert scores.to_dict()["figures"]["v_info"]["values"] == [None, 0.5]


def test_progress_counts_slices(capsys):
    labels = np.eye(4, dtype=int)[None].repeat(3, 0)
    evaluate(labels, labels, progress=True)
    assert "3/3" in capsys.readouterr().err
    evaluate(labels, labels)
    assert capsys.readouterr().err == ""


def test_real_labels_against_themselves_shifted(isbi2012):
    """A real slice: perfect against itself, worse shifted by one and by two pixels."""
    labels = isbi2012.train_labels[24, :256, :256]
    assert evaluate(labels, labels).warping_error == 0
    scores = [evaluate(labels, np.roll(labels, shift, 0)) for shift in (0, 1, 3)]
    for name in METRICS:
        values = [getattr(one, name) for one in scores]
        assert values == sorted(values, reverse=name not in metrics.ERRORS)


LABELS, HALVES = np.eye(4, dtype=int), np.full((4, 4), 0.5)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (LABELS, HALVES[:3], r"got \(4, 4\) and \(3, 4\)"),
        (LABELS[0], HALVES[0], r"labels of shape .* got \(4,\)"),
        (LABELS[None, None], HALVES[None, None], r"got \(1, 1, 4, 4\)"),
        (LABELS[:0], HALVES[:0], "at least one pixel"),
        (LABELS * 255, HALVES, "pass labels > 0"),
        (LABELS - 1, HALVES, r"from -1 to 0, 12 pixel\(s\) of 1 .* such as -1"),
        (LABELS * 7 + LABELS[::-1], HALVES, r"8 pixel|4 pixel\(s\) of 1 .* such as 7"),
        (np.zeros((20, 30, 3), int), np.zeros((20, 30, 3)), "looks like color"),
        (LABELS * 0.5, HALVES, "0 .membrane. and 1"),
        (LABELS * np.nan, HALVES, "0 .membrane. and 1"),
        (LABELS, HALVES * np.nan, "NaN"),
        (LABELS, HALVES * np.inf, "infinity"),
        (LABELS, HALVES * 255, r"pass probabilities / np\.float32\(255\)"),
        (LABELS, HALVES - 0.6, "from -0.1 to -0.1"),
    ],
)
def test_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        pixel_error(labels, probabilities)
