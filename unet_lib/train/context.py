"""Settings that are restored after a run, and errors that say how to go on.

Used in :doc:`training`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unet_lib._checks import is_out_of_memory
from unet_lib.config import TrainConfig
from unet_lib.model import valid_sizes
from unet_lib.train.checkpoint import CURRENT, PREVIOUS

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Set PyTorch's settings and random state for a run, and restore them after it."""
    mode, workspace = torch.get_deterministic_debug_mode(), os.environ.get(WORKSPACE)
    if config.deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    # All tiles are of one size: let cuDNN try which algorithm is fastest for it.
    search = (torch.backends.cudnn, "benchmark", not config.deterministic)
    wanted = [search, *_without_tf32()]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    _set(wanted)
    try:
        with random_numbers_kept(device):
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        _set(before)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def _without_tf32() -> list[tuple[Any, str, Any]]:
    """Settings under which float32 is float32: TF32 keeps 10 of its 23 bits."""
    convolutions: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    try:
        _ = convolutions.allow_tf32, products.allow_tf32
    except RuntimeError:  # they were set by PyTorch's newer names
        pairs = [(convolutions.conv, "ieee"), (products, "ieee")]
        return [(owner, "fp32_precision", value) for owner, value in pairs]
    return [(owner, "allow_tf32", False) for owner in (convolutions, products)]


def _set(values: list[tuple[Any, str, Any]]) -> None:
    for owner, name, value in values:
        setattr(owner, name, value)


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Restore PyTorch's random state on the CPU and on a device at the end."""
    modules: list[Any] = [torch]
    if device.type != "cpu":
        modules.append(torch.get_device_module(device))
    before = [module.get_rng_state() for module in modules]
    try:
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.set_rng_state(state)


@contextmanager
def explained(
    config: TrainConfig, device: torch.device, folder: Path | None
) -> Iterator[None]:
    """Turn what ends a run early into an error that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_how_to_go_on(folder)) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"The memory of {device} does not hold a step of {config.batch} "
            f"tile(s) of {config.tile} pixels ({str(error).splitlines()[0]}). Take a "
            f"smaller batch or tile ({_smaller_tiles(config)}), or "
            'precision="bfloat16", in another folder. The last checkpoint is intact.'
        ) from error


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None:
        return "Stopped; nothing was kept, since the run was given no folder."
    if any((folder / name).exists() for name in (CURRENT, PREVIOUS)):
        return (
            f"Stopped; what is in {folder} is intact. Run the same command again to "
            "resume from its last checkpoint."
        )
    return (
        f"Stopped before the first checkpoint in {folder}; the same command starts "
        "over."
    )


def _smaller_tiles(config: TrainConfig) -> str:
    sizes = valid_sizes(1, config.tile - 1, config.depth, config.padding)
    smaller = sizes[::-4][:3]
    return "such as " + ", ".join(map(str, smaller)) if smaller else "none is smaller"
