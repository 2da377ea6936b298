"""The commands that train: one run, or those of a table."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from unet_lib import _messages
from unet_lib._files import check_folder, read_json
from unet_lib.config import TrainConfig

PAPER = TrainConfig()


def run_train(
    folder: Positional[Path],
    *,
    config: Path | None = None,
    fold: Literal[0, 1, 2, 3, 4, 5] = 0,
    data: Path | None = None,
    watch: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "wandb"], ...]] = (),
    run: OmitArgPrefixes[TrainConfig] = PAPER,
) -> None:
    """Train a network on the training stack; a stopped run resumes.

    The run is recorded in FOLDER: config.json, history.csv, pictures, metrics.json and
    network.safetensors. Given again, the same command resumes from the last checkpoint.
    With no options the run is the paper's, which needs a GPU. Settings can also come
    from a JSON file, such as the config.json of another run; options override it.

    Example: train the book's own network again, in an hour or two on two cores.

      unet-lib train runs/again --config results/recorded-run/config.json

    The paper's network with slices 24 to 29 held out, faster on a recent GPU:

      unet-lib train runs/paper --fold 5 --precision bfloat16 --compile

    On four GPUs, which share the tiles of each step:

      torchrun --nproc-per-node 4 -m unet_lib.cli train FOLDER --batch 4

    Args:
        folder: of the run: a new one, or its own.
        config: JSON file with fields of TrainConfig.
        fold: hold out this one of five blocks of slices; 0 leaves that to --held-out.
        data: the folder that holds the stacks.
        watch: also send numbers and pictures there.
        run: fields of unet_lib.train.TrainConfig.
    """
    from unet_lib import data as stacks_in
    from unet_lib.train import fit

    if fold:
        if run.held_out != configuration(config).held_out:
            raise ValueError("--fold and --held-out both name slices: give only one.")
        _, held_out = stacks_in.folds()[fold - 1]
        run = dataclasses.replace(run, held_out=tuple(held_out))
    check_folder(folder)
    stacks = stacks_in.load_isbi2012(data)
    images, labels = stacks.train_images, stacks.train_labels
    metrics = fit(run, images, labels, folder, watchers=watch).metrics
    if int(os.environ.get("RANK", 0)) > 0:
        return  # of several processes, the first one reports
    if "pixel_error" in metrics:
        slices = ", ".join(map(str, metrics["held_out"]))
        print(f"Slices {slices}: {_messages.PIXEL_ERROR} {metrics['pixel_error']:.4f}")
    print(f"Recorded in {folder}.")


def configuration(config: Path | None = None) -> TrainConfig:
    """What the options of `train` start from: the paper's values, or a file's."""
    if config is None:
        return PAPER
    fields = read_json(config)
    try:
        return TrainConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error


def run_experiments(
    table: Positional[Path],
    *,
    list: FlagCreatePairsOff[bool] = False,
    only: str = "*",
    work: Path = Path("runs"),
    data: Path | None = None,
) -> None:
    """Make and record the runs of a table, or list them.

    The runs of TABLE that are not recorded yet are trained, scored and recorded one
    after the other; a run that was stopped resumes. A record is a folder
    SCALE/VARIANT/FOLD-SEED beside the table. Networks and checkpoints stay in --work.
    Start the command twice, and the two processes share the runs. A run of fold 0
    trains on all slices and predicts the test stack, as the challenge asked:
    test-probabilities.tif in its folder of --work.

    Example: list what is recorded and what is missing.

      unet-lib experiments results/experiments.toml --list

    The paper's recipe at a quarter of its width:

      unet-lib experiments results/experiments.toml --only 'quarter-sgd-30000/paper/*'

    Args:
        table: TOML file, such as the book's.
        list: train nothing, list the runs.
        only: pattern of the names of runs, such as 'quarter-adam-2500/*'.
        work: the folder of networks and checkpoints.
        data: the folder that holds the stacks, or the HeLa cells of a table of theirs.
    """
    from unet_lib import data as stacks_in
    from unet_lib.results.table import read_table, run_table, state

    experiments = read_table(table, only)
    results = table.parent
    if list:
        width = max(len(one.name) for one in experiments)
        for one in experiments:
            print(f"{one.name:<{width}}  {state(one, work, results)}")
        return
    check_folder(work)
    check_folder(results)
    load = stacks_in.load_dic_hela if experiments[0].cells else stacks_in.load_isbi2012
    made = run_table(experiments, load(data), work, results)
    print(f"{len(made)} run(s) made and recorded in {results}.")
