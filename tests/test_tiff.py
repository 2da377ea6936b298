"""TIFF stacks of every kind that Fiji and tifffile write, and what is none."""

import numpy as np
import pytest
import tifffile

from unet_lib.data.tiff import read_tiff, write_tiff

STACK = np.random.default_rng(0).random((5, 12, 9)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metadata": None},
        {"imagej": True},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "byteorder": ">"},
        {"byteorder": ">", "metadata": None},
        {"ome": True},
        {"bigtiff": True},
        {"compression": "zlib"},
        {"tile": (16, 16)},
        {"rowsperstrip": 3},
    ],
)
def test_stacks(options, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", STACK, **options)
    pixels = read_tiff(tmp_path / "in.tif")
    np.testing.assert_array_equal(pixels, STACK)
    assert pixels.dtype == np.dtype(np.float32)
    assert pixels.dtype.isnative


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("metadata", [None, {}])
def test_types(dtype, metadata, tmp_path):
    stack = (STACK * 9).astype(dtype)
    tifffile.imwrite(tmp_path / "in.tif", stack, metadata=metadata)
    pixels = read_tiff(tmp_path / "in.tif")
    np.testing.assert_array_equal(pixels, stack)
    assert pixels.dtype == dtype


@pytest.mark.parametrize("slices", [2, 3, 4, 6])
def test_a_few_slices_are_no_colours(slices, tmp_path):
    """Three or four 8-bit slices may be stored as the planes of one colour image."""
    stack = (np.arange(slices * 20 * 30) % 251).astype(np.uint8)
    stack = stack.reshape(slices, 20, 30)
    kinds = [{"photometric": "minisblack"}]
    if slices == 3:
        kinds.append({"photometric": "rgb", "planarconfig": "separate"})
    for options in kinds:
        tifffile.imwrite(tmp_path / "in.tif", stack, **options)
        np.testing.assert_array_equal(read_tiff(tmp_path / "in.tif"), stack)


@pytest.mark.parametrize(
    "shape", [(1, 1, 5, 1, 12, 9), (5, 1, 1, 12, 9), (1, 5, 12, 9)]
)
def test_axes_of_length_one_go(shape, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", STACK.reshape(shape))
    np.testing.assert_array_equal(read_tiff(tmp_path / "in.tif"), STACK)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"metadata": None}])
@pytest.mark.parametrize("shape", [(1, 9), (7, 1), (1, 1), (6, 7)])
def test_one_image_keeps_its_height_and_width(shape, options, tmp_path):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    tifffile.imwrite(tmp_path / "in.tif", image, **options)
    np.testing.assert_array_equal(read_tiff(tmp_path / "in.tif"), image)


def test_a_stack_of_one_slice_is_an_image(tmp_path):
    for options in ({}, {"imagej": True}, {"metadata": None}):
        tifffile.imwrite(tmp_path / "in.tif", STACK[:1], **options)
        np.testing.assert_array_equal(read_tiff(tmp_path / "in.tif"), STACK[0])


def test_an_imagej_hyperstack(tmp_path):
    hyperstack = STACK[None, :, None]
    options = {"imagej": True, "metadata": {"axes": "TZCYX"}}
    tifffile.imwrite(tmp_path / "in.tif", hyperstack, **options)
    np.testing.assert_array_equal(read_tiff(tmp_path / "in.tif"), STACK)


@pytest.mark.parametrize("metadata", [None, {}])
def test_pages_written_one_by_one_are_a_stack(metadata, tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as file:
        for image in STACK:
            file.write(image, metadata=metadata)
    np.testing.assert_array_equal(read_tiff(tmp_path / "in.tif"), STACK)


def test_colours_come_first(tmp_path):
    colours = np.random.default_rng(1).integers(0, 255, (12, 9, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", colours, photometric="rgb")
    np.testing.assert_array_equal(
        read_tiff(tmp_path / "in.tif"), colours.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("second", "shapes"),
    [
        (STACK[0, :5], r"2 images or stacks, of shapes \(5, 12, 9\), \(5, 9\)"),
        (STACK, r"\(5, 12, 9\), \(5, 12, 9\)"),
    ],
)
def test_several_stacks_are_refused(second, shapes, tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as file:
        file.write(STACK)
        file.write(second)
    with pytest.raises(ValueError, match=shapes):
        read_tiff(tmp_path / "in.tif")


def test_what_is_no_tiff(tmp_path):
    path = tmp_path / "in.tif"
    path.write_text("no picture")
    with pytest.raises(ValueError, match="not a TIFF"):
        read_tiff(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"in\.tif"):
        read_tiff(path)
    tifffile.imwrite(path, STACK)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"in\.tif"):
        read_tiff(path)
    with pytest.raises(FileNotFoundError):
        read_tiff(tmp_path / "nowhere.tif")


@pytest.mark.parametrize(
    ("shape", "axes", "counts"),
    [
        ((12, 9), "YX", {}),
        ((1, 9), "YX", {}),
        ((5, 12, 9), "ZYX", {"slices": 5}),
        ((3, 12, 9), "CYX", {"channels": 3}),
        ((5, 3, 12, 9), "ZCYX", {"slices": 5, "channels": 3}),
    ],
)
def test_written_for_fiji(tmp_path, shape, axes, counts):
    path = tmp_path / "out.tif"
    pixels = np.random.default_rng(0).random(shape, np.float32)
    write_tiff(str(path), pixels, axes)
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej
        (series,) = file.series
        assert series.axes == axes
        assert series.dtype == np.float32
        np.testing.assert_array_equal(series.asarray(), pixels)
        said = file.imagej_metadata
    assert said["images"] == np.prod(shape[:-2])
    assert {name: said[name] for name in counts} == counts
    np.testing.assert_array_equal(read_tiff(path), pixels)
    assert list(tmp_path.iterdir()) == [path]
