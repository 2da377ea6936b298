"""TIFF stacks of every kind that Fiji and tifffile write, and what is not one."""

import logging
import struct
import uuid

import fuzz_files
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from unet_lib.data._tiff import read_raster
from unet_lib.data.tiff import read_tiff, write_tiff

STACK = np.random.default_rng(0).random((5, 12, 9)).astype(np.float32)


FORMATS = [
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
]


@pytest.mark.parametrize("options", FORMATS)
def test_stacks(options, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", STACK, **options)
    pixels = read_tiff(tmp_path / "in.tif")
    np.testing.assert_array_equal(pixels, STACK)
    assert pixels.dtype == np.dtype(np.float32)
    assert pixels.dtype.isnative


@pytest.mark.parametrize("options", FORMATS)
def test_a_stack_that_is_cut_is_refused(options, tmp_path, caplog):
    """At every tenth of its length; what tifffile repairs it only logs."""
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, STACK, **options)
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match=r"in\.tif"):
            read_tiff(path)
    # Nor does it take the log to see that: another program may have turned it off.
    logging.disable(logging.CRITICAL)
    try:
        for tenth in range(10):
            path.write_bytes(whole[: len(whole) * tenth // 10])
            with pytest.raises(ValueError, match=r"in\.tif"):
                read_tiff(path)
    finally:
        logging.disable(logging.NOTSET)
    path.write_bytes(whole)
    caplog.clear()
    np.testing.assert_array_equal(read_tiff(path), STACK)
    assert not caplog.records


def test_pages_by_pillow_that_are_cut(tmp_path):
    path = tmp_path / "in.tif"
    pages = [Image.fromarray(page) for page in STACK]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_tiff(path), STACK)
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match=r"in\.tif"):
            read_tiff(path)


def ome_set(folder):
    """A set of OME-TIFFs, one file a slice, as microscopes write them."""
    ids = [f"urn:uuid:{uuid.UUID(int=number + 1)}" for number in range(len(STACK))]
    depth, height, width = STACK.shape
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="z{z}.ome.tif">{one}</UUID></TiffData>'
        for z, one in enumerate(ids)
    )
    for z, one in enumerate(ids):
        tifffile.imwrite(
            folder / f"z{z}.ome.tif",
            STACK[z],
            metadata=None,
            description='<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.'
            f'openmicroscopy.org/Schemas/OME/2016-06" UUID="{one}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="float" PhysicalSizeX='
            '"0.5" PhysicalSizeY="0.25" PhysicalSizeZ="3" '
            f'SizeX="{width}" SizeY="{height}" SizeZ="{depth}" SizeC="1" SizeT="1">'
            f'<Channel ID="C:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>',
        )


def test_a_set_of_files_is_read_whole_or_not_at_all(tmp_path):
    ome_set(tmp_path)
    np.testing.assert_array_equal(read_tiff(tmp_path / "z0.ome.tif"), STACK)
    (tmp_path / "z3.ome.tif").write_bytes((tmp_path / "z3.ome.tif").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"z0\.ome\.tif"):
        read_tiff(tmp_path / "z0.ome.tif")
    (tmp_path / "z3.ome.tif").unlink()
    with pytest.raises(ValueError, match=r"one of a set of 5 files.*z3\.ome\.tif"):
        read_tiff(tmp_path / "z0.ome.tif")


def test_fiji_says_how_many_images_there_are(tmp_path):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"})
    whole = path.read_bytes()
    path.write_bytes(
        whole.replace(b"images=5", b"images=7").replace(b"slices=5", b"slices=7")
    )
    with pytest.raises(ValueError, match=r"in\.tif cannot be read"):
        read_tiff(path)
    path.write_bytes(whole.replace(b"images=5", b"images=7"))
    with pytest.raises(ValueError, match="says 7 images, and 5 are there"):
        read_tiff(path)


@pytest.mark.parametrize("length", [150, 5])
def test_a_chain_of_pages_that_never_ends(length, tmp_path):
    path = tmp_path / "in.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(length):
            file.write(STACK[0], metadata=None)
    with tifffile.TiffFile(path) as file:
        back, last = file.pages[length - 3].offset, file.pages[length - 1]
        place = last.offset + 2 + 12 * len(last.tags)
    data = bytearray(path.read_bytes())
    assert data[place : place + 4] == bytes(4)
    data[place : place + 4] = struct.pack("<I", back)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="copy it again"):
        read_tiff(path)


@pytest.mark.parametrize(
    "second",
    [{"photometric": "miniswhite"}, {"extratags": [(274, "H", 1, 3, False)]}],
)
def test_pages_of_unlike_kinds(second, tmp_path):
    path = tmp_path / "in.tif"
    with tifffile.TiffWriter(path) as file:
        for options in ({}, second):
            file.write(STACK[0].astype(np.uint8), metadata=None, **options)
    with pytest.raises(ValueError, match="its pages differ in"):
        read_tiff(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_turns(orientation, tmp_path):
    path = tmp_path / "in.tif"
    image = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9)
    tag = [(274, "H", 1, orientation, False)]
    tifffile.imwrite(path, image, extratags=tag, metadata=None)
    stored = Image.fromarray(image)
    stored.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_tiff(path), upright)


# A header that promises a huge image in a kilobyte ------------------------------


def promising(path, code, value, **options):
    """A small TIFF of which one tag of every page says another number."""
    tifffile.imwrite(path, STACK[0], metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags[code].overwrite(value)


@pytest.mark.parametrize(
    ("code", "value", "options"),
    [
        (256, 10**9, {}),
        (257, 10**9, {}),
        (256, 2**31 - 1, {"compression": "zlib"}),
        (257, 2**31 - 1, {"compression": "zlib"}),
        (322, 2**16 - 16, {"tile": (16, 16), "compression": "zlib"}),
        (323, 2**16 - 16, {"tile": (16, 16)}),
    ],
)
def test_nothing_is_built_from_what_a_header_promises(code, value, options, tmp_path):
    path = tmp_path / "in.tif"
    promising(path, code, value, **options)
    assert fuzz_files.outcome(read_tiff, path, None) == "refused"


@pytest.mark.parametrize("promise", ["SizeZ", "PlaneCount", "IFD"])
def test_nothing_is_built_from_what_ome_promises(promise, tmp_path):
    path = tmp_path / "in.ome.tif"
    tifffile.imwrite(path, STACK, ome=True)
    data = path.read_bytes()
    start = data.index(f'{promise}="'.encode()) + len(promise) + 2
    end = data.index(b'"', start)
    spare = 900_000_000
    with tifffile.TiffFile(path, mode="r+b") as file:
        text = file.pages.first.description
        old = f'{promise}="{data[start:end].decode()}"'
        file.pages.first.tags[270].overwrite(text.replace(old, f'{promise}="{spare}"'))
    assert fuzz_files.outcome(read_tiff, path, None) == "refused"


def test_a_codec_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, STACK, compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags[259].overwrite(5)  # LZW
    with pytest.raises(ValueError, match=r"in\.tif.*(unet-lib\[codecs\]|LZW|lzw)"):
        read_tiff(path)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("metadata", [None, {}])
def test_types(dtype, metadata, tmp_path):
    stack = (STACK * 9).astype(dtype)
    tifffile.imwrite(tmp_path / "in.tif", stack, metadata=metadata)
    pixels = read_tiff(tmp_path / "in.tif")
    np.testing.assert_array_equal(pixels, stack)
    assert pixels.dtype == dtype


@pytest.mark.parametrize("slices", [2, 3, 4, 6])
def test_a_few_slices_are_no_colors(slices, tmp_path):
    """Three or four 8-bit slices may be stored as the planes of one color image."""
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


def test_colors_come_first(tmp_path):
    colors = np.random.default_rng(1).integers(0, 255, (12, 9, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", colors, photometric="rgb")
    np.testing.assert_array_equal(
        read_tiff(tmp_path / "in.tif"), colors.transpose(2, 0, 1)
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
        ((5, 12, 9), "TYX", {"frames": 5}),
        ((5, 3, 12, 9), "TCYX", {"frames": 5, "channels": 3}),
        ((2, 5, 12, 9), "TZYX", {"frames": 2, "slices": 5}),
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


@pytest.mark.parametrize("unit", ["µm", "nm", "Å", None])
def test_pixel_size_and_unit_go_through(unit, tmp_path):
    path = tmp_path / "out.tif"
    write_tiff(path, STACK, "ZYX", (0.05, 0.004, 0.005), unit)
    raster = read_raster(path)
    assert raster.unit == unit
    np.testing.assert_allclose(raster.pixel_size, (0.05, 0.004, 0.005), rtol=1e-6)
    with tifffile.TiffFile(path) as file:
        said = file.imagej_metadata
        across, unit_of_it = file.pages.first.tags["XResolution"].value
    assert said["spacing"] == 0.05
    assert across / unit_of_it == pytest.approx(200)
    as_fiji = {"µm": "\\u00B5m", "Å": "\\u00C5"}.get(unit, unit)
    assert said.get("unit") == as_fiji


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_written_as_integers(dtype, tmp_path):
    stack = (9 * STACK[:3]).astype(dtype)  # three, which are not colors
    write_tiff(tmp_path / "out.tif", stack, "ZYX")
    raster = read_raster(tmp_path / "out.tif")
    np.testing.assert_array_equal(raster.pixels, stack)
    assert raster.pixels.dtype == dtype
    assert raster.axes == "ZYX"
