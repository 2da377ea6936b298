"""The ISBI 2012 stacks: get, check, load, split, export.

Built in :doc:`data`.
"""

import hashlib
import io
import os
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile

from unet_lib.synthetic import synthetic_em

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
    """The organisers' zip could not be fetched."""


@dataclass(frozen=True)
class Stacks:
    """The stacks as arrays, ``(slices, height, width)`` each.

    Images are float32 from 0 to 1; labels are uint8, 1 = cell and 0 = membrane.
    `test_labels` is None where they are not at hand. `source` is ``"ISBI 2012"`` or
    ``"synthetic"``.

    Raises:
        ValueError: for anything else, naming the stack.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray | None
    source: str

    def __post_init__(self):
        for name, like in (("train", self.train_images), ("test", self.test_images)):
            _check_stack(f"{name}_images", like, "f", "floats from 0 to 1")
            labels = getattr(self, f"{name}_labels")
            if labels is not None or name == "train":
                expected = f"integers 0 and 1, of the shape of {name}_images"
                _check_stack(f"{name}_labels", labels, "bui", expected, like.shape)


def load_isbi2012(folder=None):
    """Load the ISBI 2012 stacks and check every pixel.

    They come from `folder`; else from the folder that the environment variable
    ``UNET_BOOK_DATA`` names; else from the user's cache; else from the organisers'
    zip, which is then kept in the cache.
    Source: https://imagej.net/events/isbi-2012-segmentation-challenge.

    Args:
        folder: that holds the organisers' TIFF files.

    Returns:
        `Stacks`.

    Raises:
        DataError: for a file that is missing, unreadable or other than published,
            naming it.
        DownloadError: where the zip cannot be fetched.
    """
    if folder is None:
        folder = os.environ.get(VARIABLE)
        if folder == "synthetic":
            raise DataError(
                f"{VARIABLE} is the word 'synthetic', which asks for the stand-in: "
                "call load_or_stand_in() or `unet-lib data --synthetic`; or set "
                f"{VARIABLE} to the folder of the ISBI 2012 stacks."
            )
    if folder:
        remedy = f"Replace it by the file in {ADDRESS}."
        return _load_folder(Path(folder).expanduser(), remedy)
    cache = cache_folder()
    if all((cache / name).is_file() for name in PIXELS_SHA256):
        # Not fetched again by itself: the user may have put the file there.
        return _load_folder(cache, "Delete it, and it is fetched anew.")
    return _download(ADDRESS, cache)


def load_or_stand_in():
    """Load the real stacks where they are to be had, else the stand-in.

    Prints one line that says which. Where ``UNET_BOOK_DATA`` is the word
    ``synthetic``, nothing else is tried.

    Returns:
        `Stacks`.

    Raises:
        DataError: where a folder or the cache holds a wrong file: then there is no
            silent stand-in.
    """
    if os.environ.get(VARIABLE) == "synthetic":
        stacks = synthetic_stacks()
        reason = f"as {VARIABLE} asks"
    else:
        try:
            stacks = load_isbi2012()
        except DownloadError:
            stacks = synthetic_stacks()
            reason = "since the real stacks are not here and could not be fetched"
    if stacks.source == "synthetic":
        print(
            f"Data: the synthetic stand-in, {reason}. Pictures and numbers differ "
            "from the book's."
        )
    else:
        print("Data: the ISBI 2012 stacks, every pixel checked.")
    return stacks


def synthetic_stacks():
    """Return `Stacks` of `synthetic.synthetic_em`, to stand in for ISBI 2012's."""
    train_images, train_labels = synthetic_em(seed=0)
    test_images, _ = synthetic_em(seed=1)
    return Stacks(train_images, train_labels, test_images, None, "synthetic")


def folds(slices=30, k=5):
    """Split slices into `k` contiguous blocks, each held out once.

    Neighbouring slices look alike, so a random split would test on near copies
    of what it trained on.

    Args:
        slices: how many there are.
        k: how many blocks; their sizes differ by one slice at the most.

    Returns:
        A list of `k` pairs, training indices and held-out indices, int arrays in
        rising order.

    Raises:
        ValueError: unless 2 <= k <= slices.

    Example:
        >>> training, held_out = folds(slices=30, k=5)[4]
        >>> held_out
        array([24, 25, 26, 27, 28, 29])
    """
    whole = isinstance(k, Integral) and isinstance(slices, Integral)
    if not whole or not 2 <= k <= slices:
        raise ValueError(
            f"folds needs integers, 2 <= k <= slices; got k={k} and slices={slices}. "
            "Choose k so that every block has a slice and one block is left to train."
        )
    everything = np.arange(slices)
    return [
        (np.setdiff1d(everything, held_out), held_out)
        for held_out in np.array_split(everything, k)
    ]


def export_slices(stacks, folder):
    """Write the stacks as one 8-bit PNG a slice, for other tools.

    They go to ``train/images``, ``train/labels``, ``test/images`` and, where present,
    ``test/labels``, named ``00.png``, ``01.png`` and so on; labels are 255 = cell and
    0 = membrane. All slices are there at the end, or nothing is.

    Args:
        stacks: `Stacks`.
        folder: a new one, or an empty one.

    Raises:
        ValueError: for anything but `Stacks`.
        FileExistsError: where `folder` is a file or is not empty.
    """
    from skimage.io import imsave

    if not isinstance(stacks, Stacks):
        raise ValueError(
            f"Expected Stacks, got {type(stacks).__name__}: load_isbi2012() gives them."
        )
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there already and is not an empty folder. Name a new "
            "folder, or empty this one; nothing was written."
        )
    parts = {
        "train/images": np.rint(255 * stacks.train_images),
        "train/labels": 255 * stacks.train_labels,
        "test/images": np.rint(255 * stacks.test_images),
    }
    if stacks.test_labels is not None:
        parts["test/labels"] = 255 * stacks.test_labels
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as work:
        whole = Path(work) / "slices"
        for part, stack in parts.items():
            (whole / part).mkdir(parents=True)
            for number, image in enumerate(stack.astype(np.uint8)):
                path = whole / part / f"{number:02d}.png"
                imsave(path, image, check_contrast=False)
        if folder.exists():
            folder.rmdir()  # empty; Windows would not replace it
        os.replace(whole, folder)


def cache_folder():
    """Return the user's cache folder of this book (where pooch would put it)."""
    # Computed here, so that cached stacks load where pooch is not installed.
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "unet-book" / "unet-book" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unet-book"
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or Path.home() / ".cache"
    return Path(base) / "unet-book"


def _check_stack(name, stack, kinds, expected, shape=None):
    found, good = type(stack).__name__, False
    if isinstance(stack, np.ndarray):
        found = f"{stack.dtype} of shape {stack.shape}"
        good = stack.ndim == 3 and stack.size > 0 and stack.dtype.kind in kinds
    if good:
        low, high = stack.min(), stack.max()
        found += f" from {low} to {high}"
        # In these words NaN is refused too.
        good = low >= 0 and high <= 1 and shape in (None, stack.shape)
    if not good:
        raise ValueError(
            f"Expected {name} as an array (slices, height, width) of {expected}, got "
            f"{found}."
        )


def _load_folder(folder, remedy):
    inner = folder / "ISBI-2012-challenge"  # as the organisers' zip unpacks
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
    return _decode_all(contents, folder, remedy)


def _decode_all(contents, where, remedy):
    """Check and decode {file name: bytes}; `where` and `remedy` are for the errors."""
    stacks = {}
    for name, data in contents.items():
        try:
            stacks[name] = _decode(name, data)
        except DataError as problem:
            raise DataError(f"{where}: {name} {problem} {remedy}") from problem
    test_labels = stacks.get(TEST_LABELS)
    # Labels are 0 and 255 in the files, 0 and 1 in the arrays.
    return Stacks(
        train_images=stacks["train-volume.tif"] / np.float32(255),
        train_labels=stacks["train-labels.tif"] // 255,
        test_images=stacks["test-volume.tif"] / np.float32(255),
        test_labels=None if test_labels is None else test_labels // 255,
        source="ISBI 2012",
    )


def _decode(name, data):
    """Decode one file; the DataError's text follows on the file's name."""
    try:
        stack = tifffile.imread(io.BytesIO(data))
    except Exception as problem:  # a broken file breaks the reader in many ways
        raise DataError(
            f"is not a readable TIFF file ({problem}). It may be truncated: it has "
            f"{len(data):,} bytes; expected about 7,870,000."
        ) from problem
    if stack.shape != SHAPE or stack.dtype != np.uint8:
        raise DataError(
            f"holds {stack.dtype} of shape {stack.shape}; expected uint8 of shape "
            f"{SHAPE}."
        )
    if name == TEST_LABELS:
        _check_test_labels(data, stack)
        return stack
    found = hashlib.sha256(stack.tobytes()).hexdigest()
    if found != PIXELS_SHA256[name]:
        raise DataError(
            "has other pixels than the published stack: expected SHA-256 "
            f"{PIXELS_SHA256[name]} of the decoded pixels, found {found}."
        )
    return stack


def _check_test_labels(data, stack):
    optional = "Everything but the scores on the test stack works without it."
    found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if found != TEST_LABELS_BLOB:
        raise DataError(
            f"is not the published file: expected git blob id {TEST_LABELS_BLOB}, "
            f"found {found}. Files of this name in public repositories turned out to "
            f"be predictions: never score against such. {optional}"
        )
    if not np.isin(stack, (0, 255)).all():
        raise DataError(
            f"has other values than 0 (membrane) and 255 (cell). {optional}"
        )


def _download(address, folder):
    """Fetch the zip, check all of it, and only then put the files into `folder`."""
    try:
        import pooch
    except ModuleNotFoundError as problem:
        raise _no_download(
            address, folder, "pooch, which fetches it, is not installed"
        ) from problem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as work:
            archive = Path(work) / "stacks.zip"
            fetch = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=20)
            fetch(address, str(archive), None)
            contents = _read_zip(archive)
            remedy = f"Get the right file elsewhere and name its folder in {VARIABLE}."
            missing = [name for name in PIXELS_SHA256 if name not in contents]
            if missing:
                raise DataError(
                    f"The zip from {address} lacks {', '.join(missing)}; expected "
                    f"{', '.join(PIXELS_SHA256)}. {remedy}"
                )
            stacks = _decode_all(contents, f"The zip from {address}", remedy)
            for name, data in contents.items():
                part = Path(work) / name
                part.write_bytes(data)
                os.replace(part, folder / name)
    except (OSError, zipfile.BadZipFile) as problem:
        raise _no_download(address, folder, problem) from problem
    return stacks


def _read_zip(archive):
    """Return {file name: bytes} of the stacks in a zip, whatever their folder."""
    wanted = {*PIXELS_SHA256, TEST_LABELS}
    with zipfile.ZipFile(archive) as members:
        contents = {}
        for member in members.namelist():
            # Only the last part of a member's path counts: none leads elsewhere.
            name = PurePosixPath(member.replace("\\", "/")).name
            if name in wanted:
                try:
                    contents[name] = members.read(member)
                except Exception as problem:  # damage shows in many ways
                    raise zipfile.BadZipFile(f"{member}: {problem}") from problem
    return contents


def _no_download(address, folder, reason):
    return DownloadError(
        f"The ISBI 2012 stacks are not here and could not be fetched from {address} "
        f"({reason}). On a machine that can reach it, download and unpack that file; "
        f"then put {', '.join(PIXELS_SHA256)} into {folder}, or name their folder in "
        f"the environment variable {VARIABLE}. Without them, load_or_stand_in() or "
        "`unet-lib data --synthetic` gives the synthetic stand-in."
    )
