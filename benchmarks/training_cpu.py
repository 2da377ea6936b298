"""Training on a CPU: what a step costs beside the network, and what makes it faster."""

from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context

import torch
from steps import Steps, batches, check_losses, compiles, sampler_of
from timing import medians, versus

from unet_lib.data import Stacks
from unet_lib.train import TrainConfig

QUARTER = TrainConfig(base_channels=16, tile=444, schedule="constant")


def training_cpu(
    stacks: Stacks, device: str, config: TrainConfig = QUARTER, repeats: int = 15
) -> list[dict]:
    """A step as `fit` takes it, against its network alone and against other ways."""
    if device != "cpu":
        print("training-cpu is left out: it is for machines without a GPU")
        return []
    sampler = sampler_of(stacks, config, device)
    half = replace(config, precision="bfloat16")

    def steps(config=config, memory_format=torch.channels_last):
        return Steps(config, batches(sampler, config.batch), device, memory_format)

    fitted, halved = steps(), steps(half)
    ways = {"contiguous": steps(memory_format=torch.contiguous_format)}
    if compiles(device):
        ways["compiled"] = steps(replace(config, compile=True))
    expected = fitted.losses(3)
    for name, way in ways.items():
        check_losses(name, way.losses(3), expected, half=False)
    check_losses("bfloat16", halved.losses(3), expected, half=True)

    threads = torch.get_num_threads()
    names = ["fitted", "bfloat16", "one thread", *ways]
    calls = [fitted, halved, lambda: on_one_thread(fitted, threads), *ways.values()]
    took = dict(zip(names, medians(calls, repeats), strict=True))
    # Here a few hundredths matter: more often, and nothing else between.
    alone, whole = medians([bare(fitted), fitted], 3 * repeats)
    # And this one is slow.
    with_it, without_it = medians([fitted, lambda: without_onednn(fitted)], 3)

    size = f"{config.tile}×{config.tile}, {config.base_channels} channels"
    where = f"{size}, {threads} threads"

    def row(what, other, mine, others):
        return versus(mine, others) | {"what": f"{what}, {where}", "other": other}

    ours, other = "channels last, float32, oneDNN, eager", "contiguous"
    rows = [
        row(
            "the network alone, forward and backward, a fixed tile",
            "a whole step as fit takes it: tile cut and deformed, loss, SGD too",
            alone,
            whole,
        )
        | {"target": "at most 1.05"},
        row(f"a step: {ours}", other, took["fitted"], took["contiguous"]),
        row("a step: bfloat16", "float32", took["bfloat16"], took["fitted"]),
        row(f"a step: {ours}", "on one thread", took["fitted"], took["one thread"]),
        row(f"a step: {ours}", "without oneDNN", with_it, without_it),
    ]
    if "compiled" in took:
        row_of = row("a step: torch.compile", "eager", took["compiled"], took["fitted"])
        rows.append(row_of)
    if threads > 1:
        rows.append(row(*in_processes(stacks, config, threads, repeats)))
    return rows


def bare(steps: Steps):
    """The network's forward and backward on one tile, and nothing else."""
    image = next(steps.tiles)[0]
    gradient = torch.ones_like(steps.network(image).detach())

    def call():
        steps.optimizer.zero_grad()
        steps.network(image).backward(gradient)

    return call


def on_one_thread(steps: Steps, threads: int) -> None:
    torch.set_num_threads(1)
    steps()
    torch.set_num_threads(threads)


def without_onednn(steps: Steps) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        steps()


_steps: dict = {}  # of a process


def start_process(stacks: Stacks, config: TrainConfig, threads: int, barrier) -> None:
    torch.set_num_threads(threads)
    sampler = sampler_of(stacks, config, "cpu")
    steps = Steps(config, batches(sampler, config.batch), "cpu")
    _steps.update(steps=steps, barrier=barrier)


def take_steps(count: int) -> None:
    _steps["barrier"].wait()  # so that each process has its share
    for _ in range(count):
        _steps["steps"]()


@contextmanager
def processes(count: int, threads: int, stacks: Stacks, config: TrainConfig):
    context = get_context("spawn")
    given = (stacks, config, threads, context.Barrier(count))
    with context.Pool(count, start_process, given) as pool:
        yield pool


def in_processes(stacks: Stacks, config: TrainConfig, threads: int, repeats: int):
    """As many steps, by two processes with half of the threads and by one with all."""
    share = threads // 2
    with (
        processes(2, share, stacks, config) as two,
        processes(1, 2 * share, stacks, config) as one,
    ):
        took = medians(
            [
                lambda: two.map(take_steps, [2, 2], chunksize=1),
                lambda: one.map(take_steps, [4]),
            ],
            repeats,
        )
    what = f"4 steps: two runs of 2 at a time, {share} thread(s) each"
    return what, f"one after the other, {2 * share} threads", *took
