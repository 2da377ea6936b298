"""Training: the loop, with checkpoints and a record of the run (section 3).

Built in :doc:`training`.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from unet_lib._checks import as_stack
from unet_lib._files import write_text
from unet_lib.augment import TileSampler
from unet_lib.config import TrainConfig
from unet_lib.loss import weighted_cross_entropy
from unet_lib.model import UNet, check_batch_norm
from unet_lib.networks import save_network
from unet_lib.predict import predict
from unet_lib.train import checkpoint, examples, steps
from unet_lib.train import folder as folders
from unet_lib.train.checkpoint import State
from unet_lib.train.context import explained, settings
from unet_lib.train.loggers import WATCHERS, Bar, Watcher, check_watchers
from unet_lib.train.processes import Processes, best_device, join
from unet_lib.train.steps import train_step

__all__ = [
    "Run",
    "TrainConfig",
    "best_device",
    "fit",
    "train_step",
    "weighted_cross_entropy",
]

LOG_EVERY = 50  # steps


class Run(NamedTuple):
    """What `fit` returns."""

    network: UNet
    history: list[dict[str, Any]]  # one row for each time something was logged
    metrics: dict[str, Any]  # scores of the held-out slices; empty if there are none


def fit(
    config: TrainConfig,
    images: np.ndarray | list[np.ndarray],
    labels: np.ndarray | list[np.ndarray],
    folder: str | Path | None = None,
    progress: bool = True,
    watchers: Iterable[str] = (),
    network: nn.Module | None = None,
    started: Callable[[TileSampler], None] | None = None,
) -> Run:
    """Train one network; with a folder, record the run and resume it there.

    Under ``torchrun``, the processes share the tiles of each step; the first process
    writes the files, shows the progress and predicts the held-out slices. PyTorch's
    settings and random state are restored at the end.

    Args:
        config: the settings of the run.
        images: ``(slices, height, width)`` or ``(slices, channels, height, width)``,
            float, 0 to 1; or a list of such slices, which may differ in size.
        labels: the same shape without channels, integer: 0 = background or membrane and
            1 = cell, or the number of a class or of a cell, if the configuration says
            so. -1 = unknown: such pixels are not learned, do not count in the balance
            of the classes, and are left out of the scores.
        folder: the folder for config.json, history.csv, checkpoint.safetensors, a
            picture of the first held-out slice for each step in `watch_at`, and, at
            the end, network.safetensors and metrics.json. A run that was stopped goes
            on from its checkpoint. A run that is finished is returned, and its files
            stay as they are. None keeps nothing.
        progress: show a bar with the loss, the learning rate and the time left.
        watchers: any of ``"tensorboard"`` and ``"wandb"``; see `train.loggers`.
        network: a network whose weights to start from instead of random ones, such as
            that of `load_pretrained`; it is not changed. Its arguments must be those
            of the configuration, except for dropout.
        started: a function for a preview of the tiles. It is called with their sampler
            before the first step of this call, after `folder` has been checked.

    Raises:
        ValueError: if the stacks do not fit together or are not as described above; if
            the labels have a single class; if held-out slices do not exist or have no
            known pixel; if the network has other arguments; if a watcher is not known;
            or if the folder holds another run, or a run on other data or from another
            network.
        ImportError: if a watcher is not installed.
        FloatingPointError: if the loss or a held-out probability is no longer a
            number; the last checkpoint is intact.
        MemoryError: if the memory of the device does not hold one step.
        OSError: if a file cannot be written (the last checkpoint is then intact); if
            the folder is gone, or in use by another process (BlockingIOError); or if
            processes see different folders.
        KeyboardInterrupt: if you stop the run from the keyboard; the message says how
            to go on.
    """
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"Expected a TrainConfig, got {type(config).__name__}: "
            "TrainConfig.from_dict makes one of a dictionary."
        )
    images, labels = examples.checked(config, images, labels)
    examples.check_held_out(config.held_out, labels)
    start = None if network is None else steps.start_of(config, network)
    folder = None if folder is None else Path(folder)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the run a folder, new or its own.")
    watchers = check_watchers(watchers, folder)
    with join(config.device, config.batch) as processes:
        device = processes.device
        if config.batch_norm:
            tile, share = (config.tile, config.tile), config.batch // processes.count
            check_batch_norm(share, tile, config.depth, config.padding)
        with settings(config, device), explained(config, device, folder):
            job = _Job(config, images, labels, start, folder, processes)
            return _fit(job, progress, watchers, started)


@dataclass(frozen=True)
class _Job:
    """What stays the same all through a run."""

    config: TrainConfig
    images: list[np.ndarray]
    labels: list[np.ndarray]
    start: dict[str, torch.Tensor] | None
    folder: Path | None
    processes: Processes
    watching: list[Watcher] = field(default_factory=list)

    @property
    def output(self) -> Path | None:
        """The folder, where this process writes to it."""
        return self.folder if self.processes.first else None

    @property
    def metric(self) -> str:
        """What is scored of held-out slices, in the history."""
        return "pixel_error" if self.config.num_classes == 2 else "mean_dice"


def _fit(
    job: _Job,
    progress: bool,
    watchers: tuple[str, ...],
    started: Callable[[TileSampler], None] | None,
) -> Run:
    """A run from its beginning, or its last checkpoint, to its record."""
    config, processes = job.config, job.processes
    fields = dataclasses.asdict(config)
    with ExitStack() as ends:
        state = steps.begin(config, processes.device, job.start)
        training = [z for z in range(len(job.images)) if z not in config.held_out]
        images, labels = ([of[z] for z in training] for of in (job.images, job.labels))
        sampler = steps.build_sampler(config, images, labels, processes.device)
        data = folders.fingerprint(job.images, job.labels, job.start)
        if job.output is not None:
            ends.enter_context(folders.held(job.output))
            folders.claim(job.output, fields, data)
        # The first before the others: it puts a damaged checkpoint aside.
        for turn in (True, False):
            if job.folder is not None and processes.first == turn:
                checkpoint.load_checkpoint(job.folder, state)
            processes.wait()
        processes.check_same(state.step)
        trains = state.step < config.steps
        if trains and processes.first:
            if started is not None:
                started(sampler)
            for name in watchers:
                watcher = WATCHERS[name](job.folder, fields, state.step)
                job.watching.append(ends.enter_context(watcher))
            if progress:
                bar = Bar(config.steps, state.step, processes.device)
                job.watching.append(ends.enter_context(bar))
        if trains:
            _train(job, state, sampler)
        metrics = {"steps": state.step, "seconds": state.history[-1]["seconds"]}
        if config.held_out and processes.first:
            metrics |= {"held_out": list(config.held_out)} | _evaluate(job, state)[1]
        if job.output is not None:
            _record(job, state, metrics | {"data": data}, again=not trains)
    return Run(state.trained.eval(), state.history, metrics)


def _train(job: _Job, state: State, sampler: TileSampler) -> None:
    """The loop: steps, some of which are logged, watched or saved."""
    config, processes = job.config, job.processes
    forward: Callable[..., torch.Tensor] = processes.wrap(state.network)
    if config.compile:
        forward = torch.compile(forward, dynamic=False)
    before = state.history[-1]["seconds"] if state.history else 0
    started = time.perf_counter() - before
    losses: list[torch.Tensor] = []
    state.network.train()
    while state.step < config.steps:
        first = state.step * config.batch
        share = processes.share(range(first, first + config.batch))
        loss = steps.next_step(state, forward, sampler, config, share, processes.rank)
        losses.append(loss)
        for watcher in job.watching:
            watcher.step(state.step)
        watch = bool(config.held_out) and state.step in config.watch_at
        save = state.step % config.save_every == 0 or state.step == config.steps
        if not (watch or save or state.step % LOG_EVERY == 0):
            continue
        # Here, and only here, the host waits for the device.
        mean = float(processes.mean(torch.stack(losses).mean()))
        losses.clear()
        if not np.isfinite(mean):
            raise _diverged(f"The loss is {mean}", state.step, config)
        row: dict[str, Any] = {"step": state.step, "seconds": 0.0, "loss": mean}
        row["learning_rate"] = config.rate(state.step - 1)
        if watch and processes.first:
            row[job.metric] = _watch(job, state)
        row["seconds"] = time.perf_counter() - started
        state.history.append(row)
        for watcher in job.watching:
            watcher.row(row)
        if save and job.output is not None:
            checkpoint.save_checkpoint(job.output, state)
            folders.write_history(job.output, state.history, job.metric)


def _watch(job: _Job, state: State) -> float:
    """Look at the held-out slices in the midst of a run; what is scored of them."""
    probabilities, scores = _evaluate(job, state)
    state.network.train()  # prediction has switched dropout off
    first = probabilities[0]
    if first.ndim == 3:  # of more than two classes: that it is not background
        first = 1 - first[0]
    if job.output is not None:
        picture = job.output / "watched" / f"step-{state.step:06d}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        folders.save_png(picture, np.round(255 * first).astype(np.uint8))
    for watcher in job.watching:
        watcher.picture(state.step, first)
    return scores[job.metric]


def _evaluate(job: _Job, state: State) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Probabilities of the held-out slices and what is scored of them."""
    held_out = job.config.held_out
    images, labels = ([of[z] for z in held_out] for of in (job.images, job.labels))
    stack = as_stack(images)
    if isinstance(stack, list):  # of different sizes
        found = [predict(state.trained, one) for one in stack]
    else:
        found = [*predict(state.trained, stack)]
    if not all(np.isfinite(one).all() for one in found):
        raise _diverged("The network's output is not a number", state.step, job.config)
    return found, examples.score(job.config, labels, found)


def _record(job: _Job, state: State, metrics: dict[str, Any], again: bool) -> None:
    """Write what a finished run leaves; of one finished before, what is missing."""
    assert job.output is not None
    files = [job.output / name for name in ("network.safetensors", "metrics.json")]
    if again and all(path.exists() for path in files):
        return
    # Once more: a run may have been stopped between its checkpoint and this.
    folders.write_history(job.output, state.history, job.metric)
    save_network(state.trained, files[0])
    record = metrics | folders.circumstances(job.processes.device)
    record["processes"] = job.processes.count
    write_text(files[1], json.dumps(record, indent=1) + "\n")


def _diverged(what: str, step: int, config: TrainConfig) -> FloatingPointError:
    return FloatingPointError(
        f"{what} at step {step}; the last checkpoint is intact. "
        f"Start again with a learning_rate below {config.learning_rate}."
    )
