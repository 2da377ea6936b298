"""The commands: the library's functions from the command line.

Each command is a function. tyro takes its options from the signature and their help
from the docstring, whose text is printed below them. What a command needs is imported
when it runs, so that `--help` appears at once.
"""

import functools
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence

try:
    import tyro

    from unet_lib import _messages
    from unet_lib.cli.cells import run_cells
    from unet_lib.cli.data import run_data
    from unet_lib.cli.export import run_export
    from unet_lib.cli.predict import run_evaluate, run_predict
    from unet_lib.cli.train import configuration, run_experiments, run_train
except KeyboardInterrupt:
    print("unet-lib: stopped before it began.", file=sys.stderr)
    sys.exit(130)
except ImportError as error:
    MISSING = f"The command line needs {error.name}: run `pip install {error.name}`."
    raise ImportError(MISSING) from None

__all__ = ["main"]

HELP = {"-h", "--help"}
COMMANDS: dict[str, Callable[..., None]] = {
    "data": run_data,
    "train": run_train,
    "predict": run_predict,
    "cells": run_cells,
    "evaluate": run_evaluate,
    "experiments": run_experiments,
    "export": run_export,
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
                configuration,
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
