"""Labels of images from files: matched by name, slice by slice, and what they mean."""

import unicodedata

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_lib.data.images import read_images
from unet_lib.data.labeled import read_labels_of

RANDOM = np.random.default_rng(3)
SIZES = [(8, 9), (7, 9), (8, 6)]
IMAGES = [RANDOM.integers(0, 256, size).astype(np.uint8) for size in SIZES]
CELLS = [RANDOM.integers(0, 2, size).astype(np.uint8) for size in SIZES]


@pytest.fixture
def write(tmp_path):
    """Write files of a folder by name, and read what belongs together."""

    def write(images, labels, **options):
        for folder, files in (("images", images), ("labels", labels)):
            (tmp_path / folder).mkdir()
            for name, pixels in files.items():
                path = tmp_path / folder / name
                if name.endswith("png"):
                    Image.fromarray(pixels).save(path)
                else:
                    tifffile.imwrite(path, pixels, photometric="minisblack")
        found = read_images(tmp_path / "images")
        return found, read_labels_of(found, tmp_path / "labels", **options)

    return write


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("1.png 2.png 11.png", "1.png 2.png 11.png"),
        ("1.png 2.png 11.png", "1_mask.png 2_mask.png 11_mask.png"),
        ("a.png a_2.png b.png", "a_mask.png a_2_mask.png b_mask.png"),
        ("a.ome.tif a_2.ome.tif b.ome.tif", "Labels-a.tif Labels-a_2.tif Labels-b.tif"),
        ("a.png a1.png a11.png", "seg_a-x.png seg_a1-x.png seg_a11-x.png"),
    ],
)
def test_labels_come_in_the_order_of_their_images(images, labels, write):
    images, labels = images.split(), labels.split()
    found, read = write(
        dict(zip(images, IMAGES, strict=True)), dict(zip(labels, CELLS, strict=True))
    )
    for name, pixels, label, other in zip(
        found.names, found.pixels, read.pixels, read.names, strict=True
    ):
        number = images.index(name)
        assert other == labels[number]
        np.testing.assert_array_equal(np.rint(255 * pixels), IMAGES[number])
        np.testing.assert_array_equal(label, CELLS[number])
        assert label.dtype == np.int32


def test_stacks_in_folders_are_matched_slice_by_slice(write):
    stacks = {
        f"{name}.tif": np.stack([IMAGES[0]] * n) for name, n in (("a", 2), ("b", 3))
    }
    labels = {f"{name}-seg.tif": RANDOM.integers(0, 2, (n, 8, 9)).astype(np.uint8)
              for name, n in (("b", 3), ("a", 2))}  # fmt: skip
    found, read = write(stacks, labels)
    assert found.names == ("a.tif",) * 2 + ("b.tif",) * 3
    expected = np.concatenate([labels["a-seg.tif"], labels["b-seg.tif"]])
    np.testing.assert_array_equal(read.pixels, expected)


def test_names_from_a_mac_and_from_windows_belong_together(write):
    """They write ä as two characters and as one."""
    letters = {form: unicodedata.normalize(form, "ä.png") for form in ("NFD", "NFC")}
    images = {letters["NFD"]: IMAGES[0], "b.png": IMAGES[1]}
    _, read = write(images, {letters["NFC"]: CELLS[0], "b.png": CELLS[1]})
    assert {*read.names} == {letters["NFC"], "b.png"}


def test_one_file_and_one_file_belong_together(write):
    _, read = write(
        {"a.tif": np.stack(IMAGES[:1] * 2)}, {"b.tif": np.stack(CELLS[:1] * 2)}
    )
    assert read.pixels.shape == (2, 8, 9)


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        ([0, 1, 1, 0], {}, [0, 1, 1, 0]),
        ([0, 255, 0, 255], {}, [0, 1, 0, 1]),
        ([0, 255, -1, -1], {}, [0, 1, -1, -1]),
        ([0, 1, 255, 1], {"unknown": 255}, [0, 1, -1, 1]),
        ([0, 7, 7, 255], {"unknown": 7}, [0, -1, -1, 1]),
        ([0, 1, 255, 2], {"unknown": 255, "num_classes": 3}, [0, 1, -1, 2]),
        ([0, 300, -1, 2], {"instances": True}, [0, 300, -1, 2]),
    ],
)
def test_what_labels_mean(stored, options, expected, write):
    stored = np.array([stored], np.int16)
    _, read = write({"a.png": IMAGES[0][:1, :4]}, {"a.tif": stored}, **options)
    np.testing.assert_array_equal(read.pixels, [[expected]])


@pytest.mark.parametrize(
    ("stored", "options", "message"),
    [
        ([0, 1, 2, 9], {}, r"b.tif has labels of 4 values, from 0 to 9: expected 0 .*"
         r"instances=True\) if .*--num-classes 10 .* if they number classes\. If"),
        ([0, 2, 2, 2], {}, "from 0 to 2: expected 0"),
        ([0, 1, 255, 1], {}, "--unknown 255 .* if 255 marks pixels without a label"),
        ([0, 1, 3, 1], {"num_classes": 3}, r"classes, from 0 .* to 2\. Give"),
        ([0, 255, 0, 0], {"num_classes": 3}, "3 classes"),
        ([0, -2, 0, 0], {}, "1 pixel labeled -2: expected whole .* -1. .* store -1"),
        ([0, 1, 0, 0], {"unknown": 0}, "from 1 on, such as 255, got 0"),
        ([0, 1, 0, 0], {"unknown": "255"}, "from 1 on, such as 255, got '255'"),
    ],
)  # fmt: skip
def test_labels_that_are_not_clear(stored, options, message, write):
    labels = {
        "a.tif": np.zeros((1, 4), np.int16),
        "b.tif": np.array([stored], np.int16),
    }
    images = {"a.png": IMAGES[0][:1, :4], "b.png": IMAGES[0][:1, :4]}
    with pytest.raises(ValueError, match=message):
        write(images, labels, **options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("a.png b.png c.png", "b_m.png c_m.png x.png",
         "without labels: a.png; without an image: x.png"),
        ("a.png b.png", "a.png", r"without labels: b.png\. Give both"),
        ("a.png b.png", "a.png b.png c.png", "but without an image: c.png"),
        ("a.png b.png", "1.png 2.png", "a.png, b.png; .* 1.png, 2.png"),
        ("a.tif a.ome.tif", "a.png b.png", "a.*tif and a.*tif differ only"),
        ("a.png", "a.png a.tif", "a.png and a.tif differ only"),
    ],
)  # fmt: skip
def test_files_without_a_partner_are_named(images, labels, message, write):
    files = [
        dict.fromkeys(names.split(), pixels)
        for names, pixels in ((images, IMAGES[0]), (labels, CELLS[0]))
    ]
    with pytest.raises(ValueError, match=message):
        write(*files)


def test_labels_of_another_size_are_named(write):
    images = dict(zip(("a.png", "b.png", "c.png"), IMAGES, strict=True))
    labels = dict(zip(images, (CELLS[0], CELLS[1].T, CELLS[1]), strict=True))
    message = "b.png has 7 × 9 pixels and b.png 9 × 7; c.png has 8 × 6 .* c.png 7 × 9"
    with pytest.raises(ValueError, match=message):
        write(images, labels)


def test_stacks_of_other_lengths_are_named(write):
    images, labels = np.stack(IMAGES[:1] * 3), np.stack(CELLS[:1] * 2)
    with pytest.raises(ValueError, match=r"a\.tif has 3 slice\(s\) and b\.tif has 2"):
        write({"a.tif": images}, {"b.tif": labels})
