"""Runs on the HeLa cells: which frames they hold out, and how their cells are scored.

A table is about these cells if it has a part ``[cells]``. This part says how frames are
prepared and how cells are found in a network's probabilities, for all runs alike.
"""

from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from unet_lib.cells import COUNTS, SCORES, CellScores, find_cells, score_cells
from unet_lib.config import TrainConfig
from unet_lib.data.dic_hela import FRAMES, Frames
from unet_lib.model import UNet
from unet_lib.predict import Versions, predict
from unet_lib.train import fit

COUNT = sum(map(len, FRAMES.values()))
BLOCKS = 3  # of time, in each sequence
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # at which cells are scored
SPLITS = {"blocks": BLOCKS, "sequences": len(FRAMES)}  # and their folds


@dataclass(frozen=True)
class CellSettings:
    """How frames are prepared, and how cells are found.

    Attributes:
        downscale: side of the squares of pixels whose mean becomes one pixel for the
            network; its probabilities are brought back to full size before scoring.
        low: gray value, from 0 to 1, that becomes 0.
        high: gray value that becomes 1.
        components: threshold for cells found as connected components, one of
            `THRESHOLDS`.
        threshold: threshold for cells found by a watershed, and for the recorded masks,
            also one of `THRESHOLDS`.
        watershed: as for `cells.find_cells`.
        smallest: as for `cells.find_cells`.
    """

    downscale: int
    low: float
    high: float
    components: float
    threshold: float
    watershed: float
    smallest: int

    @classmethod
    def from_table(cls, found: Any) -> "CellSettings":
        """Read the part ``[cells]`` of a table; ValueError or TypeError if wrong."""
        known = {one.name for one in fields(cls)}
        if set(found) != known or not all(isinstance(n, Real) for n in found.values()):
            raise ValueError(
                f"[cells] must have numbers named {', '.join(sorted(known))}, not "
                f"{found}."
            )
        for name in ("components", "threshold"):
            if found[name] not in THRESHOLDS:
                raise ValueError(
                    f"{name} must be of {THRESHOLDS}, not {found[name]!r}."
                )
        return cls(**found)


def held_out(split: str, fold: int) -> list[int]:
    """The frames that a fold is scored on: a block of each sequence, or a whole one.

    Raises:
        ValueError: if the split is another one, or does not have this fold.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be of {tuple(SPLITS)}, not {split!r}.")
    if fold not in range(1, SPLITS[split] + 1):
        raise ValueError(f"folds of {split} are 1 to {SPLITS[split]}, not {fold!r}.")
    ends = np.cumsum([len(numbers) for numbers in FRAMES.values()])
    sequences = np.split(np.arange(ends[-1]), ends[:-1])
    if split == "sequences":  # trained on 01 and scored on 02 first
        return sequences[::-1][fold - 1].tolist()
    return np.concatenate(
        [np.array_split(one, BLOCKS)[fold - 1] for one in sequences]
    ).tolist()


def prepared(frames: Frames, settings: CellSettings) -> tuple[np.ndarray, np.ndarray]:
    """Make images and labels for the network: smaller, and with more contrast."""
    step = settings.downscale
    count, height, width = frames.images.shape
    blocks = frames.images.reshape(count, height // step, step, width // step, step)
    images = (blocks.mean((2, 4)) - settings.low) / (settings.high - settings.low)
    return images.clip(0, 1).astype(np.float32), frames.labels[:, ::step, ::step]


def make(
    config: TrainConfig,
    settings: CellSettings,
    frames: Frames,
    scored: list[int],
    versions: Versions,
    folder: Path,
    progress: bool,
    start: UNet | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Train a run and score it: its record, and the masks of the scored frames."""
    images, labels = prepared(frames, settings)
    network = fit(config, images, labels, folder, progress, network=start).network
    found = _probabilities(network, images[scored], settings, versions)
    trained = np.delete(np.arange(len(images)), config.held_out).tolist()
    of_trained = _probabilities(network, images[trained], settings, versions)
    record = {
        "stack": "DIC-C2DH-HeLa",
        "slices": scored,
        "frames": [f"{frames.sequences[n]}/{frames.numbers[n]}" for n in scored],
        "versions": versions,
        "cells": asdict(settings),
        "pretrained": start is not None,
        "scores": _scores(frames.labels[scored], found, settings),
        "training": {
            "slices": trained,
            "versions": versions,
            "scores": _scores(frames.labels[trained], of_trained, settings),
        },
    }
    return record, found > settings.threshold


def _probabilities(
    network: UNet, images: np.ndarray, settings: CellSettings, versions: Versions
) -> np.ndarray:
    """Of cell, at full size, by linear interpolation."""
    found = predict(network, images, versions=versions)
    step = settings.downscale
    large = ndimage.zoom(
        found, (1, step, step), order=1, mode="nearest", grid_mode=True
    )
    return large.clip(0, 1)


def _scores(
    labels: np.ndarray, probabilities: np.ndarray, settings: CellSettings
) -> dict[str, Any]:
    """By connected components, and by the watershed, as `results.figures` reads them.

    The value of a score is that at the threshold of the settings, not the best.
    """
    scores = {}
    for method, own, h in (
        ("components", settings.components, None),
        ("watershed", settings.threshold, settings.watershed),
    ):
        found = [
            score_cells(labels, find_cells(probabilities, at, h, settings.smallest))
            for at in THRESHOLDS
        ]
        place = THRESHOLDS.index(own)
        counts = {name: getattr(found[place], name) for name in COUNTS}
        figures = {name: _curve(name, found, place) for name in SCORES}
        scores[method] = {"figures": figures, "counts": counts}
    return scores


def _curve(name: str, found: list[CellScores], place: int) -> dict[str, Any]:
    values = [getattr(one, name) for one in found]
    slices = zip(*(one.per_slice for one in found), strict=True)
    return {
        "value": values[place],
        "threshold": THRESHOLDS[place],
        "values": values,
        "thresholds": THRESHOLDS,
        "per_slice": [[getattr(one, name) for one in row] for row in slices],
    }
