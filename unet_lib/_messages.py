"""What the commands say: their tables, and the line that explains an early end."""

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_lib.cells import CellScores
    from unet_lib.data import Stacks
    from unet_lib.metrics import Scores

HOUSE = Path(__file__).parent
STOPPED = 128  # and the signal's number, as a shell has it
RESUMES = ("train", "experiments")
TITLES = {
    "pixel_error": "pixel error (1 - Dice of the cell class)",
    "mean_dice": "mean Dice of the classes above 0 (1 is best)",
}


def print_stacks(stacks: "Stacks") -> None:
    """A table of the four stacks: their shapes, and what they hold."""
    print(f"{'stack':<13}{'shape':<17}{'mean':>7}{'std':>7}{'membrane':>10}")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        stack, row = getattr(stacks, name), f"{name.replace('_', ' '):<13}"
        if stack is None:
            print(f"{row}absent")
            continue
        row += f"{' × '.join(map(str, stack.shape)):<17}"
        if name.endswith("labels"):
            print(f"{row}{'':>14}{(stack == 0).mean():>10.2%}")
        else:
            print(f"{row}{stack.mean():>7.3f}{stack.std():>7.3f}")


def print_scores(scores: "Scores") -> None:
    """Tables of the metrics, at their best thresholds, and of each slice there."""
    titles = {"rand_error": "Rand error", "v_rand": "V-Rand", "v_info": "V-Info"}
    titles = {name: titles.get(name, name.replace("_", " ")) for name in scores.curves}
    print(f"{'metric':<42}{'value':>9}{'threshold':>12}")
    for name, curve in scores.curves.items():
        title = TITLES.get(name, titles[name])
        print(f"{title:<42}{curve.value:>z9.6f}{curve.threshold:>12.1f}")
    for sentence in scores.warnings:
        print(f"\nwarning: {sentence}")
    print("\neach slice at these thresholds")
    print("slice" + "".join(f"{title:>15}" for title in titles.values()))
    columns = [
        curve.per_slice[:, abs(curve.thresholds - curve.threshold).argmin()]
        for curve in scores.curves.values()
    ]
    for number, values in enumerate(zip(*columns, strict=True)):
        print(f"{number:>5}" + "".join(f"{value:>z15.6f}" for value in values))


def print_cell_scores(scores: "CellScores") -> None:
    """A table of the scores of cells: a row per slice, and one of all."""
    print(
        "slice  cells     SEG     IoU    Dice    AP50      F1  missed  false  merges  "
        "splits"
    )
    rows = [*enumerate(scores.per_slice), ("all", scores)]
    for name, one in rows:
        values = (one.seg, one.iou, one.dice, one.ap50, one.f1)
        print(
            f"{name:>5}{one.jaccard.size:>7}{''.join(f'{n:>8.4f}' for n in values)}"
            f"{one.missed:>8}{one.false:>7}{one.merges:>8}{one.splits:>8}"
        )


def print_warning(message: Warning | str, *rest: Any, **more: Any) -> None:
    """Like `warnings.showwarning`, without the place in the code."""
    print(f"unet-lib: warning: {message}", file=sys.stderr)


def explain(problem: BaseException, arguments: Sequence[str]) -> tuple[str, int]:
    """The line that the command prints, and its exit code.

    Args:
        problem: what ended the command.
        arguments: of the command, its name first.
    """
    if isinstance(problem, KeyboardInterrupt):
        if str(problem):  # `fit` knows the step
            return str(problem), STOPPED + 2
        whole = "Nothing was written: run the same command again."
        if arguments and arguments[0] in RESUMES:
            whole = "Nothing recorded was lost: run the same command again to resume."
        return f"stopped. {whole}", STOPPED + 2
    if isinstance(problem, BrokenPipeError):  # as in `unet-lib data | head -1`
        # Where Python can flush what is left; 1 is stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return "", STOPPED + 13
    if isinstance(problem, MemoryError) and not str(problem):
        return "there is not enough memory for this.", 1
    # A ValueError of another package, or of an expression of ours, is a bug: a check
    # should have come before it.
    last = traceback.extract_tb(problem.__traceback__)[-1]
    ours = HOUSE in Path(last.filename).parents and f"{last.line}".startswith("raise")
    outside = isinstance(problem, OSError | ImportError | MemoryError)
    known = isinstance(problem, ValueError | FloatingPointError) and ours
    if not (outside or known):
        return _reported(problem, arguments), 1
    if isinstance(problem, OSError) and problem.filename and problem.strerror:
        return f"{problem.filename}: {problem.strerror}.", 1
    return str(problem), 1


def _reported(problem: BaseException, arguments: Sequence[str]) -> str:
    """How to report a bug, with its traceback in a file."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="unet-lib-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        version = vars(sys.modules["unet_lib"])["__version__"]
        print("unet-lib", *arguments, file=file)
        print(version, platform.python_version(), platform.platform(), file=file)
        traceback.print_exception(problem, file=file)
    return (
        f"this is a bug in unet-lib ({type(problem).__name__}). Please open an issue "
        f"in its repository and attach {file.name}, which holds the command and the "
        "traceback."
    )
