"""Every part of the benchmarks at a tiny size, on the CPU; nothing is timed."""

import json
from functools import partial

import large_image
import numpy as np
import pytest
import run
import torch
import training
import training_cpu
from inference import inference
from plain_loader import MAKERS, Tiles, check_tiles
from steps import Steps, batches, check_losses, operations, sampler_of

from unet_lib import train
from unet_lib.augment import Augmentation
from unet_lib.data import Stacks, synthetic_em
from unet_lib.train import TrainConfig, fit
from unet_lib.weights import weight_map

IMAGES, LABELS = synthetic_em(slices=8, size=96, seed=1)
STACKS = Stacks(IMAGES, LABELS, IMAGES, None, "synthetic")
CONFIG = TrainConfig(
    base_channels=2,
    depth=2,
    tile=60,
    steps=4,
    augmentation=Augmentation(deformation=1),
    schedule="constant",
    device="cpu",
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The command with tiny parts: called, it gives the record."""
    parts = {
        "weight-map": partial(run.weight_maps, size=128, repeats=1),
        "deformation": partial(run.deformations, size=60, repeats=1),
        "overlap-tile": run.overlap_tiles,
        "training-cpu": partial(run.training_cpu, config=CONFIG, repeats=1),
        "training": partial(
            training.ladder, config=CONFIG, larger=(2,), count=1, repeats=1, side=32
        ),
        "inference": partial(inference, channels=1, tile=188, repeats=1),
    }
    assert set(parts) == set(run.PARTS)
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "best_device", lambda: "cpu")
    monkeypatch.setattr(run.data, "load_or_stand_in", lambda: STACKS)
    # What a compiler makes is not tested here; that it is asked to is.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def call(*names):
        run.main(names)
        (path,) = tmp_path.glob("*.json")
        return json.loads(path.read_text())

    return call


@pytest.mark.parametrize("part", run.PARTS)
def test_a_part_writes_what_the_page_reads(tiny, part):
    record = tiny(part)
    assert record["device_type"] == "cpu"
    assert record["parts"][part]["date"]
    assert record["parts"][part]["data"] == "synthetic"
    assert record["rows"]
    for row in record["rows"]:
        assert row["part"] == part
        assert row["what"] != row["other"]
        assert row["ratio"] == pytest.approx(row["other_seconds"] / row["seconds"])
        if row.get("tiles_per_second"):
            assert row["peak_gib"] is None


def test_rows_of_other_parts_are_kept(tiny, monkeypatch):
    def one(ratio):
        return lambda *_: [{"what": "a", "other": "b", "ratio": ratio} | times]

    times = {"seconds": 1.0, "other_seconds": 1.0}
    monkeypatch.setitem(run.PARTS, "inference", one(1))
    monkeypatch.setitem(run.PARTS, "weight-map", one(2))
    tiny("inference", "weight-map")
    monkeypatch.setitem(run.PARTS, "inference", one(3))
    monkeypatch.setitem(run.PARTS, "weight-map", lambda *_: [])  # left out
    rows = tiny("inference", "weight-map")["rows"]
    assert [(row["part"], row["ratio"]) for row in rows] == [
        ("weight-map", 2),
        ("inference", 3),
    ]


def test_an_unknown_part_is_refused(tiny):
    with pytest.raises(SystemExit):
        tiny("trainning")


def test_steps_are_those_of_fit(monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    history = fit(CONFIG, IMAGES, LABELS, progress=False).history
    sampler = train.TileSampler(
        IMAGES, LABELS, weight_map(LABELS), 60, 20, CONFIG.augmentation
    )
    steps = Steps(CONFIG, batches(sampler, 1), "cpu")
    assert [row["loss"] for row in history] == [float(steps()) for _ in range(4)]


@pytest.mark.parametrize("maker", MAKERS)
def test_plain_tiles_are_the_samplers(maker):
    sampler = sampler_of(STACKS, CONFIG, "cpu")
    check_tiles(sampler, maker)
    tiles = Tiles(sampler, maker)
    _, label, weight = sampler.batch([0])
    assert (label[0] == tiles[0][1]).float().mean() > 0.999
    np.testing.assert_allclose(weight[0], tiles[0][2], atol=2e-2)
    tiles.maps = 1 - tiles.maps  # other pixels are not passed over
    wrong = tiles[0][0]
    assert (wrong - sampler.batch([0])[0][0]).abs().max() > 0.1


def test_losses_that_part_are_not_timed():
    check_losses("same", [1.0, 2.0], [1.001, 2.0], half=False)
    with pytest.raises(AssertionError, match="other way"):
        check_losses("other way", [1.0, 2.2], [1.0, 2.0], half=True)


def test_a_large_image_is_measured(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    monkeypatch.setattr(large_image.data, "load_or_stand_in", lambda: STACKS)
    assert large_image.draw(tmp_path, side=250) == "synthetic"
    image = large_image.zarr.open_array(tmp_path / "image")[:]
    np.testing.assert_array_equal(image[:96, :96], (255 * IMAGES[0]).round())
    assert image.shape == (250, 250)
    found = large_image.measure(tmp_path, side=250, channels=1)
    assert found["peak_mb"] >= found["before_mb"] > 0
    assert large_image.difference(tmp_path, side=250, channels=1) < 1e-6


def test_the_papers_operations():
    assert operations(572) == pytest.approx(0.903e12, rel=1e-3)


def test_parts_know_their_device(capsys):
    assert training.training(STACKS, "cpu") == []
    assert training_cpu.training_cpu(STACKS, "cuda") == []
    assert capsys.readouterr().out.count("GPU") == 2


def test_the_host_does_not_wait_for_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    sampler = sampler_of(STACKS, CONFIG, "cuda")
    steps = Steps(CONFIG, batches(sampler, 1), "cuda")
    steps()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(), steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
