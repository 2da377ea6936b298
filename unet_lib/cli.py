"""The commands: the library's functions from the command line.

Each command is a function. tyro takes its options from the signature and their help
from the docstring, whose text is printed below them. What a command needs is imported
when it runs, so that `--help` comes at once.
"""

import dataclasses
import functools
import inspect
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

try:
    import numpy as np
    import tyro
    from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

    from unet_lib import _messages
    from unet_lib._files import check_folder, check_output, read_json, write_text
    from unet_lib.config import TrainConfig
except KeyboardInterrupt:
    print("unet-lib: stopped before it began.", file=sys.stderr)
    sys.exit(130)
except ImportError as error:
    MISSING = f"The command line needs {error.name}: run `pip install {error.name}`."
    if __name__ == "__main__":
        sys.exit(f"unet-lib: {MISSING}")
    raise ImportError(MISSING) from None

__all__ = ["main"]

HELP = {"-h", "--help"}
PAPER = TrainConfig()
SOURCE = tyro.conf.create_mutex_group(required=False)


def run_data(
    *,
    folder: Annotated[Path | None, SOURCE] = None,
    synthetic: Annotated[FlagCreatePairsOff[bool], SOURCE] = False,
    export: Path | None = None,
) -> None:
    """Get and check the stacks; write them as one image per slice.

    Every pixel of the ISBI 2012 stacks is checked. They are looked for in --folder, in
    the folder that the environment variable UNET_BOOK_DATA names, and in the user's
    cache; otherwise they are downloaded into the cache. The folder holds
    train-volume.tif, train-labels.tif, test-volume.tif and perhaps test-labels.tif.

    Example: write each slice as a PNG for another tool, offline with --synthetic.

      unet-lib data --export slices

    This gives slices/train/images/00.png, slices/train/labels/00.png (255 = cell,
    0 = membrane), slices/test/images/00.png, and so on.

    Args:
        folder: the folder that holds the stacks.
        synthetic: use the synthetic stand-in: the same shapes, other pictures.
        export: write one PNG per slice into this new or empty folder.
    """
    from unet_lib import data

    if export:
        check_folder(export)
        if export.exists() and any(export.iterdir()):
            raise FileExistsError(
                f"{export} is not an empty folder: name a new one, or empty it."
            )
    if synthetic:
        stacks = data.synthetic_stacks()
        print("The synthetic stand-in, not the ISBI 2012 stacks.")
    else:
        stacks = data.load_isbi2012(folder)
        print("ISBI 2012, every pixel as published.")
    _messages.print_stacks(stacks)
    if export:
        data.export_slices(stacks, export)
        print(f"One PNG per slice written to {export}.")


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
        if run.held_out != _configuration(config).held_out:
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


def _configuration(config: Path | None = None) -> TrainConfig:
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
        data: the folder that holds the stacks.
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
    made = run_table(experiments, stacks_in.load_isbi2012(data), work, results)
    print(f"{len(made)} run(s) made and recorded in {results}.")


def run_predict(
    network: Positional[Path],
    images: Positional[Path],
    output: Positional[Path],
    *,
    channel: int | None = None,
    grey: FlagCreatePairsOff[bool] = False,
    value_range: Annotated[
        tuple[float, float] | Literal["auto"] | None, tyro.conf.arg(name="range")
    ] = None,
    versions: Literal[1, 7, 8] = 1,
    device: str | None = None,
    tile: int | None = None,
    max_pixels: int = 1024 * 1024,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Segment images with a trained network.

    The probability of cell is written for each pixel of a gray image or stack of any
    size, as a float32 TIFF that Fiji opens, with the axes and the pixel size of the
    images. Integer images are scaled by the largest value of their type unless --range
    says otherwise; floating-point images must lie between 0 and 1. A network with
    several channels takes colors or channels; one with more than two classes writes the
    probabilities of all of them.

    Example:

      unet-lib predict results/recorded-run/network.safetensors \\
          test-volume.tif probabilities.tif

    --versions is test-time augmentation: the average over the paper's 7 rotations, or
    over the 8 quarter turns and mirror images, takes 7 or 8 times as long.

    Args:
        network: a .safetensors file of a training run.
        images: a TIFF, PNG or JPEG, one image or a stack, or a folder of them.
        output: the TIFF to write.
        channel: the one channel or color to take, counted from 1.
        grey: convert colors to gray.
        value_range: LOW HIGH, the values that become 0 and 1; or auto, by percentiles.
        versions: average over so many rotated versions of each slice.
        device: "cpu", "cuda" or "mps"; None takes the fastest one available.
        tile: pixels per side of a tile, 572 in the paper; None computes the fewest.
        max_pixels: the most pixels of a tile, which bounds the memory needed.
        overwrite: replace OUTPUT if it exists.
    """
    from unet_lib.data.images import read_images
    from unet_lib.networks import load_network
    from unet_lib.predict import predict
    from unet_lib.train.processes import join

    check_output(output, (".tif", ".tiff"), [network, images], overwrite)
    found = read_images(images, channel, grey, value_range)
    model = load_network(network, join(device, batch=1).device)
    pixels = found.for_channels(model.arguments["in_channels"])
    if isinstance(pixels, list):
        raise ValueError(
            f"{images} holds images of different sizes: give them one file at a time."
        )
    probabilities = predict(model, pixels, tile, max_pixels, versions, progress=True)
    found.write(output, probabilities, classes=model.arguments["num_classes"] > 2)
    print(f"Probabilities of cell written to {output}.")


def run_evaluate(
    labels: Positional[Path],
    probabilities: Positional[Path],
    *,
    output: Path | None = None,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Score a probability map by the challenge's five metrics.

    Probabilities of cell are compared with labels as the ISBI 2012 challenge's own
    software does: pixel error, Rand error and warping error (0 is best), V-Rand and
    V-Info (1 is best), each at its best threshold. The pixel error is 1 - Dice of the
    cell class, not the fraction of wrong pixels. A warning says where a metric
    misleads. All of it, with every threshold and every slice, is written as JSON.

    Example: score a network on the stack that it was trained on.

      unet-lib predict results/recorded-run/network.safetensors \\
          train-volume.tif probabilities.tif
      unet-lib evaluate train-labels.tif probabilities.tif

    Args:
        labels: a TIFF, a PNG or a folder of them: 0 = membrane, 1 or 255 = cell.
        probabilities: a TIFF of the same shape, from 0 to 1, as from predict.
        output: the JSON file; None is PROBABILITIES, ending in .evaluation.json.
        overwrite: replace that file if it exists.
    """
    from unet_lib.data.images import read_labels, read_probabilities
    from unet_lib.metrics import evaluate

    output = output or probabilities.with_suffix(".evaluation.json")
    check_output(output, (".json",), [labels, probabilities], overwrite)
    cell = read_labels(labels).pixels
    found = read_probabilities(probabilities).pixels
    scores = evaluate(cell, found, progress=True)
    _messages.print_scores(scores)
    record = {
        "labels": labels.name,
        "probabilities": probabilities.name,
        "shape": np.shape(cell),
        **scores.to_dict(),
    }
    write_text(output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"\nWritten to {output}.")


RUNS = (run_data, run_train, run_predict, run_evaluate, run_experiments)
COMMANDS: dict[str, Callable[..., None]] = {
    run.__name__.removeprefix("run_"): run for run in RUNS
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 (done), 1 (could not be done), 2 (wrong usage), 130 (Ctrl-C), 141 (no reader).
    """
    arguments = [*map(_expanded, sys.argv[1:] if argv is None else argv)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal knows ×
    said = ""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _messages.print_warning
            code = _run(arguments)
        print(end="", flush=True)
    except (Exception, KeyboardInterrupt) as problem:
        said, code = _messages.explain(problem, arguments)
    if said:  # after progress bars, which end with the problem's frames
        print(f"unet-lib: {said}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    name, *options = arguments or [""]
    if name not in COMMANDS:
        print(_overview(), file=sys.stdout if name in HELP else sys.stderr)
        return 0 if name in HELP else 2
    command, prog = COMMANDS[name], f"unet-lib {name}"
    summary, _, details = _text(command).partition("\n\n")
    markers = tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName
    try:
        if name == "train":  # the file of --config gives what the options start from
            start, _ = tyro.cli(
                _configuration,
                prog=prog,
                args=options,
                return_unknown_args=True,
                add_help=False,
            )
            command = functools.partial(command, run=start)
        tyro.cli(command, prog=prog, description=summary, args=options, config=markers)
    except SystemExit as stop:  # tyro has printed the help, or what is wrong
        if HELP & {*options}:
            print(f"\n{details}")
        return int(stop.code or 0)
    return 0


def _overview() -> str:
    rows = [f"  {name:<13}{_text(COMMANDS[name]).splitlines()[0]}" for name in COMMANDS]
    help = "`unet-lib COMMAND --help` explains a command. Example: unet-lib data --help"
    return "\n".join(["usage: unet-lib COMMAND ...", "", *rows, "", help])


def _text(command: Callable[..., None]) -> str:
    """What a command's docstring says before its arguments."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]


def _expanded(argument: str) -> str:
    """An argument with its ~, which the shell leaves in `--data=~/stacks`."""
    option, equals, value = argument.rpartition("=")
    return option + equals + os.path.expanduser(value)


if __name__ == "__main__":
    sys.exit(main())
