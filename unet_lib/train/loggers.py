"""Watching a run from elsewhere: TensorBoard, and Weights & Biases if asked for.

Both are optional (``pip install "unet-lib[tensorboard]"``, ``"unet-lib[wandb]"``) and
are imported only when a run asks for them. Used in :doc:`training`.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np


def open_watchers(
    names: Iterable[str], folder: Path | None, fields: dict, step: int
) -> list[AbstractContextManager]:
    """Start to watch a run with each of the named.

    Each takes rows of the history, ``row(row)``, and pictures of probabilities
    ``(height, width)``, ``picture(step, probabilities)``. Leaving it ends the watching.

    Args:
        names: of ``"tensorboard"`` and ``"wandb"``.
        folder: the run's; TensorBoard's files go into its ``tensorboard``.
        fields: the run's configuration.
        step: from which the run goes on.

    Raises:
        ValueError: for another name, or a run without a folder.
        ImportError: for one that is not installed.
    """
    names = check_watchers(names, folder)
    return [WATCHERS[name](folder, fields, step) for name in names]


def check_watchers(names: Iterable[str], folder: Path | None) -> tuple[str, ...]:
    """The names, each once; ValueError for what `open_watchers` would refuse."""
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    if unknown := sorted(set(names) - set(WATCHERS)):
        raise ValueError(
            f"Expected watchers of {', '.join(sorted(WATCHERS))}, got "
            f"{', '.join(map(repr, unknown))}."
        )
    if names and folder is None:
        raise ValueError("A run that is watched needs a folder: give one.")
    return names


class _TensorBoard(AbstractContextManager):
    """Event files; look with ``tensorboard --logdir FOLDER``."""

    def __init__(self, folder: Path, fields: dict, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'TensorBoard is not installed: pip install "unet-lib[tensorboard]".'
            ) from error
        # A resumed run writes the steps after its checkpoint anew.
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def row(self, row: dict) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, step: int, probabilities: np.ndarray) -> None:
        self.writer.add_image("held out", probabilities, step, dataformats="HW")

    def __exit__(self, *error: object) -> None:
        self.writer.close()


class _WeightsAndBiases(AbstractContextManager):
    """A run of Weights & Biases, kept in the folder unless WANDB_MODE is "online".

    ``wandb sync`` sends it later.
    """

    def __init__(self, folder: Path, fields: dict, step: int):
        mode = os.environ.get("WANDB_MODE", "offline")
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

    def row(self, row: dict) -> None:
        numbers = {name: value for name, value in row.items() if name != "step"}
        self.run.log(numbers, step=row["step"])

    def picture(self, step: int, probabilities: np.ndarray) -> None:
        self.run.log({"held out": self.wandb.Image(probabilities)}, step=step)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.run.finish(exit_code=0 if kind is None else 1)


WATCHERS = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
