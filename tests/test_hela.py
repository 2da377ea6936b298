"""The frames of HeLa cells: checked, in either layout; and their stand-in."""

import hashlib

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from unet_lib._checks import UNKNOWN
from unet_lib.cells import find_cells
from unet_lib.data import (
    DataError,
    dic_hela,
    load_dic_hela,
    load_hela_or_stand_in,
    synthetic_cells,
)


def test_the_frames(hela):
    assert hela.images.shape == hela.labels.shape == (18, 512, 512)
    assert (hela.images.dtype, hela.labels.dtype) == (np.float32, np.int32)
    assert 0 <= hela.images.min() < hela.images.max() <= 1
    assert hela.sequences.tolist() == ["01"] * 9 + ["02"] * 9
    expected = sum(dic_hela.FRAMES.values(), ())
    assert hela.numbers.tolist() == list(expected)
    counted = [len(np.unique(one[one > 0])) for one in hela.labels]
    assert counted[:9] == [10, 10, 11, 13, 13, 12, 13, 13, 3]
    assert counted[9:] == [10, 9, 9, 11, 10, 11, 9, 14, 14]


def test_what_is_unknown(hela):
    for number, labels in enumerate(hela.labels):
        frame = str(hela.sequences[number]), int(hela.numbers[number])
        unknown = labels == UNKNOWN
        assert unknown.any() == (frame in dic_hela.WITHOUT_MASK)
        if unknown.any():  # the seam of a cell is known
            distance = ndimage.distance_transform_edt(labels <= 0)
            assert distance[unknown].min() > dic_hela.SEAM
        # One frame has masks for a quarter of its cells, the others lack a few.
        assert (unknown.mean() > 0.5) == (frame == ("01", 67))
        assert frame == ("01", 67) or unknown.mean() < 0.1


FRAMES = {"01": (2, 5), "02": (7,)}


@pytest.fixture
def published(monkeypatch):
    """Small sequences that pass for the published ones: frames by kind and sequence."""
    rng = np.random.default_rng(0)
    stacks, hashes = {}, {}
    for sequence, numbers in FRAMES.items():
        size = (len(numbers), 512, 512)
        images = rng.integers(0, 256, size).astype(np.uint8)
        masks = np.zeros(size, np.uint16)
        masks[:, 100:140, 200:260] = 300
        for kind, stack in (("images", images), ("masks", masks)):
            stacks[kind, sequence] = stack
            little = stack.astype(stack.dtype.newbyteorder("<"))
            hashes[f"{kind}-{sequence}"] = hashlib.sha256(little.tobytes()).hexdigest()
    monkeypatch.setattr(dic_hela, "FRAMES", FRAMES)
    monkeypatch.setattr(dic_hela, "PIXELS_SHA256", hashes)
    monkeypatch.setattr(dic_hela, "WITHOUT_MASK", {("02", 7): [(0, 0, 512, 512)]})
    return stacks


def as_stacks(folder, published):
    for (kind, sequence), stack in published.items():
        tifffile.imwrite(folder / f"{kind}-{sequence}.tif", stack, byteorder=">")
    return folder


def as_published(folder, published):
    for (kind, sequence), stack in published.items():
        name, place = "t", folder / sequence
        if kind == "masks":
            name, place = "man_seg", folder / f"{sequence}_GT" / "SEG"
        place.mkdir(parents=True)
        for number, frame in zip(FRAMES[sequence], stack, strict=True):
            tifffile.imwrite(place / f"{name}{number:03d}.tif", frame)
    return folder


@pytest.mark.parametrize("layout", [as_stacks, as_published])
def test_both_layouts(layout, tmp_path, published, monkeypatch):
    monkeypatch.setenv("UNET_BOOK_HELA", str(layout(tmp_path, published)))
    frames = load_dic_hela()
    assert frames.sequences.tolist() == ["01", "01", "02"]
    assert frames.numbers.tolist() == [2, 5, 7]
    images = np.concatenate([published["images", one] for one in FRAMES])
    np.testing.assert_array_equal(np.rint(frames.images * 255), images)
    np.testing.assert_array_equal(frames.labels[:2], published["masks", "01"])
    # Around the mask of the last frame 5 pixels are known.
    expected = np.full((512, 512), UNKNOWN)
    inside = published["masks", "02"][0] > 0
    expected[ndimage.distance_transform_edt(~inside) <= 5] = 0
    expected[inside] = 300
    np.testing.assert_array_equal(frames.labels[2], expected)


def test_a_wrong_folder_says_what_to_do(tmp_path, published, monkeypatch):
    monkeypatch.delenv("UNET_BOOK_HELA", raising=False)
    with pytest.raises(DataError, match=r"unpack https://.*zip, .* UNET_BOOK_HELA"):
        load_dic_hela()
    with pytest.raises(DataError, match=r"no readable images of sequence 01 .*t002"):
        load_dic_hela(tmp_path)
    as_stacks(tmp_path, published)
    tifffile.imwrite(tmp_path / "masks-02.tif", published["masks", "02"] + 1)
    with pytest.raises(DataError, match=r"masks of sequence 02 .* differ .* SHA-256"):
        load_dic_hela(tmp_path)


def quick_cells(slices, size):
    """As `synthetic_cells` draws them, small and then enlarged."""
    small = synthetic_cells(slices, 64)
    larger = np.ones((1, size // 64, size // 64), int)
    return tuple(np.kron(one, larger) for one in small)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("UNET_BOOK_HELA", "", "since UNET_BOOK_HELA names no folder"),
        ("UNET_BOOK_DATA", "synthetic", "as UNET_BOOK_DATA asks"),
    ],
)
def test_the_stand_in_of_the_frames(monkeypatch, capsys, variable, value, said):
    monkeypatch.delenv("UNET_BOOK_DATA", raising=False)
    monkeypatch.setenv("UNET_BOOK_HELA", "nowhere")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(dic_hela, "synthetic_cells", quick_cells)
    frames = load_hela_or_stand_in()
    assert capsys.readouterr().out.startswith(f"Data: the synthetic stand-in, {said}")
    assert frames.source == "synthetic"
    assert frames.images.shape == frames.labels.shape == (18, 512, 512)
    names = zip(frames.sequences, frames.numbers, strict=True)
    assert list(names) == [
        (one, n) for one, all_ in dic_hela.FRAMES.items() for n in all_
    ]
    partly = frames.labels[8]  # frame 67 of 01
    assert set(np.unique(partly)) == {UNKNOWN, 0, 1, 2, 3}
    assert not (np.delete(frames.labels, 8, axis=0) == UNKNOWN).any()


def test_frames_that_are_named_are_not_replaced(monkeypatch, tmp_path, published):
    monkeypatch.delenv("UNET_BOOK_DATA", raising=False)
    monkeypatch.setenv("UNET_BOOK_HELA", str(as_stacks(tmp_path, published)))
    assert load_hela_or_stand_in().source == "DIC-C2DH-HeLa"
    monkeypatch.setenv("UNET_BOOK_HELA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no readable images"):
        load_hela_or_stand_in()


def test_the_stand_in_has_cells_that_touch():
    images, labels = synthetic_cells(2, 96, seed=3)
    assert images.shape == labels.shape == (2, 96, 96)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert 0 <= images.min() < images.max() <= 1
    again = synthetic_cells(2, 96, seed=3)
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(labels, again[1])
    assert (synthetic_cells(2, 96, seed=4)[1] != labels).any()
    for one in labels:
        assert 5 < one.max() == len(np.unique(one)) - 1 <= 20
        # Most lie in a crowd: as components they would be far fewer.
        assert find_cells(one > 0).max() <= one.max() / 2
        for number in range(1, one.max() + 1):
            assert ndimage.label(one == number)[1] == 1


def test_the_stand_in_s_cells_are_of_a_size_and_show():
    images, labels = synthetic_cells(1, 128, seed=0)
    areas = np.bincount(labels[0].ravel())[1:]
    assert np.sqrt(areas.max() * 4 / np.pi) < 128 / 4
    assert images[0][labels[0] > 0].std() > 1.2 * images[0][labels[0] == 0].std()
