"""A step without waits; devices by their kind; settings that are put back."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from unet_lib import networks
from unet_lib.augment import TileSampler
from unet_lib.data import synthetic_em
from unet_lib.model import UNet
from unet_lib.train import TrainConfig, fit, loggers, steps
from unet_lib.train.checkpoint import State
from unet_lib.train.context import settings

IMAGES, LABELS = synthetic_em(slices=2, size=40, seed=1)
CONFIG = TrainConfig(base_channels=2, depth=1, tile=24, steps=3, device="cpu")
AVERAGED = replace(CONFIG, average=0.5, batch_norm=True)


def run(**changes):
    return fit(replace(CONFIG, **changes), IMAGES, LABELS, progress=False)


class Waits(TorchDispatchMode):
    """Notes the operations in which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        devices = {one.device.type for one in args if isinstance(one, torch.Tensor)}
        if name in ("aten._local_scalar_dense.default", "aten.nonzero.default"):
            if "cuda" in devices:
                self.found.append(name)
        elif "copy" in name and isinstance(result, torch.Tensor):
            options = (*args, (kwargs or {}).get("non_blocking"))
            waits = not any(option is True for option in options)
            if len(devices | {result.device.type}) == 2 and waits:
                self.found.append(name)
        return result


def waits_of_a_step(config):
    """In the second step of a run on a GPU, of which the tensors are pretended."""
    device = torch.device("cuda")
    # What the sampler keeps for all of its kind must be no pretended tensor.
    steps.build_sampler(config, IMAGES, LABELS, "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        with device:  # a fake network cannot be moved
            network = UNet(base_channels=2, depth=1, batch_norm=config.batch_norm)
            averaged = UNet(base_channels=2, depth=1, batch_norm=config.batch_norm)
        state = State(
            network,
            averaged if config.average else None,
            steps.build_optimizer(config, network),
            torch.amp.GradScaler("cuda", enabled=config.precision == "float16"),
        )
        sampler = steps.build_sampler(config, IMAGES, LABELS, device)
        # Autograd asks the driver for a context; what it runs is PyTorch's own.
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        steps.next_step(state, network, sampler, config, range(2))
        with Waits() as waits:
            steps.next_step(state, network, sampler, config, range(2, 4))
    assert state.step == 2
    return waits.found


@pytest.fixture
def pinned(monkeypatch):
    """Without a GPU nothing can be pinned; that it is asked for is noted."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(torch.optim.SGD, "zero_grad", lambda optimizer: None)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: asked.append(1) or tensor
    )
    return asked


@pytest.mark.parametrize("config", [CONFIG, AVERAGED])
def test_the_host_waits_for_nothing_in_a_step(config, pinned):
    assert waits_of_a_step(config) == []
    assert len(pinned) == 6  # three small arrays a step


def test_a_wait_would_be_found(monkeypatch, pinned):
    step = steps.train_step

    def waits(*args):
        loss = step(*args)
        loss.to("cpu")
        return loss

    monkeypatch.setattr(steps, "train_step", waits)
    assert waits_of_a_step(CONFIG) == ["aten._to_copy.default"]


def test_the_average_is_pytorchs():
    torch.manual_seed(0)
    network = UNet(base_channels=2, depth=1, batch_norm=True)
    mine = UNet(base_channels=2, depth=1, batch_norm=True)
    theirs = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True
    )
    for step in range(4):
        network(torch.rand(1, 1, 24, 24))  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        steps.update_average(mine, network, 0.7 if step else 0)
        theirs.update_parameters(network)
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.module.state_dict()[name]), name


# Devices.


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_cuda_copies_behind_the_hosts_back(device, monkeypatch):
    """MPS would read from an array that is gone once `_on_device` returns."""
    asked = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *args, **options: asked.append(options)
    )
    TileSampler._on_device(
        SimpleNamespace(device=torch.device(device)), np.zeros(2, np.float32)
    )
    assert asked == [{}]


@pytest.mark.parametrize(
    ("device", "layout"),
    [
        ("cpu", torch.channels_last),
        ("cuda:1", torch.channels_last),
        ("mps", torch.contiguous_format),
    ],
)
def test_channels_are_last_but_on_mps(device, layout, monkeypatch, tmp_path):
    asked = []

    def to(network, device, memory_format):
        asked.append((torch.device(device), memory_format))
        return network

    networks.save_network(UNet(base_channels=1, depth=1), tmp_path / "network")
    monkeypatch.setattr(UNet, "to", to)
    steps.build_network(CONFIG, device)
    networks.load_network(tmp_path / "network", device)
    assert asked == [(torch.device(device), layout)] * 2


MISSING = [
    "MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 2 GB",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
    "allocate memory: you tried to allocate 9 bytes. Error code 12",
    "[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory: "
    "you tried to allocate 9 bytes.",
]


@pytest.mark.parametrize("said", MISSING)
def test_memory_that_is_missing_elsewhere_is_told_too(said, monkeypatch):
    def full(network, tiles):
        raise RuntimeError(said)

    monkeypatch.setattr(UNet, "forward", full)
    with pytest.raises(MemoryError, match="does not hold a step of 1 tile"):
        run()
    monkeypatch.setattr(UNet, "forward", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):  # other errors stay as they are
        run()


def test_memory_that_is_really_missing_on_the_cpu(monkeypatch):
    def full(network, tiles):
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(UNet, "forward", full)
    with pytest.raises(MemoryError, match="memory of cpu does not hold a step"):
        run()


def test_the_memory_of_a_step_is_told_without_cudnns_search(monkeypatch, capsys):
    peaks = iter([9 * 2**30, 2**31])
    peak = [next(peaks)]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(
        torch.cuda,
        "reset_peak_memory_stats",
        lambda device: peak.__setitem__(0, next(peaks)),
    )
    with loggers.Bar(9, 4, torch.device("cuda")) as bar:
        for step in range(5, 10):
            bar.step(step)
    assert capsys.readouterr().out == "a step takes 2.0 GiB of the GPU's memory\n"


# Settings and random numbers.

FLAGS = [
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
]


def flags():
    return [getattr(owner, name) for owner, name in FLAGS]


@pytest.fixture
def inside(monkeypatch):
    """What the settings are in each step."""
    found, step = [], steps.train_step

    def spy(*args):
        found.append([*flags(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")])
        return step(*args)

    monkeypatch.setattr(steps, "train_step", spy)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    return found


def test_the_random_state_of_a_device_is_restored(monkeypatch):
    class Module:  # as older versions have torch.mps: its functions take no device
        state = "before"

        def get_rng_state():
            return Module.state

        def set_rng_state(state):
            Module.state = state

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    with settings(CONFIG, torch.device("mps")):
        Module.state = "after"
    assert Module.state == "before"


@pytest.mark.parametrize("before", [True, False])
def test_float32_is_float32_and_cudnn_may_search(inside, before):
    given = flags()
    try:
        for owner, name in FLAGS:
            setattr(owner, name, before)
        run()
        assert flags() == [before] * 3
    finally:
        for (owner, name), value in zip(FLAGS, given, strict=True):
            setattr(owner, name, value)
    assert inside == [[True, False, False, None]] * 3


def test_a_deterministic_run_searches_nothing(inside, monkeypatch):
    run(deterministic=True)
    assert inside == [[False, False, False, ":4096:8"]] * 3
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the caller's own
    run(deterministic=True)
    assert inside[-1][-1] == os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="an older PyTorch"
)
def test_settings_by_pytorchs_newer_names_are_put_back(monkeypatch):
    conv, step, seen = torch.backends.cudnn.conv, steps.train_step, []

    def spy(*args):
        seen.append(conv.fp32_precision)
        return step(*args)

    monkeypatch.setattr(steps, "train_step", spy)
    rnn, given = torch.backends.cudnn.rnn, conv.fp32_precision
    other = "ieee" if rnn.fp32_precision == "tf32" else "tf32"
    conv.fp32_precision = other  # the older names cannot say this, and raise an error
    try:
        run()
        assert conv.fp32_precision == other
    finally:
        conv.fp32_precision = given
    assert seen == ["ieee"] * 3


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    network = run().network
    path = tmp_path / "network.safetensors"
    networks.save_network(network, path)
    for name, tensor in networks.load_network(path).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    networks.load_pretrained()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_looking_on_does_not_change_a_run(average):
    """Prediction switches dropout off; training switches it on again."""
    plain = run(average=average, held_out=(1,))
    watched = run(average=average, held_out=(1,), watch_at=(1, 2))
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, watched.network.state_dict()[name]), name


def test_each_process_and_step_has_random_numbers_of_its_own(monkeypatch):
    seeds = []
    monkeypatch.setattr(
        steps,
        "train_step",
        lambda *_: seeds.append(torch.initial_seed()) or torch.zeros(()),
    )
    network = UNet(base_channels=2, depth=1)
    sampler = steps.build_sampler(CONFIG, IMAGES, LABELS)
    for rank in (0, 1, 3):
        state = steps.begin(CONFIG, torch.device("cpu"))
        for _ in range(3):
            steps.next_step(state, network, sampler, CONFIG, range(1), rank)
    assert len(set(seeds)) == len(seeds) == 9
    assert seeds[:3] == [0, 1, 2]  # what one process has always taken
