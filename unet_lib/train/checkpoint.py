"""Checkpoints: the files from which a training run that was stopped goes on.

Nothing in the files is pickled. Used in :doc:`training`.
"""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unet_lib._files import written
from unet_lib.model import UNet

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
VALUES = {"step", "history", "scaler"}  # beside the tensors, as JSON


@dataclass
class State:
    """Everything that a run changes from step to step and a checkpoint keeps."""

    network: UNet
    averaged: UNet | None  # the moving average of the weights, if one is kept
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def trained(self) -> UNet:
        """The network that the run returns."""
        return self.network if self.averaged is None else self.averaged

    @property
    def modules(self) -> dict[str, UNet]:
        """The networks, by their names in a checkpoint."""
        networks = {"network": self.network, "averaged": self.averaged}
        return {name: one for name, one in networks.items() if one is not None}


def save_checkpoint(folder: Path, state: State) -> None:
    """Write the state of a run; the previous checkpoint is kept too.

    OSError is raised if it cannot be written; the previous one is then still intact.
    """
    parts = {name: module.state_dict() for name, module in state.modules.items()}
    optimizer = state.optimizer.state_dict()["state"]
    parts |= {f"optimizer/{index}": values for index, values in optimizer.items()}
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, values in parts.items()
        for name, tensor in values.items()
        if tensor is not None
    }
    scaler = state.scaler.state_dict()
    values = {"step": state.step, "history": state.history, "scaler": scaler}
    metadata = {name: json.dumps(value) for name, value in values.items()}
    metadata["sha256"] = _checksum(tensors, metadata)
    with written(folder / CURRENT) as temporary:
        save_file(tensors, temporary, metadata)
        if (folder / CURRENT).exists():
            os.replace(folder / CURRENT, folder / PREVIOUS)


def load_checkpoint(folder: Path, state: State) -> None:
    """Put a run into the state of the last intact checkpoint in the folder.

    A checkpoint that is damaged or incomplete is renamed to ``*.damaged`` with a
    warning, and the previous one is used. Without any checkpoint, the state stays as it
    is. ValueError is raised for a checkpoint of another network.
    """
    for path in (folder / CURRENT, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            tensors, values = _read(path)
        except Exception as error:  # safetensors' own error has no public base class
            # Out of the way, or the next save would keep it in place of a whole one.
            damaged = path.with_suffix(".damaged")
            os.replace(path, damaged)
            warnings.warn(
                f"{path} is damaged ({error}) and now named {damaged.name}; going on "
                "from the checkpoint before it, or from the start if there is none.",
                stacklevel=2,
            )
            continue
        for prefix, module in state.modules.items():
            try:
                module.load_state_dict(_under(f"{prefix}/", tensors))
            except RuntimeError as error:  # names or shapes differ
                raise ValueError(
                    f"{path} is of another network than this {prefix}: "
                    f"{error} Take another folder, or that network's arguments."
                ) from error
        _load_optimizer(state.optimizer, _under("optimizer/", tensors))
        state.scaler.load_state_dict(values["scaler"])
        state.step, state.history = values["step"], values["history"]
        return


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A checkpoint's tensors and values; any exception if it is not whole."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    # Those of version 0.1 have no checksum.
    if set(metadata) - {"sha256"} != VALUES:
        raise ValueError(f"expected {sorted(VALUES)} in it, got {sorted(metadata)}")
    if metadata.get("sha256") not in (None, _checksum(tensors, metadata)):
        raise ValueError("its content does not match its checksum")
    values = {name: json.loads(metadata[name]) for name in VALUES}
    if not isinstance(values["step"], int) or not isinstance(values["history"], list):
        raise ValueError("its step or its history is not one")
    return tensors, values


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of the names, types, shapes and bytes of all that a checkpoint holds."""
    found = hashlib.sha256()
    for name in sorted(VALUES):
        found.update(f"{name} {metadata[name]}\n".encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    if prefix == "averaged/":  # in version 0.1 in a wrapper that counted the steps
        found.pop("n_averaged", None)
        found = {name.removeprefix("module."): one for name, one in found.items()}
    return found


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        parameter = parameters[int(index)]
        # A copy, as its parameter lies in memory: the file does not stay mapped.
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
