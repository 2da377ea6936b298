"""The commands: the library's functions from the command line.

A command is a pair: `add_<name>` describes its arguments, `run_<name>` does it and
returns the exit code. What a command needs is imported when it runs, so that
`--help` comes at once.
"""

import argparse
import sys


def main(argv=None):
    """Run one command; return 0 (done), 1 (could not be done) or 2 (wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="unet-lib",
        description="U-Net on the ISBI 2012 electron-microscopy stacks.",
        epilog="`unet-lib COMMAND --help` explains a command, with an example.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    add_data(subparsers)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or what is wrong
        return stop.code
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as problem:
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


if __name__ == "__main__":
    sys.exit(main())
