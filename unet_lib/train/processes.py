"""Several processes that train one network: one for each GPU, on one or more machines.

`torchrun` starts them and tells each its rank through environment variables. Each takes
its share of a step's tiles, and PyTorch averages the gradients, so that all take the
step that one process would take with all the tiles. Used in :doc:`training-faster`.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import count as count_from

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

__all__ = ["best_device"]

RUNS = count_from()  # of this process


@dataclass(frozen=True)
class Processes(AbstractContextManager["Processes"]):
    """This process among those that train together; the end of the context parts them.

    One that fails alone under NCCL must not wait in there for the others, which wait
    for it, since nobody would see its error. Its end ends them all.
    """

    rank: int  # 0 writes and reports
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, tiles: range) -> range:
        """The tiles of a step that this process takes."""
        return tiles[self.rank :: self.count]

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network, with gradients averaged over the processes."""
        if self.count == 1:
            return network
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a value over the processes; all must ask for it."""
        if self.count > 1:
            distributed.all_reduce(value)
            value = value / self.count
        return value

    def check_same(self, step: int) -> None:
        """OSError unless all processes are about to go on from one step."""
        if self.count == 1:
            return
        own = torch.tensor(step, device=self.device)
        steps = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(steps, own)
        found = [int(one) for one in steps]
        if len(set(found)) > 1:
            raise OSError(
                f"The processes would go on from steps {found}: all must see the run's "
                "folder, so put it on a file system that the machines share."
            )

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        if self.count > 1 and not (error and self.device.type == "cuda"):
            distributed.destroy_process_group()


def join(device: str | None, batch: int) -> Processes:
    """The processes that `torchrun` started, or this one alone.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``; None takes the fastest. With several
            GPUs, each process takes the one with its own number.
        batch: tiles per step, to be shared out evenly.

    Raises:
        ValueError: if the device is not available, or the batch cannot be shared out
            evenly.
    """
    device = device or best_device()
    count = int(os.environ.get("WORLD_SIZE", 1))
    if batch % count:
        raise ValueError(
            f"A batch of {batch} cannot be shared by {count} processes: take a "
            f"multiple, such as {count * max(1, round(batch / count))}."
        )
    if count > 1 and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    place = _device(device)
    if count == 1:
        return Processes(0, 1, place)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if distributed.is_initialized():  # a run before this one has failed
        return Processes(distributed.get_rank(), count, place)
    store, rank, _ = _meeting_point()
    # A name of its own: addresses of a run before this one are still in the store,
    # and to wait there for a process that has left would be for ever.
    store = distributed.PrefixStore(f"run {next(RUNS)}", store)
    backend, ours = ("nccl", place) if place.type == "cuda" else ("gloo", None)
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=count, device_id=ours
    )
    return Processes(rank, count, place)


@cache
def _meeting_point() -> tuple[distributed.Store, int, int]:
    """Where the processes find one another, this one's rank, and their count."""
    return next(distributed.rendezvous("env://"))


def best_device() -> str:
    """``"cuda"``, else Apple's ``"mps"``, else ``"cpu"``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _device(name: str) -> torch.device:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f'device must be "cpu", or "cuda" or "mps" where there is one, or None '
            f"for the fastest, not {name!r} ({str(error).splitlines()[0]})."
        ) from error
    return torch.device(name)
