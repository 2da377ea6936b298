"""Settings that are restored after a run, and errors that say how to go on.

Used in :doc:`training`.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from unet_lib._checks import is_out_of_memory
from unet_lib.config import TrainConfig
from unet_lib.model import valid_sizes
from unet_lib.train.checkpoint import CURRENT, PREVIOUS

HALF = (torch.bfloat16, torch.float16)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Set PyTorch's settings and random state for a run, and restore them after it."""
    # All tiles are of one size: let cuDNN try which algorithm is fastest for it.
    search = (torch.backends.cudnn, "benchmark", not config.deterministic)
    with ExitStack() as ends:
        for owner, name, value in [search, *_without_tf32()]:
            ends.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        mode = torch.get_deterministic_debug_mode()
        ends.callback(torch.set_deterministic_debug_mode, mode)
        if config.deterministic:
            if WORKSPACE not in os.environ:
                ends.callback(os.environ.pop, WORKSPACE, None)
                os.environ[WORKSPACE] = ":4096:8"
            torch.use_deterministic_algorithms(True, warn_only=True)
        ends.enter_context(torch.inference_mode(False))  # turns gradients on too
        ends.enter_context(torch.random.fork_rng([]))
        if device.type != "cpu":  # not by fork_rng, since older ones cannot for MPS
            module = torch.get_device_module(device)
            ends.callback(module.set_rng_state, module.get_rng_state())
        elif config.precision != "float32" and not _has_fast(config.precision):
            ends.enter_context(RoundedConvolutions())
        yield


class RoundedConvolutions(TorchDispatchMode):
    """Compute the 16-bit convolutions of a CPU in float32, and round what comes out.

    Products of 16-bit numbers are exact in float32, and a processor with instructions
    for them also adds them up in float32: the results differ by the order of the sums
    alone. Where a processor lacks these instructions, PyTorch takes a plain loop
    that is many times slower.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        convolutions = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
        dtype = getattr(args[0], "dtype", None) if args else None
        if func.overloadpacket not in convolutions or dtype not in HALF:
            return func(*args, **kwargs or {})
        wide = tree_map_only(torch.Tensor, torch.Tensor.float, args)
        return tree_map_only(torch.Tensor, lambda one: one.to(dtype), func(*wide))


def _has_fast(precision: str) -> bool:
    """Whether PyTorch has a fast convolution of that type for this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    short = {"bfloat16": "bf16", "float16": "fp16"}[precision]
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{short}_supported")())


def _without_tf32() -> list[tuple[Any, str, Any]]:
    """Settings under which float32 is float32: TF32 keeps 10 of its 23 bits."""
    convolutions: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    try:
        _ = convolutions.allow_tf32, products.allow_tf32
    except RuntimeError:  # they were set by PyTorch's newer names
        owners = (convolutions.conv, products)
        return [(owner, "fp32_precision", "ieee") for owner in owners]
    return [(owner, "allow_tf32", False) for owner in (convolutions, products)]


@contextmanager
def explained(
    config: TrainConfig, device: torch.device, folder: Path | None
) -> Iterator[None]:
    """Turn what ends a run early into an error that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if folder is None:
            said = "Stopped; nothing was kept, since the run was given no folder."
        elif any((folder / name).exists() for name in (CURRENT, PREVIOUS)):
            said = (
                f"Stopped; what is in {folder} is intact. Run the same command again "
                "to resume from its last checkpoint."
            )
        else:
            said = f"Stopped before the first checkpoint in {folder}; the same command "
            said += "starts over."
        raise KeyboardInterrupt(said) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        sizes = valid_sizes(1, config.tile - 1, config.depth, config.padding)
        smaller = ", ".join(map(str, sizes[::-4][:3]))
        such = f"such as {smaller}" if smaller else "none is smaller"
        raise MemoryError(
            f"The memory of {device} does not hold a step of {config.batch} "
            f"tile(s) of {config.tile} pixels ({str(error).splitlines()[0]}). Take a "
            f"smaller batch or tile ({such}), or "
            'precision="bfloat16", in another folder. The last checkpoint is intact.'
        ) from error
