"""What is read from records, against the scores that they were written from."""

import json
from pathlib import Path

import numpy as np
import pytest

from unet_lib.data import synthetic_em
from unet_lib.metrics import METRICS, evaluate
from unet_lib.results import (
    ablation_table,
    as_error,
    changes,
    figures,
    per_slice,
    reported,
    seed_band,
    spreads,
    training_figures,
)

_, LABELS = synthetic_em(slices=3, size=64, seed=1)


def probabilities(seed):
    noise = np.random.default_rng(seed).normal(0, 0.35, LABELS.shape)
    return np.clip(0.2 + 0.6 * LABELS + noise, 0, 1)


@pytest.fixture(scope="module")
def scores():
    return [evaluate(LABELS, probabilities(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def records(scores, tmp_path_factory):
    """Two of the same slices and one that is not scored."""
    folder = tmp_path_factory.mktemp("records")
    written = {
        "one": ([6, 7, 8], {"7": scores[0].to_dict()}),
        "two": ([6, 7, 8], {"7": scores[1].to_dict(), "8": scores[0].to_dict()}),
        "test": ([0, 1, 2], {}),
    }
    for name, (slices, found) in written.items():
        (folder / name).mkdir()
        record = {"stack": "train", "slices": slices, "versions": 7, "scores": found}
        (folder / name / "scores.json").write_text(json.dumps(record))
    return folder


def test_figures(records, scores):
    for name, value in figures(records / "two", 7).items():
        assert value == getattr(scores[1], name)
    assert list(figures(records / "two", 8)) == list(METRICS)
    for name, value in figures(records / "one", 7, threshold=0.5).items():
        curve = scores[0].curves[name]
        expected = curve.values[np.argmin(abs(curve.thresholds - 0.5))]
        assert value == (None if np.isnan(expected) else expected)


def written(folder, values):
    """A variant's records of made-up figures, by the names of the runs."""
    for run, value in values.items():
        (folder / run).mkdir()
        curve = {"value": value, "thresholds": [0.5], "values": [value / 2]}
        scores = {"7": {"figures": dict.fromkeys(METRICS, curve)}}
        record = {"slices": [6, 7, 8], "scores": scores}
        (folder / run / "scores.json").write_text(json.dumps(record))
    return folder


def test_spreads_against_a_model_with_a_mean_for_each_fold(tmp_path):
    values = {"1-0": 0.1, "1-1": 0.3, "2-0": 0.4, "3-0": 0.6, "3-1": 0.5, "3-2": 0.7}
    written(tmp_path, values | {"0-0": 99.0})  # holds nothing out: counts nowhere
    # Least squares: what is left after a mean for each fold, over its freedom.
    design = np.array([[run[0] == fold for fold in "123"] for run in values], float)
    y = np.array(list(values.values()))
    means, (left,), rank, _ = np.linalg.lstsq(design, y, rcond=None)
    found = spreads(tmp_path, 7)
    assert list(found) == list(METRICS)
    for one in found.values():
        np.testing.assert_allclose(one.mean, means.mean())
        np.testing.assert_allclose(one.folds, np.std(means, ddof=1))
        np.testing.assert_allclose(one.seeds, np.sqrt(left / (len(y) - rank)))
    assert spreads(tmp_path, 7, 0.5)["v_rand"].mean == pytest.approx(means.mean() / 2)


def test_what_cannot_spread_is_not_a_number(tmp_path):
    one = spreads(written(tmp_path, {"4-0": 0.25}), 7)["v_rand"]
    assert one.mean == 0.25
    assert np.isnan([one.folds, one.seeds]).all()
    assert np.isnan(seed_band(tmp_path, 7, folds=2)["v_rand"])


@pytest.mark.parametrize("name", METRICS)
def test_slices(records, scores, name):
    # Each slice alone, at the threshold that suits all of them.
    for folder, seed in (("one", 0), ("two", 1)):
        curve = scores[seed].curves[name]
        place = int(np.argmin(abs(curve.thresholds - curve.threshold)))
        alone = [
            evaluate(*pair).curves[name].values[place]
            for pair in zip(LABELS, probabilities(seed), strict=True)
        ]
        own = per_slice(records / folder, name, 7)
        np.testing.assert_allclose(own, alone, rtol=1e-12)


def test_changes_are_of_the_pooled_stack(tmp_path, scores):
    for variant, runs in {"a": ("2-0", "3-0", "0-0"), "b": ("2-0", "4-0")}.items():
        for run in runs:
            (tmp_path / variant / run).mkdir(parents=True)
            found = scores[0 if variant == "a" else 1].to_dict()
            record = {"slices": [6, 7, 8], "scores": {"7": found}}
            (tmp_path / variant / run / "scores.json").write_text(json.dumps(record))
    found = changes(tmp_path / "a", tmp_path / "b", 7)
    for name in METRICS:
        one, two = (getattr(score, name) for score in scores)
        worse = one - two if name.endswith("error") else two - one
        assert found[name] == {"2-0": pytest.approx(worse)}
    record = {"slices": [1, 2, 3], "scores": {"7": scores[0].to_dict()}}
    (tmp_path / "b" / "2-0" / "scores.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"same slices, got .*a.2-0 of \[6, 7, 8\]"):
        changes(tmp_path / "a", tmp_path / "b", 7)


def test_seeds_alone_stay_in_their_band_in_95_of_100(tmp_path, monkeypatch):
    # Seeds of a normal distribution, folds that differ by more than the seeds do.
    random = np.random.default_rng(0)
    inside = []
    for trial in range(400):
        level = random.normal(0, 5, 5)
        seen, first, second = (
            {
                f"{fold}-{seed}": level[fold - 1] + random.normal()
                for fold in range(1, 6)
                for seed in seeds
            }
            for seeds in (range(3), (0,), (0,))
        )
        monkeypatch.setattr(
            "unet_lib.results.figures",
            lambda run, *_, seen=seen: {"pixel_error": seen[run.name]},
        )
        if not trial:
            for run in seen:
                (tmp_path / run).mkdir()
        band = seed_band(tmp_path, 7, folds=2)["pixel_error"]
        change = np.mean([first[f"{fold}-0"] - second[f"{fold}-0"] for fold in (2, 4)])
        inside.append(abs(change) <= band)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_ablation_table(tmp_path):
    runs = {"2-0": 0.10, "2-1": 0.12, "4-0": 0.20}
    for name in ("base", "worse", "same", "lonely"):
        (tmp_path / name).mkdir()
    base = written(tmp_path / "base", runs)
    worse = written(tmp_path / "worse", {"2-0": 0.1004, "4-0": 0.2})
    same = written(tmp_path / "same", {"2-0": 0.10, "4-0": 0.20})
    lonely = written(tmp_path / "lonely", {"5-0": 0.10})
    lines = ablation_table(base, {"worse": worse, "no change": same}).splitlines()
    assert lines[0] == "| | pixel error | 1 − V-Rand | 1 − V-Info |"
    better = "−0.02<br>(−0.04,\u00a0+0.00)"  # V-Rand and V-Info are turned into errors
    assert lines[2] == f"| worse | +0.02<br>(+0.04,\u00a0+0.00) | {better} | {better} |"
    assert lines[3] == "| no change |" + " +0.00<br>(+0.00,\u00a0+0.00) |" * 3
    half = f"{100 * seed_band(base, 7, folds=2)['v_rand']:.2f}"
    assert lines[4] == "| *another seed* |" + f" ±{half} |" * 3
    for variants in ({}, {"lonely": lonely}, {"worse": worse, "lonely": base}):
        with pytest.raises(ValueError, match="Expected variants with equally many"):
            ablation_table(base, variants)


def test_training_scores(records, scores, tmp_path):
    record = {"scores": {}, "training": scores[1].to_dict()}
    (tmp_path / "scores.json").write_text(json.dumps(record))
    assert training_figures(tmp_path)["v_rand"] == scores[1].v_rand
    assert training_figures(records / "one") is None  # older than these scores


def test_what_others_have_reported():
    path = Path(__file__).parent.parent / "results" / "authors.toml"
    found = reported(path)
    assert found["warping_error"] == 0.000353  # Table 1 of the paper
    assert set(found) == set(METRICS)
    assert "v_rand" not in reported(path, "second human")
    with pytest.raises(ValueError, match=r"entries .*U-Net.*, not 'SegNet'"):
        reported(path, "SegNet")


def test_as_error():
    assert as_error("pixel_error", 0.25) == 0.25
    assert as_error("v_info", 0.25) == 0.75


def test_what_a_record_does_not_have(records, tmp_path):
    one, two = records / "one", records / "two"
    with pytest.raises(ValueError, match=r"scores\.json has .* 7, 8, not 2"):
        figures(two, 2)
    with pytest.raises(ValueError, match="two has no record of a run with a fold"):
        spreads(two, 7)
    with pytest.raises(ValueError, match="scores of versions none, not 8"):
        figures(records / "test", 8)
    with pytest.raises(ValueError, match=r"no pixel_error at a threshold of 0\.55"):
        figures(one, 7, 0.55)
    with pytest.raises(ValueError, match=r"no warping_error at a threshold of 1"):
        figures(one, 7, 1)  # as the challenge's has none
    with pytest.raises(ValueError, match=r"score of pixel_error, .*, got 'dice'"):
        per_slice(one, "dice", 7)
    with pytest.raises(FileNotFoundError):
        figures(records / "nowhere", 7)
    for text in ("{", "[" * 100_000):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(ValueError, match=r"scores\.json is not valid JSON"):
            figures(tmp_path, 7)
