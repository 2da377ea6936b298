"""Training steps as `unet_lib.train.fit` takes them, and what they cost at least."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from unet_lib import UNet
from unet_lib.augment import Draw, TileSampler
from unet_lib.data import Stacks
from unet_lib.model import incoming_nodes
from unet_lib.train import TrainConfig, train_step
from unet_lib.train.steps import build_network, build_optimizer, seed_step
from unet_lib.weights import weight_map


class WholePixels(TileSampler):
    """Centers between four pixels, so that elasticdeform can make these tiles too."""

    def draw(self, index: int) -> Draw:
        drawn = super().draw(index)
        middle = (self.tile - 1) % 2 / 2
        return drawn._replace(center=np.floor(drawn.center) + middle)


def sampler_of(stacks: Stacks, config: TrainConfig, device: str) -> TileSampler:
    labels = stacks.train_labels
    network = UNet(base_channels=1, depth=config.depth)
    return WholePixels(
        stacks.train_images,
        labels,
        weight_map(labels, config.w0, config.sigma),
        config.tile,
        network.output_size(config.tile),
        config.augmentation,
        config.seed,
        device,
    )


def batches(sampler: TileSampler, batch: int) -> Iterator[tuple]:
    """Tiles in the order in which a run takes them, without end."""
    start = 0
    while True:
        yield sampler.batch(range(start, start + batch))
        start += batch


class Steps:
    """Called, it takes the next step of a run and returns its loss.

    Args:
        config: of the run.
        tiles: image, label and weight tiles of each step, on the device.
        device: of the network.
        memory_format: of the network's weights, and so of all that it computes.
    """

    def __init__(
        self,
        config: TrainConfig,
        tiles: Iterator[tuple],
        device: str,
        memory_format: torch.memory_format = torch.channels_last,
    ):
        self.config, self.tiles, self.taken = config, tiles, 0
        self.device = torch.device(device)
        torch.manual_seed(config.seed)
        self.network = build_network(config, device).to(memory_format=memory_format)
        self.optimizer = build_optimizer(config, self.network)
        self.forward = self.network
        if config.compile:
            self.forward = torch.compile(self.network, dynamic=False)

    def __call__(self) -> torch.Tensor:
        seed_step(self.config, self.taken, self.device)
        self.taken += 1
        precision = self.config.precision
        return train_step(self.forward, self.optimizer, *next(self.tiles), precision)

    def losses(self, count: int) -> list[float]:
        """Of the next steps, without drop-out.

        Its masks depend on the memory format and on the compiler.
        """
        dropout = self.network.dropout
        rate, dropout.p = dropout.p, 0.0
        losses = [float(self()) for _ in range(count)]
        dropout.p = rate
        return losses


def check_losses(name: str, losses: list[float], expected: list[float], half: bool):
    """Numbers of 8 bits part sooner than those of 24, of which TF32 keeps 11."""
    tolerance = 0.05 if half else 0.01
    np.testing.assert_allclose(losses, expected, rtol=tolerance, err_msg=name)


def operations(tile: int, **arguments) -> int:
    """Of one tile forward and backward, as chapter 5 counts them."""
    with torch.device("meta"):
        network = UNet(**arguments)
        image = torch.empty(1, 1, tile, tile)
    counts = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(
                lambda layer, given, out: counts.append(
                    out.numel() * incoming_nodes(layer)
                )
            )
    network(image)
    return 2 * 3 * sum(counts)


def compiles(device: str) -> bool:
    """Whether torch.compile works here; else the reason is printed."""
    double: Callable = torch.compile(lambda x: x * 2 + 1)
    try:
        double(torch.ones(8, device=device))
    # Which of several errors it is depends on what is missing.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        print(f"torch.compile finds no compiler here: left out ({reason})")
        return False
    return True
