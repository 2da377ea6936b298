"""Labels for images that were read from files, matched by name and checked.

`unet_lib.train.fit` takes the pixels of both. Used in :doc:`own-images`.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from unet_lib._checks import UNKNOWN
from unet_lib.data.images import Images, read_labels

__all__ = ["read_labels_of"]


def read_labels_of(
    images: Images,
    path: str | Path,
    instances: bool = False,
    num_classes: int = 2,
    unknown: int | None = None,
) -> Images:
    """Read the labels of images, in the order of the images' slices.

    An image and a label file belong together if their names differ only in the ending,
    or if all names of labels add the same beginning or end to those of their images, as
    in ``cell-1.tif`` and ``cell-1_mask.png``. A single file of images and a single file
    of labels belong together whatever their names.

    Args:
        images: as `read_images` returns them.
        path: a TIFF or a PNG, one image or a stack, or a folder of them.
        instances: whether labels number the cells, 0 = background.
        num_classes: above 2, labels are numbers of classes from 0, the background.
            Otherwise each file holds 0 = background and 1 = cell, or 0 and 255.
        unknown: the value that marks pixels without a label; -1 always does.

    Returns:
        `Images` of int32, -1 = unknown; with two classes 1 = cell. Its pixels are a
        list if the slices differ in size.

    Raises:
        ValueError: if files have no partner, all of which are named; if labels differ
            in size from their images or have other values; and for what `read_labels`
            refuses.
        OSError: if a file cannot be opened.
    """
    read = read_labels(path, binary=False, unknown=unknown)
    ours, theirs = _by_file(images), _by_file(read)
    pairs = _paired([*ours], [*theirs])
    _check_sizes([((a, ours[a]), (b, theirs[b])) for a, b in pairs])
    labels: list[np.ndarray] = []
    for _, name in pairs:
        parts = theirs[name]
        if not instances:
            values = {int(value) for one in parts for value in np.unique(one)}
            _check_values(values, name, num_classes)
        binary = not instances and num_classes == 2
        labels += [np.sign(one) for one in parts] if binary else parts
    one_size = isinstance(images.pixels, np.ndarray)
    names = tuple(name for _, name in pairs for _ in theirs[name])
    return replace(read, pixels=np.stack(labels) if one_size else labels, names=names)


def in_order_of(found: Images, labels: Images) -> Images:
    """Put labels of a folder in the order of what was found, matched by name.

    ValueError, which names them, for files without a partner.
    """
    pairs = _paired(*([*dict.fromkeys(one.names)] for one in (found, labels)))
    names = np.array(labels.names)
    order = [n for _, name in pairs for n in np.flatnonzero(names == name)]
    pixels = [labels.pixels[n] for n in order]
    one_size = isinstance(labels.pixels, np.ndarray)
    return replace(labels, pixels=np.stack(pixels) if one_size else pixels)


def _by_file(images: Images) -> dict[str, list[np.ndarray]]:
    """The slices of each file."""
    slices: dict[str, list[np.ndarray]] = {}
    for name, one in zip(images.names, images.pixels, strict=True):
        slices.setdefault(name, []).append(one)
    return slices


def _paired(images: list[str], labels: list[str]) -> list[tuple[str, str]]:
    """Each image file with its label file."""
    if len(images) == len(labels) == 1:
        return [(images[0], labels[0])]
    ours, theirs = _by_stem(images), _by_stem(labels)
    before, after = _added(ours, theirs)
    partner = {stem: theirs.get(before + stem + after) for stem in ours}
    alone = [ours[stem] for stem, found in partner.items() if found is None]
    unused = sorted({*labels} - {*partner.values()})
    if alone or unused:
        sides = {"without labels": alone, "without an image": unused}
        said = [f"{side}: {', '.join(names)}" for side, names in sides.items() if names]
        raise ValueError(
            "Expected a file of labels for each image, matched by name, but "
            f"{'; '.join(said)}. Give both the same name, or add the same beginning or "
            "end to all names of labels, as in cell-1.tif and cell-1_mask.png; move "
            "files without a partner elsewhere."
        )
    return [(ours[stem], f"{found}") for stem, found in partner.items()]


def _by_stem(names: list[str]) -> dict[str, str]:
    stems: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"(\.ome)?\.[^.]*$", "", name, flags=re.IGNORECASE)
        stem = unicodedata.normalize("NFC", stem)  # a Mac writes ä as two characters
        if stem in stems:
            raise ValueError(
                f"{stems[stem]} and {name} differ only in the ending of their names, "
                "so it is not clear which labels belong to which: rename one of them."
            )
        stems[stem] = name
    return stems


def _added(images: Iterable[str], labels: Iterable[str]) -> tuple[str, str]:
    """What most names of labels add before and after those of their images."""
    counts: Counter[tuple[str, str]] = Counter()
    for image, label in itertools.product(images, labels):
        for at in re.finditer(f"(?={re.escape(image)})", label):
            counts[label[: at.start()], label[at.start() + len(image) :]] += 1
    if not counts:
        return "", ""
    return max(counts, key=lambda added: (counts[added], -len("".join(added))))


Slices = tuple[str, list[np.ndarray]]  # of a file, with its name


def _check_sizes(pairs: list[tuple[Slices, Slices]]) -> None:
    """ValueError that names all labels that differ in size from their images."""
    wrong = []
    for (name, ours), (other, theirs) in pairs:
        if len(ours) != len(theirs):
            said = f"{name} has {len(ours)} slice(s) and {other} has "
            wrong.append(f"{said}{len(theirs)}")
            continue
        for image, label in zip(ours, theirs, strict=True):
            (height, width), (high, wide) = image.shape[-2:], label.shape
            if (height, width) != (high, wide):
                said = f"{name} has {height} × {width} pixels and {other} "
                wrong.append(f"{said}{high} × {wide}")
                break
    if wrong:
        raise ValueError(
            f"Expected labels of the size of their images, but {'; '.join(wrong)} "
            "(height × width): save the labels of these images again, not cropped, "
            "rotated or resized."
        )


def _check_values(values: set[int], name: str, num_classes: int) -> None:
    """ValueError for labels that are not those of so many classes."""
    values -= {UNKNOWN}
    highest = max(values, default=0)
    if highest < num_classes or (num_classes == 2 and values <= {0, 255}):
        return
    expected = "0 (background) and 1 or 255 (cell)"
    if num_classes > 2:
        expected = f"{num_classes} classes, from 0 (background) to {num_classes - 1}"
    advice = (
        "Give --instances (instances=True) if they number cells, or --num-classes "
        f"{highest + 1} (num_classes={highest + 1}) if they number classes"
    )
    if 255 in values and len(values) > 2:
        advice += ", with --unknown 255 (unknown=255) if 255 marks pixels without a "
        advice += "label"
    raise ValueError(
        f"{name} has labels of {len(values)} values, from {min(values)} to {highest}: "
        f"expected {expected}. {advice}. If they are gray values from resizing or a "
        "soft brush, save what is above a threshold as 255."
    )
