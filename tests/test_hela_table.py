"""The table of the HeLa cells: its folds, its runs end to end at a tiny size."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unet_lib import cli, data
from unet_lib.cells import SCORES, find_cells, score_cells
from unet_lib.data import synthetic_cells
from unet_lib.data.dic_hela import FRAMES, Frames
from unet_lib.model import UNet
from unet_lib.networks import load_network
from unet_lib.results import changes, figures, hela, per_slice, spreads
from unet_lib.results.table import read_table, run_table, state

REAL = Path(__file__).parent.parent / "results" / "hela.toml"
TEXT = REAL.read_text("utf-8")
TILE = UNet(base_channels=1, depth=1).input_size(20)


@pytest.fixture(scope="module")
def frames():
    """18 frames of 64 pixels, some of their pixels unknown."""
    images, labels = synthetic_cells(18, 64, seed=1)
    labels[8, :32], labels[10, 40:] = -1, -1
    counts = [len(numbers) for numbers in FRAMES.values()]
    numbers = np.concatenate([list(one) for one in FRAMES.values()])
    return Frames(images, labels, np.repeat(list(FRAMES), counts), numbers)


def tiny(run):
    """A run of the table, its own changes kept, of a size for a test."""
    changes = {"base_channels": 1, "depth": 1, "tile": TILE, "steps": 2}
    changes |= {"watch_at": (1,), "precision": "float32", "device": "cpu"}
    cells = dataclasses.replace(run.cells, smallest=3, watershed=1.0)
    return run._replace(
        config=dataclasses.replace(run.config, **changes), cells=cells, versions=1
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, frames):
    """Fold 2 by blocks of each variant, and the baseline by sequence; not changed."""
    folder = tmp_path_factory.mktemp("hela")
    runs = read_table(REAL, "hela-blocks/*/2-0") + read_table(REAL, "*s/baseline/1-0")
    runs = [tiny(run) for run in runs if not run.pretrained]
    names = run_table(runs, frames, folder / "work", folder / "results", False)
    assert names == [run.name for run in runs]
    return folder, runs


def test_folds_by_blocks_of_time():
    for fold in (1, 2, 3):
        held = hela.held_out("blocks", fold)
        assert held == [3 * fold - 3 + n for n in (0, 1, 2, 9, 10, 11)]


def test_folds_by_sequence():
    assert hela.held_out("sequences", 1) == [*range(9, 18)]
    assert hela.held_out("sequences", 2) == [*range(9)]


def test_the_books_table():
    runs = {run.name: run for run in read_table(REAL)}
    blocks = [run for run in runs.values() if run.scale == "hela-blocks"]
    short = [run for run in runs.values() if run.scale == "hela-blocks-500"]
    assert (len(blocks), len(short), len(runs)) == (27 + 3, 18, 30 + 18 + 18)
    scored = {run.fold: run.scored for run in blocks}
    assert sorted(sum(scored.values(), ())) == [*range(18)]
    changed = {"no-border-weight": {"w0"}, "no-deformation": {"augmentation"}}
    for run in runs.values():
        assert run.config.instances
        assert run.config.held_out == run.scored
        assert run.cells == blocks[0].cells
        plain = runs[f"hela-blocks/baseline/{run.fold}-{run.seed}"]
        if run.scale == "hela-sequences":
            assert run.scored == tuple(hela.held_out("sequences", run.fold))
        unlike = {
            one.name
            for one in dataclasses.fields(run.config)
            if getattr(run.config, one.name) != getattr(plain.config, one.name)
        }
        if run in short:
            unlike -= {"steps", "watch_at"}
        assert unlike - {"held_out"} == changed.get(run.variant, set())
        assert run.pretrained == (run.variant == "from-pretrained")
    assert [name for name in runs if name.endswith("-0")][:8] == [
        *[f"hela-blocks/baseline/{fold}-0" for fold in (1, 2, 3)],
        *[f"hela-blocks/no-border-weight/{fold}-0" for fold in (1, 2, 3)],
        *[f"hela-sequences/baseline/{fold}-0" for fold in (1, 2)],
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold = 0.4", "", r"hela-blocks/baseline: \[cells\] must have numbers"),
        ("threshold = 0.4", "treshold = 0.4", r"must have numbers named .*not"),
        ("threshold = 0.4", "threshold = 'a'", r"must have numbers named .*not"),
        ("threshold = 0.4", "threshold = 0.45", r"threshold must be of .* not 0\.45"),
        ("components = 0.7", "components = 1", r"components must be of .* not 1"),
        ('split = "blocks"', 'split = "odd"', r"split must be of .* not 'odd'"),
        ("folds = [1, 2, 3]", "folds = [4]", r"folds of blocks are 1 to 3, not 4"),
        ("folds = [1, 2, 3]", "folds = [0]", r"folds of blocks are 1 to 3, not 0"),
        ("folds = [1, 2]", "folds = [3]", r"folds of sequences are 1 to 2, not 3"),
    ],
)
def test_what_is_no_table(tmp_path, old, new, message):
    assert old in TEXT
    (tmp_path / "hela.toml").write_text(TEXT.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "hela.toml")


def test_frames_are_prepared(frames):
    settings = hela.CellSettings(2, 0.25, 0.75, 0.7, 0.4, 6.0, 500)
    images, labels = hela.prepared(frames, settings)
    assert images.shape == labels.shape == (18, 32, 32)
    mean = frames.images[3, 4:6, 8:10].mean()
    assert images[3, 2, 4] == pytest.approx(2 * (mean - 0.25), abs=1e-6)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(labels[3], frames.labels[3, ::2, ::2])


def test_a_record_is_of_the_masks_beside_it(made, frames):
    folder, runs = made
    for run in runs:
        record = json.loads((folder / "results" / run.name / "scores.json").read_text())
        assert record["slices"] == list(run.scored)
        assert record["cells"] == dataclasses.asdict(run.cells)
        held_out, trained = set(run.config.held_out), set(record["training"]["slices"])
        assert held_out | trained == set(range(18))
        assert not held_out & trained
        pictures = folder / "results" / run.name / "masks"
        masks = np.stack(
            [np.asarray(Image.open(pictures / f"{n:02d}.png")) for n in run.scored]
        )
        assert masks.shape[1:] == (64, 64)
        cells = find_cells(masks / 255, watershed=1.0, smallest=3)
        expected = score_cells(frames.labels[list(run.scored)], cells)
        found = figures(folder / "results" / run.name, "watershed")
        assert found == {name: getattr(expected, name) for name in SCORES}
        assert record["scores"]["watershed"]["counts"]["missed"] == expected.missed
        # The masks are those at the watershed's threshold.
        components = find_cells(masks / 255, smallest=3)
        expected = score_cells(frames.labels[list(run.scored)], components)
        found = figures(folder / "results" / run.name, "components", 0.4)
        assert found == {name: getattr(expected, name) for name in SCORES}
        curve = record["scores"]["components"]["figures"]["seg"]
        assert (curve["threshold"], curve["value"]) == (0.7, curve["values"][4])
    first = json.loads((folder / "results" / runs[0].name / "scores.json").read_text())
    expected = ["01/31", "01/33", "01/34", "02/27", "02/34", "02/38"]
    assert first["frames"] == expected


def test_records_are_read_like_all_others(made):
    folder, runs = made
    baseline = folder / "results" / "hela-blocks" / "baseline"
    spread = spreads(baseline, "watershed")["seg"]
    assert spread.mean == np.mean(
        [figures(baseline / one, "watershed")["seg"] for one in ("1-0", "2-0")]
    )
    other = folder / "results" / "hela-blocks" / "no-border-weight"
    found = changes(other, baseline, "components")["iou"]
    assert list(found) == ["2-0"]
    assert per_slice(baseline / "2-0", "iou", "components").shape == (6,)
    assert {state(run, folder / "work", folder / "results") for run in runs} == {
        "recorded"
    }
    moved = runs[0]._replace(cells=dataclasses.replace(runs[0].cells, threshold=0.5))
    found = state(moved, folder / "work", folder / "results")
    assert found == "recorded with another threshold"


def test_what_is_held_out_does_not_reach_the_network(made, frames, tmp_path):
    folder, runs = made
    run = next(run for run in runs if run.name == "hela-sequences/baseline/1-0")
    images, labels = frames.images.copy(), frames.labels.copy()
    images[9:], labels[9:] = 1 - images[9:], 1
    poisoned = frames._replace(images=images, labels=labels)
    run_table([run], poisoned, tmp_path / "work", tmp_path, False)
    network = f"work/{run.name}/network.safetensors"
    assert (tmp_path / network).read_bytes() == (folder / network).read_bytes()


def test_a_run_that_starts_from_the_published_network(frames, monkeypatch, tmp_path):
    start = UNet(base_channels=1, depth=1)
    torch.nn.init.constant_(start.classify.bias, 3.0)
    monkeypatch.setattr("unet_lib.results.table.load_pretrained", lambda: start)
    run = tiny(read_table(REAL, "hela-blocks/from-pretrained/2-0")[0])
    run = run._replace(config=dataclasses.replace(run.config, learning_rate=1e-12))
    work, results = tmp_path / "work", tmp_path / "results"
    run_table([run], frames, work, results, False)
    made = load_network(work / run.name / "network.safetensors").state_dict()
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(made[name], weight)
    assert state(run, work, results) == "recorded"
    found = state(run._replace(pretrained=False), work, results)
    assert found == "recorded with another start"


def test_the_command_loads_the_frames(frames, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "load_dic_hela", lambda folder: frames)
    asked = []
    monkeypatch.setattr(
        "unet_lib.results.table.run_table", lambda *given: asked.append(given) or []
    )
    table = tmp_path / "hela.toml"
    table.write_text(TEXT, encoding="utf-8")
    command = ["experiments", str(table), "--work", str(tmp_path / "work")]
    assert cli.main(command) == 0
    assert asked[0][1] is frames
    assert len(asked[0][0]) == 66
    assert cli.main([*command, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].split() == ["hela-blocks/baseline/1-0", "missing"]
