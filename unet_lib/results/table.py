"""Experiments: runs that one table lists, made one by one, and recorded.

A table is a TOML file such as the book's, results/experiments.toml. Its ``[scales]``
say what all runs of a scale share, and its ``[variants]`` what each variant changes, as
fields of `config.TrainConfig`. Each ``[[runs]]`` names variants to train at a scale,
with folds and seeds, in the order in which they are made. A table with a part
``[cells]``, such as results/hela.toml, is about the HeLa cells (`results.hela`).
Used in :doc:`results`.
"""

import dataclasses
import fnmatch
import json
import os
import shutil
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from filelock import FileLock, Timeout

from unet_lib import data
from unet_lib._files import read_json, read_toml, write_text
from unet_lib.config import TrainConfig
from unet_lib.data.dic_hela import Frames
from unet_lib.data.tiff import write_tiff
from unet_lib.metrics import evaluate
from unet_lib.networks import load_pretrained
from unet_lib.predict import Versions, predict
from unet_lib.results import hela
from unet_lib.train import fit
from unet_lib.train.checkpoint import CURRENT
from unet_lib.train.folder import differences, save_png

__all__ = ["Experiment", "read_table", "run_table", "state"]

FOLDS = 5
# Of a slice, averaged over in prediction; each is scored.
VERSIONS: tuple[Versions, ...] = get_args(Versions)
SPLITS = ("contiguous", "interleaved")
FIXED = 0.5  # threshold of the recorded masks, and of the figures beside the best


class Experiment(NamedTuple):
    """One run of a table."""

    scale: str
    variant: str
    fold: int  # the fold held out, 1 to 5; 0 trains on all slices, for the test stack
    seed: int
    versions: Versions  # number of versions that the variant averages over
    config: TrainConfig
    scored: tuple[int, ...]  # slices that the fold holds out; none for fold 0
    cells: hela.CellSettings | None = None  # only for a run on the HeLa cells
    pretrained: bool = False  # whether the run starts from the published network

    @property
    def name(self) -> str:
        """The path of its folder: scale/variant/fold-seed."""
        return f"{self.scale}/{self.variant}/{self.fold}-{self.seed}"


def read_table(path: str | Path, only: str = "*", slices: int = 30) -> list[Experiment]:
    """Read the runs that a table lists, in its order, each once.

    Args:
        path: the TOML file.
        only: a pattern for the names of runs, such as ``"quarter-adam-2500/best/*"``.
        slices: the number of slices in the training stack, which is split into
            `FOLDS` contiguous blocks.

    Raises:
        ValueError: if the file is not such a table (the message names the place), or if
            no name fits the pattern.
        OSError: if the file cannot be read.
    """
    place, experiments = f"{path}", []
    rows: dict[tuple[Any, ...], None] = {}
    table = read_toml(Path(path))
    try:
        for number, run in enumerate(table["runs"], 1):
            place = f"{path}, run {number}"
            every = product(run["seeds"], run["variants"], run["folds"])
            for seed, variant, fold in every:
                rows[run["scale"], variant, fold, seed] = None
        for scale, variant, fold, seed in rows:
            place = f"{path}, {scale}/{variant}"
            one = _experiment(table, scale, variant, fold, seed, slices)
            if fnmatch.fnmatch(one.name, only):
                experiments.append(one)
    except (KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, KeyError)
        raise ValueError(
            f"{place} {f'has no {error}' if missing else f'is wrong ({error})'}: "
            "expected [scales.NAME], [variants.NAME] and [[runs]] with scale, "
            "variants, folds and seeds."
        ) from error
    except ValueError as error:  # of a configuration
        raise ValueError(f"{place}: {error}") from error
    if not experiments:
        raise ValueError(f"{path} has no run that is named like {only!r}.")
    return experiments


def _experiment(
    table: dict[str, Any], scale: str, variant: str, fold: Any, seed: Any, slices: int
) -> Experiment:
    shared, changed = table["scales"][scale], table["variants"][variant]
    # A scale may say of a variant what it needs there, such as a width.
    needed = shared.get("variants", {})
    if unknown := sorted(set(needed) - set(table["variants"])):
        raise ValueError(f"the scale names no variant(s) of the table: {unknown}.")
    fields: dict[str, Any] = {}
    turned: dict[str, Any] = {}
    for layer in (shared, changed, needed.get(variant, {})):
        fields |= layer
        turned |= layer.get("augmentation", {})
    fields.pop("variants", None)
    versions = fields.pop("versions", 7)
    if versions not in VERSIONS:
        raise ValueError(f"versions must be of {VERSIONS}, not {versions!r}.")
    own = VERSIONS[VERSIONS.index(versions)]
    cells, pretrained = None, fields.pop("pretrained", False)
    if "cells" in table:
        cells = hela.CellSettings.from_table(table["cells"])
        scored = hela.held_out(fields.pop("split", "blocks"), fold)
        slices = hela.COUNT
    else:
        if pretrained:
            raise ValueError(
                "pretrained is for other images than the training stack: the published "
                "network has learned from all of its slices."
            )
        scored = _held_out(slices, fold, fields.pop("split", SPLITS[0]))
    images = fields.pop("images", None)
    unused = _unused(slices, scored, images, seed)
    fields |= {"augmentation": turned, "held_out": scored + unused, "seed": seed}
    config = TrainConfig.from_dict(fields)
    name = scale, variant, int(fold), config.seed
    return Experiment(*name, own, config, tuple(scored), cells, pretrained)


def _held_out(slices: int, fold: Any, split: str) -> list[int]:
    """The slices that a fold is scored on: a block of neighbors, or every fifth."""
    if fold not in range(FOLDS + 1):
        raise ValueError(f"folds are 1 to {FOLDS}, or 0 for none, not {fold!r}.")
    if split not in SPLITS:
        raise ValueError(f"split must be of {SPLITS}, not {split!r}.")
    fold = int(fold)
    if not fold:
        return []
    if split == "interleaved":
        return list(range(fold - 1, slices, FOLDS))
    return data.folds(slices, FOLDS)[fold - 1][1].tolist()


def _unused(slices: int, scored: list[int], images: int | None, seed: int) -> list[int]:
    """The slices that are neither scored nor among the `images` trained on.

    The seed draws an order of the slices, so that its 3 images are among its 6.
    """
    if images is None:
        return []
    training = [z for z in range(slices) if z not in scored]
    if images not in range(1, len(training) + 1):
        raise ValueError(f"images must be 1 to {len(training)}, not {images!r}.")
    order = np.random.default_rng(seed).permutation(training)
    return sorted(order[images:].tolist())


def state(experiment: Experiment, work: Path, results: Path) -> str:
    """Return ``"recorded"``, ``"begun"``, ``"missing"``, or how a record differs.

    ValueError is raised if another folder is in the place of the record.
    """
    record = results / experiment.name
    if record.exists():
        fields = dataclasses.asdict(experiment.config)
        unlike = differences(record / "config.json", fields)
        if experiment.cells:
            settings = dataclasses.asdict(experiment.cells)
            scores = read_json(record / "scores.json")
            found = scores.get("cells", {})
            unlike += [name for name in settings if found.get(name) != settings[name]]
            if scores.get("pretrained", False) != experiment.pretrained:
                unlike.append("start")
        return f"recorded with another {', '.join(unlike)}" if unlike else "recorded"
    return "begun" if (work / experiment.name / CURRENT).exists() else "missing"


def run_table(
    experiments: list[Experiment],
    stacks: data.Stacks | Frames,
    work: str | Path,
    results: str | Path,
    progress: bool = True,
) -> list[str]:
    """Make the runs that are missing and return their names.

    A run that was stopped goes on. Several processes can work on the same folders: each
    takes the next run that no other process has. A run that diverges is skipped and
    reported at the end.

    Args:
        experiments: the runs, from `read_table`.
        stacks: the data, from `data.load_isbi2012`, or, for a table about the HeLa
            cells, from `data.load_dic_hela`.
        work: the folder for checkpoints and networks.
        results: the folder for records, which are small.
        progress: show progress bars and the names of the runs.

    Raises:
        ValueError: if a record has another configuration than the table, or under
            ``torchrun``; both before any run is made. Other errors are those of
            `train.fit`.
        FloatingPointError: if runs have diverged, after all others are made.
    """
    if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(
            f"Expected a process alone, got {count} that torchrun started: a table's "
            "runs are shared out, not their steps. Give the command without torchrun, "
            "once for each GPU (CUDA_VISIBLE_DEVICES=0, 1, ...)."
        )
    work, results = Path(work), Path(results)
    missing = []
    for experiment in experiments:
        found = state(experiment, work, results)
        if found.startswith("recorded with"):
            raise ValueError(
                f"{results / experiment.name} is {found} than the table asks for: "
                "name another variant, or move the record away."
            )
        if found != "recorded":
            missing.append(experiment)
    made, diverged = [], []
    for experiment in missing:
        folder = work / experiment.name
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may have the run, or have recorded it in the meantime.
        with suppress(Timeout), FileLock(folder / "taken", timeout=0):
            found = state(experiment, work, results)
            if found == "recorded":
                continue
            if progress:
                print(f"{experiment.name}: {found}", flush=True)
            try:
                made_record = _make(experiment, stacks, folder, progress)
                _record(folder, results / experiment.name, *made_record)
            except FloatingPointError as error:  # the runs after it are no worse for it
                diverged.append(f"{experiment.name}: {error}")
            else:
                made.append(experiment.name)
    if diverged:
        raise FloatingPointError(
            f"{len(made)} run(s) made and recorded, {len(diverged)} diverged.\n"
            + "\n".join(diverged)
        )
    return made


def _make(
    experiment: Experiment, stacks: data.Stacks | Frames, folder: Path, progress: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """Train, predict what was held out (or the test stack), score."""
    config, fold, versions = experiment.config, experiment.fold, experiment.versions
    slices = list(experiment.scored)
    if isinstance(stacks, Frames):
        assert experiment.cells is not None
        start = load_pretrained() if experiment.pretrained else None
        return hela.make(
            config, experiment.cells, stacks, slices, versions, folder, progress, start
        )
    images, labels = stacks.train_images, stacks.train_labels
    network = fit(config, images, labels, folder, progress).network
    trained = np.delete(np.arange(len(images)), config.held_out).tolist()
    training = evaluate(labels[trained], predict(network, images[trained])).to_dict()
    truth: np.ndarray | None
    if fold:
        images, truth, looks = images[slices], labels[slices], VERSIONS
    else:  # the test stack is scored once, in the way that the variant names
        images, truth, looks = stacks.test_images, stacks.test_labels, (versions,)
        slices = list(range(len(images)))
    found = {look: predict(network, images, versions=look) for look in looks}
    if not fold:
        write_tiff(folder / "test-probabilities.tif", found[versions], "ZYX")
    scores = {}
    if truth is not None:
        scores = {look: evaluate(truth, seen).to_dict() for look, seen in found.items()}
    record = {
        "stack": "train" if fold else "test",
        "slices": slices,
        "versions": versions,
        "scores": scores,
        "training": {"slices": trained, "versions": 1} | training,
    }
    return record, found[versions] > FIXED


def _record(
    folder: Path, target: Path, record: dict[str, Any], masks: np.ndarray
) -> None:
    """Copy what is small into the folder of results, all of it or nothing."""
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
    (temporary / "masks").mkdir(parents=True)
    for name in ("config.json", "history.csv", "metrics.json"):
        shutil.copy(folder / name, temporary)
    write_text(temporary / "scores.json", json.dumps(record, indent=1) + "\n")
    for number, mask in zip(record["slices"], masks, strict=True):
        picture = temporary / "masks" / f"{number:02d}.png"
        save_png(picture, 255 * mask.astype(np.uint8))
    os.replace(temporary, target)
