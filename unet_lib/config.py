"""The settings of a training run: their names, ranges and defaults.

Used in :doc:`training`, as `unet_lib.train.TrainConfig`.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from reprlib import repr as short
from typing import Any, Literal, get_args, get_origin

import numpy as np

__all__ = ["Augmentation", "TrainConfig"]


@dataclass(frozen=True)
class Augmentation:
    """How the tiles vary. The defaults are the paper's, or our reading of it.

    Args:
        deformation: standard deviation, in pixels, of the displacement vectors on the
            3x3 grid. Paper: 10. 0 turns the deformation off.
        rotation: rotate each tile by a random angle from 0 to 360 degrees. The paper
            mentions rotation, but gives no range.
        mirror: mirror each tile with probability 1/2. Deviation: the paper does not
            mention it; it doubles the number of different images.
        contrast: gray values v become 0.5 + c (v - 0.5), where c differs from 1 by at
            most this much. The paper mentions gray-value variation, but gives no range.
            0 turns it off.
        brightness: after that, a random number of at most this size, positive or
            negative, is added. 0 turns it off.
    """

    deformation: float = 10.0
    rotation: bool = True
    mirror: bool = False
    contrast: float = 0.25
    brightness: float = 0.1

    def __post_init__(self) -> None:
        _check_choices(self)
        sizes = "deformation contrast brightness"
        _check_reals(self, sizes, "of at least 0", lambda x: x >= 0)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the paper's where it gives a value.

    Args:
        in_channels: channels of the images. Paper: 1.
        num_classes: number of classes in the labels, including background. Paper: 2.
            With more, the border term of the weights applies to the background between
            two connected components, whatever their classes.
        instances: the labels number the cells, 0 = background. Cells that touch are
            separated by a thin gap (`weights.part`), as in the paper, and the network
            learns to tell cells from background.
        base_channels: channels of the network's first level. Paper: 64.
        depth: how often the contracting path halves the image. Paper: 4.
        padding: of the network's convolutions: "valid" (the paper) or "same" (a
            deviation).
        dropout: dropout rate at the end of the contracting path. Paper: not stated.
        batch_norm: add batch normalization after each 3x3 convolution, a deviation.
            With several processes, each normalizes over its own tiles.
        weighting: "map" (the paper's weight map) or "none" (a deviation: every pixel
            has the same weight).
        w0: height of the weight map's border term; 0 leaves only the class balance.
            Paper: 10.
        sigma: width of the border term in pixels. Paper: about 5.
        augmentation: how the tiles vary.
        tile: input size of a tile, in pixels per side. Paper: large tiles; 572 in its
            figure.
        batch: tiles per step. Paper: 1.
        optimizer: "sgd" with momentum (the paper) or "adam" (a deviation that needs
            far fewer steps).
        momentum: momentum of SGD. Paper: 0.99.
        learning_rate: learning rate at the start. Paper: not stated; 1e-3 had the
            lowest loss in trials of 1,500 steps at a quarter of the width.
        schedule: "linear" (the learning rate falls to 0 over the steps) or
            "constant". Paper: not stated.
        steps: number of training steps. Paper: not stated; it trained for 10 hours.
        average: decay of an exponential moving average (EMA) of the weights, which
            becomes the trained network; 0 (the paper) keeps the last weights. A
            deviation, which averages out the noise of the last steps. It reaches back
            over about 1 / (1 - average) steps; if that is a large part of the run, the
            average lags behind.
        precision: number type of the convolutions: "float32", "bfloat16", or, for
            older GPUs, "float16" with a scaled loss. The 16-bit types are deviations
            that are faster and need less memory; weights, loss and updates stay in
            float32. A CPU without instructions for them computes in float32 and rounds
            the results to 16 bits: this is not faster, and nothing is compiled.
        compile: let torch.compile fuse operations of the network; on a GPU, this is
            worth the minute that it takes.
        deterministic: use only algorithms that give bit-identical results every time;
            slower on a GPU. On a CPU, a run is repeatable anyway with the same number
            of threads.
        seed: seed of the initial weights, the tiles and the dropout.
        held_out: numbers of the slices that training never sees. They are predicted
            after each of the steps in `watch_at`, for you to look at, and at the end.
        watch_at: numbers of the steps after which held-out slices are predicted.
        save_every: number of steps between two checkpoints.
        device: "cpu", "cuda" or "mps"; None takes the fastest one available.
    """

    in_channels: int = 1
    num_classes: int = 2
    instances: bool = False
    base_channels: int = 64
    depth: int = 4
    padding: Literal["valid", "same"] = "valid"
    dropout: float = 0.5
    batch_norm: bool = False
    weighting: Literal["map", "none"] = "map"
    w0: float = 10.0
    sigma: float = 5.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    tile: int = 572
    batch: int = 1
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.99
    learning_rate: float = 1e-3
    schedule: Literal["linear", "constant"] = "linear"
    steps: int = 30_000
    average: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    held_out: tuple[int, ...] = ()
    watch_at: tuple[int, ...] = ()
    save_every: int = 500
    device: str | None = None

    def __post_init__(self) -> None:
        _check_choices(self)
        counts = "in_channels base_channels depth tile batch steps save_every"
        _check_integers(self, counts, 1)
        _check_integers(self, "num_classes", 2)
        if self.instances and self.num_classes > 2:
            raise ValueError(
                "Expected instances=True with num_classes=2, as cells are learned "
                f"against background, got num_classes={self.num_classes}: leave one of "
                "them out."
            )
        _check_integers(self, "seed", 0, most=2**32 - 1)
        _check_reals(self, "learning_rate sigma", "above 0", lambda x: x > 0)
        _check_reals(self, "w0", "of at least 0", lambda x: x >= 0)
        fraction = "of at least 0 and below 1"
        _check_reals(self, "dropout momentum average", fraction, lambda x: 0 <= x < 1)
        _check_listed(self, "held_out", distinct=True)
        _check_listed(self, "watch_at", distinct=False)
        if not isinstance(self.augmentation, Augmentation):
            raise ValueError(
                f"augmentation must be an Augmentation, not {short(self.augmentation)}."
            )
        if not isinstance(self.device, str | None):
            raise ValueError(
                'device must be a string such as "cpu", or None, not '
                f"{short(self.device)}."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0.

        Example:
            >>> TrainConfig(learning_rate=0.01, steps=100).rate(75)
            0.0025
        """
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 - step / self.steps)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "TrainConfig":
        """Make a configuration from the fields in a run's config.json.

        Missing fields take the default. A ValueError is raised for unknown fields, and
        for values that the class refuses.
        """
        _check_fields(cls, fields)
        if "augmentation" in fields:
            _check_fields(Augmentation, fields["augmentation"])
            fields = fields | {"augmentation": Augmentation(**fields["augmentation"])}
        return cls(**fields)


# The checks also turn NumPy's numbers, such as those of `data.folds`, into Python's, as
# config.json gives them back.


def _check_choices(config: Augmentation | TrainConfig) -> None:
    """Refuse what the annotation of a field, bool or Literal, does not allow."""
    for one in dataclasses.fields(config):
        value, literal = getattr(config, one.name), get_origin(one.type) is Literal
        if not literal and one.type is not bool:
            continue
        choices = get_args(one.type) if literal else (True, False)
        kind = str if literal else bool | np.bool_
        if not isinstance(value, kind) or value not in choices:
            known = " or ".join(map(repr, choices))
            raise ValueError(f"{one.name} must be {known}, not {short(value)}.")
        object.__setattr__(config, one.name, value if literal else bool(value))


def _check_integers(
    config: TrainConfig, names: str, least: int, most: int = 2**31 - 1
) -> None:
    for name in names.split():
        value = getattr(config, name)
        if not _is(Integral, value) or not least <= value <= most:
            raise ValueError(
                f"{name} must be an integer from {least} to {most}, not {short(value)}."
            )
        object.__setattr__(config, name, int(value))


def _check_reals(
    config: Augmentation | TrainConfig,
    names: str,
    expected: str,
    fits: Callable[[float], bool],
) -> None:
    for name in names.split():
        value = getattr(config, name)
        # Phrased so that NaN is refused too.
        finite = _is(Real, value) and abs(value) <= sys.float_info.max
        if not (finite and fits(value)):
            raise ValueError(f"{name} must be a number {expected}, not {short(value)}.")
        object.__setattr__(config, name, float(value))


def _check_listed(config: TrainConfig, name: str, distinct: bool) -> None:
    value = getattr(config, name)
    given = tuple(value) if isinstance(value, Iterable) else (None,)
    good = all(_is(Integral, number) and number >= 0 for number in given)
    if not good or (distinct and len(set(given)) < len(given)):
        raise ValueError(
            f"{name} must be {'distinct ' if distinct else ''}integers of at least 0, "
            f"such as (24, 25), not {short(value)}."
        )
    object.__setattr__(config, name, tuple(map(int, given)))


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_fields(kind: type[Augmentation | TrainConfig], fields: Any) -> None:
    known = sorted(one.name for one in dataclasses.fields(kind))
    if not isinstance(fields, dict):
        raise ValueError(
            f"Expected a dictionary with fields of {kind.__name__}, got "
            f"{short(fields)}."
        )
    if unknown := sorted(map(str, set(fields) - set(known))):
        raise ValueError(
            f"Unknown field(s) {', '.join(unknown)} of {kind.__name__}; known are "
            f"{', '.join(known)}."
        )
