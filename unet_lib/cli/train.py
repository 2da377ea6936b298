"""The commands that train: one run, or those of a table."""

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from unet_lib import _messages
from unet_lib._files import check_folder, read_json
from unet_lib.cli.files import Files
from unet_lib.config import TrainConfig

if TYPE_CHECKING:
    from unet_lib.model import UNet

PAPER, ISBI = TrainConfig(), Files()
Start = Annotated[Path | None, tyro.conf.arg(name="from")]


def run_train(
    folder: Positional[Path],
    *,
    config: Path | None = None,
    fold: Literal[0, 1, 2, 3, 4, 5] = 0,
    data: Path | None = None,
    watch: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "wandb"], ...]] = (),
    start: Start = None,
    files: OmitArgPrefixes[Files] = ISBI,
    run: OmitArgPrefixes[TrainConfig] = PAPER,
) -> None:
    """Train a network on the training stack or your own images; resume a stopped run.

    The run is recorded in FOLDER: config.json, history.csv, pictures, metrics.json and
    network.safetensors. Run again, the same command resumes from the last checkpoint.
    With no options the run is the paper's, which needs a GPU. Settings can also come
    from a JSON file, such as the config.json of another run; options override it.

    Example: train the book's own network again, in an hour or two on two cores.

      unet-lib train runs/again --config results/recorded-run/config.json

    The paper's network with slices 24 to 29 held out, faster on a recent GPU:

      unet-lib train runs/paper --fold 5 --precision bfloat16 --compile

    A network of a quarter of the width, which a CPU can train, on your own images and
    their labels, matched by name, with a fifth of them held out:

      unet-lib train runs/mine --images images --labels masks --hold-out 0.2 \\
          --base-channels 16 --optimizer adam --tile 444 --steps 2500

    Labels are 0 = background and 1 or 255 = cell, or numbers: of cells with
    --instances, of classes with --num-classes. Look at preview.png in FOLDER before
    you wait: it shows images, labels and weights side by side. The held-out images are
    scored by the pixel error, 1 - Dice of the cell class, not the fraction of wrong
    pixels; with several classes, by their mean Dice.

    On four GPUs, which share the tiles of each step:

      torchrun --nproc-per-node 4 -m unet_lib.cli train FOLDER --batch 4

    Args:
        folder: the folder of the run: a new one, or that of a run to resume.
        config: JSON file with fields of TrainConfig.
        fold: hold out this one of five blocks of slices; 0 leaves that to --held-out.
        data: the folder that holds the stacks.
        watch: also send metrics and pictures there.
        start: a network.safetensors to start from, or pretrained; its shape is kept.
        files: files of your own.
        run: fields of unet_lib.train.TrainConfig.
    """
    from unet_lib import data as stacks_in
    from unet_lib.train import fit

    own, options = None, dict[str, Any]()
    if start is not None:
        options["network"] = _network(start)
    check_folder(folder)
    if files != ISBI:
        if fold or data:
            raise ValueError(
                "--fold and --data are for the book's stack: with images of your own "
                "give --hold-out or --held-out instead."
            )
        given = start is not None or run.in_channels != PAPER.in_channels
        own = files.read(folder, run, run.in_channels if given else None)
        run, options["started"] = own.run, partial(own.begin, folder)
        images, labels = own.images.pixels, own.labels.pixels
    else:
        if fold:
            if run.held_out != configuration(config).held_out:
                raise ValueError(
                    "--fold and --held-out both name slices: give only one."
                )
            _, held_out = stacks_in.folds()[fold - 1]
            run = dataclasses.replace(run, held_out=tuple(held_out))
        stacks = stacks_in.load_isbi2012(data)
        images, labels = stacks.train_images, stacks.train_labels
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes, it reports
    if own and first:
        own.describe()
    metrics = fit(run, images, labels, folder, watchers=watch, **options).metrics
    if first:
        if scored := metrics.get("held_out"):
            which = f"Slices {', '.join(map(str, scored))}"
            if own:
                which = f"Held out, {own.named(tuple(scored))}"
            name = "pixel_error" if "pixel_error" in metrics else "mean_dice"
            print(f"{which}: {_messages.TITLES[name]} {metrics[name]:.4f}")
        print(f"Recorded in {folder}.")


def configuration(config: Path | None = None, start: Start = None) -> TrainConfig:
    """What the options of `train` start from: the paper's values, or a file's.

    Channels, classes, width and depth are those of a network to start from.
    """
    run = PAPER
    if config is not None:
        fields = read_json(config)
        try:
            run = TrainConfig.from_dict(fields)
        except ValueError as error:
            raise ValueError(f"{config}: {error}") from error
    if start is None:
        return run
    shape = _network(start).arguments | {"dropout": run.dropout}
    return dataclasses.replace(run, **shape)


def _network(path: Path) -> "UNet":
    from unet_lib.networks import load_network, load_pretrained

    return load_pretrained() if str(path) == "pretrained" else load_network(path)


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
        data: the folder that holds the stacks, or the HeLa cells for a table of these.
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
