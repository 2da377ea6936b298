"""Watching a run: a progress bar, and TensorBoard or Weights & Biases on request.

The last two are optional (``pip install "unet-lib[tensorboard]"``,
``"unet-lib[wandb]"``) and are imported only when a run asks for them. Used in
:doc:`training-faster`.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm


class Watcher(AbstractContextManager["Watcher"]):
    """A context manager that is told how a run goes; leaving it ends the watching."""

    def step(self, step: int) -> None:
        """Take note of a finished step, by its number."""

    def row(self, row: dict[str, Any]) -> None:
        """Take note of a new row of the history."""

    def picture(self, step: int, probabilities: np.ndarray) -> None:
        """Take note of the probabilities ``(height, width)`` of a held-out slice."""

    def __exit__(self, *error: object) -> None:
        """End the watching; all three arguments are None if the run has not failed."""


class Bar(Watcher):
    """A bar with the loss, the learning rate and the time left."""

    def __init__(self, steps: int, begun: int, device: torch.device):
        self.bar = tqdm(total=steps, initial=begun, desc="steps")
        self.begun, self.device = begun, device

    def step(self, step: int) -> None:
        self.bar.update()
        if self.device.type != "cuda":
            return
        # In the first step cuDNN tries its algorithms, which takes memory of its own.
        if step == self.begun + 1:
            torch.cuda.reset_peak_memory_stats(self.device)
        if step == self.begun + 2:
            peak = torch.cuda.max_memory_allocated(self.device) / 2**30
            self.bar.write(f"a step takes {peak:.1f} GiB of the GPU's memory")

    def row(self, row: dict[str, Any]) -> None:
        loss, rate = row["loss"], row["learning_rate"]
        self.bar.set_postfix_str(f"loss {loss:.3f}, learning rate {rate:.1e}")
        for name in {"pixel_error", "mean_dice"} & {*row}:
            said = f"held-out {name.replace('_', ' ')} {row[name]:.4f}"
            self.bar.write(f"step {row['step']}: {said}")

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def open_watchers(
    names: Iterable[str], folder: Path | None, fields: dict[str, Any], step: int
) -> list[Watcher]:
    """Start to watch a run with the watchers that are named.

    Args:
        names: any of ``"tensorboard"`` and ``"wandb"``.
        folder: the folder of the run; TensorBoard's files go into its ``tensorboard``.
        fields: the configuration of the run.
        step: the step from which the run goes on.

    Raises:
        ValueError: if a name is another one, or the run has no folder.
        ImportError: if a watcher is not installed.
    """
    names = check_watchers(names, folder)
    if folder is None:
        return []
    return [WATCHERS[name](folder, fields, step) for name in names]


def check_watchers(names: Iterable[str], folder: Path | None) -> tuple[str, ...]:
    """Return each name once; ValueError for what `open_watchers` would refuse."""
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    if unknown := sorted(set(names) - set(WATCHERS)):
        raise ValueError(
            f"Expected watchers of {', '.join(sorted(WATCHERS))}, got "
            f"{', '.join(map(repr, unknown))}."
        )
    if names and folder is None:
        raise ValueError("A run that is watched needs a folder: give one.")
    return names


class _TensorBoard(Watcher):
    """Event files; look with ``tensorboard --logdir FOLDER``."""

    def __init__(self, folder: Path, fields: dict[str, Any], step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'TensorBoard is not installed: pip install "unet-lib[tensorboard]".'
            ) from error
        # A resumed run writes the steps after its checkpoint anew.
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def row(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, step: int, probabilities: np.ndarray) -> None:
        self.writer.add_image("held out", probabilities, step, dataformats="HW")

    def __exit__(self, *error: object) -> None:
        self.writer.close()


class _WeightsAndBiases(Watcher):
    """A run of Weights & Biases, kept in the folder unless WANDB_MODE is "online".

    ``wandb sync`` sends it later.
    """

    def __init__(self, folder: Path, fields: dict[str, Any], step: int):
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode != "online":
            # Off line too it would send reports on itself.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                'Weights & Biases is not installed: pip install "unet-lib[wandb]".'
            ) from error
        self.wandb = wandb
        self.run = wandb.init(
            project="unet-book",
            name=folder.name,
            dir=folder,
            config=fields,
            mode=mode,
        )

    def row(self, row: dict[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name != "step"}
        self.run.log(numbers, step=row["step"])

    def picture(self, step: int, probabilities: np.ndarray) -> None:
        self.run.log({"held out": self.wandb.Image(probabilities)}, step=step)

    def __exit__(self, *error: object) -> None:
        self.run.finish(exit_code=0 if error[0] is None else 1)


WATCHERS: dict[str, Callable[[Path, dict[str, Any], int], Watcher]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}
