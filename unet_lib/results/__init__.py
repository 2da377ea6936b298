"""Reading records of experiments: scores, their spread, and what a seed changes.

Scores are for all held-out slices of a run together, as in the challenge. Built in
:doc:`results`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from unet_lib._files import read_json, read_toml
from unet_lib.metrics import ERRORS

__all__ = [
    "Spread",
    "ablation_table",
    "as_error",
    "changes",
    "figures",
    "per_slice",
    "reported",
    "seed_band",
    "spreads",
    "training_figures",
]

# The errors of the chapters' tables: those of cells as the challenge ranks by them.
TITLES = {"pixel_error": "pixel error", "v_rand": "1 − V-Rand", "v_info": "1 − V-Info"}


def as_error(name: str, value: Any) -> Any:
    """Turn a score into an error, so that 0 is best: 1 minus a V-Rand or a V-Info.

    Example:
        >>> as_error("v_rand", 0.75), as_error("pixel_error", 0.06)
        (0.25, 0.06)
    """
    return value if name in ERRORS else 1 - value


def figures(folder: str | Path, versions: int, threshold: float | None = None) -> dict:
    """The five scores of all held-out slices of a record together, by name.

    Args:
        folder: the folder of the record, results/scale/variant/fold-seed.
        versions: the number of versions that test-time augmentation averaged: 1, 7 or
            8.
        threshold: one of 0.0, 0.1, ...; None takes the best one for each score, as the
            challenge does. A score that has no value at the threshold is None.

    Raises:
        ValueError: if the record does not have such scores.
        OSError: if there is no record.
    """
    return _at(_curves(folder, versions), threshold, folder)


def training_figures(
    folder: str | Path, threshold: float | None = None
) -> dict[str, float] | None:
    """The five scores of the slices that a run trained on, in a single pass.

    The difference from `figures(folder, 1)` shows how far a network has overfitted.

    Args:
        folder: the folder of the record.
        threshold: as for `figures`.

    Returns:
        The scores by name, or None if the record is older than these scores.
    """
    training = _read(folder).get("training")
    return training and _at(training["figures"], threshold, folder)


def reported(path: str | Path, name: str = "U-Net") -> dict[str, float]:
    """The scores that others have reported for an entry of the challenge.

    Args:
        path: the file with the sources, such as the book's results/authors.toml.
        name: the name of the entry.

    Raises:
        ValueError: if the file does not have the entry.
        OSError: if the file cannot be read.
    """
    sources = read_toml(Path(path))["sources"]
    found: dict[str, float] = {}
    for source in sources:
        found |= source["scores"].get(name, {})
    if not found:
        known = sorted({entry for source in sources for entry in source["scores"]})
        raise ValueError(f"{path} has the entries {', '.join(known)}, not {name!r}.")
    return found


def _at(curves: dict[str, dict], threshold: float | None, folder: str | Path) -> dict:
    """The values of curves at a threshold, or at the best of each."""
    found = {}
    for name, curve in curves.items():
        if threshold is None:
            found[name] = curve["value"]
            continue
        place = np.flatnonzero(np.isclose(curve["thresholds"], threshold))
        if not len(place):
            raise ValueError(f"{folder} has no {name} at a threshold of {threshold}.")
        found[name] = curve["values"][place[0]]
    return found


class Spread(NamedTuple):
    """One score over the runs of a variant."""

    mean: float  # mean of the folds, each as the mean of its seeds
    folds: float  # standard deviation of the folds, NaN for a single fold
    seeds: float  # standard deviation of the seeds of a fold, NaN without two seeds
    freedom: int  # degrees of freedom of `seeds`


def spreads(
    folder: str | Path, versions: int, threshold: float | None = None
) -> dict[str, Spread]:
    """The spread of each score over all runs of a variant with a fold held out.

    Each fold has the same weight, however many seeds it was trained with.

    Args:
        folder: the folder of the variant, results/scale/variant.
        versions: as for `figures`.
        threshold: as for `figures`.

    Raises:
        ValueError: if the folder has no such runs, or a record lacks such scores.
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
            len(apart) - len(means),
        )
    return result


def changes(
    folder: str | Path, other: str | Path, versions: int, threshold: float | None = None
) -> dict[str, dict[str, float]]:
    """How much larger the errors of one variant are than those of another, by run.

    Args:
        folder: the folder of the variant in question, results/scale/variant.
        other: the folder of the variant that it is compared with.
        versions: as for `figures`, for both.
        threshold: as for `figures`.

    Returns:
        For each score, a dictionary from the runs that both variants have, such as
        ``"2-0"``, to the difference; it is above 0 if the first variant is worse.
        V-Rand and V-Info are turned into errors.

    Raises:
        ValueError: if two runs of the same name were scored on different slices, or a
            record lacks such scores.
    """
    found: dict[str, dict[str, float]] = {}
    for run in sorted(Path(folder).glob("[1-9]-*")):
        pair = run, Path(other) / run.name
        if not pair[1].exists():
            continue
        slices, other_slices = (_read(one)["slices"] for one in pair)
        if slices != other_slices:
            raise ValueError(
                f"Expected two records of the same slices, got {run} of {slices} and "
                f"{pair[1]} of {other_slices}."
            )
        mine, theirs = (figures(one, versions, threshold) for one in pair)
        for name in mine:
            change = as_error(name, mine[name]) - as_error(name, theirs[name])
            found.setdefault(name, {})[run.name] = change
    return found


def seed_band(
    folder: str | Path, versions: int, folds: int, threshold: float | None = None
) -> dict[str, float]:
    """How far another seed alone moves a mean difference over so many folds.

    A change of nothing but the seed stays within plus or minus this, for each score, in
    95% of cases: the yardstick for an ablation. The standard deviation is estimated
    from all seeds that each fold of `folder` was trained with, and assumed to be the
    same in all folds; a difference of two runs has twice the variance.

    Args:
        folder: the folder of the variant that the ablations are compared with.
        versions: as for `figures`.
        folds: the number of folds in the mean of an ablation, one pair of runs each.
        threshold: as for `figures`.

    Returns:
        The half-width of the range for each score; NaN if no fold was trained with two
        seeds.
    """
    from scipy.stats import t

    return {
        name: float(t.ppf(0.975, one.freedom) * one.seeds * np.sqrt(2 / folds))
        if one.freedom
        else float("nan")
        for name, one in spreads(folder, versions, threshold).items()
    }


def ablation_table(
    baseline: str | Path,
    variants: dict[str, Path],
    versions: int = 7,
    threshold: float | None = None,
) -> str:
    """Make a Markdown table of what some changes did to the errors.

    Each variant has a row with the mean of its `changes` and below it, in parentheses,
    those of the single runs, in percentage points; positive is worse than the baseline.
    The last row is the `seed_band`.

    Args:
        baseline: the folder of the variant that the others are compared with.
        variants: a dictionary from titles of rows to folders, results/scale/variant.
        versions: as for `figures`.
        threshold: as for `figures`.

    Raises:
        ValueError: unless all variants have the same number of runs in common with the
            baseline.
    """
    found = {
        title: changes(folder, baseline, versions, threshold)
        for title, folder in variants.items()
    }
    counts = {title: len(one.get("v_rand", ())) for title, one in found.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            "Expected variants with equally many runs that the baseline has too, got "
            f"{counts}: give those with other folds a table of their own."
        )
    band = seed_band(baseline, versions, min(counts.values()), threshold)
    lines = [f"| | {' | '.join(TITLES.values())} |", "|---" * (1 + len(TITLES)) + "|"]
    for title, one in found.items():
        cells = []
        for name in TITLES:
            runs = 100 * np.array(list(one[name].values()))
            each = ",\u00a0".join(f"{change:+z.2f}" for change in runs)
            cells.append(f"{runs.mean():+z.2f}<br>({each})".replace("-", "−"))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    cells = [f"±{100 * band[name]:.2f}" for name in TITLES]
    return "\n".join([*lines, f"| *another seed* | {' | '.join(cells)} |"])


def _deviation(values: ArrayLike, freedom: int) -> float:
    """Of values about their mean; NaN where nothing is left to estimate it from."""
    numbers = np.asarray(values, np.float64)
    squares = np.sum((numbers - numbers.mean()) ** 2)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def per_slice(folder: str | Path, name: str, versions: int) -> np.ndarray:
    """One score of each held-out slice, at the threshold that is best for all together.

    Args:
        folder: the folder of the record.
        name: the name of the score, one of `metrics.METRICS`.
        versions: as for `figures`.

    Returns:
        ``(slices,)``, float64; NaN if a slice has no score.

    Raises:
        ValueError: if the record does not have such scores.
        OSError: if there is no record.
    """
    curves = _curves(folder, versions)
    if name not in curves:
        raise ValueError(f"Expected a score of {', '.join(curves)}, got {name!r}.")
    curve = curves[name]
    column = curve["thresholds"].index(curve["threshold"])
    return np.array(curve["per_slice"], np.float64)[:, column]


def _read(folder: str | Path) -> dict:
    return read_json(Path(folder) / "scores.json")


def _curves(folder: str | Path, versions: int) -> dict[str, dict]:
    scores = _read(folder)["scores"]
    if str(versions) not in scores:
        raise ValueError(
            f"{Path(folder) / 'scores.json'} has scores of versions "
            f"{', '.join(scores) or 'none'}, not {versions}."
        )
    return scores[str(versions)]["figures"]
