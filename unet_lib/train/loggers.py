"""Watching a run: a progress bar, and TensorBoard or Weights & Biases on request.

The last two are optional (``pip install "unet-lib[tensorboard]"``,
``"unet-lib[wandb]"``) and are imported only when a run asks for them. Used in
:doc:`training-faster`.
"""

import importlib
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


def check_watchers(names: Iterable[str], folder: Path | None) -> tuple[str, ...]:
    """Return each name once.

    ValueError is raised for a name that is not known, and for a run without a folder.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    if unknown := sorted(set(names) - set(WATCHERS)):
        raise ValueError(
            f"Expected watchers of {', '.join(sorted(WATCHERS))}, got "
            f"{', '.join(map(repr, unknown))}."
        )
    if names and folder is None:
        raise ValueError("A run that is watched needs a folder: give one.")
    return names


def _imported(module: str, title: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{title} is not installed: pip install "unet-lib[{extra}]".'
        ) from error


class _TensorBoard(Watcher):
    """Event files; look with ``tensorboard --logdir FOLDER``."""

    def __init__(self, folder: Path, fields: dict[str, Any], step: int):
        board = _imported("torch.utils.tensorboard", "TensorBoard", "tensorboard")
        # A resumed run writes the steps after its checkpoint anew.
        self.writer = board.SummaryWriter(folder / "tensorboard", purge_step=step + 1)

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
        self.wandb = _imported("wandb", "Weights & Biases", "wandb")
        self.run = self.wandb.init(
            project="unet-book", name=folder.name, dir=folder, config=fields, mode=mode
        )

    def row(self, row: dict[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name != "step"}
        self.run.log(numbers, step=row["step"])

    def picture(self, step: int, probabilities: np.ndarray) -> None:
        self.run.log({"held out": self.wandb.Image(probabilities)}, step=step)

    def __exit__(self, *error: object) -> None:
        self.run.finish(exit_code=0 if error[0] is None else 1)


# Each takes the run's folder, its configuration and the step from which it goes on.
WATCHERS: dict[str, Callable[..., Watcher]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}
