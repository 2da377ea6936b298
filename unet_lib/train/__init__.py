"""Training: the loop, with its checkpoints and its record (section 3).

Built in :doc:`training`.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from unet_lib._files import write_text
from unet_lib.augment import TileSampler
from unet_lib.config import TrainConfig
from unet_lib.loss import weighted_cross_entropy
from unet_lib.metrics import Curve, pixel_error
from unet_lib.model import UNet
from unet_lib.networks import save_network
from unet_lib.predict import predict
from unet_lib.train import checkpoint
from unet_lib.train.loggers import check_watchers, open_watchers
from unet_lib.train.processes import best_device, join
from unet_lib.weights import weight_map

__all__ = ["Run", "TrainConfig", "best_device", "fit", "weighted_cross_entropy"]

LOG_EVERY = 50  # steps


class Run(NamedTuple):
    """What `fit` returns."""

    network: UNet
    history: list[dict]  # a row each time something was logged
    metrics: dict  # of the held-out slices; empty where there are none


def fit(
    config: TrainConfig,
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | Path | None = None,
    progress: bool = True,
    watchers: Iterable[str] = (),
) -> Run:
    """Train one network; with a folder, record the run and resume it there.

    Under ``torchrun`` the processes share each step's tiles; the first one
    writes, shows its progress and predicts the held-out slices.

    Args:
        config: what to do.
        images: ``(slices, height, width)``, float, 0 to 1.
        labels: the same shape, 1 = cell, 0 = membrane.
        folder: where config.json, history.csv, checkpoint.safetensors, a
            picture of the first held-out slice for each of `watch_at`, and at
            the end network.safetensors and metrics.json go. A run that was
            stopped goes on from its checkpoint. None keeps nothing.
        progress: show a bar with the loss, the learning rate and the time left.
        watchers: of ``"tensorboard"`` and ``"wandb"``; see `watch`.

    Raises:
        ValueError: for stacks that do not fit together or are not as said
            above, held-out slices that do not exist, watchers that are not
            known, or a folder that holds another run.
        ImportError: for a watcher that is not installed.
        FloatingPointError: when the loss or a held-out probability is no longer
            a number; the last checkpoint is whole.
        MemoryError: when the GPU's memory does not hold a step.
        OSError: when a file cannot be written, the last checkpoint is then
            whole; when processes see different folders.
    """
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"Expected a TrainConfig, got {type(config).__name__}: "
            "TrainConfig.from_dict makes one of a dictionary."
        )
    images, labels = _checked(images, labels)
    held_out, slices = set(config.held_out), set(range(len(images)))
    if not held_out < slices:
        raise ValueError(
            f"Cannot hold out slices {sorted(held_out)} of {len(slices)}: give numbers "
            "from 0 to the last slice, and leave some to train on."
        )
    folder = None if folder is None else Path(folder)
    watchers = check_watchers(watchers, folder)
    processes = join(config.device, config.batch)
    try:
        with _engine(config), ExitStack() as ends:
            return _fit(
                config, images, labels, folder, progress, watchers, processes, ends
            )
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"The memory of {processes.device} does not hold a step of {config.batch} "
            f"tile(s) of {config.tile} pixels ({str(error).splitlines()[0]}). Take a "
            f"smaller batch or tile ({_smaller_tiles(config)}), or "
            'precision="bfloat16", in another folder. The last checkpoint is whole.'
        ) from error
    finally:
        processes.leave()


def _fit(config, images, labels, folder, progress, watchers, processes, ends) -> Run:
    held_out = list(config.held_out)
    training = [z for z in range(len(images)) if z not in held_out]
    device, writes = processes.device, folder is not None and processes.first
    progress = progress and processes.first
    torch.manual_seed(config.seed)
    network = UNet(
        base_channels=config.base_channels,
        depth=config.depth,
        padding=config.padding,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    ).to(device, memory_format=torch.channels_last)
    averaged = network
    if config.average:
        averaging = get_ema_multi_avg_fn(config.average)
        # With the buffers: a batch normalisation's statistics are of its weights.
        averaged = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
        averaged.eval()
    optimiser = _optimiser(config, network)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    sampler = TileSampler(
        images[training],
        labels[training],
        _weights(config, labels[training]),
        config.tile,
        network.output_size(config.tile),
        config.augmentation,
        config.seed,
        device,
    )
    modules = {"network": network}
    if config.average:
        modules["averaged"] = averaged
    step, history = 0, []
    if folder is not None:
        if processes.first:
            checkpoint.claim(folder, dataclasses.asdict(config))
        # The first before the others: it puts a damaged checkpoint aside.
        for turn in (True, False):
            if processes.first == turn:
                step, history = checkpoint.load_checkpoint(
                    folder, modules, optimiser, scaler
                )
            processes.wait()
    processes.check_same(step)
    watching = []
    if processes.first:
        fields = dataclasses.asdict(config)
        watching = open_watchers(watchers, folder, fields, step)
        for watcher in watching:
            ends.enter_context(watcher)
    forward = processes.wrap(network)
    if config.compile:
        forward = torch.compile(forward, dynamic=False)
    started = time.perf_counter() - (history[-1]["seconds"] if history else 0)

    losses: list[torch.Tensor] = []
    network.train()
    bar = tqdm(total=config.steps, initial=step, disable=not progress, desc="steps")
    while step < config.steps:
        # Tiles and drop-out depend on the seed and the step alone, so that a
        # resumed run goes on as if it had not been stopped.
        torch.manual_seed(config.seed * 1_000_003 + step + processes.rank * 10**12)
        tiles = range(step * config.batch, (step + 1) * config.batch)
        image, label, weight = sampler.batch(processes.share(tiles))
        rate = config.rate(step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with _autocast(config, device):
            scores = forward(image)
        loss = weighted_cross_entropy(scores, label, weight)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        if config.average:
            averaged.update_parameters(network)
        losses.append(loss.detach())
        step += 1
        bar.update()
        if progress and len(losses) == step == 1 and device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**30
            bar.write(f"a step takes {peak:.1f} GiB of the GPU's memory")

        watch = bool(held_out) and step in config.watch_at
        save = step % config.save_every == 0 or step == config.steps
        if not (watch or save or step % LOG_EVERY == 0):
            continue
        # Here, and only here, the host waits for the device.
        mean = float(processes.mean(torch.stack(losses).mean()))
        losses.clear()
        if not np.isfinite(mean):
            raise _diverged(f"The loss is {mean}", step, config)
        bar.set_postfix_str(f"loss {mean:.3f}, learning rate {rate:.1e}")
        row = {"step": step, "seconds": 0.0, "loss": mean, "learning_rate": rate}
        if watch and processes.first:
            probabilities, curve = _evaluate(averaged, images, labels, step, config)
            network.train()
            row["pixel_error"] = curve.value
            if progress:
                bar.write(f"step {step}: held-out pixel error {curve.value:.4f}")
            if writes:
                picture = folder / "watched" / f"step-{step:06d}.png"
                checkpoint.write_picture(picture, probabilities[0])
            for watcher in watching:
                watcher.picture(step, probabilities[0])
        row["seconds"] = time.perf_counter() - started
        history.append(row)
        for watcher in watching:
            watcher.row(row)
        if writes and save:
            checkpoint.save_checkpoint(
                folder, step, history, modules, optimiser, scaler
            )
            checkpoint.write_history(folder / "history.csv", history)
    bar.close()

    trained = averaged.module if config.average else network
    metrics = {"steps": step, "seconds": history[-1]["seconds"]}
    if held_out and processes.first:
        _, curve = _evaluate(averaged, images, labels, step, config)
        metrics |= {
            "held_out": held_out,
            "pixel_error": curve.value,
            "threshold": curve.threshold,
            "thresholds": curve.thresholds.tolist(),
            "pixel_errors": curve.values.tolist(),
        }
    if writes:
        # Once more: a run may have been stopped between its checkpoint and this.
        checkpoint.write_history(folder / "history.csv", history)
        save_network(trained, folder / "network.safetensors")
        record = metrics | checkpoint.circumstances(device)
        record["processes"] = processes.count
        write_text(folder / "metrics.json", json.dumps(record, indent=1) + "\n")
    return Run(trained.eval(), history, metrics)


@contextmanager
def _engine(config: TrainConfig) -> Iterator[None]:
    """PyTorch's settings for a run, put back after it."""
    backend = torch.backends.cudnn
    before = torch.get_deterministic_debug_mode(), backend.benchmark
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    # All tiles are of one size: let cuDNN try which algorithm is fastest for it.
    backend.benchmark = not config.deterministic
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        backend.benchmark = before[1]


def _autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The convolutions in the run's precision; the loss stays in float32."""
    half = config.precision != "float32"
    dtype = getattr(torch, config.precision) if half else None
    return torch.autocast(device.type, dtype, enabled=half)


def _weights(config: TrainConfig, labels: np.ndarray) -> np.ndarray:
    if config.weighting == "none":
        return np.ones(labels.shape, np.float32)
    return weight_map(labels, config.w0, config.sigma)


def _smaller_tiles(config: TrainConfig) -> str:
    sizes = UNet(base_channels=1, depth=config.depth, padding=config.padding)
    smaller = [n for n in sizes.valid_sizes(1, config.tile - 1)][::-4][:3]
    return "such as " + ", ".join(map(str, smaller)) if smaller else "none is smaller"


def _checked(images, labels) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.shape != labels.shape or images.ndim != 3 or images.size == 0:
        raise ValueError(
            "Expected images and labels of one shape (slices, height, width), got "
            f"{images.shape} and {labels.shape}."
        )
    # In these words NaN is refused too.
    if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"Expected images of floats from 0 to 1, got {_found(images)}; divide "
            "0..255 by 255."
        )
    if labels.dtype.kind not in "bui" or labels.min() < 0 or labels.max() > 1:
        raise ValueError(
            "Expected labels of integers, 0 (membrane) and 1 (cell), got "
            f"{_found(labels)}; for 0 and 255 pass labels > 0."
        )
    return images, labels


def _found(array: np.ndarray) -> str:
    """The type and, where there is one, the range of an array, for an error."""
    if array.dtype.kind not in "biuf":
        return str(array.dtype)
    return f"{array.dtype} from {array.min()} to {array.max()}"


def _evaluate(
    averaged: UNet | AveragedModel,
    images: np.ndarray,
    labels: np.ndarray,
    step: int,
    config: TrainConfig,
) -> tuple[np.ndarray, Curve]:
    """Probabilities of the held-out slices and their pixel error."""
    held_out = list(config.held_out)
    network = averaged.module if config.average else averaged
    probabilities = predict(network, images[held_out])
    if not np.isfinite(probabilities).all():
        raise _diverged("The network's output is not a number", step, config)
    return probabilities, pixel_error(labels[held_out], probabilities)


def _diverged(what: str, step: int, config: TrainConfig) -> FloatingPointError:
    return FloatingPointError(
        f"{what} at step {step}; the last checkpoint is whole. "
        f"Start again with a learning_rate below {config.learning_rate}."
    )


def _optimiser(config: TrainConfig, network: UNet) -> torch.optim.Optimizer:
    if config.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), config.learning_rate)
    return torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum
    )
