"""The commands that train: one run, and the runs of a table.

Each is a pair as in `cli`, and imports what it needs when it runs.
"""

import argparse


def add_train(subparsers, with_fields):
    """Describe `unet-lib train`; its options for fields take torch's time to import."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on the training stack; stopped runs go on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train on the ISBI 2012 training stack and record the run in FOLDER:\n"
            "config.json, history.csv, pictures, metrics.json, network.safetensors.\n"
            "Given again, the same command goes on from the last checkpoint.\n"
            "\n"
            "Without options the run is the paper's; it wants a GPU. Each field of\n"
            "unet_lib.train.TrainConfig is an option. What is to differ can also\n"
            "stand in a JSON file, such as the config.json of another run.\n"
            "\n"
            "On several GPUs, for instance four, tiles shared out among them:\n"
            "  torchrun --nproc-per-node 4 -m unet_lib.cli train FOLDER --batch 4\n"
            "and on several machines that see FOLDER, on each of them:\n"
            "  torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d \\\n"
            "      --rdzv-endpoint FIRST_MACHINE:29500 -m unet_lib.cli train \\\n"
            "      FOLDER --batch 8"
        ),
        epilog=(
            "example: the book's own network again, an hour or two on two cores\n"
            "  unet-lib train runs/again --config results/recorded-run/config.json\n"
            "\n"
            "example: the paper's, slices 24 to 29 held out, faster on a new GPU\n"
            "  unet-lib train runs/paper --fold 5 --precision bfloat16 --compile"
        ),
    )
    parser.add_argument("folder", metavar="FOLDER", help="of the run, new or its own")
    parser.add_argument("--config", help="JSON file with fields of TrainConfig")
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(1, 6),
        help="hold out this one of five contiguous blocks of slices",
    )
    parser.add_argument("--data", help="the folder that holds the stacks")
    parser.add_argument(
        "--watch",
        choices=("tensorboard", "wandb"),
        action="append",
        default=[],
        help="send numbers and pictures there too; may be given twice",
    )
    parser.set_defaults(run=run_train)
    if with_fields:
        _add_fields(parser)


def _add_fields(parser):
    """An option for each field of a configuration, explained by its docstring."""
    import dataclasses
    import inspect
    import re

    from unet_lib.augment import Augmentation
    from unet_lib.config import CHOICES, TrainConfig

    for kind, title in ((TrainConfig, "run"), (Augmentation, "augmentation")):
        group = parser.add_argument_group(f"the {title}")
        said = inspect.getdoc(kind).partition("Args:\n")[2]
        entries = re.findall(r"^    (\w[\w, ]*): (.+(?:\n {8}.+)*)", said, re.M)
        helps = {
            name: " ".join(re.sub("`|%", "", text).split()) + " (default: %(default)s)"
            for names, text in entries
            for name in names.split(", ")
        }
        for field in dataclasses.fields(kind):
            if field.name == "augmentation":
                continue
            option = {"help": helps[field.name] % {"default": field.default}}
            option["default"] = argparse.SUPPRESS
            if field.type in (bool, "bool"):
                option["action"] = argparse.BooleanOptionalAction
            elif field.name in CHOICES:
                option["choices"] = CHOICES[field.name]
            elif isinstance(field.default, tuple):
                option |= {"type": int, "nargs": "*", "metavar": "N"}
            else:
                option["type"] = str if field.default is None else type(field.default)
                option["metavar"] = option["type"].__name__.upper()
            group.add_argument("--" + field.name.replace("_", "-"), **option)


def run_train(arguments):
    """Train one network and print what the held-out slices say of it."""
    import dataclasses
    import json
    import os
    from pathlib import Path

    from unet_lib import data
    from unet_lib.augment import Augmentation
    from unet_lib.train import TrainConfig, fit

    given = vars(arguments)
    if arguments.fold and "held_out" in given:
        raise ValueError("--fold and --held-out both name slices: give one of them.")
    config = TrainConfig()
    if arguments.config:
        text = Path(arguments.config).read_bytes()
        try:
            config = TrainConfig.from_dict(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{arguments.config}: {error}") from error
    changed = [
        {f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in given}
        for kind in (TrainConfig, Augmentation)
    ]
    if arguments.fold:
        _, changed[0]["held_out"] = data.folds()[arguments.fold - 1]
    turned = dataclasses.replace(config.augmentation, **changed[1])
    config = dataclasses.replace(config, **changed[0], augmentation=turned)
    stacks = data.load_isbi2012(arguments.data)
    run = fit(
        config,
        stacks.train_images,
        stacks.train_labels,
        arguments.folder,
        watchers=arguments.watch,
    )
    if int(os.environ.get("RANK", 0)) > 0:
        return 0  # of several processes the first reports
    if "pixel_error" in run.metrics:
        slices = ", ".join(map(str, run.metrics["held_out"]))
        print(f"Pixel error on slices {slices}: {run.metrics['pixel_error']:.4f}")
    print(f"Recorded in {arguments.folder}.")
    return 0


def add_experiments(subparsers):
    """Describe `unet-lib experiments`."""
    parser = subparsers.add_parser(
        "experiments",
        help="make and record the runs of a table; list what is there",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train, score and record, one after the other, the runs of TABLE that are\n"
            "not recorded yet; a run that was stopped goes on. A record is a folder\n"
            "SCALE/VARIANT/FOLD-SEED beside the table. Networks and checkpoints stay\n"
            "in --work. Give the command twice, and two processes share the runs out.\n"
            "\n"
            "A run of fold 0 trains on all slices and predicts the test stack, as\n"
            "the challenge asked: test-probabilities.tif in its folder of --work. It\n"
            "is scored once where test-labels.tif is among the data."
        ),
        epilog=(
            "example: what is there and what is not\n"
            "  unet-lib experiments results/experiments.toml --list\n"
            "\n"
            "example: the paper's recipe at a quarter of its width\n"
            "  unet-lib experiments results/experiments.toml \\\n"
            "      --only 'quarter-sgd-30000/paper/*'"
        ),
    )
    parser.add_argument("table", metavar="TABLE", help="TOML file, as the book's")
    parser.add_argument("--list", action="store_true", help="train nothing, list")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="*",
        help="runs with such names, such as 'quarter-adam-2500/*' (default: all)",
    )
    parser.add_argument(
        "--work",
        default="runs",
        help="the folder of networks and checkpoints (default: %(default)s)",
    )
    parser.add_argument("--data", help="the folder that holds the stacks")
    parser.set_defaults(run=run_experiments)


def run_experiments(arguments):
    """Make the missing runs of a table, or list all of them with their state."""
    from pathlib import Path

    from unet_lib import data
    from unet_lib.results.table import read_table, run_table, state

    experiments = read_table(arguments.table, arguments.only)
    work, results = Path(arguments.work), Path(arguments.table).parent
    if arguments.list:
        for one in experiments:
            print(f"{one.name:<32}{state(one, work, results)}")
        return 0
    stacks = data.load_isbi2012(arguments.data)
    made = run_table(experiments, stacks, work, results)
    print(f"{len(made)} run(s) made and recorded in {results}.")
    return 0
