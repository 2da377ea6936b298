"""U-Net (Ronneberger, Fischer, Brox 2015), built chapter by chapter.

The modules follow the chapters of the book:

==  =======================  =====================================================
1   `data`                   the stacks, their folds, files of your own
2   `model`                  the network and its size arithmetic
3   `weights`, `loss`        the weight map, the weighted cross-entropy
4   `augment`                deformation, rotation, gray values, the tile sampler
5   `config`, `train`        what a run is asked to do; `fit`, with checkpoints
6   `predict`, `blocks`      overlap-tile prediction, also of more than memory holds
7   `metrics`                the challenge's five metrics
8   `results`, `networks`    recorded runs; networks in files, the published one
9   `cells`                  instance labels from probabilities, their sizes and scores
10  `export`                 ONNX, packages of the BioImage Model Zoo
==  =======================  =====================================================

`plot` draws the book's figures, and `cli` is the command line, ``unet-lib``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from unet_lib.config import TrainConfig
    from unet_lib.metrics import evaluate
    from unet_lib.model import UNet
    from unet_lib.networks import load_network, load_pretrained, save_network
    from unet_lib.predict import predict
    from unet_lib.train import fit

_HOMES = {
    "TrainConfig": "config",
    "UNet": "model",
    "evaluate": "metrics",
    "fit": "train",
    "load_network": "networks",
    "load_pretrained": "networks",
    "predict": "predict",
    "save_network": "networks",
}
__version__ = "0.1.0"
__all__ = [
    "TrainConfig",
    "UNet",
    "__version__",
    "evaluate",
    "fit",
    "load_network",
    "load_pretrained",
    "predict",
    "save_network",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: torch takes seconds, and `--help` needs none.
    if name in _HOMES:
        return getattr(importlib.import_module(f"unet_lib.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
