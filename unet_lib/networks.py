"""Networks in files: saved, loaded, and the published one.

The weights and the network's arguments go into one safetensors file, which is read
without unpickling. The published network is a quarter of the paper's width; its card,
pretrained.md beside this file, says what it was trained on, how well networks trained
in the same way do on slices that they have not seen, and what it is not good for.
Used in :doc:`training` and :doc:`results`.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from unet_lib._files import written
from unet_lib.model import UNet, move_to, unwrapped

__all__ = ["load_network", "load_pretrained", "save_network"]

FILE = Path(__file__).with_name("pretrained.safetensors")
# Of the file, byte for byte; written by book/publish.py.
SHA256 = "585cee9458ebd022dd99c0abbead9a1535b650671d5a8fb2c6ffc10a92e122ab"


def save_network(
    network: nn.Module, path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write a network's weights and constructor arguments as safetensors.

    Floating-point weights are stored as `dtype`, for example ``torch.float16``; by
    default, they keep their type. If the network is in a wrapper (DataParallel, an
    average of the weights, `torch.compile`), the `UNet` inside is written. A
    ValueError is raised for any other network, and if `dtype` cannot hold the weights.
    """
    network = unwrapped(network)
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise ValueError(
            "Expected a dtype of floating-point numbers, such as torch.float16, got "
            f"{dtype!r}."
        )
    path = Path(path)
    tensors = {}
    for name, tensor in network.state_dict().items():
        kind = dtype if tensor.is_floating_point() else None
        if kind and (largest := float(tensor.abs().max())) > torch.finfo(kind).max:
            raise ValueError(
                f"{dtype} cannot hold {name} of the network, up to {largest:g}: take "
                "torch.bfloat16, or no dtype."
            )
        tensors[name] = tensor.detach().to("cpu", kind).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        save_file(tensors, temporary, {"unet": json.dumps(network.arguments)})


def load_network(path: str | Path, device: str | torch.device = "cpu") -> UNet:
    """Load a network that `save_network` wrote, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No network at {path}: expected a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        network = _network_of(metadata, tensors)
    except Exception as error:  # safetensors' own error has no public base class
        raise ValueError(
            f"{path} does not hold a network written by unet_lib.save_network, such as "
            f"a run's network.safetensors: {error}."
        ) from error
    return move_to(network, device).eval()


def _network_of(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> UNet:
    """Of a file's content; any exception if it is not a network's."""
    if "unet" not in metadata:
        if {"step", "history"} <= set(metadata):
            raise ValueError(
                "this is a checkpoint of a run; load network.safetensors, which the "
                "run writes beside it at its end"
            )
        raise ValueError('its metadata has no "unet", the arguments of the network')
    arguments = json.loads(metadata["unet"])
    # Held against the tensors first: a declared depth or width may be without bound.
    declared = [arguments[name] for name in ("depth", "base_channels")]
    levels = sum(name.startswith("up_convolutions.") for name in tensors) // 2
    if declared != [levels, tensors["classify.weight"].shape[1]]:
        raise ValueError("its tensors are not of the declared depth and width")
    with torch.device("meta"):  # takes no memory and draws no random numbers
        network = UNet(**arguments)
    copies = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone()
        for name, tensor in tensors.items()
    }
    network.load_state_dict(copies, assign=True)
    return network


def load_pretrained(device: str | torch.device = "cpu") -> UNet:
    """Load the published network, in float32 and evaluation mode.

    It takes slices like those from `data.load_isbi2012`: one gray channel, float32, 0
    to 1, with dark membranes and about 4 nm per pixel. Class 1 is *cell*.

    Args:
        device: the device to put the network on.

    Raises:
        FileNotFoundError: if its file is missing from the installed package.
        ValueError: if the file is not the published one, byte for byte.
    """
    if not FILE.is_file():
        raise FileNotFoundError(
            f"{FILE} is missing: install unet_lib anew, or copy the file from its "
            "repository."
        )
    found = hashlib.sha256(FILE.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{FILE} is damaged or another network: expected SHA-256 {SHA256}, got "
            f"{found}. Install unet_lib anew."
        )
    return load_network(FILE, device)
