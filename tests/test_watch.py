"""Watching a run: TensorBoard and Weights & Biases read back, the latter off line."""

import csv
import json
import os
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_lib import train
from unet_lib.data import synthetic_em
from unet_lib.train import TrainConfig, fit, steps
from unet_lib.train.loggers import check_watchers

IMAGES, LABELS = synthetic_em(slices=3, size=40, seed=1)
CONFIG = TrainConfig(
    base_channels=1,
    depth=1,
    tile=24,
    steps=6,
    save_every=3,
    held_out=(2,),
    watch_at=(2, 5),
    device="cpu",
)


class Stopped(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def stops(monkeypatch):
    """Rows at every step, and a run that stops in its sixth, after a checkpoint."""
    loss, calls = steps.weighted_cross_entropy, []

    def spy(*args):
        calls.append(1)
        if len(calls) == 6:
            raise Stopped
        return loss(*args)

    monkeypatch.setattr(train, "LOG_EVERY", 1)
    monkeypatch.setattr(steps, "weighted_cross_entropy", spy)


def in_tensorboard(folder):
    """Its event files: a dictionary of steps and values for each name."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }, [one.step for one in events.Images("held out")]


def in_history(folder):
    """The same of history.csv."""
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        for name in rows[0]
        if name != "step"
    }


@pytest.mark.usefixtures("stops")
def test_tensorboard_has_the_history_and_no_step_twice(tmp_path):
    with pytest.raises(Stopped):
        fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=("tensorboard",))
    scalars, pictures = in_tensorboard(tmp_path)
    assert [step for step, _ in scalars["loss"]] == [1, 2, 3, 4, 5]
    assert pictures == [2, 5]
    # It goes on from step 3, and so writes steps 4 and 5 once more.
    fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=("tensorboard",))
    scalars, pictures = in_tensorboard(tmp_path)
    assert [step for step, _ in scalars["loss"]] == [1, 2, 3, 4, 5, 6]
    assert pictures == [2, 5]
    history = in_history(tmp_path)
    assert set(scalars) == set(history)
    for name, values in history.items():
        np.testing.assert_allclose(scalars[name], values, rtol=1e-6)


RUN = """
import sys
from test_watch import CONFIG, IMAGES, LABELS
from unet_lib import train

train.LOG_EVERY = 1
train.fit(CONFIG, IMAGES, LABELS, sys.argv[1] + "/alone", False)
assert "wandb" not in sys.modules
train.fit(CONFIG, IMAGES, LABELS, sys.argv[1] + "/run", False, ("wandb",))
"""


def in_wandb(path):
    """The rows of a run's file, as a dictionary each.

    After 7 bytes come blocks of 32 KiB of records, or parts of one, each behind 4
    bytes of checksum, 2 of length and 1 that says which part: 1 whole, 2 first, 3
    middle, 4 last (LevelDB's format of a log).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # too short for a header: padding
            place += left
            continue
        length, part = int.from_bytes(data[place + 4 : place + 6], "little"), place + 7
        whole += data[part : part + length]
        if data[place + 6] in (1, 4):
            record, whole = Record.FromString(whole), b""
            if items := record.history.item:
                rows.append(
                    {
                        item.key or ".".join(item.nested_key): json.loads(
                            item.value_json
                        )
                        for item in items
                    }
                )
        place = part + length
    return rows


def test_wandb_off_line_keeps_the_losses_and_sends_nothing(tmp_path):
    """In a process of its own; whatever it sent would go through our proxy."""
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), proxy)
        proxies |= {name.lower(): value for name, value in proxies.items()}
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("WANDB") and name.upper() != "NO_PROXY"
        }
        subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path)],
            check=True,
            cwd=os.path.dirname(__file__),
            env=kept | proxies | {"WANDB_BASE_URL": "http://wandb.invalid"},
        )
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    rows = [(row["_step"], row["loss"]) for row in in_wandb(path) if "loss" in row]
    assert rows == in_history(tmp_path / "run")["loss"]
    assert len(rows) == CONFIG.steps
    pictures = path.parent.glob("files/media/images/*.png")
    assert len(list(pictures)) == len(CONFIG.watch_at)


@pytest.fixture
def told(monkeypatch):
    """What a module of the name of wandb is told."""
    told = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)),
        finish=lambda exit_code: told.append(exit_code),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: told.append(options) or run
    module.Image = lambda pixels: pixels
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # taken back after the test
    return told


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_is_off_line_unless_told(tmp_path, monkeypatch, told, mode):
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    run = fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=("wandb",))
    start, *logged, end = told
    assert start["mode"] == (mode or "offline")
    assert start["dir"] == tmp_path
    assert start["config"]["steps"] == 6
    assert end == 0
    rows = [{"step": step} | row for step, row in logged if "loss" in row]
    assert rows == run.history
    pictures = [(step, row["held out"]) for step, row in logged if "held out" in row]
    assert [step for step, _ in pictures] == [2, 5]
    assert pictures[0][1].shape == (40, 40)
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)  # it drops what comes for an earlier step


@pytest.mark.usefixtures("stops")
def test_a_run_that_fails_ends_as_failed(tmp_path, told):
    with pytest.raises(Stopped):
        fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=("wandb",))
    assert told[-1] == 1
    # What comes next in the same process is a run of its own.
    fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=["wandb", "wandb"])
    assert told[-1] == 0
    assert sum("mode" in one for one in told if isinstance(one, dict)) == 2


def test_neither_is_imported_unless_asked_for(tmp_path, monkeypatch):
    """By a run; that the modules do not, a process of its own shows in test_train."""
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    fit(CONFIG, IMAGES, LABELS, tmp_path, progress=False)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=rf"pip install \"unet-lib\[{name}\]\""):
        fit(CONFIG, IMAGES, LABELS, tmp_path, False, watchers=(name,))


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="of tensorboard, wandb, got 'paper'"):
        check_watchers(["paper"], tmp_path)
    with pytest.raises(ValueError, match="needs a folder"):
        check_watchers("tensorboard", None)
    folder = tmp_path / "run"  # and before anything is written
    with pytest.raises(ValueError, match="of tensorboard, wandb, got 'paper'"):
        fit(CONFIG, IMAGES, LABELS, folder, False, watchers=("paper",))
    assert not folder.exists()
