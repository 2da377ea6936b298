"""What a training run is asked to do: its fields, their ranges, their defaults.

Used in :doc:`training`, as `unet_lib.train.TrainConfig`.
"""

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np

RANGES = (  # of the fields of a configuration: kind, least, and what it is below
    (("base_channels", "depth", "tile"), Integral, 1, np.inf),
    (("batch", "steps", "save_every"), Integral, 1, np.inf),
    (("seed",), Integral, 0, 2**32),
    (("dropout", "momentum", "average"), Real, 0, 1),
    (("learning_rate", "w0", "sigma"), Real, 0, np.inf),
)
CHOICES = {
    "padding": ("valid", "same"),
    "batch_norm": (False, True),
    "weighting": ("map", "none"),
    "optimiser": ("sgd", "adam"),
    "schedule": ("linear", "constant"),
    "precision": ("float32", "bfloat16", "float16"),
    "compile": (False, True),
    "deterministic": (False, True),
}


@dataclass(frozen=True)
class Augmentation:
    """What varies from tile to tile. The defaults are the paper's, or our reading.

    Args:
        deformation: standard deviation in pixels of the vectors on the 3x3
            grid. Paper: 10. 0 switches the deformation off.
        rotation: whether each tile is turned by an angle from 0 to 360 degrees.
            The paper names rotation, not its range.
        mirror: whether every second tile, by chance, is mirrored. Deviation: the
            paper does not name it; it doubles what 24 slices have to say.
        contrast: grey values v become 0.5 + c (v - 0.5), c up to this from 1. The
            paper names grey-value variation, not its size. 0 switches it off.
        brightness: and then plus b, up to this from 0.
    """

    deformation: float = 10.0
    rotation: bool = True
    mirror: bool = False
    contrast: float = 0.25
    brightness: float = 0.1

    def __post_init__(self):
        for name in ("deformation", "contrast", "brightness"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value < np.inf:
                raise ValueError(f"{name} must be a number from 0 on, not {value!r}.")
        for name in ("rotation", "mirror"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name} must be True or False, not {value!r}.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the paper's where it states them.

    Args:
        base_channels: channels of the network's first level. Paper: 64.
        depth: how often the contracting path halves the image. Paper: 4.
        padding: of the network's convolutions: ``"valid"``, the paper's, or
            ``"same"``, a deviation.
        dropout: rate at the end of the contracting path. Paper: not stated.
        batch_norm: normalise after each 3x3 convolution, a deviation; of several
            processes each over its own tiles.
        weighting: ``"map"``, the paper's weights, or ``"none"``, a deviation: each
            pixel counts the same.
        w0: height of the weight map's border term; 0 leaves the class balance.
            Paper: 10.
        sigma: width of that term in pixels. Paper: about 5.
        augmentation: as for `augment.TileSampler`.
        tile: input pixels of a tile's side. Paper: large tiles; its figure
            has 572.
        batch: tiles a step. Paper: 1.
        optimiser: ``"sgd"`` with `momentum`, the paper's, or ``"adam"``, a
            deviation that gets going in far fewer steps.
        momentum: of SGD. Paper: 0.99.
        learning_rate: at the start. Not stated in the paper.
        schedule: ``"linear"``, the rate falls to 0 over `steps`, or
            ``"constant"``. Not stated in the paper.
        steps: how many. The paper says 10 hours.
        average: decay of a running average of the weights, which is what the
            run then returns; 0, the paper, returns the last weights.
            Deviation: evens out the noise of the last steps. It reaches back
            over about 1 / (1 - average) steps; where that is a large part of
            the run, it lags behind the weights.
        precision: of the convolutions: ``"float32"``; ``"bfloat16"``, or for
            older GPUs ``"float16"`` with a scaled loss: deviations that are faster
            and need less memory. Weights, loss and steps stay in float32.
        compile: let `torch.compile` fuse the network; worth its minute on a GPU.
        deterministic: only algorithms that give the same bits each time; slower on
            a GPU. On a CPU a run is repeatable anyway, for a number of threads.
        seed: of the first weights, the tiles and the drop-out.
        held_out: numbers of the slices that training never sees; they are
            predicted after `watch_at` steps, to look at, and at the end.
        watch_at: numbers of steps.
        save_every: steps between two checkpoints.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None takes the fastest there.
    """

    base_channels: int = 64
    depth: int = 4
    padding: str = "valid"
    dropout: float = 0.5
    batch_norm: bool = False
    weighting: str = "map"
    w0: float = 10.0
    sigma: float = 5.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    tile: int = 572
    batch: int = 1
    optimiser: str = "sgd"
    momentum: float = 0.99
    learning_rate: float = 1e-4
    schedule: str = "linear"
    steps: int = 30_000
    average: float = 0.0
    precision: str = "float32"
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    held_out: tuple[int, ...] = ()
    watch_at: tuple[int, ...] = ()
    save_every: int = 500
    device: str | None = None

    def __post_init__(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, type(choices[0])) or value not in choices:
                known = " or ".join(map(repr, choices))
                raise ValueError(f"{name} must be {known}, not {value!r}.")
        for names, kind, least, below in RANGES:
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) or not least <= value < below:
                    what = "an integer" if kind is Integral else "a number"
                    end = "on" if below == np.inf else f"to below {below}"
                    raise ValueError(
                        f"{name} must be {what} from {least} {end}, not {value!r}."
                    )
                # Plain numbers, as config.json gives them back: `data.folds` and
                # others give NumPy's.
                plain = int(value) if kind is Integral else float(value)
                object.__setattr__(self, name, plain)
        for name in ("learning_rate", "sigma"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, not 0.")
        for name in ("held_out", "watch_at"):
            numbers = getattr(self, name)
            numbers = tuple(numbers) if np.iterable(numbers) else (None,)
            whole = all(isinstance(n, Integral) and n >= 0 for n in numbers)
            twice = name == "held_out" and len(set(numbers)) < len(numbers)
            if not whole or twice:
                raise ValueError(
                    f"{name} must be integers from 0 on, such as (24, 25), each once, "
                    f"not {getattr(self, name)!r}."
                )
            object.__setattr__(self, name, tuple(map(int, numbers)))
        if not isinstance(self.augmentation, Augmentation):
            raise ValueError(
                f"augmentation must be an Augmentation, not {self.augmentation!r}."
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
    def from_dict(cls, fields: dict) -> "TrainConfig":
        """A configuration from a run's config.json; what is not named is default."""
        _check_fields(cls, fields)
        # JSON knows lists and dictionaries only.
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        if "augmentation" in fields:
            _check_fields(Augmentation, fields["augmentation"])
            fields["augmentation"] = Augmentation(**fields["augmentation"])
        return cls(**fields)


def _check_fields(kind: type, fields: dict) -> None:
    known = sorted(field.name for field in dataclasses.fields(kind))
    if not isinstance(fields, dict):
        raise ValueError(
            f"Expected a dictionary with fields of {kind.__name__}, got {fields!r}."
        )
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(
            f"Unknown field(s) {', '.join(unknown)} of {kind.__name__}; known are "
            f"{', '.join(known)}."
        )
