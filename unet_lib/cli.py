"""The commands: the library's functions from the command line.

A command is a pair: `add_<name>` describes its arguments, `run_<name>` does it and
returns the exit code. What a command needs is imported when it runs, so that
`--help` comes at once. Those that train are in `cli_train`.
"""

import argparse
import sys

from unet_lib.cli_train import add_experiments, add_train


def main(argv=None):
    """Run one command; return 0 (done), 1 (could not be done) or 2 (wrong usage)."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="unet-lib",
        description="U-Net on the ISBI 2012 electron-microscopy stacks.",
        epilog="`unet-lib COMMAND --help` explains a command, with an example.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    add_data(subparsers)
    add_train(subparsers, with_fields=argv[:1] == ["train"])
    add_experiments(subparsers)
    add_predict(subparsers)
    add_evaluate(subparsers)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or what is wrong
        return stop.code
    try:
        return arguments.run(arguments)
    except (
        ValueError,
        OSError,
        FloatingPointError,
        ImportError,
        MemoryError,
    ) as problem:
        print(f"unet-lib: {problem}", file=sys.stderr)
        return 1


def add_data(subparsers):
    """Describe `unet-lib data`."""
    parser = subparsers.add_parser(
        "data",
        help="get and check the stacks; write them as one image a slice",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Get the ISBI 2012 stacks, check every pixel, and print what they hold.\n"
            "\n"
            "They are looked for in --folder, in the folder that the environment\n"
            "variable UNET_BOOK_DATA names, and in the user's cache; else the\n"
            "organisers' zip is downloaded into the cache. The folder holds\n"
            "train-volume.tif, train-labels.tif, test-volume.tif and, if you have\n"
            "them, test-labels.tif."
        ),
        epilog=(
            "example: check the stacks and write each slice as a PNG for another tool\n"
            "  unet-lib data --export slices\n"
            "which gives slices/train/images/00.png, slices/train/labels/00.png\n"
            "(255 = cell, 0 = membrane), slices/test/images/00.png, and so on.\n"
            "\n"
            "example: the same without the stacks and off line\n"
            "  unet-lib data --synthetic --export slices"
        ),
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--folder", help="the folder that holds the stacks")
    source.add_argument(
        "--synthetic",
        action="store_true",
        help="draw the synthetic stand-in instead: same shapes, other pictures",
    )
    parser.add_argument(
        "--export",
        metavar="OUT",
        help="write one PNG a slice into the new or empty folder OUT",
    )
    parser.set_defaults(run=run_data)


def run_data(arguments):
    """Get and check the stacks, print a table of them, export them if asked."""
    from unet_lib import data

    if arguments.synthetic:
        stacks = data.synthetic_stacks()
        print("The synthetic stand-in, not the ISBI 2012 stacks.")
    else:
        stacks = data.load_isbi2012(arguments.folder)
        print("ISBI 2012, every pixel as published.")
    print(f"{'stack':<13}{'shape':<17}{'mean':>7}{'std':>7}{'membrane':>10}")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        stack = getattr(stacks, name)
        label = name.replace("_", " ")
        if stack is None:
            print(f"{label:<13}absent")
            continue
        shape = " × ".join(str(length) for length in stack.shape)
        if name.endswith("labels"):
            print(f"{label:<13}{shape:<17}{'':>14}{(stack == 0).mean():>10.2%}")
        else:
            print(f"{label:<13}{shape:<17}{stack.mean():>7.3f}{stack.std():>7.3f}")
    if arguments.export:
        data.export_slices(stacks, arguments.export)
        print(f"One PNG a slice written to {arguments.export}.")
    return 0


def add_predict(subparsers):
    """Describe `unet-lib predict`."""
    parser = subparsers.add_parser(
        "predict",
        help="segment a TIFF stack with a trained network",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Write the probability of cell for each pixel of a grey TIFF image or\n"
            "stack, of any size, as a float32 TIFF that Fiji opens. Integer images\n"
            "are scaled by their type's largest value, floating-point ones must be\n"
            "from 0 to 1. A network of several channels takes (channels, height,\n"
            "width) or (slices, channels, height, width); one of more than two\n"
            "classes writes the probabilities of all of them."
        ),
        epilog=(
            "example:\n"
            "  unet-lib predict results/recorded-run/network.safetensors \\\n"
            "      test-volume.tif probabilities.tif"
        ),
    )
    parser.add_argument("network", help="a .safetensors file of a training run")
    parser.add_argument("images", help="a grey TIFF, one image or a stack")
    parser.add_argument("output", help="the TIFF to write")
    parser.add_argument(
        "--versions",
        type=int,
        choices=(1, 7, 8),
        default=1,
        help="average over the paper's 7 rotated versions, or over the 8 quarter turns "
        "and mirrorings; 7 or 8 times slower (default: 1, one pass)",
    )
    parser.set_defaults(run=run_predict)


def run_predict(arguments):
    """Predict a TIFF stack, and write the result whole or not at all."""
    import numpy as np

    from unet_lib.data.tiff import read_tiff, write_tiff
    from unet_lib.networks import load_network
    from unet_lib.predict import predict
    from unet_lib.train.processes import best_device

    images = read_tiff(arguments.images)
    if np.issubdtype(images.dtype, np.unsignedinteger):
        images = images / np.float32(np.iinfo(images.dtype).max)
    elif images.min(initial=0) < 0 or images.max(initial=0) > 1:
        raise ValueError(
            f"{arguments.images} holds {images.dtype} values from {images.min()} to "
            f"{images.max()}: expected unsigned integers, or floats from 0 to 1."
        )
    network = load_network(arguments.network, best_device())
    probabilities = predict(network, images, versions=arguments.versions, progress=True)
    classes = "C" if network.arguments["num_classes"] > 2 else ""
    slices = "Z" * (probabilities.ndim - 2 - len(classes))
    write_tiff(arguments.output, probabilities, slices + classes + "YX")
    print(f"Probabilities of cell written to {arguments.output}.")
    return 0


def add_evaluate(subparsers):
    """Describe `unet-lib evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="the challenge's five figures of a probability map",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Compare probabilities of cell with labels by the ISBI 2012 challenge's\n"
            "figures, as its own software computes them: pixel error, Rand error and\n"
            "warping error (0 is best), V-Rand and V-Info (1 is best), each at its\n"
            "best threshold; say where a figure misleads; write all of it, with the\n"
            "values at every threshold and of every slice, as JSON.\n"
            "\n"
            "LABELS holds 0 = membrane and 1 or 255 = cell, PROBABILITIES holds\n"
            "floating-point values from 0 to 1; both one image or a stack."
        ),
        epilog=(
            "example: how well a network segments the stack that it was trained on\n"
            "  unet-lib predict results/recorded-run/network.safetensors \\\n"
            "      train-volume.tif probabilities.tif\n"
            "  unet-lib evaluate train-labels.tif probabilities.tif\n"
            "which also writes probabilities.evaluation.json."
        ),
    )
    parser.add_argument("labels", metavar="LABELS", help="a TIFF of 0 and 1 or 255")
    parser.add_argument(
        "probabilities", metavar="PROBABILITIES", help="a TIFF, as predict writes it"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the JSON file to write (default: PROBABILITIES with .evaluation.json)",
    )
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments):
    """Print the figures, their warnings and each slice's share; write the JSON."""
    import json
    from pathlib import Path

    import numpy as np

    from unet_lib._files import write_text
    from unet_lib.data.tiff import read_tiff
    from unet_lib.metrics import evaluate

    labels = read_tiff(arguments.labels)
    cell = labels > 0
    if not (labels[cell] == 1).all() and not (labels[cell] == 255).all():
        raise ValueError(
            f"{arguments.labels} holds values from {labels.min()} to {labels.max()}: "
            "expected labels of 0 (membrane) and 1 or 255 (cell)."
        )
    scores = evaluate(cell, read_tiff(arguments.probabilities), progress=True)
    print(f"{'figure':<15}{'value':>9}{'threshold':>12}")
    for name, curve in scores.curves.items():
        print(f"{_titled(name):<15}{curve.value:>z9.6f}{curve.threshold:>12.1f}")
    for sentence in scores.warnings:
        print(f"\nwarning: {sentence}")
    print("\neach slice at these thresholds")
    print("slice" + "".join(f"{_titled(name):>15}" for name in scores.curves))
    columns = [
        curve.per_slice[:, np.argmin(abs(curve.thresholds - curve.threshold))]
        for curve in scores.curves.values()
    ]
    for number, values in enumerate(zip(*columns, strict=True)):
        print(f"{number:>5}" + "".join(f"{value:>z15.6f}" for value in values))
    probabilities = Path(arguments.probabilities)
    output = Path(arguments.output or probabilities.with_suffix(".evaluation.json"))
    record = {
        "labels": Path(arguments.labels).name,
        "probabilities": probabilities.name,
        "shape": list(cell.shape),
        **scores.to_dict(),
    }
    write_text(output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"\nWritten to {output}.")
    return 0


def _titled(name):
    """A figure's name as it is written: Rand error, V-Info."""
    written = {"v_rand": "V-Rand", "v_info": "V-Info", "rand_error": "Rand error"}
    return written.get(name, name.replace("_", " "))


if __name__ == "__main__":
    sys.exit(main())
