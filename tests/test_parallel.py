"""Two processes against one with the summed batch; and what cannot be shared."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import unet_lib
from unet_lib import parallel
from unet_lib.data import synthetic_em
from unet_lib.model import load_network
from unet_lib.parallel import Processes
from unet_lib.train import TrainConfig, fit

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
    device="cpu",
)

SCRIPT = """
import json, os, sys
import numpy as np
from unet_lib.train import TrainConfig, fit

folder, arrays, fields = sys.argv[1:]
if folder == "unlike":  # each process sees another folder
    folder = os.path.join(os.path.dirname(arrays), "rank" + os.environ["RANK"])
with np.load(arrays, allow_pickle=False) as file:
    images, labels = file["images"], file["labels"]
run = fit(TrainConfig.from_dict(json.loads(fields)), images, labels, folder, False)
print("losses", [row["loss"] for row in run.history], flush=True)
"""


def together(tmp_path, folder, config=CONFIG):
    """Run two processes, as torchrun starts them."""
    script, arrays = tmp_path / "script.py", tmp_path / "arrays.npz"
    script.write_text(SCRIPT)
    np.savez(arrays, images=IMAGES, labels=LABELS)
    fields = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(folder), str(arrays), fields]
    root = str(Path(unet_lib.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120
    )


def test_two_processes_equal_one_with_the_summed_batch(tmp_path):
    folder = tmp_path / "two"
    done = together(tmp_path, folder)
    assert done.returncode == 0, done.stderr
    one = fit(CONFIG, IMAGES, LABELS, tmp_path / "one", progress=False)
    two = load_network(folder / "network.safetensors")
    for name, tensor in two.state_dict().items():
        expected = one.network.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)
    losses = [
        json.loads(line.partition(" ")[2])
        for line in done.stdout.splitlines()
        if line.startswith("losses")
    ]
    assert len(losses) == 2
    assert losses[0] == losses[1]  # the mean over both
    np.testing.assert_allclose(losses[0], [r["loss"] for r in one.history], rtol=1e-4)
    files = [
        sorted(path.name for path in (tmp_path / name).iterdir())
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert json.loads((folder / "metrics.json").read_text())["processes"] == 2


def test_processes_that_part_say_so(tmp_path):
    # One of them finds a finished run in its folder, the other finds none.
    fit(CONFIG, IMAGES, LABELS, tmp_path / "rank0", progress=False)
    done = together(tmp_path, "unlike")
    assert done.returncode != 0
    assert "would go on from steps [6, 0]" in done.stderr
    assert "file system that the machines share" in done.stderr


@pytest.mark.parametrize(("batch", "count"), [(4, 1), (4, 2), (6, 3), (3, 3)])
def test_shares_are_the_batch(batch, count):
    tiles = range(7 * batch, 8 * batch)
    device = torch.device("cpu")
    shares = [Processes(rank, count, device).share(tiles) for rank in range(count)]
    assert sorted(tile for share in shares for tile in share) == list(tiles)
    assert len(set(map(len, shares))) == 1


def test_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"device must be .* not 'gpu'"):
        parallel.join("gpu", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"batch of 3 cannot .* such as 4"):
        parallel.join("cpu", 3)


def test_alone():
    one = parallel.join("cpu", 3)
    assert (one.rank, one.count, one.first) == (0, 1, True)
    network = torch.nn.Linear(1, 1)
    assert one.wrap(network) is network
    assert one.mean(torch.tensor(2.5)) == 2.5
