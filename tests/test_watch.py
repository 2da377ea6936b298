"""Watching a run: TensorBoard read back, Weights & Biases by a stand-in for it."""

import subprocess
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_lib.data import synthetic_em
from unet_lib.train import TrainConfig, fit
from unet_lib.watch import open_watchers

IMAGES, LABELS = synthetic_em(slices=3, size=40, seed=1)
CONFIG = TrainConfig(
    base_channels=1,
    depth=1,
    tile=24,
    steps=4,
    save_every=2,
    held_out=(2,),
    watch_at=(2,),
    device="cpu",
)


def test_tensorboard_has_the_history(tmp_path):
    run = fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss")
    assert [one.step for one in scalars] == [row["step"] for row in run.history]
    np.testing.assert_allclose(
        [one.value for one in scalars], [row["loss"] for row in run.history], rtol=1e-6
    )
    assert [one.step for one in events.Scalars("pixel_error")] == [2]
    assert [one.step for one in events.Images("held out")] == [2]


def fake_wandb(monkeypatch):
    """A module of that name which notes what it is told."""
    told = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, sorted(numbers))),
        finish=lambda: told.append("finished"),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: told.append(options) or run
    module.Image = lambda pixels: pixels
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_is_off_line_unless_told(tmp_path, monkeypatch, mode):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    told = fake_wandb(monkeypatch)
    fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=("wandb",))
    assert told[0]["mode"] == (mode or "offline")
    assert told[0]["dir"] == tmp_path
    assert told[0]["config"]["steps"] == 4
    row = ["learning_rate", "loss", "seconds"]
    assert told[1:] == [
        (2, ["held out"]),
        (2, sorted([*row, "pixel_error"])),
        (4, row),
        "finished",
    ]


def test_neither_is_imported_unless_asked_for():
    code = (
        "import sys; sys.modules['wandb'] = sys.modules['tensorboard'] = None\n"
        "from unet_lib import train\n"
        "from unet_lib.watch import open_watchers\n"
        "assert open_watchers((), None, {}, 0) == []"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=rf"pip install \"unet-lib\[{name}\]\""):
        open_watchers((name,), tmp_path, {}, 0)


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="of tensorboard, wandb, got 'paper'"):
        open_watchers(["paper"], tmp_path, {}, 0)
    with pytest.raises(ValueError, match="needs a folder"):
        open_watchers("tensorboard", None, {}, 0)
