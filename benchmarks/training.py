"""The paper's training on a GPU: plain PyTorch, then one change after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from plain_loader import MAKERS, plain_batches
from steps import Steps, batches, check_losses, compiles, operations, sampler_of
from timing import medians, versus

from unet_lib.data import Stacks
from unet_lib.train import TrainConfig

PAPER = TrainConfig(schedule="constant")


@dataclass
class Rung:
    """One way of training; each differs in one thing from the one before."""

    name: str
    config: TrainConfig
    memory_format: torch.memory_format = torch.channels_last
    loader: bool = False
    tf32: bool = True
    steps: Steps | None = None
    peak_gib: float | None = None
    seconds: float = 0.0  # a tile

    @property
    def half(self) -> bool:
        return self.config.precision == "bfloat16"

    def take(self, count: int) -> None:
        # As `fit` sets it, but for TF32, which `fit` does without and PyTorch allows.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, allow_tf32=self.tf32
        ):
            for _ in range(count):
                self.steps()


def rungs_of(config: TrainConfig, larger: tuple[int, ...], compiled: bool):
    last = {"memory_format": torch.contiguous_format, "tf32": False}
    loader = f"plain float32, tiles by {list(MAKERS)[-1]} in a data loader"
    half = replace(config, precision="bfloat16")
    rungs = [
        Rung(loader, config, loader=True, **last),
        Rung("tiles on the device", config, **last),
        Rung("channels last", config, tf32=False),
        Rung("TF32 in the convolutions", config),
        Rung("bfloat16", half),
    ]
    if compiled:
        half = replace(half, compile=True)
        rungs.append(Rung("torch.compile", half))
    for batch in larger:
        rungs.append(Rung(f"{batch} tiles a step", replace(half, batch=batch)))
    return rungs


def training(stacks: Stacks, device: str) -> list[dict]:
    if device != "cuda":
        print("training, the paper's network at full width, needs an NVIDIA GPU")
        return []
    return ladder(stacks, device)


def ladder(
    stacks: Stacks,
    device: str,
    config: TrainConfig = PAPER,
    larger: tuple[int, ...] = (8, 16),
    count: int = 24,
    repeats: int = 9,
    side: int = 8192,
) -> list[dict]:
    """Rows of each rung against the one before, of the ends, and of the floor.

    Args:
        stacks: to train on.
        device: that the network and the stacks lie on.
        config: one tile a step, float32.
        larger: batches that are tried at the end.
        count: steps in one timing.
        repeats: timings of each.
        side: of the matrices whose product gives the device's rate.
    """
    on_device, on_cpu = (sampler_of(stacks, config, d) for d in (device, "cpu"))
    plain, ahead = plain_batches(on_cpu, config.batch, device)
    rungs = rungs_of(config, larger, compiles(device))
    same = Steps(replace(config, learning_rate=1e-30), batches(on_device, 1), device)
    of_tiles = same.losses(max([3, *larger]))  # at the first weights
    del same
    for rung in rungs:
        build(rung, plain if rung.loader else None, on_device, device, of_tiles)

    def empty_the_queue():
        # Else the loader would show off what it made while the others trained.
        for _ in range(ahead):
            next(plain)

    calls: list[Callable] = [lambda rung=rung: rung.take(count) for rung in rungs]
    for rung, took in zip(rungs, medians(calls, repeats, empty_the_queue), strict=True):
        rung.seconds = took / count / rung.config.batch
    rows = [against(after, before) for before, after in pairwise(rungs)]
    rows.append(against(rungs[-1], rungs[0]) | {"target": "at least 3 times as fast"})
    return [*rows, floor(min(rungs, key=lambda rung: rung.seconds), side, device)]


def build(rung: Rung, plain, on_device, device: str, of_tiles: list[float]) -> None:
    """Take the first steps, compare their losses, and see how much memory they need."""
    gpu = device == "cuda"
    before = torch.cuda.memory_allocated() if gpu else 0
    batch = rung.config.batch
    tiles = plain or batches(on_device, batch)
    rung.steps = Steps(rung.config, tiles, device, rung.memory_format)
    first = rung.steps.losses(3)[0]
    # elasticdeform mirrors the tile, not the slice: another loss near the rim.
    if not rung.loader:
        expected = sum(of_tiles[:batch]) / batch
        check_losses(rung.name, [first], [expected], rung.half)
    rung.take(1)  # here cuDNN tries its algorithms
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        rung.take(3)
        rung.peak_gib = (torch.cuda.max_memory_allocated() - before) / 2**30


def against(rung: Rung, other: Rung) -> dict:
    config = rung.config
    size = f"{config.tile}×{config.tile}, {config.base_channels} channels"
    row = versus(rung.seconds, other.seconds)
    row |= {"what": f"a tile trained, {size}: {rung.name}", "other": other.name}
    row |= {"tiles_per_second": 1 / rung.seconds, "peak_gib": rung.peak_gib}
    row["other_tiles_per_second"] = 1 / other.seconds
    row["other_peak_gib"] = other.peak_gib
    if config.batch == 1:
        row["target"] = f"within {3 if rung.half else 6} GB"
    return row


def floor(best: Rung, side: int, device: str) -> dict:
    """The time of a tile's operations, were each as fast as in a matrix product."""
    square = torch.rand(side, side, device=device, dtype=torch.bfloat16)
    took = medians([lambda: square @ square], 15)[0]
    rate = 2 * side**3 / took
    config = best.config
    needed = operations(
        config.tile, base_channels=config.base_channels, depth=config.depth
    )
    return versus(needed / rate, best.seconds) | {
        "what": f"the floor: {needed / 1e12:.3f} tera-operations a tile at the "
        f"measured rate of bfloat16 products",
        "other": f"the fastest of these: {best.name}",
        "operations_per_second": rate,
        "share": needed / rate / best.seconds,
        "other_tiles_per_second": 1 / best.seconds,
        "target": "on one H200 at least 400 tiles/s, half of this rate",
    }
