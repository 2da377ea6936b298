"""A run's folder: which run and process it belongs to, and the record it keeps.

Used in :doc:`training`.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from unet_lib._files import read_json, write_text, written
from unet_lib.config import TrainConfig

# Where it runs and how often one looks do not make it another run.
FREE = {"device", "watch_at", "save_every"}
# What a run would write over, or go on from.
KEPT = ("checkpoint*.safetensors", "history.csv", "metrics.json", "network.safetensors")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; if it is killed, the lock ends with it.

    BlockingIOError is raised if another process holds the lock, and says which one;
    OSError if the folder goes away meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "in-use.lock")
    holder = folder / "in-use.txt"  # Windows lets nobody read a file that is locked
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = "another process"
        with suppress(OSError, ValueError):
            who = holder.read_text(encoding="utf-8")
        raise BlockingIOError(
            f"{folder} is in use by {who}: wait until that is done, or take another "
            "folder."
        ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
        yield
    except OSError as error:
        if folder.exists():
            raise
        raise OSError(
            f"{folder} is gone: it was deleted or moved during the run ({error}). Put "
            "it back and give the same command again, or start again in another folder."
        ) from error
    finally:
        with suppress(OSError):  # the folder may be gone
            holder.unlink()
        lock.release()


def fingerprint(
    images: np.ndarray | list[np.ndarray],
    labels: np.ndarray | list[np.ndarray],
    start: dict[str, torch.Tensor] | None = None,
) -> dict[str, str]:
    """SHA-256 of the data of a run, whatever the type of its numbers.

    If weights to start from are given, they have a SHA-256 of their own.
    """
    small = all(one.dtype == np.uint8 for one in labels)
    stacks = {"images": (images, "<f4"), "labels": (labels, "u1" if small else "<i4")}
    found = {}
    for name, (slices, dtype) in stacks.items():
        shapes = [one.shape for one in slices]
        alike = len(set(shapes)) == 1
        whole: Any = (len(shapes), *shapes[0]) if alike else shapes
        hashed = hashlib.sha256(str(whole).encode())
        for one in slices:
            hashed.update(np.ascontiguousarray(one, dtype).data)
        found[name] = hashed.hexdigest()
    if start is not None:
        hashed = hashlib.sha256()
        for name, tensor in sorted(start.items()):
            hashed.update(f"{name} {tuple(tensor.shape)}\n".encode())
            hashed.update(tensor.contiguous().numpy().data)
        found["start_weights"] = hashed.hexdigest()
    return found


def claim(folder: Path, fields: dict[str, Any], data: dict[str, str]) -> None:
    """Write the settings and the data of a run, or check that they are the same.

    Args:
        folder: the folder of the run.
        fields: its configuration.
        data: the `fingerprint` of its images and labels.

    Raises:
        ValueError: if the folder holds another run.
    """
    path = folder / "config.json"
    if not path.exists():
        if kept := sorted(one.name for name in KEPT for one in folder.glob(name)):
            raise ValueError(
                f"{folder} holds {', '.join(kept)} and no config.json, which would say "
                "of which run they are. Take another folder."
            )
        write_text(folder / "data.json", json.dumps(data, indent=1) + "\n")
        write_text(path, json.dumps(fields, indent=1) + "\n")
        return
    if unlike := differences(path, fields):
        raise ValueError(
            f"{folder} holds another run: {', '.join(unlike)} differ(s). Take another "
            "folder, or the same configuration to go on with that run."
        )
    if not (folder / "data.json").exists():  # a run of version 0.1
        return
    found = _read_fields(folder / "data.json")
    names = {*data, *found}
    if unlike := sorted(name for name in names if found.get(name) != data.get(name)):
        other = " and ".join(unlike).replace("_", " ")
        raise ValueError(
            f"{folder} holds a run on other {other}. Take another folder, or the same "
            "data and network to go on with that run."
        )


def differences(path: Path, fields: dict[str, Any]) -> list[str]:
    """The fields in which a run's config.json differs from `fields`.

    Fields that the file does not name were not options yet and have their defaults.
    ValueError is raised for a file that is missing or does not belong to a run.
    """
    wanted = json.loads(json.dumps(fields))
    defaults = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    found = _read_fields(path)
    if isinstance(turned := found.get("augmentation", {}), dict):
        found["augmentation"] = defaults["augmentation"] | turned
    found = defaults | found
    keys = (set(wanted) | set(found)) - FREE
    return sorted(key for key in keys if wanted.get(key) != found.get(key))


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, got {found!r:.50}")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a run's configuration ({error}). Take another folder."
        ) from error
    return found


def write_history(folder: Path, history: list[dict[str, Any]], metric: str) -> None:
    """Write a run's history as a table, one row for each time something was logged."""
    columns = ["step", "seconds", "loss", "learning_rate", metric]
    rows = [",".join(str(row.get(name, "")) for name in columns) for row in history]
    write_text(folder / "history.csv", "\n".join([",".join(columns), *rows]) + "\n")


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write 8-bit gray values ``(height, width)``, or colors; OSError if it fails."""
    with written(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def circumstances(device: torch.device) -> dict[str, Any]:
    """The machine and the code that a run was made with, for its record."""
    name, cpus = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif cpus.exists():
        models = re.findall(r"^model name\s*:(.*)$", cpus.read_text("utf-8"), re.M)
        name = models[0].strip() if models else name
    return {
        "device": name,
        "device_type": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": _commit(Path(__file__).parents[2]),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _commit(root: Path) -> str | None:
    """Of the repository whose top is `root`; None where there is none."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", *arguments], cwd=root, text=True, stderr=subprocess.DEVNULL
        ).strip()

    try:
        # Installed into a folder of a user's repository, it is not of their commit.
        if git("rev-parse", "--show-prefix"):
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return None  # installed, not cloned
