"""A run's folder: one run on one data set, one process, whole whatever happens."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from unet_lib.data import synthetic_em
from unet_lib.model import UNet
from unet_lib.networks import load_network, save_network
from unet_lib.train import TrainConfig, checkpoint, fit, folder, steps
from unet_lib.train import processes as processes_module
from unet_lib.train.processes import Processes

IMAGES, LABELS = synthetic_em(slices=2, size=40, seed=1)
CONFIG = TrainConfig(
    base_channels=1,
    depth=1,
    tile=24,
    steps=4,
    save_every=2,
    average=0.5,
    learning_rate=1e-3,
    device="cpu",
)


def run(path, images=IMAGES, labels=LABELS, config=CONFIG):
    return fit(config, images, labels, path, progress=False)


def contents(path):
    return {
        one.relative_to(path).as_posix(): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run(path)
    return path


@pytest.fixture
def whole(finished, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def begun(whole):
    """The run after its first checkpoint."""
    (whole / checkpoint.PREVIOUS).replace(whole / checkpoint.CURRENT)
    for name in ("network.safetensors", "metrics.json"):
        (whole / name).unlink()
    return whole


# Whose it is.


@pytest.mark.parametrize("state", ["whole", "begun"])
def test_other_data_are_refused(state, request):
    path = request.getfixturevalue(state)
    before = contents(path)
    other = 1 - IMAGES
    with pytest.raises(ValueError, match=r"holds a run on other images\. Take another"):
        run(path, images=other)
    with pytest.raises(ValueError, match="on other images and labels"):
        run(path, images=other, labels=1 - LABELS)
    assert contents(path) == before
    # The same numbers in another type are the same data.
    run(path, images=IMAGES.astype(np.float64), labels=LABELS.astype(bool))


@pytest.mark.parametrize(
    "name", ["network.safetensors", "checkpoint-previous.safetensors", "history.csv"]
)
def test_files_of_nobody_knows_which_run_are_refused(name, tmp_path):
    (tmp_path / name).write_text("somebody's")
    (tmp_path / "notes.txt").write_text("in nobody's way")
    with pytest.raises(ValueError, match=f"holds {name} and no config.json"):
        folder.claim(tmp_path, {}, {})
    assert (tmp_path / name).read_text() == "somebody's"
    (tmp_path / name).unlink()
    folder.claim(tmp_path, {}, {})


def test_a_finished_run_is_returned_as_it_is(whole, monkeypatch):
    path = whole / "metrics.json"
    made = json.loads(path.read_text()) | {"date": "2020-01-31", "torch": "2.6"}
    path.write_text(json.dumps(made))  # long ago, by another version
    before = contents(whole)
    monkeypatch.setattr(steps, "train_step", None)
    again = fit(CONFIG, IMAGES, LABELS, whole, False, ("tensorboard",))
    assert contents(whole) == before
    network = load_network(whole / "network.safetensors")
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    (whole / "network.safetensors").unlink()  # what is missing is made again
    run(whole)
    assert contents(whole)["network.safetensors"] == before["network.safetensors"]


def test_the_record_names_its_data(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    data = folder.fingerprint(IMAGES, LABELS)
    assert metrics["data"] == data == json.loads((finished / "data.json").read_text())
    moved = folder.fingerprint(IMAGES.reshape(1, 80, 40), LABELS)
    assert moved["images"] != data["images"]


def test_a_run_of_an_older_release_goes_on(finished, begun):
    """Before an option was added, data were hashed and checkpoints had a checksum."""
    fields = json.loads((begun / "config.json").read_text())
    del fields["compile"], fields["augmentation"]["mirror"]
    (begun / "config.json").write_text(json.dumps(fields))
    (begun / "data.json").unlink()
    with safe_open(begun / checkpoint.CURRENT, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
    del metadata["sha256"]
    wrapped = {
        name.replace("averaged/", "averaged/module."): tensor
        for name, tensor in tensors.items()
    } | {"averaged/n_averaged": torch.tensor(2)}
    save_file(wrapped, begun / checkpoint.CURRENT, metadata)
    asked = dataclasses.asdict(CONFIG)
    assert folder.differences(begun / "config.json", asked) == []
    asked["compile"] = True
    assert folder.differences(begun / "config.json", asked) == ["compile"]
    run(begun)
    name = "network.safetensors"
    assert (begun / name).read_bytes() == (finished / name).read_bytes()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="run is a file; give the run a folder"):
        run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


# Who is at work in it.

HOLDER = """
import sys
from pathlib import Path
from unet_lib.train.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_by_name(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError) as caught:
            run(tmp_path)
        assert f"is in use by process {other.pid} on " in str(caught.value)
        assert not (tmp_path / "config.json").exists()
    finally:
        other.kill()
        other.communicate()
    run(tmp_path)  # the hold ended with it
    assert not (tmp_path / "in-use.txt").exists()


def test_a_holder_that_nobody_knows(tmp_path):
    with (
        FileLock(tmp_path / "in-use.lock"),
        pytest.raises(BlockingIOError, match="in use by another process: wait"),
        folder.held(tmp_path),
    ):
        pass


# What ends a run early.


def interrupted_at(step, monkeypatch, action):
    take = steps.train_step
    taken = []

    def stops(*args):
        taken.append(1)
        if len(taken) == step:
            action()
        return take(*args)

    monkeypatch.setattr(steps, "train_step", stops)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (1, "before the first checkpoint in"),
        (4, "is intact. Run the same command again to resume"),
    ],
)
def test_stopped_from_the_keyboard(step, said, tmp_path, monkeypatch, finished):
    with monkeypatch.context() as patch:
        interrupted_at(step, patch, interrupt)
        with pytest.raises(KeyboardInterrupt, match=said):
            run(tmp_path)
    run(tmp_path)
    name = "network.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    interrupted_at(1, monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        run(None)


@pytest.mark.parametrize("step", [1, 4])
def test_a_folder_that_goes_away_is_said_to_be_gone(step, tmp_path, monkeypatch):
    path = tmp_path / "run"
    interrupted_at(step, monkeypatch, lambda: shutil.rmtree(path))
    with pytest.raises(OSError, match="run is gone: it was deleted or moved"):
        run(path)


# Checkpoints that are not what they were.


def rewritten(path, change):
    """A checkpoint with its tensors and values changed, as safetensors allow."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def without_optimizer(tensors, metadata):
    for name in [name for name in tensors if name.startswith("optimizer/")]:
        del tensors[name]


CHANGES = {
    "optimizer": without_optimizer,
    "number": lambda tensors, _: tensors["network/classify.bias"].add_(1e-7),
    "scaler": lambda _, metadata: metadata.pop("scaler"),
    "history": lambda _, metadata: metadata.update(history="[1, 2]"),
    "step": lambda _, metadata: metadata.update(step="1"),
    "nothing": lambda _, metadata: metadata.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_checkpoint_is_set_aside(change, whole, finished):
    rewritten(whole / checkpoint.CURRENT, CHANGES[change])
    with pytest.warns(
        UserWarning, match=r"is damaged .* now named checkpoint\.damaged"
    ):
        run(whole)
    name = "network.safetensors"
    assert (whole / name).read_bytes() == (finished / name).read_bytes()
    assert (whole / "checkpoint.damaged").exists()


def mutated(data, seed):
    """A few bytes changed, a part cut out, or the end cut off."""
    randoms, data = random.Random(seed), bytearray(data)
    kind = seed % 3
    if kind == 0:
        for _ in range(randoms.randint(1, 4)):
            data[randoms.randrange(len(data))] = randoms.randrange(256)
    elif kind == 1:  # in the header, where lengths and names are
        data[randoms.randrange(min(len(data), 4000))] ^= 1 << randoms.randrange(8)
    else:
        start = randoms.randrange(len(data))
        del data[start : start + randoms.randint(1, 64)]
    return bytes(data)


@pytest.mark.filterwarnings("ignore:.* is damaged")
def test_mutated_checkpoints_never_change_a_run(finished, tmp_path):
    """Each is found whole, or is set aside; nothing else is taken from it."""
    data = (finished / checkpoint.CURRENT).read_bytes()
    (tmp_path / checkpoint.CURRENT).write_bytes(data)

    def loaded():
        state = steps.begin(CONFIG, torch.device("cpu"))
        checkpoint.load_checkpoint(tmp_path, state)
        return state

    expected = loaded()
    for seed in range(300):
        (tmp_path / checkpoint.CURRENT).write_bytes(mutated(data, seed))
        state = loaded()
        if state.step == 0:
            continue
        assert state.step == expected.step, seed
        assert state.history == expected.history, seed
        for name, tensor in state.trained.state_dict().items():
            assert torch.equal(tensor, expected.trained.state_dict()[name]), seed
        buffers = [
            [values["momentum_buffer"] for values in one.optimizer.state.values()]
            for one in (state, expected)
        ]
        for found, same in zip(*buffers, strict=True):
            assert torch.equal(found, same), seed


def test_nothing_of_a_checkpoint_stays_mapped(finished):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of mapped files here")
    state = steps.begin(CONFIG, torch.device("cpu"))
    checkpoint.load_checkpoint(finished, state)
    network = load_network(finished / "network.safetensors")
    assert str(finished) not in maps.read_text()
    assert state.step == 4
    assert not network.training
    # That it would be seen:
    with safe_open(finished / checkpoint.CURRENT, "pt") as file:
        kept = [file.get_tensor(name) for name in list(file.keys())]
    assert str(finished) in maps.read_text()
    assert kept


# Network files.


def test_a_checkpoint_given_for_a_network_is_named(finished):
    with pytest.raises(ValueError, match=r"a checkpoint of a run; load network\.safe"):
        load_network(finished / checkpoint.CURRENT)


@pytest.mark.parametrize(
    "declared", [{"depth": 10**6}, {"base_channels": 10**6}, {"depth": 10**400}]
)
def test_a_declared_size_is_not_built(declared, tmp_path):
    path = tmp_path / "network.safetensors"
    network = UNet(base_channels=1, depth=1)
    arguments = json.dumps(network.arguments | declared)
    save_file(network.state_dict(), path, {"unet": arguments})
    with pytest.raises(ValueError, match="not of the declared depth and width"):
        load_network(path)
    # Nor where one tensor of no bytes agrees.
    classify = {"classify.weight": torch.zeros(0, 10**6, 1, 1)}
    save_file(classify, path, {"unet": arguments})
    with pytest.raises(ValueError, match="does not hold a network"):
        load_network(path)


def test_mutated_network_files_load_or_are_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    save_network(UNet(base_channels=1, depth=1, batch_norm=True), path)
    data = path.read_bytes()
    refused = 0
    for seed in range(300):
        path.write_bytes(mutated(data, seed))
        try:
            load_network(path)
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[[1, 2]]", "{", '{"augmentation": 3}']
)
def test_a_spoilt_configuration_is_no_traceback(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    asked = dataclasses.asdict(CONFIG)
    if text.startswith('{"'):
        assert "augmentation" in folder.differences(path, asked)
        path.write_text(text, encoding="utf-8-sig")  # as Windows' editors save it
        assert "augmentation" in folder.differences(path, asked)
        return
    with pytest.raises(ValueError, match="is not a run's configuration"):
        folder.differences(path, asked)


# The record.


def git(path, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    done = subprocess.run(command, cwd=path, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_of_the_repository_that_holds_the_package(tmp_path):
    assert folder._commit(tmp_path) is None  # in none
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "theirs", "--allow-empty")
    assert git(tmp_path, "rev-parse", "HEAD").startswith(folder._commit(tmp_path))
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    assert folder._commit(installed) is None


# Several processes.


@pytest.mark.parametrize(
    ("device", "failed", "left"),
    [("cpu", True, 1), ("cpu", False, 1), ("cuda:0", False, 1), ("cuda:0", True, 0)],
)
def test_who_fails_alone_under_nccl_does_not_wait(device, failed, left, monkeypatch):
    calls = []
    monkeypatch.setattr(
        processes_module.distributed, "destroy_process_group", lambda: calls.append(1)
    )
    error = ValueError if failed else None
    Processes(1, 2, torch.device(device)).__exit__(error, None, None)
    assert len(calls) == left
    Processes(0, 1, torch.device(device)).__exit__(error, None, None)
    assert len(calls) == left


def test_fit_says_that_it_has_failed(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(Processes, "__exit__", lambda *given: said.append(given[1]))
    run(None)
    monkeypatch.setattr(steps, "train_step", None)
    with pytest.raises(TypeError):
        run(None)
    assert said == [None, TypeError]


@pytest.mark.parametrize(("device", "ours"), [("cuda:1", "cuda:1"), ("cpu", None)])
def test_nccl_is_told_its_device(device, ours, monkeypatch):
    told = {}
    fake = processes_module.distributed
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(processes_module, "_device", torch.device)
    monkeypatch.setattr(
        processes_module, "_meeting_point", lambda: (fake.HashStore(), 1, 2)
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    monkeypatch.setattr(
        fake, "init_process_group", lambda *args, **options: told.update(options)
    )
    processes_module.join(device.partition(":")[0], 2)
    assert told["device_id"] == (ours and torch.device(ours))
