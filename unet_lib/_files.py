"""Files: written whole or not at all, refused before the work, read in one sentence.

What is written goes to a temporary name and is renamed at the end, so that a program
that is killed leaves no half-written file.
"""

import glob
import hashlib
import itertools
import json
import os
import shutil
import socket
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

DAY = 24 * 60 * 60  # seconds
NUMBERS = itertools.count()  # of this process's temporary files


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` once all of it is written.

    Of a link, the target is written and the link stays. A pipe or a device stays what
    it is and gets the bytes. OSError if `path` cannot be written; what was there before
    is then unchanged.
    """
    target = Path(os.path.realpath(path))
    through = _takes_bytes(path)
    folder = Path(tempfile.gettempdir()) if through else target.parent
    # A name of this writer's own: another one may be writing the same file.
    end = target.name[-40:]
    temporary = folder / f".tmp-{_machine()}-{os.getpid()}-{next(NUMBERS)}-{end}"
    try:
        _remove_leftovers(folder, end)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        if through:
            with temporary.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            temporary.chmod(mode)  # safetensors lets nobody else read its files
            os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error  # without the temporary name
        raise OSError(
            f"{path} could not be written ({why}). What was there before is unchanged: "
            "make room, or solve what else is in the way, and run the same command "
            "again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; OSError if it cannot be written."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output(
    path: Path,
    suffixes: tuple[str, ...],
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
) -> None:
    """Refuse, before the work is done, a file that could not or must not be written.

    Args:
        path: of the file. A pipe or a device needs no suffix.
        suffixes: that name its format, in lowercase.
        inputs: files and folders that are read.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: for another suffix, an input, or a name in a folder that is read.
        OSError: for a folder, a file that exists, and a place that cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it.")
    if _takes_bytes(path):
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{path} must end in {' or '.join(suffixes)}, the format that is written."
        )
    for one in inputs:
        if path.exists() and one.exists() and path.samefile(one):
            raise ValueError(
                f"{path} is one of the inputs and would be lost: give another name for "
                "the output."
            )
        if one.is_dir() and path.parent.is_dir() and path.parent.samefile(one):
            raise ValueError(
                f"{path} is in the folder {one}, and would be read as one of the "
                "inputs the next time: write it to another folder."
            )
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists: give another name, or add --overwrite (overwrite=True in "
            "Python) to replace it."
        )
    parent = Path(os.path.realpath(path)).parent
    if not parent.is_dir():
        raise FileNotFoundError(
            f"{path} cannot be written: there is no folder {parent}. Make it first."
        )
    _check_writable(parent, path)


def check_folder(path: Path) -> None:
    """Refuse, before the work is done, a folder that could not be made or written in.

    OSError says why; nothing is made.
    """
    existing = path
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{existing} is not a folder, so {path} cannot be one: give another name."
        )
    _check_writable(existing, path)


def read_json(path: Path) -> Any:
    """What a JSON file says, with or without a byte order mark, in UTF-8 or UTF-16.

    ValueError, with the file's name, for anything else; OSError if it cannot be read.
    """
    return _parsed(path, "JSON", json.loads)


def read_toml(path: Path) -> Any:
    """What a TOML file says, with or without a byte order mark.

    ValueError, with the file's name, for anything else; OSError if it cannot be read.
    """
    return _parsed(path, "TOML", lambda said: tomllib.loads(said.decode("utf-8-sig")))


def _parsed(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Any:
    content = path.read_bytes()
    try:
        return parse(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid {kind}: {error}.") from error


def _takes_bytes(path: Path) -> bool:
    """Whether `path` is a pipe, a device or the like, which nothing can replace."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _check_writable(folder: Path, path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # asks the file system itself
            pass
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}): give a name in a folder "
            "that you may write in."
        ) from error


def _machine() -> str:
    """Where a process number means something: this machine, or this container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _remove_leftovers(folder: Path, end: str) -> None:
    """Remove what killed writers left: of ended processes here, or a day old."""
    for left in folder.glob(f".tmp-*-*-*-{glob.escape(end)}"):
        _, machine, process, *_ = left.name.split("-")
        with suppress(OSError, ValueError, OverflowError):
            ended = machine == _machine() and not _runs(int(process))
            if ended or time.time() - left.stat().st_mtime > DAY:
                left.unlink()


def _runs(process: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be asked."""
    if os.name != "posix":  # on Windows, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be somebody else's
    return True
