"""Files that are written whole or not at all.

They go to a temporary name and are renamed, so that a program that is killed leaves
none half-written.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` once all of it is written.

    OSError if it cannot be; what `path` was before is then still whole.
    """
    # One name and not one for each process: what a killed one left goes.
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors lets nobody else read its files
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}). What was written before is "
            "whole: make room, or whatever else it wants, and give the same command "
            "again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; OSError if it cannot be written."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
