"""What a training run writes: checkpoints to go on from, and its record.

Nothing in the files is pickled. Used in :doc:`training`.
"""

import json
import os
import platform
import subprocess
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from skimage.io import imsave

from unet_lib._files import write_text, written

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"


def save_checkpoint(
    folder: Path,
    step: int,
    history: list[dict],
    modules: dict[str, torch.nn.Module],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Write the state after `step` steps; the checkpoint before it is kept too.

    OSError if it cannot be written; the one before it is then still whole.
    """
    tensors = {
        f"{name}/{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    } | {
        f"optimiser/{index}/{key}": tensor
        for index, values in optimiser.state_dict()["state"].items()
        for key, tensor in values.items()
        if tensor is not None
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    values = {"step": step, "history": history, "scaler": scaler.state_dict()}
    metadata = {name: json.dumps(value) for name, value in values.items()}
    with written(folder / CURRENT) as temporary:
        save_file(tensors, temporary, metadata)
        if (folder / CURRENT).exists():
            os.replace(folder / CURRENT, folder / PREVIOUS)


def load_checkpoint(
    folder: Path,
    modules: dict[str, torch.nn.Module],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[int, list[dict]]:
    """Put the newest whole checkpoint back; return its step and history.

    A damaged one is named in a warning and the one before it taken. Without
    any, step 0 and an empty history. ValueError for one of another network.
    """
    for path in (folder / CURRENT, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                values = {name: json.loads(text) for name, text in metadata.items()}
                step, history = values["step"], values["history"]
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
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
        for prefix, module in modules.items():
            try:
                module.load_state_dict(
                    {
                        name.removeprefix(f"{prefix}/"): tensor
                        for name, tensor in tensors.items()
                        if name.startswith(f"{prefix}/")
                    }
                )
            except RuntimeError as error:  # names or shapes differ
                raise ValueError(
                    f"{path} is of another network than this {prefix}: "
                    f"{error} Take another folder, or that network's arguments."
                ) from error
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/")
                if tensor.ndim == 4:  # as the network lies in memory
                    tensor = tensor.to(memory_format=torch.channels_last)
                state.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        scaler.load_state_dict(values["scaler"])
        return step, history
    return 0, []


def differences(path: Path, fields: dict) -> list[str]:
    """The fields in which a run's config.json is of another run than `fields` ask.

    ValueError for a file that is no run's, or is not there.
    """
    # Where it runs and how often one looks do not make it another run.
    free = {"device", "watch_at", "save_every"}
    wanted = json.loads(json.dumps(fields))
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a run's configuration ({error}). Take another folder."
        ) from error
    keys = (set(wanted) | set(found)) - free
    return sorted(key for key in keys if wanted.get(key) != found.get(key))


def claim(folder: Path, fields: dict) -> None:
    """Write a run's config.json, or check that the folder holds this very run."""
    path = folder / "config.json"
    if path.exists():
        if unlike := differences(path, fields):
            raise ValueError(
                f"{folder} holds another run: {', '.join(unlike)} differ(s). Take "
                "another folder, or the same configuration to go on with that run."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(fields, indent=1) + "\n")


def write_history(path: Path, history: list[dict]) -> None:
    """Write a run's history as a table, a row each time something was logged."""
    columns = ["step", "seconds", "loss", "learning_rate", "pixel_error"]
    rows = [",".join(str(row.get(name, "")) for name in columns) for row in history]
    write_text(path, "\n".join([",".join(columns), *rows]) + "\n")


def write_picture(path: Path, probabilities: np.ndarray) -> None:
    """Write probabilities ``(height, width)``, 0 to 1, as an 8-bit grey PNG."""
    shape, dtype = np.shape(probabilities), np.asarray(probabilities).dtype
    if len(shape) != 2 or 0 in shape or dtype.kind != "f":
        raise ValueError(
            "Expected probabilities of one slice, floats of shape (height, width), got "
            f"{dtype} of shape {shape}."
        )
    # In these words NaN is refused too.
    low, high = np.min(probabilities), np.max(probabilities)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Expected probabilities from 0 to 1, got {low} to {high}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        grey = np.round(255 * probabilities).astype(np.uint8)
        imsave(temporary, grey, check_contrast=False)


def circumstances(device: torch.device) -> dict:
    """On what and with which code a run was made, for its record."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # installed, not cloned
    return {
        "device": name,
        "device_type": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
    }
