"""Two processes against one with the summed batch; what cannot be shared or parts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import unet_lib
from unet_lib.data import synthetic_em
from unet_lib.networks import load_network
from unet_lib.train import TrainConfig, checkpoint, fit, processes
from unet_lib.train.processes import Processes

IMAGES, LABELS = synthetic_em(slices=4, size=40, seed=1)
CONFIG = TrainConfig(
    base_channels=2,
    depth=1,
    dropout=0.0,
    tile=24,
    batch=4,
    momentum=0.9,
    learning_rate=1e-2,
    steps=6,
    save_every=3,
    held_out=(3,),
    watch_at=(3,),
    device="cpu",
)
# Of float32 weights whose gradients were summed in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}

# What each of two processes does, one after the other, and notes in its own file.
SCRIPT = """
import faulthandler, json, os, sys, types
faulthandler.dump_traceback_later(120, exit=True)  # where it waits, if it does
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from unet_lib import cli, data
from unet_lib.train import TileSampler, TrainConfig, fit

here, config = Path(sys.argv[1]), TrainConfig.from_dict(json.loads(sys.argv[2]))
rank, noted = os.environ["RANK"], {"tiles": [], "seeds": [], "wandb": 0}
with np.load(here / "arrays.npz", allow_pickle=False) as file:
    images, labels = file["images"], file["labels"]

def init(**options):
    noted["wandb"] += 1
    nothing = lambda *args, **options: None
    return types.SimpleNamespace(log=nothing, finish=nothing)

sys.modules["wandb"] = wandb = types.ModuleType("wandb")
wandb.init, wandb.Image = init, lambda pixels: pixels

batch = TileSampler.batch
def spy(self, tiles):
    noted["tiles"].append(list(tiles))
    noted["seeds"].append(torch.initial_seed())
    return batch(self, tiles)

def keep(optimizer, *rest):
    path = here / f"gradients{rank}.safetensors"
    if not path.exists():
        parameters = optimizer.param_groups[0]["params"]
        save_file({str(n): p.grad.contiguous() for n, p in enumerate(parameters)}, path)

TileSampler.batch = spy
hook = register_optimizer_step_pre_hook(keep)
run = fit(config, images, labels, here / "two", False, ("tensorboard", "wandb"))
noted["losses"] = [row["loss"] for row in run.history]
TileSampler.batch = batch
hook.remove()

noted["resumed"] = fit(config, images, labels, here / "resumed", False).history[0]

refused = [(replace(config, batch=3), "none"), (replace(config, device="gpu"), "none"),
           (config, "seen" + rank)]
noted["refused"] = []
for unlike, folder in refused:
    try:
        fit(unlike, images, labels, here / folder, False)
    except Exception as error:
        noted["refused"].append(f"{type(error).__name__}: {error}")

stacks = data.Stacks(images, labels, images, None, "ISBI 2012")
data.load_isbi2012 = lambda folder: stacks
noted["code"] = cli.main(
    ["train", str(here / "command"), "--config", str(here / "two" / "config.json")]
)
(here / f"noted{rank}.json").write_text(json.dumps(noted))

fit(replace(config, seed=1), images, labels, here / "two", False)
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One process here, and two as torchrun starts them."""
    here = tmp_path_factory.mktemp("processes")
    np.savez(here / "arrays.npz", images=IMAGES, labels=LABELS)
    (here / "script.py").write_text(SCRIPT)
    gradients = []

    def keep(optimizer, *rest):
        parameters = optimizer.param_groups[0]["params"]
        gradients.append([p.grad.clone() for p in parameters])

    hook = register_optimizer_step_pre_hook(keep)
    one = fit(CONFIG, IMAGES, LABELS, here / "one", progress=False)
    hook.remove()
    # A run of one process, whose last checkpoint is damaged; and a finished one
    # that only the first of two processes sees.
    fit(CONFIG, IMAGES, LABELS, here / "resumed", progress=False)
    os.truncate(here / "resumed" / checkpoint.CURRENT, 500)
    fit(CONFIG, IMAGES, LABELS, here / "seen0", progress=False)
    fields = json.dumps(dataclasses.asdict(CONFIG))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(here / "script.py"), str(here), fields]
    root = str(Path(unet_lib.__file__).parents[1])
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    noted = [here / f"noted{rank}.json" for rank in (0, 1)]
    assert all(path.exists() for path in noted), done.stderr
    noted = [json.loads(path.read_text()) for path in noted]
    return SimpleNamespace(here=here, one=one, gradients=gradients, done=done, at=noted)


def test_the_shares_of_each_step_are_its_batch(both):
    steps = list(zip(*(noted["tiles"] for noted in both.at), strict=True))
    assert len(steps) == CONFIG.steps
    for step, shares in enumerate(steps):
        tiles = sorted(tile for share in shares for tile in share)
        assert tiles == list(range(step * CONFIG.batch, (step + 1) * CONFIG.batch))


def test_each_draws_a_dropout_of_its_own(both):
    mine, theirs = (noted["seeds"] for noted in both.at)
    assert len({*mine, *theirs}) == 2 * CONFIG.steps
    assert mine == list(range(CONFIG.steps))  # as one process alone


def test_gradients_are_those_of_one_process(both):
    for rank in (0, 1):
        gradients = load_file(both.here / f"gradients{rank}.safetensors")
        for number, expected in enumerate(both.gradients[0]):
            torch.testing.assert_close(gradients[str(number)], expected, **TOLERANCE)


def test_losses_are_those_of_one_process(both):
    expected = [row["loss"] for row in both.one.history]
    assert both.at[0]["losses"] == both.at[1]["losses"]  # the mean over both
    np.testing.assert_allclose(both.at[0]["losses"], expected, rtol=1e-4)


@pytest.mark.parametrize("folder", ["two", "resumed", "command"])
def test_weights_are_those_of_one_process(both, folder):
    network = load_network(both.here / folder / "network.safetensors")
    for name, expected in both.one.network.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], expected, **TOLERANCE)


def test_processes_go_on_from_the_checkpoint_of_one(both):
    with safe_open(both.here / "resumed" / checkpoint.PREVIOUS, "pt") as file:
        assert file.metadata()["step"] == "3"
    with safe_open(both.here / "one" / checkpoint.PREVIOUS, "pt") as file:
        row = json.loads(file.metadata()["history"])[0]
    for noted in both.at:
        assert noted["resumed"]["loss"] == row["loss"]  # of the one process
    assert both.done.stderr.count("is damaged") == 1  # the first puts it aside
    assert (both.here / "resumed" / "checkpoint.damaged").stat().st_size == 500


def test_only_the_first_writes_and_reports(both):
    def files(name):
        folder = both.here / name
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    extra = [name for name in files("two") if name not in files("one")]
    assert extra[0] == "tensorboard"
    assert len(extra) == 2  # and one file in it
    assert sorted({*files("one"), *extra}) == files("two")
    assert [noted["wandb"] for noted in both.at] == [1, 0]
    metrics = json.loads((both.here / "two" / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert metrics["steps"] == CONFIG.steps
    assert [noted["code"] for noted in both.at] == [0, 0]
    assert both.done.stdout.count("Slices 3: pixel error (1 - Dice") == 1
    assert both.done.stdout.count("Recorded in ") == 1


def test_what_all_of_them_refuse(both):
    for noted in both.at:
        batch, device, steps = noted["refused"]
        assert batch.startswith("ValueError: A batch of 3 cannot be shared by 2")
        assert device.startswith("ValueError: device must be ")
        assert steps.startswith("OSError: The processes would go on from steps [6, 0]")
        assert "file system that the machines share" in steps
    assert not (both.here / "none").exists()


def test_what_the_first_refuses_ends_them_all(both):
    assert both.done.returncode != 0
    assert "holds another run: seed differ(s)" in both.done.stderr


@pytest.mark.parametrize(("batch", "count"), [(4, 1), (4, 2), (6, 3), (3, 3)])
def test_shares_are_the_batch(batch, count):
    tiles = range(7 * batch, 8 * batch)
    device = torch.device("cpu")
    shares = [Processes(rank, count, device).share(tiles) for rank in range(count)]
    assert sorted(tile for share in shares for tile in share) == list(tiles)
    assert len(set(map(len, shares))) == 1


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 99, 1.5])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=r"device must be .* for the fastest, not"):
        processes.join(device, 1)


def test_a_batch_that_cannot_be_shared(monkeypatch):
    for count, batch, multiple in ((2, 3, 4), (4, 1, 4), (4, 9, 8)):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        with pytest.raises(ValueError, match=rf"{count} processes: .* as {multiple}\."):
            processes.join("cpu", batch)


def test_alone():
    one = processes.join("cpu", 3)
    assert (one.rank, one.count, one.first) == (0, 1, True)
    network = torch.nn.Linear(1, 1)
    assert one.wrap(network) is network
    assert one.mean(torch.tensor(2.5)) == 2.5
