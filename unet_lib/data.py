"""The ISBI 2012 stacks: get, check, load, split; and a synthetic stand-in.

Built in chapter 1, Data.
"""

import hashlib
import io
import os
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile
from scipy import ndimage
from scipy.spatial import KDTree

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
    """The stacks as arrays, (slices, height, width) each.

    Images are float32 from 0 to 1; labels are uint8, 1 = cell and 0 = membrane.
    `test_labels` is None where they are not at hand. `source` is "ISBI 2012" or
    "synthetic".
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray | None
    source: str


def load_isbi2012(folder=None):
    """Load the ISBI 2012 stacks and check every pixel.

    They come from `folder`; else from the folder that the environment variable
    UNET_BOOK_DATA names; else from the user's cache; else from the organisers'
    zip, which is then kept in the cache. Returns `Stacks`. Raises `DataError`
    naming the file that is missing, unreadable or other than published, and
    `DownloadError` (an OSError) where the zip cannot be fetched.

    Source: https://imagej.net/events/isbi-2012-segmentation-challenge.
    Built in chapter 1, Data.
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

    Prints one line that says which. Where UNET_BOOK_DATA is the word
    `synthetic`, nothing else is tried; where a folder or the cache holds a wrong
    file, that is a `DataError` and not a silent stand-in. Returns `Stacks`.
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
    """Stand in for the ISBI 2012 stacks with `synthetic_em`; returns `Stacks`."""
    train_images, train_labels = synthetic_em(seed=0)
    test_images, _ = synthetic_em(seed=1)
    return Stacks(train_images, train_labels, test_images, None, "synthetic")


def folds(slices=30, k=5):
    """Split slices into `k` contiguous blocks, each held out once.

    Neighbouring slices look alike, so a random split would test on near copies
    of what it trained on. Returns a list of `k` pairs (training indices, held-out
    indices), int arrays in rising order; blocks differ by one slice at the most.
    Raises ValueError unless 2 <= k <= slices. Built in chapter 1, Data.
    """
    if not 2 <= k <= slices:
        raise ValueError(
            f"folds needs 2 <= k <= slices; got k={k} and slices={slices}. "
            "Choose k so that every block has a slice and one block is left to train."
        )
    everything = np.arange(slices)
    return [
        (np.setdiff1d(everything, held_out), held_out)
        for held_out in np.array_split(everything, k)
    ]


def export_slices(stacks, folder):
    """Write the stacks as one 8-bit PNG a slice, for other tools.

    They go to train/images, train/labels, test/images and, where present,
    test/labels under `folder`, named 00.png, 01.png and so on; labels are
    255 = cell and 0 = membrane. Raises FileExistsError where `folder` is a file or
    is not empty. All slices are there at the end, or nothing is.
    """
    from skimage.io import imsave

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


# The stand-in ----------------------------------------------------------------


def synthetic_em(slices=30, size=512, seed=0):
    """Draw a stack that looks like EM of neural tissue, with its labels.

    Irregular cells drift from slice to slice; their membranes, about 5 px wide in
    the labels as in the real ones, are dark, of varying strength and here and there
    smeared as if cut at a slant; the cytoplasm is grained and holds vesicles and
    mitochondria, whose membranes are not labelled. Grey values have the mean and
    spread of the real training stack. Returns (images, labels), both (slices,
    size, size): float32 from 0 to 1, and uint8 with 1 = cell and 0 = membrane
    (about 22 %). The same arguments give the same stack. Made for this project.
    """
    if slices < 1 or size < 16:
        raise ValueError(
            "synthetic_em needs slices >= 1 and size >= 16; got "
            f"slices={slices}, size={size}."
        )
    rng = np.random.default_rng(seed)

    def noise(*spacing):
        return _smooth_noise(rng, (slices, size, size), spacing)

    cells = _partition(rng, slices, size)
    border = _border_distance(cells, size)
    slant = (noise(1.2, 16, 16) - 2.0).clip(0, 1.2)
    half_width = 2.45 + 0.35 * noise(2, 20, 20).clip(-2, 2) + 9 * slant
    labels = (border > half_width).astype(np.uint8)

    tone = rng.normal(0, 0.055, cells.max() + 1).astype(np.float32)
    images = tone[cells].repeat(2, axis=1).repeat(2, axis=2)[:, :size, :size]
    images += 0.085 * noise(1, 1.5, 1.5) + 0.06 * noise(1, 4, 4)
    images += 0.03 * noise(1, 30, 30)
    width = 2.1 + 0.4 * noise(1, 20, 20).clip(-2, 2)
    strength = (0.42 + 0.1 * noise(1, 12, 12)).clip(0.2)
    images -= strength * np.exp(-(((border - 0.8).clip(0) / width) ** 2))
    images -= (0.5 * slant).clip(0, 0.25) * np.exp(-((border / (4 + 9 * slant)) ** 2))
    _paint_vesicles(rng, images, border)
    _paint_mitochondria(rng, images, border)

    images = 0.495 + 0.173 * (images - images.mean()) / images.std()
    # 8 bits, as a microscope gives, so that an export keeps every value.
    images = np.rint(255 * images.clip(0, 1)) / np.float32(255)
    return images.astype(np.float32), labels


def _smooth_noise(rng, shape, spacing):
    """Gaussian noise, mean 0 and variance 1, smooth over `spacing` voxels an axis."""
    z, y, x = (
        _spline_basis(rng, n, step) for n, step in zip(shape, spacing, strict=True)
    )
    knots = (z.shape[1], y.shape[1], x.shape[1])
    values = rng.standard_normal(knots, dtype=np.float32)
    return y @ np.tensordot(z, values, axes=1) @ x.T


def _spline_basis(rng, length, spacing):
    """Cubic B-splines, `spacing` apart, at `length` points; rows of norm 1."""
    position = np.arange(length) / spacing + rng.random() + 1
    knots = np.arange(int(position[-1]) + 3)
    t = np.abs(position[:, None] - knots)
    basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clip(0) ** 3 / 6)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    return basis.astype(np.float32)


def _partition(rng, slices, size):
    """Number the cells at half the resolution, (slices, size / 2, size / 2)."""
    depth = 9.0  # one slice further counts as this many pixels
    margin = 40
    low = np.full(3, -margin)
    span = np.array([depth * slices, size, size]) + 2 * margin
    waves = np.array([[20, 12, -10], [10, -15, 20], [13, 18, 17]]) / 1000
    phase = 2 * np.pi * rng.random(3)

    def draw(density):
        # Crowded and sparse places, for small and large cells.
        points = low + span * rng.random((int(density * span.prod()), 3))
        crowd = np.sin(points @ waves + phase).sum(axis=1)
        kept = rng.random(len(points)) < np.exp(1.3 * (crowd - 1.2))
        kept[:2] = True  # a tiny stack may lie where nearly none is kept
        return points[kept]

    # A voxel belongs to its nearest seed, a seed to its nearest centre: cells of
    # several seeds are not convex. Warped coordinates bend their borders.
    centres, seeds = draw(2.0e-5), draw(3.2e-5)
    _, owner = KDTree(centres).query(seeds)
    points = np.empty((slices, (size + 1) // 2, (size + 1) // 2, 3), np.float32)
    points[..., 0] = depth * np.arange(slices)[:, None, None]
    points[..., 1] = np.arange(0, size, 2)[:, None]
    points[..., 2] = np.arange(0, size, 2)
    for axis in (1, 2):
        warp = 8 * _smooth_noise(rng, points.shape[:3], (5, 20, 20))
        warp += 1.6 * _smooth_noise(rng, points.shape[:3], (1.5, 4.5, 4.5))
        points[..., axis] += warp
    _, nearest = KDTree(seeds).query(points.reshape(-1, 3))
    return owner[nearest].reshape(points.shape[:3])


def _border_distance(cells, size):
    """Distance in pixels to the next cell, (slices, size, size) float32."""
    inner = np.ones(cells.shape, bool)
    inner[:, :-1] &= cells[:, :-1] == cells[:, 1:]
    inner[:, :, :-1] &= cells[:, :, :-1] == cells[:, :, 1:]
    # A slice that is one cell has no border: the size stands for "far".
    distance = np.stack(
        [
            ndimage.distance_transform_edt(one) if not one.all() else one * size
            for one in inner
        ]
    ).astype(np.float32)
    distance = 2 * ndimage.gaussian_filter(distance, (0, 0.8, 0.8))
    for axis in (1, 2):  # twice the resolution, linearly between the old samples
        old = np.moveaxis(distance, axis, 0)
        new = np.repeat(old, 2, axis=0)
        new[1:-1:2] = (old[:-1] + old[1:]) / 2
        distance = np.moveaxis(new[:size], 0, axis)
    return np.ascontiguousarray(distance)


def _paint_vesicles(rng, images, border):
    y, x = np.mgrid[-8:9, -8:9]
    from_centre = np.hypot(y, x)
    size = images.shape[1]
    centres = rng.integers(0, images.shape, (images.size // 1200, 3))
    for z, y, x in centres:
        radius, strength = rng.uniform(2, 5), rng.uniform(0.1, 0.3)
        inside = min(y, x) >= 8 and max(y, x) < size - 8
        if inside and border[z, y, x] > radius + 6:
            ring = np.exp(-((from_centre - radius) ** 2))
            core = 0.5 * np.exp(-(from_centre**2))
            images[z, y - 8 : y + 9, x - 8 : x + 9] -= strength * (ring + core)


def _paint_mitochondria(rng, images, border):
    slices, size, _ = images.shape
    centres = rng.integers(0, images.shape, (images.size // 8000, 3))
    for z, y, x in centres:
        radius = min(border[z, y, x] - 5, rng.uniform(10, 20))
        angle, flatness = rng.uniform(0, np.pi), rng.uniform(0.7, 1)
        if radius < 9:
            continue
        rows = slice(max(y - 24, 0), y + 25)
        columns = slice(max(x - 24, 0), x + 25)
        dy = np.arange(size)[rows, None] - y
        dx = np.arange(size)[columns] - x
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = (np.cos(angle) * dy - np.sin(angle) * dx) / flatness
        from_centre = np.hypot(along, across)
        for s in range(max(z - 2, 0), min(z + 3, slices)):
            here = radius * np.sqrt(1 - ((s - z) / 3) ** 2)
            body = 1 / (1 + np.exp(from_centre - here))
            cristae = np.sin(1.3 * across + 2 * np.sin(along / 6) + s)
            rim = np.exp(-((from_centre - here) ** 2) / 2.5)
            change = body * (0.09 * cristae - 0.16) - 0.2 * rim
            images[s, rows, columns] += change * (border[s, rows, columns] > 4)
