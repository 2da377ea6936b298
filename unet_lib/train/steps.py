"""The parts of a run: the objects it starts with, and one step of training.

Used in :doc:`training`.
"""

import copy
from collections.abc import Callable
from inspect import signature

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unet_lib.augment import TileSampler
from unet_lib.config import TrainConfig
from unet_lib.loss import weighted_cross_entropy
from unet_lib.model import UNet, move_to, output_size, unwrapped
from unet_lib.train import examples
from unet_lib.train.checkpoint import State

__all__ = ["build_network", "build_optimizer", "build_sampler", "train_step"]


def build_network(config: TrainConfig, device: str | torch.device = "cpu") -> UNet:
    """Build the network of a run, with weights from PyTorch's random numbers."""
    arguments = {name: getattr(config, name) for name in signature(UNet).parameters}
    return move_to(UNet(**arguments), device)


def start_of(config: TrainConfig, network: nn.Module) -> dict[str, torch.Tensor]:
    """Copy the weights of a network to start a run from, in float32.

    Raises:
        ValueError: if the network is not the one that the configuration describes.
    """
    network = unwrapped(network)
    given = {n: value for n, value in network.arguments.items() if n != "dropout"}
    if unlike := [n for n in given if given[n] != getattr(config, n)]:
        theirs = ", ".join(f"{n}={given[n]!r}" for n in unlike)
        ours = ", ".join(f"{n}={getattr(config, n)!r}" for n in unlike)
        raise ValueError(
            f"The network to start from has {theirs}, and the configuration says "
            f"{ours}: take TrainConfig({theirs}), or another network."
        )
    return {
        name: (one.float() if one.is_floating_point() else one).cpu().clone()
        for name, one in network.state_dict().items()
    }


def build_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a run."""
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), config.learning_rate)
    return torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum
    )


def build_sampler(
    config: TrainConfig,
    images: np.ndarray | list[np.ndarray],
    labels: np.ndarray | list[np.ndarray],
    device: str | torch.device = "cpu",
) -> TileSampler:
    """Build the sampler that makes the tiles of a run from its training slices.

    Args:
        config: the settings of the run.
        images: the slices to train on, as `fit` takes them.
        labels: the labels of these slices.
        device: the device that makes the tiles.

    Raises:
        ValueError: if all pixels are of one class.
    """
    classes, weights = examples.targets(config, [*labels])
    examples.check_something_to_learn(classes)
    return TileSampler(
        images,
        classes,
        weights,
        config.tile,
        output_size(config.tile, config.depth, config.padding),
        config.augmentation,
        config.seed,
        device,
    )


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the random numbers of the CPU and of this device, and of no other."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_step(
    config: TrainConfig, step: int, device: torch.device, rank: int = 0
) -> None:
    """Seed the dropout of a step.

    Like the tiles, the dropout depends on the seed and the step alone, so a resumed run
    goes on as if it had not been stopped. Each of several processes draws its own.
    """
    seed_all(config.seed * 1_000_003 + step + rank * 10**12, device)


def begin(
    config: TrainConfig,
    device: torch.device,
    start: dict[str, torch.Tensor] | None = None,
) -> State:
    """The state of a run before its first step, with the weights to start from."""
    seed_all(config.seed, device)
    network = build_network(config, device)
    if start is not None:
        network.load_state_dict(start)
    return State(
        network,
        copy.deepcopy(network).eval() if config.average else None,
        build_optimizer(config, network),
        # It reads from the device whether a step overflowed, so with float16 the
        # host waits in each step.
        torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
    )


def train_step(
    network: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    image: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor,
    precision: str = "float32",
    scaler: torch.amp.GradScaler | None = None,
) -> torch.Tensor:
    """Take one optimizer step on the loss of a batch.

    Args:
        network: a `UNet` in training mode, also in a wrapper; its logits are
            ``(batch, classes, height, width)``.
        optimizer: the optimizer of the network's parameters.
        image: the batch of images, as the network takes it.
        label: int64 ``(batch, height, width)``, the class of each output pixel.
        weight: float32 of the same shape.
        precision: number type of the convolutions, as in `TrainConfig`; the loss stays
            in float32.
        scaler: if given, scales the loss, and so the gradients.

    Returns:
        The loss, a tensor on the device; reading its value makes the host wait.
    """
    half = precision != "float32"
    dtype = getattr(torch, precision) if half else None
    with torch.autocast(image.device.type, dtype, enabled=half):
        scores = network(image)
    loss = weighted_cross_entropy(scores, label, weight)
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return loss.detach()


@torch.no_grad()
def update_average(averaged: UNet, network: UNet, decay: float) -> None:
    """Move an exponential moving average to the network's weights and buffers.

    The buffers are averaged too, since the statistics of a batch normalization belong
    to its weights. PyTorch's AveragedModel does the same, but copies its count of steps
    to the device in each step.
    """
    new = network.state_dict()
    kinds: dict[bool, list[str]] = {}
    for name, tensor in new.items():
        kinds.setdefault(tensor.is_floating_point(), []).append(name)
    mine, move = averaged.state_dict(), get_ema_multi_avg_fn(decay)
    for names in kinds.values():
        move([mine[name] for name in names], [new[name] for name in names], None)


def next_step(
    state: State,
    forward: Callable[[torch.Tensor], torch.Tensor],
    sampler: TileSampler,
    config: TrainConfig,
    tiles: range,
    rank: int = 0,
) -> torch.Tensor:
    """Take the next step of a run and return its loss, on the device.

    Args:
        state: the state of the run.
        forward: its network, also in a wrapper.
        sampler: the sampler of its tiles.
        config: the settings of the run.
        tiles: the numbers of the tiles that this process takes in this step.
        rank: the rank of this process, which draws its own dropout.
    """
    seed_step(config, state.step, sampler.device, rank)
    image, label, weight = sampler.batch(tiles)
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate(state.step)
    loss = train_step(
        forward, state.optimizer, image, label, weight, config.precision, state.scaler
    )
    if state.averaged is not None:
        decay = config.average if state.step else 0.0  # 0 takes the weights over
        update_average(state.averaged, state.network, decay)
    state.step += 1
    return loss
