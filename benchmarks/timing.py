"""Two or more ways to the same result, timed side by side."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def seconds(call: Callable) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def medians(
    calls: Sequence[Callable], repeats: int, before: Callable = lambda: None
) -> list[float]:
    """Median seconds of each, called in turns after one call each to warm up.

    So whatever else the machine does slows all. `before` is called before each
    round, and not timed.
    """
    for call in calls:
        call()
    rounds = []
    for _ in range(repeats):
        before()
        rounds.append([seconds(call) for call in calls])
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def versus(mine: float, other: float) -> dict:
    """The part of a row that was measured; the ratio says how often as fast."""
    return {"seconds": mine, "other_seconds": other, "ratio": other / mine}


def compare(ours: Callable, theirs: Callable, repeats: int) -> dict:
    return versus(*medians([ours, theirs], repeats))
