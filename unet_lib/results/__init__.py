"""What the records of experiments say: figures, slices, differences of pairs.

Built in :doc:`results`.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_lib.metrics import ERRORS


def as_error(name: str, value):
    """A figure as an error, 0 is best: one minus a V-Rand or a V-Info."""
    return value if name in ERRORS else 1 - value


def figures(folder: str | Path, versions: int, threshold: float | None = None) -> dict:
    """The five figures of a record, by name.

    Args:
        folder: of the record, results/scale/variant/fold-seed.
        versions: that were averaged over: 1, 7 or 8.
        threshold: of 0.0, 0.1, ...; None takes each figure's best, as the
            challenge does. A figure that has no value there is None.

    Raises:
        ValueError: for what the record does not have.
        OSError: where there is no record.
    """
    found = {}
    for name, curve in _curves(folder, versions).items():
        if threshold is None:
            found[name] = curve["value"]
            continue
        place = np.flatnonzero(np.isclose(curve["thresholds"], threshold))
        if not len(place):
            raise ValueError(f"{folder} has no {name} at a threshold of {threshold}.")
        found[name] = curve["values"][place[0]]
    return found


class Spread(NamedTuple):
    """One figure over the runs of a variant."""

    mean: float  # of the folds, each the mean of its seeds
    folds: float  # standard deviation of the folds, NaN for a single one
    seeds: float  # standard deviation of a fold's seeds, NaN where none has two


def spreads(
    folder: str | Path, versions: int, threshold: float | None = None
) -> dict[str, Spread]:
    """The five figures of a variant over all its runs with a fold held out, by name.

    Each fold weighs the same, however many seeds it has been trained with.

    Args:
        folder: of the variant, results/scale/variant.
        versions: as for `figures`.
        threshold: as for `figures`.

    Raises:
        ValueError: for a folder without such runs, and for what a record does not have.
    """
    folds: dict[str, list[dict]] = {}
    for run in sorted(Path(folder).glob("[1-9]-*")):
        found = figures(run, versions, threshold)
        folds.setdefault(run.name.partition("-")[0], []).append(found)
    if not folds:
        raise ValueError(f"{folder} has no record of a run with a fold held out.")
    result = {}
    for name in next(iter(folds.values()))[0]:
        values = [[one[name] for one in seeds] for seeds in folds.values()]
        means = [np.mean(seeds) for seeds in values]
        apart = np.concatenate([np.subtract(s, np.mean(s)) for s in values])
        result[name] = Spread(
            float(np.mean(means)),
            _deviation(means, len(means) - 1),
            _deviation(apart, len(apart) - len(means)),
        )
    return result


def _deviation(values, freedom: int) -> float:
    """Of values about their mean; NaN where nothing is left to estimate it from."""
    squares = np.sum((values - np.mean(values)) ** 2)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def per_slice(folder: str | Path, name: str, versions: int) -> np.ndarray:
    """One figure of each held-out slice, at the threshold that suits them all best.

    Args:
        folder: of the record.
        name: of the figure, of `metrics.METRICS`.
        versions: as for `figures`.

    Returns:
        ``(slices,)``, float64; NaN where a slice has none.

    Raises:
        ValueError: for what the record does not have.
        OSError: where there is no record.
    """
    curves = _curves(folder, versions)
    if name not in curves:
        raise ValueError(f"Expected a figure of {', '.join(curves)}, got {name!r}.")
    curve = curves[name]
    column = curve["thresholds"].index(curve["threshold"])
    return np.array(curve["per_slice"], np.float64)[:, column]


def paired_differences(
    folder: str | Path, other: str | Path, name: str, versions: int
) -> np.ndarray:
    """How much larger an error is than in another record, slice by slice.

    Args:
        folder: of the record that is asked about.
        other: the folder of the one that it is compared with, of the same slices.
        name: of the figure; V-Rand and V-Info are turned into errors.
        versions: as for `figures`, of both.

    Returns:
        ``(slices,)``, float64; above 0 where the first is worse.

    Raises:
        ValueError: for records of other slices, and for what a record does not have.
        OSError: where there is no record.
    """
    slices, other_slices = (_read(one)["slices"] for one in (folder, other))
    if slices != other_slices:
        raise ValueError(
            f"Expected two records of the same slices, got {folder} of {slices} and "
            f"{other} of {other_slices}."
        )
    mine, theirs = (
        as_error(name, per_slice(one, name, versions)) for one in (folder, other)
    )
    return mine - theirs


def _read(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))


def _curves(folder: str | Path, versions: int) -> dict[str, dict]:
    scores = _read(folder)["scores"]
    if str(versions) not in scores:
        raise ValueError(
            f"{Path(folder) / 'scores.json'} has scores of versions "
            f"{', '.join(scores) or 'none'}, not {versions}."
        )
    return scores[str(versions)]["figures"]
