"""Training: the loss, the loop, checkpoints, the record (section 3).

Built in chapter 5, *Training on a GPU*.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from unet_lib import checkpoint
from unet_lib.augment import TileSampler
from unet_lib.configuration import TrainConfig
from unet_lib.metrics import Curve, pixel_error
from unet_lib.model import UNet, save_network
from unet_lib.predict import predict
from unet_lib.weights import weight_map

LOG_EVERY = 50  # steps


class Run(NamedTuple):
    """What `fit` returns."""

    network: UNet
    history: list[dict]  # a row each time something was logged
    metrics: dict  # of the held-out slices; empty where there are none


def weighted_cross_entropy(
    scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The paper's energy (equation 1) with its sign turned, per pixel.

    E = sum over x of w(x) log p_label(x)(x), p the soft-max over the classes.
    The mean over the pixels, not the sum, so that the learning rate does not
    depend on the tile; not divided by the sum of the weights, so that a tile
    with many borders counts for more. Computed in float32 or better.

    Args:
        scores: ``(batch, classes, height, width)``, float.
        labels: ``(batch, height, width)``, int64.
        weights: ``(batch, height, width)``, float, not negative.

    Raises:
        ValueError: for shapes that do not fit together or are empty, and other
            types; on the CPU also for labels that are no class, and for weights
            that are negative or not finite. A GPU would have to be waited for.
    """
    expected = (*scores.shape[:1], *scores.shape[2:])
    fit_together = scores.ndim == 4 and labels.shape == weights.shape == expected
    if not fit_together or scores.numel() == 0:
        raise ValueError(
            "Expected scores (batch, classes, height, width) and labels and weights "
            "(batch, height, width) with at least one pixel, got "
            f"{tuple(scores.shape)}, {tuple(labels.shape)}, {tuple(weights.shape)}."
        )
    if labels.dtype != torch.int64 or not scores.is_floating_point():
        raise ValueError(
            f"Expected scores of floats and labels of int64, got {scores.dtype} and "
            f"{labels.dtype}."
        )
    if labels.device.type == "cpu":
        low, high, classes = int(labels.min()), int(labels.max()), scores.shape[1]
        if low < 0 or high >= classes:
            raise ValueError(
                f"Expected labels from 0 to {classes - 1}, one of {classes} classes, "
                f"got {low} to {high}; for 0 and 255 pass (labels > 0).long()."
            )
        # In these words NaN is refused too.
        if not 0 <= weights.min() <= weights.max() < np.inf:
            raise ValueError(
                "Expected weights of 0 and above, finite, got "
                f"{weights.min():g} to {weights.max():g}."
            )
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    return (weights * F.cross_entropy(scores, labels, reduction="none")).mean()


def best_device() -> str:
    """``"cuda"``, else Apple's ``"mps"``, else ``"cpu"``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fit(
    config: TrainConfig,
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Train one network; with a folder, record the run and resume it there.

    Args:
        config: what to do.
        images: ``(slices, height, width)``, float, 0 to 1.
        labels: the same shape, 1 = cell, 0 = membrane.
        folder: where config.json, history.csv, checkpoint.safetensors, a
            picture of the first held-out slice for each of `watch_at`, and at
            the end network.safetensors and metrics.json go. A run that was
            stopped goes on from its checkpoint. None keeps nothing.
        progress: show a bar with the loss.

    Raises:
        ValueError: for stacks that do not fit together or are not as said
            above, held-out slices that do not exist, or a folder that holds
            another run.
        FloatingPointError: when the loss or a held-out probability is no longer
            a number; the last checkpoint is whole.
    """
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"Expected a TrainConfig, got {type(config).__name__}: "
            "TrainConfig.from_dict makes one of a dictionary."
        )
    images, labels = _checked(images, labels)
    held_out = list(config.held_out)
    training = [z for z in range(len(images)) if z not in set(held_out)]
    if not training or not set(held_out) <= set(range(len(images))):
        raise ValueError(
            f"Cannot hold out slices {held_out} of {len(images)}: give numbers from 0 "
            "to the last slice, and leave some to train on."
        )
    device = _device(config.device or best_device())
    torch.manual_seed(config.seed)
    network = UNet(
        base_channels=config.base_channels, depth=config.depth, dropout=config.dropout
    ).to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(config.average)
    ).eval()
    optimiser = _optimiser(config, network)
    sampler = TileSampler(
        images[training],
        labels[training],
        weight_map(labels[training], config.w0, config.sigma),
        config.tile,
        network.output_size(config.tile),
        config.augmentation,
        config.seed,
        device,
    )
    modules = {"network": network, "averaged": averaged}
    step, history = 0, []
    if folder is not None:
        folder = Path(folder)
        checkpoint.claim(folder, dataclasses.asdict(config))
        step, history = checkpoint.load_checkpoint(folder, modules, optimiser)
    started = time.perf_counter() - (history[-1]["seconds"] if history else 0)

    losses: list[torch.Tensor] = []
    network.train()
    bar = tqdm(total=config.steps, initial=step, disable=not progress, desc="steps")
    while step < config.steps:
        # Tiles and drop-out depend on the seed and the step alone, so that a
        # resumed run goes on as if it had not been stopped.
        torch.manual_seed(config.seed * 1_000_003 + step)
        tiles = range(step * config.batch, (step + 1) * config.batch)
        image, label, weight = sampler.batch(tiles)
        rate = config.learning_rate * (1 - step / config.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = weighted_cross_entropy(network(image), label, weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        averaged.update_parameters(network)
        losses.append(loss.detach())
        step += 1
        bar.update()

        watch = bool(held_out) and step in config.watch_at
        save = step % config.save_every == 0 or step == config.steps
        if not (watch or save or step % LOG_EVERY == 0):
            continue
        mean = float(torch.stack(losses).mean())  # the host waits for the device
        losses.clear()
        if not np.isfinite(mean):
            raise _diverged(f"The loss is {mean}", step, config)
        bar.set_postfix(loss=f"{mean:.3f}")
        row = {"step": step, "seconds": 0.0, "loss": mean, "learning_rate": rate}
        if watch:
            probabilities, curve = _evaluate(averaged, images, labels, step, config)
            row["pixel_error"] = curve.value
            if progress:
                bar.write(f"step {step}: held-out pixel error {curve.value:.4f}")
            if folder is not None:
                picture = folder / "watched" / f"step-{step:06d}.png"
                checkpoint.write_picture(picture, probabilities[0])
        row["seconds"] = time.perf_counter() - started
        history.append(row)
        if folder is not None and save:
            checkpoint.save_checkpoint(folder, step, history, modules, optimiser)
            checkpoint.write_history(folder / "history.csv", history)
    bar.close()

    metrics = {"steps": step, "seconds": history[-1]["seconds"]}
    if held_out:
        _, curve = _evaluate(averaged, images, labels, step, config)
        metrics |= {
            "held_out": held_out,
            "pixel_error": curve.value,
            "threshold": curve.threshold,
            "thresholds": curve.thresholds.tolist(),
            "pixel_errors": curve.values.tolist(),
        }
    if folder is not None:
        # Once more: a run may have been stopped between its checkpoint and this.
        checkpoint.write_history(folder / "history.csv", history)
        save_network(averaged.module, folder / "network.safetensors")
        record = metrics | checkpoint.circumstances(device)
        checkpoint.write_text(
            folder / "metrics.json", json.dumps(record, indent=1) + "\n"
        )
    return Run(averaged.module, history, metrics)


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


def _device(name: str) -> torch.device:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # of torch built without CUDA
        raise ValueError(
            f'device must be "cpu", or "cuda" or "mps" where there is one, or None '
            f"for the fastest, not {name!r} ({str(error).splitlines()[0]})."
        ) from error
    return torch.device(name)


def _evaluate(
    averaged: AveragedModel,
    images: np.ndarray,
    labels: np.ndarray,
    step: int,
    config: TrainConfig,
) -> tuple[np.ndarray, Curve]:
    """Probabilities of the held-out slices and their pixel error."""
    held_out = list(config.held_out)
    probabilities = predict(averaged.module, images[held_out])
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
