"""The loss against its formula; runs that are stopped, spoilt and resumed."""

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from unet_lib import train
from unet_lib.augment import Augmentation, TileSampler
from unet_lib.data import folds, synthetic_em
from unet_lib.metrics import pixel_error
from unet_lib.model import UNet
from unet_lib.networks import load_network
from unet_lib.predict import predict
from unet_lib.train import (
    TrainConfig,
    checkpoint,
    context,
    fit,
    steps,
    weighted_cross_entropy,
)
from unet_lib.train import folder as folders
from unet_lib.train.checkpoint import State
from unet_lib.weights import weight_map

# The loss.


def tensors(classes=2, shape=(2, 5, 4), seed=0, spread=5.0):
    random = np.random.default_rng(seed)
    scores = random.normal(0, spread, (shape[0], classes, *shape[1:]))
    return (
        torch.from_numpy(scores),
        torch.from_numpy(random.integers(0, classes, shape)),
        torch.from_numpy(random.uniform(0.1, 12, shape)),
    )


@given(
    classes=st.integers(2, 5),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 1000),
    spread=st.floats(0, 300),
)
@settings(max_examples=40)
def test_loss_is_the_formula(classes, shape, seed, spread):
    scores, labels, weights = tensors(classes, shape, seed, spread)
    energy = 0.0
    for batch, row, column in np.ndindex(*shape):
        a = scores[batch, :, row, column].numpy()
        logarithm = a - a.max() - np.log(np.exp(a - a.max()).sum())
        w = float(weights[batch, row, column])
        energy += w * logarithm[int(labels[batch, row, column])]
    loss = weighted_cross_entropy(scores, labels, weights)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(-energy / np.prod(shape), rel=1e-10, abs=1e-10)


def test_loss_is_a_mean_over_pixels_not_over_weights():
    scores, labels, weights = tensors()
    loss = weighted_cross_entropy(scores, labels, weights)
    doubled = weighted_cross_entropy(scores, labels, 2 * weights)
    assert float(doubled) == pytest.approx(2 * float(loss))
    tiled = [torch.cat([part, part], dim=-1) for part in (scores, labels, weights)]
    assert float(weighted_cross_entropy(*tiled)) == pytest.approx(float(loss))


def test_gradients_of_the_loss():
    scores, labels, weights = tensors(3)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: weighted_cross_entropy(s, labels, weights), scores
    )
    # By hand: w (p - 1 at the label) over the number of pixels.
    weighted_cross_entropy(scores, labels, weights).backward()
    by_hand = torch.softmax(scores.detach(), 1)
    by_hand.scatter_add_(1, labels[:, None], -torch.ones_like(by_hand[:, :1]))
    by_hand *= weights[:, None] / labels.numel()
    torch.testing.assert_close(scores.grad, by_hand, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision_is_finite(dtype):
    _, labels, weights = tensors(shape=(1, 40, 40))
    scores = torch.full((1, 2, 40, 40), 60000.0).to(dtype)
    scores[:, 1] *= -1
    scores.requires_grad_()
    loss = weighted_cross_entropy(scores, labels, weights.float())
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()
    assert loss.item() > 60000  # as a half it would have overflowed


def test_loss_under_autocast():
    network = UNet(base_channels=2, depth=1)
    size = network.input_size(4)
    with torch.autocast("cpu", torch.bfloat16):
        scores = network(torch.rand(1, 1, size, size))
        _, labels, weights = tensors(shape=(1, *scores.shape[2:]))
        loss = weighted_cross_entropy(scores, labels, weights.float())
    assert scores.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


# Runs.

IMAGES, LABELS = synthetic_em(slices=4, size=48, seed=1)
TILE = UNet(base_channels=1, depth=1).input_size(20)


@pytest.fixture(autouse=True)
def read_only():
    """A run that wrote into its images or labels would fail."""
    for array in (IMAGES, LABELS):
        array.setflags(write=False)


def config(**changes):
    options = {
        "base_channels": 2,
        "depth": 1,
        "tile": TILE,
        "batch": 2,
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "steps": 8,
        "average": 0.5,
        "held_out": (3,),
        "save_every": 3,
        "device": "cpu",
    }
    return TrainConfig(**options | changes)


PLAIN = {"optimizer": "sgd", "average": 0.0, "learning_rate": 1e-3}


def run(configuration, folder=None, images=IMAGES, labels=LABELS):
    return fit(configuration, images, labels, folder, progress=False)


def same_run(first, second):
    """Bit for bit, but for the seconds."""
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name
    histories = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in one.history]
        for one in (first, second)
    ]
    assert histories[0] == histories[1]
    metrics = [
        {k: v for k, v in one.metrics.items() if k != "seconds"}
        for one in (first, second)
    ]
    assert metrics[0] == metrics[1]


def stored(folder, name=checkpoint.CURRENT):
    """Step and tensors of a checkpoint."""
    with safe_open(folder / name, framework="pt") as file:
        step = int(file.metadata()["step"])
        return step, {key: file.get_tensor(key) for key in list(file.keys())}


class Stopped(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("options", [{}, PLAIN, {"batch_norm": True}])
@pytest.mark.parametrize("after", [False, True])
def test_resumed_equals_unstopped(tmp_path, monkeypatch, options, after):
    unstopped = run(config(**options), tmp_path / "unstopped")
    save = checkpoint.save_checkpoint
    calls = []

    def stops(folder, state):
        calls.append(state.step)
        if len(calls) == 2 and not after:
            raise Stopped
        save(folder, state)
        if len(calls) == 2 and after:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save_checkpoint", stops)
    with pytest.raises(Stopped):
        run(config(**options), tmp_path / "stopped")
    assert calls == [3, 6]
    assert stored(tmp_path / "stopped")[0] == (6 if after else 3)
    resumed = run(config(**options), tmp_path / "stopped")
    assert calls[2:] == ([8] if after else [6, 8])
    same_run(unstopped, resumed)
    for name in ("config.json", "network.safetensors"):
        whole, joined = (
            (tmp_path / folder / name).read_bytes()
            for folder in ("unstopped", "stopped")
        )
        assert whole == joined
    # A run that is done is not trained again.
    same_run(unstopped, run(config(**options), tmp_path / "stopped"))
    assert calls[2:] == ([8] if after else [6, 8])


KILLED = """
import os, signal, sys
import numpy as np
import torch

sys.modules["wandb"] = sys.modules["tensorboard"] = None  # not asked for: see watch
from unet_lib.train import checkpoint
from unet_lib.train import TrainConfig, fit

folder, arrays, configuration = sys.argv[1:]
save, calls = checkpoint.save_file, []

def killed(tensors, path, metadata):
    save(tensors, path, metadata)
    calls.append(path)
    if len(calls) == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_file = killed
with np.load(arrays, allow_pickle=False) as file:
    images, labels = file["images"], file["labels"]
import json
torch.set_num_threads(1)
fit(TrainConfig.from_dict(json.loads(configuration)), images, labels, folder, False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_while_saving(tmp_path):
    folder, arrays = tmp_path / "run", tmp_path / "arrays.npz"
    np.savez(arrays, images=IMAGES, labels=LABELS)
    configuration = json.dumps(dataclasses.asdict(config()))
    root = str(Path(train.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(arrays), configuration],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert stored(folder)[0] == 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        same_run(run(config()), run(config(), folder))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-5], lambda whole: b"junk"])
def test_a_damaged_checkpoint_falls_back(tmp_path, damage):
    unstopped = run(config(), tmp_path)
    path = tmp_path / checkpoint.CURRENT
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert stored(tmp_path, checkpoint.PREVIOUS)[0] == 6
    with pytest.warns(UserWarning, match=f"{checkpoint.CURRENT} is damaged"):
        same_run(unstopped, run(config(), tmp_path))
    # Set aside, and so not kept as the one before the next.
    assert (tmp_path / "checkpoint.damaged").read_bytes() == damage(whole)
    stored(tmp_path, checkpoint.PREVIOUS)
    # Both damaged: from the start, said twice.
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"junk")
    with pytest.warns(UserWarning, match="from the start") as warned:
        same_run(unstopped, run(config(), tmp_path))
    assert len(warned) == 2


def test_another_configuration_is_named(tmp_path):
    run(config(), tmp_path)
    before = stored(tmp_path)[1]
    augmentation = Augmentation(mirror=True)
    changed = config(steps=9, seed=1, augmentation=augmentation)
    with pytest.raises(ValueError, match="augmentation, seed, steps differ"):
        run(changed, tmp_path)
    after = stored(tmp_path)[1]
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Where it runs and how often one looks is no other run.
    run(config(save_every=2, watch_at=(1,), device=None), tmp_path)


@pytest.mark.parametrize("text", ["", "{broken", "[1, 2]", "null"])
def test_a_configuration_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"not a run's configuration .* another"):
        folders.claim(tmp_path, {"steps": 1}, {})


def test_differences_are_named(tmp_path):
    path = tmp_path / "config.json"
    asked = dataclasses.asdict(config())
    folders.claim(tmp_path, asked, {})
    assert folders.differences(path, asked) == []
    freed = {"device": "cuda", "watch_at": (1,), "save_every": 7}
    assert folders.differences(path, asked | freed) == []
    changed = {"steps": 9, "held_out": (1,), "augmentation": {}, "new": 1}
    unlike = ["augmentation", "held_out", "new", "steps"]
    assert folders.differences(path, asked | changed) == unlike
    fewer = {name: value for name, value in asked.items() if name != "seed"}
    assert folders.differences(path, fewer) == ["seed"]
    with pytest.raises(ValueError, match=r"nowhere.config\.json is not a run's"):
        folders.differences(tmp_path / "nowhere" / "config.json", asked)


def test_a_checkpoint_of_another_network(tmp_path):
    narrow, wide = UNet(base_channels=1, depth=1), UNet(base_channels=2, depth=1)
    optimizer = torch.optim.SGD(narrow.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.save_checkpoint(tmp_path, State(narrow, None, optimizer, scaler, 3))
    with pytest.raises(ValueError, match=r"is of another network than this network"):
        checkpoint.load_checkpoint(tmp_path, State(wide, None, optimizer, scaler))


def test_numbers_of_numpy_are_numbers(tmp_path):
    given = config(steps=np.int64(2), w0=np.float32(10), held_out=np.arange(1))
    assert given == config(steps=2, w0=10.0, held_out=(0,))
    run(given, tmp_path)  # as JSON


def test_a_loss_that_is_no_number(tmp_path):
    # Whether the loss or the prediction of the held-out slice gives way first.
    wild = config(**PLAIN | {"learning_rate": 1e30}, save_every=1)
    with pytest.raises(FloatingPointError, match=r"learning_rate below 1e\+30"):
        run(wild, tmp_path)
    step, weights = stored(tmp_path)
    assert 1 <= step <= 8
    assert "network/classify.weight" in weights
    assert not (tmp_path / "network.safetensors").exists()


def test_a_spoilt_step_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    unstopped = run(config())
    loss, calls = steps.weighted_cross_entropy, []

    def spoilt(*args):
        calls.append(1)
        return loss(*args) * (np.nan if len(calls) == 5 else 1)

    monkeypatch.setattr(steps, "weighted_cross_entropy", spoilt)
    with pytest.raises(FloatingPointError, match="loss is nan at step 6"):
        run(config(), tmp_path)
    step, weights = stored(tmp_path)
    assert step == 3
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    same_run(unstopped, run(config(), tmp_path))


def test_stopped_before_its_history_is_written(tmp_path, monkeypatch):
    write = folders.write_text

    def stops(path, text):
        if path.name == "history.csv" and "\n8," in text:
            raise Stopped
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_text", stops)
        with pytest.raises(Stopped):
            run(config(), tmp_path)
    run(config(), tmp_path)
    assert "\n8," in (tmp_path / "history.csv").read_text()


# What is trained on.


def test_held_out_slices_are_not_seen(monkeypatch):
    seen = []

    class Spy(TileSampler):
        def __init__(self, images, labels, weights, *rest):
            seen.append((images, labels, weights))
            super().__init__(images, labels, weights, *rest)

    monkeypatch.setattr(steps, "TileSampler", Spy)
    held_out = config(held_out=(1, 2))
    first = run(held_out)
    (images, labels, weights), *_ = seen
    np.testing.assert_array_equal(images, IMAGES[[0, 3]])
    np.testing.assert_array_equal(labels, LABELS[[0, 3]])
    np.testing.assert_array_equal(weights, weight_map(LABELS[[0, 3]]))
    # Whatever they hold, the network comes out the same.
    other_images, other_labels = IMAGES.copy(), LABELS.copy()
    other_images[1:3] = 0.25
    other_labels[1:3] = 1 - other_labels[1:3]
    second = run(held_out, images=other_images, labels=other_labels)
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name])
    assert first.metrics["pixel_error"] != second.metrics["pixel_error"]


def test_folds_fit_a_configuration(tmp_path):
    _, held_out = folds(4, 2)[1]
    configuration = config(held_out=held_out, steps=1)
    assert configuration == config(held_out=(2, 3), steps=1)
    run(configuration, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert TrainConfig.from_dict(written) == configuration


def test_steps_are_momentum_sgd():
    """Three steps written out: the schedule, the momentum, the tiles, the loss."""
    ours = run(config(**PLAIN, steps=3, dropout=0.0, held_out=(), momentum=0.9))
    torch.manual_seed(0)
    network = UNet(base_channels=2, depth=1, dropout=0.0)
    tiles = TileSampler(
        IMAGES, LABELS, weight_map(LABELS), TILE, network.output_size(TILE)
    )
    velocities = [torch.zeros_like(p) for p in network.parameters()]
    for step in range(3):
        image, label, weight = tiles.batch([2 * step, 2 * step + 1])
        logarithms = torch.log_softmax(network(image), 1)
        chosen = logarithms.gather(1, label[:, None])[:, 0]
        loss = -(weight * chosen).mean()
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter, velocity in zip(
                network.parameters(), velocities, strict=True
            ):
                velocity.mul_(0.9).add_(parameter.grad)
                parameter.sub_(1e-3 * (1 - step / 3) * velocity)
    for name, tensor in ours.network.state_dict().items():
        torch.testing.assert_close(
            tensor, network.state_dict()[name], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("average", [0.0, 0.75])
def test_the_running_average(tmp_path, monkeypatch, average, batch_norm):
    """Of the weights, and of a batch normalization's statistics too."""
    save, weights = checkpoint.save_checkpoint, []

    def spy(folder, state):
        weights.append({k: v.clone() for k, v in state.network.state_dict().items()})
        save(folder, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", spy)
    asked = config(average=average, batch_norm=batch_norm, save_every=1)
    ours = run(asked, tmp_path)
    assert len(weights) == 8
    assert any("running_var" in name for name in weights[0]) == batch_norm
    for name, tensor in ours.network.state_dict().items():
        if not tensor.is_floating_point():
            continue  # a count of batches, which nothing reads
        expected = weights[0][name]
        for later in weights[1:]:
            expected = average * expected + (1 - average) * later[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
        if average == 0:  # the last weights themselves
            assert torch.equal(tensor, weights[-1][name])


def test_the_loss_falls(monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 20)
    images, labels = synthetic_em(slices=3, size=96, seed=2)
    tile = UNet(base_channels=1, depth=2).input_size(40)
    learns = config(
        base_channels=4, depth=2, tile=tile, steps=80, held_out=(), dropout=0.0
    )
    losses = [row["loss"] for row in run(learns, images=images, labels=labels).history]
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < 0.85 * np.mean(losses[:quarter])


def test_the_seed_decides():
    same_run(run(config(steps=2)), run(config(steps=2)))
    first, second = run(config(steps=2)), run(config(steps=2, seed=1))
    assert first.history[-1]["loss"] != second.history[-1]["loss"]


# What is written.


def test_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "LOG_EVERY", 5)
    folder = tmp_path / "new" / "run"
    result = run(config(held_out=(1, 3), watch_at=(2, 8, 99)), folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert files == {
        "config.json",
        "data.json",
        "history.csv",
        "in-use.lock",
        "metrics.json",
        "network.safetensors",
        checkpoint.CURRENT,
        checkpoint.PREVIOUS,
        "watched",
        "watched/step-000002.png",
        "watched/step-000008.png",
    }
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["step", "seconds", "loss", "learning_rate", "pixel_error"]
    assert list(rows[0]) == names
    assert [int(row["step"]) for row in rows] == [2, 3, 5, 6, 8]
    assert [bool(row["pixel_error"]) for row in rows] == [True, *[False] * 3, True]
    assert float(rows[1]["learning_rate"]) == pytest.approx(1e-2 * (1 - 2 / 8))
    for row, kept in zip(rows, result.history, strict=True):
        assert {k: float(v) for k, v in row.items() if v} == kept
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)

    network = load_network(folder / "network.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, result.network.state_dict()[name])
    probabilities = predict(network, IMAGES[[1, 3]])
    curve = pixel_error(LABELS[[1, 3]], probabilities)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert result.metrics.items() <= metrics.items()
    assert metrics["pixel_error"] == curve.value == float(rows[-1]["pixel_error"])
    assert metrics["threshold"] == curve.threshold
    assert metrics["thresholds"] == curve.thresholds.tolist()
    assert metrics["pixel_errors"] == curve.values.tolist()
    assert metrics["held_out"] == [1, 3]
    assert metrics["steps"] == 8
    assert metrics["torch"] == torch.__version__
    assert metrics["numpy"] == np.__version__
    assert metrics["device_type"] == "cpu"
    assert metrics["device"]
    assert {"seconds", "threads", "python", "commit"} <= set(metrics)
    picture = np.asarray(Image.open(folder / "watched" / "step-000008.png"))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.round(255 * probabilities[0]))
    assert str(tmp_path) not in (folder / "metrics.json").read_text()
    assert capsys.readouterr().err == ""


def test_without_a_folder_or_held_out_slices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(config(held_out=(), watch_at=(2,)))
    assert list(tmp_path.iterdir()) == []
    assert set(result.metrics) == {"steps", "seconds"}
    assert [row["step"] for row in result.history] == [3, 6, 8]
    assert not result.network.training


def test_progress(capsys):
    result = fit(config(watch_at=(2,)), IMAGES, LABELS)
    captured = capsys.readouterr()
    # Steps, seconds gone and left, and the last row of the history.
    bar = r"8/8 \[[\d:]+<[\d:]+, .*loss ([\d.]+), learning rate ([\d.e-]+)\]"
    loss, rate = re.findall(bar, captured.err)[-1]
    assert float(loss) == pytest.approx(result.history[-1]["loss"], abs=6e-4)
    assert float(rate) == pytest.approx(1e-2 / 8, rel=0.05)
    assert "step 2: held-out pixel error" in captured.out


def test_defaults_are_the_papers():
    defaults = TrainConfig()
    assert (defaults.base_channels, defaults.depth, defaults.tile) == (64, 4, 572)
    assert (defaults.optimizer, defaults.momentum, defaults.batch) == ("sgd", 0.99, 1)
    assert (defaults.w0, defaults.sigma, defaults.average) == (10, 5, 0)
    assert (defaults.padding, defaults.weighting) == ("valid", "map")
    assert (defaults.precision, defaults.compile) == ("float32", False)
    assert defaults.augmentation == Augmentation()
    assert defaults.augmentation.deformation == 10
    assert not defaults.augmentation.mirror


def test_booleans_are_labels():
    same_run(run(config(steps=2)), run(config(steps=2), labels=LABELS > 0))


# How it is computed.


def losses_of(**changes):
    """The losses of 50 steps, with the same tiles for the same seed."""
    plain = {"steps": 50, "save_every": 1, "held_out": (), "dropout": 0.0} | PLAIN
    return np.array([row["loss"] for row in run(config(**plain | changes)).history])


# A step of float16 whose scaled gradients overflow is skipped, at first some are.
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("bfloat16", 0.05), ("float16", 0.15)]
)
def test_half_precision_follows_float32(precision, tolerance):
    """Over 50 steps, each loss within the tolerance."""
    half, whole = losses_of(precision=precision), losses_of()
    np.testing.assert_allclose(half, whole, rtol=tolerance)
    assert (half != whole).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_convolutions(dtype):
    """Those of PyTorch in 16 bits, forward and backward, to the last bit but one."""
    shapes = (1, 8, 30, 30), (8, 8, 3, 3), (8, 4, 2, 2), (8,)

    def computed():
        torch.manual_seed(0)
        image, weight, up, bias = [torch.randn(s).requires_grad_() for s in shapes]
        with torch.autocast("cpu", dtype):
            scores = torch.conv_transpose2d(
                torch.conv2d(image, weight, bias), up, stride=2
            )
        scores.float().square().mean().backward()
        return scores, image.grad, weight.grad, up.grad, bias.grad

    plain = computed()
    with context.RoundedConvolutions():
        rounded = computed()
    for ours, theirs in zip(rounded, plain, strict=True):
        assert ours.dtype == theirs.dtype
        spread = 2 * torch.finfo(dtype).eps * float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=spread)
    assert rounded[0].dtype == dtype


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_without_instructions(precision, compiled, monkeypatch):
    """Losses are the same whether or not the processor has fast convolutions."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for fast in (True, False):
        monkeypatch.setattr(context, "_has_fast", lambda precision, fast=fast: fast)
        found.append(losses_of(precision=precision, compile=compiled, steps=10))
    np.testing.assert_allclose(*found, rtol=0.01)


def test_a_compiled_run_follows_one_that_is_not(monkeypatch):
    """Over 50 steps, traced only: to make C++ of it would take half a minute."""
    compile, asked = torch.compile, []

    def traced(network, **options):
        asked.append(options)
        return compile(network, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    np.testing.assert_allclose(losses_of(compile=True), losses_of(), rtol=1e-5)
    assert asked == [{"dynamic": False}]


def test_a_compiled_run_is_resumed_watched_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = config(compile=True, watch_at=(2, 8))
    unstopped = run(compiled, tmp_path / "unstopped")
    stopped_at(3, compiled, tmp_path / "stopped", monkeypatch)
    same_run(unstopped, run(compiled, tmp_path / "stopped"))
    load_network(tmp_path / "stopped" / "network.safetensors")  # no wrapper's names


def stopped_at(step, configuration, folder, monkeypatch):
    """A run that is stopped once the checkpoint of that step is written."""
    save = checkpoint.save_checkpoint

    def stops(folder, state):
        save(folder, state)
        if state.step == step:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", stops)
        with pytest.raises(Stopped):
            run(configuration, folder)


def test_a_scaled_loss_is_resumed(tmp_path, monkeypatch):
    half = config(precision="float16", learning_rate=1e-4)
    unstopped = run(half, tmp_path / "unstopped")
    stopped_at(3, half, tmp_path / "stopped", monkeypatch)
    with safe_open(tmp_path / "stopped" / checkpoint.CURRENT, framework="pt") as file:
        scaler = json.loads(file.metadata()["scaler"])
    # It is not what a new one would be: of three steps some were skipped or counted.
    assert (scaler["scale"], scaler["_growth_tracker"]) != (2.0**16, 0)
    same_run(unstopped, run(half, tmp_path / "stopped"))


def test_the_schedule():
    assert {
        row["learning_rate"] for row in run(config(schedule="constant")).history
    } == {1e-2}
    falling = config(steps=10)
    rates = [falling.rate(step) for step in range(11)]
    np.testing.assert_allclose(rates, np.linspace(1e-2, 0, 11), atol=1e-18)


def test_same_padding(tmp_path):
    padded = run(config(padding="same", tile=24), tmp_path)
    assert padded.network.padding == "same"
    assert load_network(tmp_path / "network.safetensors").padding == "same"
    assert 0 < padded.metrics["pixel_error"] < 1
    with pytest.raises(ValueError, match="23"):  # halved once, it must be even
        run(config(padding="same", tile=23))


def test_without_weights_each_pixel_counts_the_same(monkeypatch):
    loss, given = steps.weighted_cross_entropy, []

    def spy(scores, labels, weights):
        value = loss(scores, labels, weights)
        unweighted = torch.nn.functional.cross_entropy(scores, labels)
        # The deformation interpolates them, and so rounds.
        given.append((abs(weights - 1).max(), abs(value - unweighted)))
        return value

    monkeypatch.setattr(steps, "weighted_cross_entropy", spy)
    plain = run(config(weighting="none", steps=2))
    for weight, difference in given:
        assert weight < 1e-5
        assert difference < 1e-5
    # What belongs to the weights then changes nothing.
    same_run(plain, run(config(weighting="none", w0=3.0, sigma=2.0, steps=2)))
    assert run(config(steps=2)).history[-1]["loss"] != plain.history[-1]["loss"]


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_are_on_for_a_run(switch):
    with switch():
        same_run(run(config(steps=2)), run(config(steps=2)))
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("mode", ["default", "warn", "error"])
def test_deterministic_settings_are_put_back(monkeypatch, mode):
    def settings():
        return torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark

    loss, seen = steps.weighted_cross_entropy, []

    def spy(*args):
        seen.append(settings())
        if len(seen) == 19:
            raise Stopped
        return loss(*args)

    monkeypatch.setattr(steps, "weighted_cross_entropy", spy)
    before = settings()
    torch.set_deterministic_debug_mode(mode)
    try:
        given = settings()
        same_run(run(config(deterministic=True)), run(config(deterministic=True)))
        assert settings() == given
        with pytest.raises(Stopped):
            run(config(deterministic=True))
        assert settings() == given
    finally:
        torch.set_deterministic_debug_mode(before[0])
    assert len(seen) == 19
    assert set(seen) == {(1, False)}  # only such algorithms, a warning for others


# What does not fit.


def test_too_little_memory_says_what_to_take(tmp_path, monkeypatch):
    forward, calls = UNet.forward, []

    def full(network, tiles):
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n5 GiB")
        return forward(network, tiles)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", full)
        with pytest.raises(MemoryError) as caught:
            run(config(), tmp_path)
    said = str(caught.value)
    assert f"memory of cpu does not hold a step of 2 tile(s) of {TILE} pixels" in said
    assert "The last checkpoint is intact." in said
    legal = UNet(base_channels=1, depth=1)
    named = re.search(r"such as ([\d, ]+)\)", said)[1].split(", ")
    for size in map(int, named):
        assert size < TILE
        assert legal.output_size(size) > 0
    assert stored(tmp_path)[0] == 3
    same_run(run(config()), run(config(), tmp_path))


def test_a_tile_that_none_is_smaller_than(monkeypatch):
    def full(network, tiles):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    least = min(UNet(base_channels=1, depth=1).valid_sizes(1, TILE))
    monkeypatch.setattr(UNet, "forward", full)
    with pytest.raises(MemoryError, match=r"\(none is smaller\), or precision"):
        run(config(tile=least))


@contextmanager
def no_room_beyond(size):
    """Files of this process cannot grow beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="no limits on files here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "file",
    ["checkpoint.safetensors", "history.csv", "step-000005.png", "network.safetensors"],
)
def test_a_full_disk_leaves_the_last_checkpoint(file, tmp_path, monkeypatch):
    """Full, that is, from the writing of one file on, in the midst of it."""
    names = {
        "checkpoint.safetensors": (checkpoint, "save_file", 3),
        "history.csv": (folders, "write_history", 6),
        "step-000005.png": (folders, "save_png", 3),
        "network.safetensors": (train, "save_network", 8),
    }
    module, name, last = names[file]
    write, calls, left = getattr(module, name), [], []

    def full(*args, **options):
        calls.append(1)
        if len(calls) == 1 and name != "save_network":
            return write(*args, **options)
        with no_room_beyond(100):
            try:
                return write(*args, **options)
            finally:
                left.extend(path.stat().st_size for path in tmp_path.rglob(".tmp*"))

    watched = config(watch_at=(2, 5, 6))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(OSError, match=rf"{file} could not be .* make room"):
            run(watched, tmp_path)
    assert stored(tmp_path)[0] == last
    assert max(left, default=0) <= 100
    assert not list(tmp_path.rglob(".*"))  # nothing half-written
    same_run(run(watched), run(watched, tmp_path))
    assert "\n8," in (tmp_path / "history.csv").read_text()
