"""The challenge's published files: download them, read them, check every pixel.

Used by `data.load_isbi2012`. Built in :doc:`data`.
"""

import hashlib
import io
import math
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import filelock
import numpy as np

from unet_lib.data import _tiff

__all__ = ["CacheError", "DataError", "DownloadError"]

ADDRESS = "https://downloads.imagej.net/ISBI-2012-challenge.zip"
VARIABLE = "UNET_BOOK_DATA"
SHAPE = (30, 512, 512)

# SHA-256 of the decoded pixels (C order, uint8): a copy written anew by another
# program has other bytes and the same pixels.
PIXELS_SHA256 = {
    "train-volume.tif": (
        "200da3d452d726e6c9ca1ce04b869d4edb727320d23b516d01cce707dc8c4760"
    ),
    "train-labels.tif": (
        "a7cb64000a1a7e542682927e19c91339f58f9f178e0bcce4e207371116f0ca36"
    ),
    "test-volume.tif": (
        "1b58fa7ec1d0ff9d39a855622db3ff66a97863036339b0d04be51b2f5a99b0e9"
    ),
}
# The pixels of the true test labels are not known to us; what is known is the
# git blob id of the file as published (`git hash-object test-labels.tif`).
TEST_LABELS = "test-labels.tif"
TEST_LABELS_BLOB = "0d6427fdfe7bacaa91bdc3d930aab31331b62d43"


class DataError(ValueError):
    """A file of the stacks is missing, unreadable or not the one expected."""


class DownloadError(OSError):
    """The organizers' zip could not be fetched."""


class CacheError(DownloadError):
    """The stacks cannot be kept in the cache: a full disk, say."""


def read_folder(folder: str | Path, remedy: str | None = None) -> dict[str, np.ndarray]:
    """Read the files of a folder and check every pixel.

    Args:
        folder: the folder with the organizers' TIFF files, or with their unpacked zip.
        remedy: the last sentence of an error: what to do with a wrong file.

    Returns:
        A dictionary from file names to ``(30, 512, 512)`` uint8 arrays, with
        `TEST_LABELS` if that file exists.

    Raises:
        DataError: if a file is missing, unreadable or differs from what was published;
            the message names it.
    """
    folder = Path(folder).expanduser()
    inner = folder / "ISBI-2012-challenge"  # as the organizers' zip unpacks
    if inner.is_dir() and not any((folder / name).exists() for name in PIXELS_SHA256):
        folder = inner
    names = list(PIXELS_SHA256)
    if (folder / TEST_LABELS).exists():
        names.append(TEST_LABELS)
    contents = {}
    for name in names:
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as problem:
            raise DataError(
                f"{folder / name} cannot be read ({problem.strerror}). Expected a "
                f"folder with {', '.join(PIXELS_SHA256)}. Put the file there (all are "
                f"in {ADDRESS}) or name the right folder, as argument or in {VARIABLE}."
            ) from problem
    return _decode_all(
        contents, folder, remedy or f"Replace it by the file in {ADDRESS}."
    )


def read_or_fetch() -> dict[str, np.ndarray]:
    """Read the files from the user's cache; if it has none, download the zip first.

    Returns:
        The same as `read_folder`.

    Raises:
        DataError: as for `read_folder`, for the cache and for the zip.
        DownloadError: if the zip cannot be downloaded.
        CacheError: if its files cannot be kept in the cache.
    """
    cache = cache_folder()
    if all((cache / name).is_file() for name in PIXELS_SHA256):
        # Not fetched again by itself: the user may have put the file there.
        return read_folder(cache, "Delete it, and it is fetched anew.")
    return _download(cache)


def cache_folder() -> Path:
    """Return this book's folder in the user's cache, where pooch would put it."""
    # Computed here, so that cached stacks load where pooch is not installed.
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "unet-book" / "unet-book" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unet-book"
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or Path.home() / ".cache"
    return Path(base) / "unet-book"


def _decode_all(
    contents: dict[str, bytes], where: object, remedy: str
) -> dict[str, np.ndarray]:
    """Check and decode {file name: bytes}; `where` and `remedy` are for the errors."""
    stacks = {}
    for name, data in contents.items():
        try:
            stacks[name] = _tiff.decode(io.BytesIO(data)).pixels
        except Exception as problem:  # a broken file breaks the reader in many ways
            raise DataError(
                f"{where}: {name} is not a readable TIFF file ({problem}); it has "
                f"{len(data):,} of about 7,870,000 bytes. {remedy}"
            ) from problem
        if fault := _fault(name, data, stacks[name]):
            raise DataError(f"{where}: {name} {fault} {remedy}")
    return stacks


def _fault(name: str, data: bytes, stack: np.ndarray) -> str:
    """What is wrong with a file, to follow on its name; nothing if it is right."""
    if stack.shape != SHAPE or stack.dtype != np.uint8:
        return (
            f"holds {stack.dtype} of shape {stack.shape}; expected uint8 of shape "
            f"{SHAPE}."
        )
    if expected := PIXELS_SHA256.get(name):
        found = hashlib.sha256(stack.tobytes()).hexdigest()
        if found == expected:
            return ""
        return (
            "has other pixels than the published stack: expected SHA-256 "
            f"{expected} of the decoded pixels, found {found}."
        )
    optional = "Everything but the scores on the test stack works without it."
    found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if found != TEST_LABELS_BLOB:
        return (
            f"is not the published file: expected git blob id {TEST_LABELS_BLOB}, "
            f"found {found}. Files of this name in public repositories turned out to "
            f"be predictions: never score against such. {optional}"
        )
    if not np.isin(stack, (0, 255)).all():
        return f"has other values than 0 (membrane) and 255 (cell). {optional}"
    return ""


def _download(folder: Path) -> dict[str, np.ndarray]:
    """Fetch the zip, check all of it, and only then put the files into `folder`."""
    try:
        import pooch
        import requests

        folder.mkdir(parents=True, exist_ok=True)
        for name in (*PIXELS_SHA256, TEST_LABELS):
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a folder")
        # Only the process with the lock fetches, so what others left is removed.
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
            for left in folder.glob(".download-*"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as work:
                archive = Path(work) / "stacks.zip"
                fetch = pooch.HTTPDownloader(
                    progressbar=True, chunk_size=2**16, timeout=20
                )
                fetch(ADDRESS, str(archive), None)
                return _unpack(archive, folder)
    except ModuleNotFoundError as problem:
        reason = "pooch, which fetches it, is not installed"
        raise _no_download(folder, reason) from problem
    except (requests.RequestException, zipfile.BadZipFile) as problem:
        raise _no_download(folder, problem) from problem
    except OSError as problem:
        raise CacheError(
            f"The ISBI 2012 stacks cannot be kept in {folder} ({problem}). Make room "
            "there, or move away what is in the way, and give the same command again; "
            f"or download and unpack {ADDRESS} elsewhere, and name that folder in the "
            f"environment variable {VARIABLE}."
        ) from problem


def _unpack(archive: Path, folder: Path) -> dict[str, np.ndarray]:
    """Check the stacks in a zip, and put their files into `folder`."""
    contents = _read_zip(archive)
    where = f"The zip from {ADDRESS}"
    remedy = f"Get the right file elsewhere and name its folder in {VARIABLE}."
    if missing := [name for name in PIXELS_SHA256 if name not in contents]:
        raise DataError(f"{where} lacks {', '.join(missing)}. {remedy}")
    stacks = _decode_all(contents, where, remedy)
    for name, data in contents.items():
        part = archive.with_name(name)
        part.write_bytes(data)
        os.replace(part, folder / name)
    return stacks


def _read_zip(archive: Path) -> dict[str, bytes]:
    """Return {file name: bytes} of the stacks in a zip, whatever their folder."""
    wanted = {*PIXELS_SHA256, TEST_LABELS}
    # Twice the pixels of a stack and more: a zip of zeros does not unpack to gigabytes.
    most = 2 * math.prod(SHAPE) + 2**16
    contents = {}
    whole = io.BytesIO(archive.read_bytes())  # so that all that fails below is damage
    try:
        with zipfile.ZipFile(whole) as members:
            for member in members.infolist():
                # Only the last part of a member's path counts: none leads elsewhere.
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.name not in wanted:
                    continue
                with members.open(member) as opened:
                    contents[path.name] = opened.read(most + 1)
                if len(contents[path.name]) > most:
                    raise ValueError(f"{path.name} unpacks to more than {most:,} bytes")
    except Exception as problem:  # damage shows in many ways
        raise zipfile.BadZipFile(f"the zip is damaged: {problem}") from problem
    return contents


def _no_download(folder: Path, reason: object) -> DownloadError:
    return DownloadError(
        f"The ISBI 2012 stacks are not here and could not be fetched from {ADDRESS} "
        f"({reason}). On a machine that can reach it, download and unpack that file; "
        f"then put {', '.join(PIXELS_SHA256)} into {folder}, or name their folder in "
        f"the environment variable {VARIABLE}. Without them, load_or_stand_in() or "
        "`unet-lib data --synthetic` gives the synthetic stand-in."
    )
