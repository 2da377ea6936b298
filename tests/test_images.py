"""Images and labels of every kind that people have: the right array or a sentence.

What is right is written down beside the file, or comes from Pillow and from NumPy.
"""

import re
import struct
import warnings
import zlib

import fuzz_files
import numpy as np
import pytest
import test_tiff
import tifffile
from PIL import Image

from unet_lib.data.images import (
    image_files,
    read_images,
    read_labels,
    read_probabilities,
)

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (24, 30)).astype(np.uint8)
STACK = RANDOM.integers(0, 256, (5, 24, 30)).astype(np.uint8)
COLORS = RANDOM.integers(0, 256, (24, 30, 3)).astype(np.uint8)
CELL = (GRAY > 100).astype(np.uint8)
SCALED = GRAY / np.float32(255)
FROM_23 = GRAY.clip(23, 229).astype(np.float32)  # of 0 to 255


@pytest.fixture
def path(tmp_path):
    return tmp_path / "in.tif"


def tag(code, kind, value):
    return {"extratags": [(code, kind, 1, value, False)]}


def follow(message):
    """The arguments of the first advice in a message, as Python and as the command."""
    python = re.search(r"value_range=\(([^)]*)\)", message).group(1).split(", ")
    command = re.search(r"--range (\S+) (\S+) on the command", message).groups()
    assert tuple(python) == command
    return tuple(float(value) for value in command)


# Every way to write one gray picture ---------------------------------------------

SAME = {
    "tiff": lambda p: tifffile.imwrite(p, GRAY),
    "fiji": lambda p: tifffile.imwrite(p, GRAY, imagej=True),
    "ome": lambda p: tifffile.imwrite(p, GRAY, ome=True),
    "white is zero": lambda p: tifffile.imwrite(
        p, 255 - GRAY, photometric="miniswhite"
    ),
    "16 bits": lambda p: tifffile.imwrite(p, GRAY.astype(np.uint16) * 257),
    "32 bits": lambda p: tifffile.imwrite(p, GRAY.astype(np.uint32) * 16843009),
    "float": lambda p: tifffile.imwrite(p, SCALED),
    "double": lambda p: tifffile.imwrite(p, GRAY / 255),
    "upside down": lambda p: tifffile.imwrite(p, GRAY[::-1], **tag(274, "H", 4)),
    "on its side": lambda p: tifffile.imwrite(p, GRAY.T, **tag(274, "H", 5)),
    "png": lambda p: Image.fromarray(GRAY).save(p, "png"),
    "gray and alpha": lambda p: Image.fromarray(GRAY).convert("LA").save(p, "png"),
    "tiff with alpha": lambda p: Image.fromarray(GRAY).convert("LA").save(p, "tiff"),
    "gray palette": lambda p: Image.fromarray(GRAY).convert("P").save(p, "png"),
    "tiff palette": lambda p: Image.fromarray(GRAY).convert("P").save(p, "tiff"),
    "png of 16 bits": lambda p: Image.fromarray(GRAY.astype(np.uint16) * 257).save(
        p, "png"
    ),
    "page by Pillow": lambda p: Image.fromarray(GRAY).save(p, "tiff"),
}
COLORED = {
    "rgb": lambda p: Image.fromarray(GRAY).convert("RGB").save(p, "tiff"),
    "rgba": lambda p: Image.fromarray(GRAY).convert("RGBA").save(p, "tiff"),
    "planar": lambda p: tifffile.imwrite(
        p, np.stack([GRAY] * 3), photometric="rgb", planarconfig="separate"
    ),
    "fiji": lambda p: tifffile.imwrite(p, np.stack([GRAY] * 3, -1), imagej=True),
    "ome": lambda p: tifffile.imwrite(
        p, np.stack([GRAY] * 3, -1), ome=True, photometric="rgb"
    ),
    "png": lambda p: Image.fromarray(GRAY).convert("RGBA").save(p, "png"),
}


@pytest.mark.parametrize("kind", SAME)
def test_one_picture_in_many_files(kind, path):
    SAME[kind](path)
    images = read_images(path)
    assert images.pixels.dtype == np.float32
    np.testing.assert_allclose(images.pixels, SCALED[None], atol=1e-6)
    assert (images.axes, images.lengths, images.names) == ("YX", (), ("in.tif",))
    assert images.for_channels(1) is images.pixels
    with pytest.raises(ValueError, match=r"has 1 channel, and the network takes 3"):
        images.for_channels(3)


@pytest.mark.parametrize("kind", COLORED)
def test_a_gray_picture_stored_as_colors(kind, path):
    COLORED[kind](path)
    images = read_images(path)
    assert images.pixels.shape == (1, 3, 24, 30)
    np.testing.assert_array_equal(images.for_channels(1), SCALED[None])
    np.testing.assert_array_equal(images.for_channels(3)[0], [SCALED] * 3)
    np.testing.assert_array_equal(read_images(path, channel=2).pixels, SCALED[None])
    np.testing.assert_allclose(
        read_images(path, gray=True).pixels[0], SCALED, atol=1e-6
    )


def test_colors_go_to_channels_or_are_refused(path):
    Image.fromarray(COLORS).save(path, "png")
    images = read_images(path)
    assert (images.axes, images.colors) == ("CYX", True)
    expected = np.moveaxis(COLORS, -1, 0)[None] / np.float32(255)
    np.testing.assert_array_equal(images.for_channels(3), expected)
    with pytest.raises(ValueError, match=r"3 colors, .*--channel.*--gray") as error:
        images.for_channels(1)
    assert "in.tif" in str(error.value)
    for channel in (1, 2, 3):
        one = read_images(path, channel=channel).for_channels(1)
        np.testing.assert_array_equal(one, expected[:, channel - 1])
    luma = np.asarray(Image.fromarray(COLORS).convert("L"))
    gray = read_images(path, gray=True).for_channels(1)
    np.testing.assert_allclose(255 * gray[0], luma, atol=0.6)
    for wrong in (0, 4, 1.5):
        with pytest.raises(ValueError, match="has 3 channels, counted from 1"):
            read_images(path, channel=wrong)
    with pytest.raises(ValueError, match="got both"):
        read_images(path, channel=1, gray=True)


def test_jpeg(path):
    smooth = np.tile(np.linspace(0, 255, 32), (24, 1)).astype(np.uint8)
    Image.fromarray(smooth).save(path, "jpeg", quality=95)
    assert abs(255 * read_images(path).pixels[0] - smooth).max() < 6
    with pytest.raises(ValueError, match="a JPEG, which changes values"):
        read_labels(path)
    with pytest.raises(ValueError, match="a JPEG, which changes values"):
        read_probabilities(path)
    Image.fromarray(smooth).convert("CMYK").save(path, "jpeg")
    with pytest.raises(ValueError, match="SEPARATED"):
        read_images(path)


def test_a_photograph_is_turned_upright(path):
    image = Image.fromarray(GRAY)
    exif = image.getexif()
    exif[274] = 6
    image.save(path, "png", exif=exif)
    np.testing.assert_array_equal(read_images(path).pixels[0], np.rot90(SCALED, -1))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_channels_of_a_microscope(count, path):
    stack = STACK[:count]
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "CYX"})
    images = read_images(path)
    assert (images.pixels.shape, images.axes) == ((1, count, 24, 30), "CYX")
    with pytest.raises(ValueError, match=rf"has {count} channels.*--channel.*slices"):
        images.for_channels(1)
    np.testing.assert_array_equal(
        read_images(path, channel=2).for_channels(1), stack[1:2] / np.float32(255)
    )
    with pytest.raises(ValueError, match="not red, green and blue"):
        read_images(path, gray=True)


def test_samples_of_which_nothing_is_said_are_channels(path):
    samples = np.moveaxis(STACK, 0, -1).astype(np.uint16) * 257
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(path, samples, **options)
    assert read_images(path).pixels.shape == (1, 5, 24, 30)


@pytest.mark.parametrize(
    ("axes", "shape", "found", "kept"),
    [
        ("ZYX", (5, 24, 30), (5, 24, 30), "ZYX"),
        ("TYX", (5, 24, 30), (5, 24, 30), "TYX"),
        ("TZYX", (2, 5, 24, 30), (10, 24, 30), "TZYX"),
        ("ZCYX", (5, 2, 24, 30), (5, 2, 24, 30), "ZCYX"),
        ("TZCYX", (2, 5, 2, 24, 30), (10, 2, 24, 30), "TZCYX"),
        ("CYX", (2, 24, 30), (1, 2, 24, 30), "CYX"),
    ],
)
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_axes_go_through_by_name(kind, axes, shape, found, kept, path, tmp_path):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    options = {"photometric": "minisblack", "metadata": {"axes": axes}}
    tifffile.imwrite(path, pixels, **{kind: True}, **options)
    images = read_images(path)
    assert (images.pixels.shape, images.axes) == (found, kept)
    expected = pixels.reshape(found) / np.float32(255)
    np.testing.assert_array_equal(images.pixels, expected)
    # A result of one value for each pixel has the same axes, without the channels.
    result = images.pixels.reshape(len(images.names), -1, 24, 30)[:, 0]
    images.write(tmp_path / "out.tif", result)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        (series,) = file.series
        assert series.axes == kept.replace("C", "")
        np.testing.assert_array_equal(series.asarray().reshape(result.shape), result)
    images.write(tmp_path / "out.tif", np.stack([result] * 3, 1), classes=True)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.series[0].axes == kept.replace("C", "").replace("YX", "CYX")


def test_channels_before_slices(path):
    pixels = 9 * np.arange(2 * 5 * 24 * 30, dtype=np.uint16).reshape(2, 5, 24, 30)
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "CZYX"})
    images = read_images(path)
    assert images.axes == "ZCYX"
    expected = np.moveaxis(pixels, 0, 1) / np.float32(65535)
    np.testing.assert_array_equal(images.pixels, expected)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 5, 24, 30), np.float32), "name slices and channels.*ZCYX"),
        (np.zeros((40, 50, 3), np.float32), "looks like colors"),
        (np.zeros((40, 50), np.complex64), "complex64"),
    ],
)
def test_unclear_axes(pixels, message, path):
    tifffile.imwrite(path, pixels, photometric="minisblack")
    with pytest.raises(ValueError, match=message):
        read_images(path)


# What the tags say ---------------------------------------------------------------


def test_transparent_pixels_are_refused(path):
    clear = np.stack([GRAY, np.where(GRAY > 9, 255, 0).astype(np.uint8)], -1)
    for kind in ("png", "tiff"):
        Image.fromarray(clear, "LA").save(path, kind)
        with pytest.raises(ValueError, match=r"alpha channel.*--channel 1"):
            read_images(path)
        for reader in (read_labels, read_probabilities):
            with pytest.raises(ValueError, match=r"alpha channel.*as a gray image\."):
                reader(path)  # no argument and no option of theirs chooses a channel
        np.testing.assert_array_equal(read_images(path, channel=1).pixels[0], SCALED)
    Image.fromarray(COLORS).quantize(16).save(path, "png", transparency=3)
    with pytest.raises(ValueError, match="transparent colors"):
        read_images(path)


def test_color_tables(path):
    few = Image.fromarray(COLORS).quantize(16)
    expected = np.asarray(few.convert("RGB")) / np.float32(255)
    for kind in ("png", "tiff"):
        few.save(path, kind)
        images = read_images(path)
        assert images.colors
        np.testing.assert_allclose(np.moveaxis(images.pixels[0], 0, -1), expected)
    fire = np.stack([np.arange(256), np.zeros(256), np.zeros(256)]).astype(np.uint16)
    tifffile.imwrite(path, GRAY, imagej=True, colormap=fire * 257)
    with pytest.raises(ValueError, match=r"PALETTE.*Lookup Tables > Grays"):
        read_images(path)


@pytest.mark.parametrize("photometric", ["separated", "cielab"])
def test_other_meanings_are_refused_by_name(photometric, path):
    samples = np.stack([GRAY] * (4 if photometric == "separated" else 3), -1)
    tifffile.imwrite(path, samples, photometric=photometric)
    for reader in (read_images, read_labels, read_probabilities):
        with pytest.raises(ValueError, match=f"(?i){photometric}"):
            reader(path)


def test_significant_bits(path):
    pixels = GRAY.astype(np.uint16) * 16
    metadata = {"axes": "YX", "SignificantBits": 12}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata)
    np.testing.assert_allclose(read_images(path).pixels[0], pixels / 4095, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_bits(bits, path):
    """Pillow stretches them to 8, which would make 85 of a label 1."""
    values = GRAY[:, :24] >> (8 - bits)
    rows = np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(24, -1)
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 24, 24, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks)))
    expected = values / np.float32(2**bits - 1)
    np.testing.assert_allclose(read_images(path).pixels[0], expected)
    labels = read_labels(path, binary=False).pixels[0]
    np.testing.assert_array_equal(labels, values)


def chunk(kind_and_data):
    """A chunk of a PNG, with its length and its checksum."""
    kind, data = kind_and_data
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def test_sixteen_bits_of_color_are_not_halved(path):
    """Pillow keeps the upper 8 of 16 bits, and says nothing."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 1, 2, 3))
    chunks = ((b"IHDR", header), (b"IDAT", pixel), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks)))
    with pytest.raises(ValueError, match=r"16 bits .* Pillow keeps 8"):
        read_images(path)


def test_several_frames_are_not_left_out(path):
    first, *rest = (Image.fromarray(one) for one in STACK)
    first.save(path, "png", save_all=True, append_images=rest)
    with pytest.raises(ValueError, match="holds 5 images, expected one"):
        read_images(path)


def test_signed_images_of_fiji(path):
    """Fiji stores them as unsigned, and says so by a calibration function."""
    signed = GRAY.astype(np.int16) * 50
    metadata = {"cf": 0, "c0": -32768.0, "c1": 1.0}
    stored = (signed.astype(np.int32) + 32768).astype(np.uint16)
    tifffile.imwrite(path, stored, imagej=True, metadata=metadata)
    np.testing.assert_allclose(read_images(path).pixels[0], signed / 32767, atol=1e-6)
    tifffile.imwrite(path, GRAY, imagej=True, metadata={"cf": 20, "c0": 1.0, "c1": 2.0})
    with pytest.raises(ValueError, match="calibration function"):
        read_images(path)


@pytest.mark.parametrize(
    ("options", "size", "unit"),
    [
        (
            {"imagej": True, "resolution": (4, 2),
             "metadata": {"axes": "ZYX", "unit": "um", "spacing": 3.0}},
            (3.0, 0.5, 0.25), "µm",
        ),
        (
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 4,
             "PhysicalSizeY": 5, "PhysicalSizeZ": 50, "PhysicalSizeXUnit": "nm",
             "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "nm"}},
            (50, 5, 4), "nm",
        ),
        ({"resolution": (100, 50), "resolutionunit": "CENTIMETER"},
         (None, 0.02, 0.01), "cm"),
        ({"resolution": (200, 200), "resolutionunit": "INCH"},
         (None, 0.005, 0.005), "inch"),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None, None),
        ({}, None, None),
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, None, None),
        ({"resolution": (0, 0)}, None, None),
    ],
)  # fmt: skip
def test_pixel_size_goes_through(options, size, unit, path, tmp_path):
    tifffile.imwrite(path, STACK, photometric="minisblack", **options)
    images = read_images(path)
    images.write(tmp_path / "out.tif", images.pixels)
    for found in (images, read_images(tmp_path / "out.tif")):
        assert (found.pixel_size, found.unit) == (size and pytest.approx(size), unit)


# From numbers to gray values -----------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "top"),
    [
        (GRAY.astype(np.uint16), 255),
        (GRAY.astype(np.uint32), 255),
        (GRAY.astype(np.uint16) * 16 + 8, 4095),
        (GRAY.astype(np.int16) * 16, 4095),
        (GRAY.astype(np.uint16) * 64, 16383),
        (GRAY.astype(np.uint64), 255),
    ],
)
def test_few_bits_in_a_larger_type_are_said(pixels, top, path):
    tifffile.imwrite(path, pixels)
    with pytest.warns(UserWarning, match="nearly black") as caught:
        dark = read_images(path).pixels
    assert dark.max() <= 0.25
    assert caught[0].filename == __file__
    low, high = follow(str(caught[0].message))
    assert (low, high) == (0, top)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = read_images(path, value_range=(low, high))
    np.testing.assert_allclose(images.pixels[0], pixels / top, atol=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [
        GRAY.astype(np.int16) - 20,
        GRAY.astype(np.float32),
        GRAY / 3 - 5,
        SCALED * 1.01,
        FROM_23,
    ],
)
def test_the_advice_on_a_range_works(pixels, path):
    tifffile.imwrite(path, pixels)
    with pytest.raises(ValueError, match="become 0 and 1") as error:
        read_images(path)
    low, high = follow(str(error.value))
    images = read_images(path, value_range=(low, high))
    if pixels is not FROM_23:
        assert (images.pixels.min(), images.pixels.max()) == (0, 1)
    else:
        assert (low, high) == (0, 255)
    expected = (pixels - low) / (high - low)
    np.testing.assert_allclose(images.pixels[0], expected, atol=1e-5)


def test_rounding_is_not_beyond_one(path):
    pixels = SCALED.copy()
    pixels[0, 0], pixels[0, 1] = 1.0000001, -1e-7
    tifffile.imwrite(path, pixels)
    images = read_images(path)
    assert images.pixels.min() == 0
    assert images.pixels.max() == 1


def test_range_by_percentiles(path):
    tifffile.imwrite(path, STACK.astype(np.uint16) * 3, photometric="minisblack")
    low, high = np.percentile(3.0 * STACK, (0.5, 99.5))
    expected = ((3.0 * STACK - low) / (high - low)).clip(0, 1)
    images = read_images(path, value_range="auto")
    np.testing.assert_allclose(images.pixels, expected, atol=1e-6)
    tifffile.imwrite(path, np.full((24, 30), 7, np.uint16))
    with pytest.raises(ValueError, match="leaves no range") as error:
        read_images(path, value_range="auto")
    read_images(path, value_range=follow(str(error.value)))


@pytest.mark.parametrize("wrong", ["all", (1, 1), (2, 1), (0,), (0, np.nan), 5, "01"])
def test_what_is_not_a_range(wrong, path):
    tifffile.imwrite(path, GRAY)
    with pytest.raises(ValueError, match="Expected a value_range of two numbers"):
        read_images(path, value_range=wrong)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_a_number(wrong, path):
    pixels = SCALED.copy()
    pixels[3, 4] = wrong
    tifffile.imwrite(path, pixels)
    for options in ({}, {"value_range": (0, 1)}, {"value_range": "auto"}):
        with pytest.raises(ValueError, match="expected finite real numbers"):
            read_images(path, **options)


# Labels --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiff", "png"])
@pytest.mark.parametrize(
    "stored",
    [
        CELL > 0,
        CELL,
        CELL * np.uint8(255),
        CELL.astype(np.uint16) * 255,
        CELL.astype(np.float32),
        CELL.astype(np.int16),
        CELL * 0,
        CELL * 0 + 1,
    ],
)
def test_binary_labels(stored, kind, path):
    if kind == "tiff":
        tifffile.imwrite(path, stored)
    elif stored.dtype in (bool, np.uint8, np.uint16):
        Image.fromarray(stored).save(path, "png")
    else:
        pytest.skip("PNG has no such type")
    labels = read_labels(path)
    assert labels.pixels.dtype == np.uint8
    np.testing.assert_array_equal(labels.pixels[0], stored > 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_a_mask_as_painters_save_it(mode, path):
    Image.fromarray(CELL * np.uint8(255)).convert(mode).save(path, "png")
    np.testing.assert_array_equal(read_labels(path).pixels[0], CELL)


def test_labels_with_a_color_table(path):
    """As of PASCAL VOC: the numbers are labels, and 0 is black."""
    image = Image.fromarray(GRAY // 100)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(path, "png")
    labels = read_labels(path, binary=False)
    np.testing.assert_array_equal(labels.pixels[0], GRAY // 100)
    image.putpalette([255, 255, 255, 0, 0, 0, 0, 128, 0])
    image.save(path, "png")
    with pytest.raises(ValueError, match=r"not clear which .* Lookup Tables > Grays"):
        read_labels(path, binary=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.where(GRAY < 50, -2, CELL.astype(np.int16)), "pixels labeled -2"),
        (np.where(GRAY < 50, np.nan, CELL).astype(np.float32), "pixels labeled nan"),
        (CELL * np.float32(0.5), r"labeled 0\.5"),
        (
            np.where(GRAY < 50, 255, CELL).astype(np.uint8),
            r"of 1 and \d+ pixels of 255",
        ),
        (GRAY // 100, r"\d+ pixels of 1 other value, such as 2"),
        (CELL * np.uint8(128), r"pixels of 1 other value, such as 128"),
        (CELL + np.uint8(1), "such as 2"),
        (GRAY, r"pixels of 2\d\d other values, such as 2"),
    ],
)
def test_labels_that_are_not_binary(labels, message, path):
    tifffile.imwrite(path, labels)
    with pytest.raises(ValueError, match=message) as error:
        read_labels(path)
    assert "in.tif" in str(error.value)
    if labels.dtype == np.uint8:  # numbers of cells or classes are read as such
        found = read_labels(path, binary=False)
        assert found.pixels.dtype == np.int32
        np.testing.assert_array_equal(found.pixels[0], labels)
    else:
        with pytest.raises(ValueError, match="expected whole numbers"):
            read_labels(path, binary=False)


def test_minus_one_is_unknown_and_not_binary(path):
    labels = np.where(GRAY < 50, -1, GRAY.astype(np.int16))
    tifffile.imwrite(path, labels)
    np.testing.assert_array_equal(read_labels(path, binary=False).pixels[0], labels)
    with pytest.raises(ValueError, match=r"labeled -1: .* label them first"):
        read_labels(path)


def test_masks_that_are_not_clear(path):
    for bits in (CELL * np.uint8(255), CELL > 0):
        tifffile.imwrite(path, bits, photometric="miniswhite", software="a scanner")
        with pytest.raises(ValueError, match=r"MinIsWhite.*Invert LUT"):
            read_labels(path)
    Image.fromarray(COLORS).save(path, "png")
    with pytest.raises(ValueError, match="holds colors"):
        read_labels(path)
    tifffile.imwrite(path, STACK[:2] // 200, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(ValueError, match="has 2 channels: expected labels of one"):
        read_labels(path)
    tifffile.imwrite(path, np.full((24, 30), 2**31, np.uint32))
    with pytest.raises(ValueError, match="holds a label of 2147483648"):
        read_labels(path, binary=False)
    tifffile.imwrite(path, CELL.astype(np.complex64))
    with pytest.raises(ValueError, match="expected labels as integers"):
        read_labels(path)


# Probabilities -------------------------------------------------------------------


def test_probabilities(path):
    for stored in (SCALED, GRAY, SCALED.astype(np.float64)):
        tifffile.imwrite(path, stored)
        np.testing.assert_array_equal(read_probabilities(path).pixels[0], SCALED)
    Image.fromarray(GRAY).convert("RGB").save(path, "png")
    found = read_probabilities(path)
    np.testing.assert_array_equal(found.pixels[0], SCALED)
    assert found.axes == "YX"
    for wrong in (SCALED * 255, SCALED - 1, CELL, GRAY.astype(np.int16) - 1):
        tifffile.imwrite(path, wrong)
        with pytest.raises(ValueError, match=r"divide a map of 0 to 255 by 255"):
            read_probabilities(path)


def test_a_map_of_several_channels_is_refused_by_name(path):
    """No option of `evaluate` chooses one, so that none is advised."""
    classes = np.stack([SCALED, 1 - SCALED])
    writers = {
        "2 channels": lambda: tifffile.imwrite(
            path, classes, imagej=True, metadata={"axes": "CYX"}
        ),
        "3 channels": lambda: Image.fromarray(COLORS).save(path, "png"),
    }
    for found, write in writers.items():
        write()
        with pytest.raises(
            ValueError, match=rf"in\.tif has {found}: expected"
        ) as error:
            read_probabilities(path)
        assert "channel=" not in str(error.value)
        assert "--" not in str(error.value)


# Folders -------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 2, 1):
        tifffile.imwrite(tmp_path / f"slice{number}.tif", STACK[number % 5])
    (tmp_path / ".DS_Store").write_text("of a Mac")
    (tmp_path / "Thumbs.db").write_text("of Windows")
    (tmp_path / "masks").mkdir()
    images = read_images(tmp_path)
    assert images.names == ("slice1.tif", "slice2.tif", "slice10.tif")
    np.testing.assert_array_equal(images.pixels, STACK[[1, 2, 0]] / np.float32(255))
    assert (images.axes, images.lengths) == ("ZYX", (3,))
    assert [file.name for file in image_files(tmp_path)] == list(images.names)
    assert read_labels(tmp_path, binary=False).pixels.shape == (3, 24, 30)


@pytest.mark.parametrize("mark", ["_", "-", " ", ""])
def test_what_labels_add_to_names_does_not_change_the_order(mark, tmp_path):
    """`evaluate` compares a folder of labels with a stack, which has no names."""
    names = ["cell", f"cell{mark}2", f"cell{mark}10", "b"]
    orders = []
    for before, after in (("", ""), ("", "_mask"), ("", "-mask"), ("mask_", "")):
        folder = tmp_path / f"{before}{after} "
        folder.mkdir()
        for name in names:
            Image.fromarray(GRAY).save(folder / f"{before}{name}{after}.png")
        found = [file.stem for file in image_files(folder)]
        orders.append([name[len(before) : len(name) - len(after)] for name in found])
    assert orders == orders[:1] * 4
    assert orders[0].index(names[1]) < orders[0].index(names[2])


def test_a_folder_of_unlike_sizes_is_a_list(tmp_path):
    for number, size in enumerate((20, 24, 24)):
        Image.fromarray(GRAY[:size]).save(tmp_path / f"{number}.png")
    images = read_images(tmp_path)
    assert [one.shape for one in images.pixels] == [(20, 30), (24, 30), (24, 30)]
    assert images.for_channels(1) is images.pixels
    for one, size in zip(images.pixels, (20, 24, 24), strict=True):
        np.testing.assert_array_equal(one, SCALED[:size])


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        ((1, 2, 4), "z0003.tif"),
        ((8, 9, 11, 12, 14), "z0010.tif, z0013.tif"),
        ((0, 2, 4, 6), None),  # every second one, on purpose
        ((1, 2, 4, 900), None),  # no numbering
        ((3, 4, 5), None),
    ],
)
def test_a_gap_in_the_numbers_of_a_folder_is_said(numbers, missing, tmp_path):
    for number in numbers:
        tifffile.imwrite(tmp_path / f"z{number:04}.tif", GRAY)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(image_files(tmp_path)) == len(numbers)
    texts = [str(warning.message) for warning in said]
    assert len(texts) == (missing is not None)
    assert all(f" {missing}: " in text for text in texts)
    tifffile.imwrite(tmp_path / "other.tif", GRAY)  # then it is not one numbering
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_files(tmp_path)


def test_one_range_for_a_folder(tmp_path):
    for number in (0, 1):
        tifffile.imwrite(tmp_path / f"{number}.tif", STACK[number] // (1 + 3 * number))
    images = read_images(tmp_path, value_range="auto")
    assert images.pixels[1].max() < 0.3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no images"),
        (b"a,b\n", r"notes\.csv is not a TIFF, PNG or JPEG.*move it elsewhere"),
        (b"", r"notes\.csv is not .*it is empty"),
        (COLORS, r"a\.tif and .*b\.png differ in their kind of pixels"),
        (
            GRAY.astype(np.uint16),
            r"a\.tif and .*b\.png differ.*uint8 of 8 .*uint16 of 16",
        ),
    ],
)
def test_folders_that_are_refused(content, message, tmp_path):
    if content is not None:
        tifffile.imwrite(tmp_path / "a.tif", GRAY)
    if isinstance(content, bytes):
        (tmp_path / "notes.csv").write_bytes(content)
    elif content is not None:
        Image.fromarray(content).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path)


def test_a_png_beside_a_tiff_of_the_same_pixels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY)
    Image.fromarray(GRAY).save(tmp_path / "b.png")
    images = read_images(tmp_path)
    np.testing.assert_array_equal(images.pixels[0], images.pixels[1])


def test_a_folder_of_a_set_of_files(tmp_path):
    test_tiff.ome_set(tmp_path)
    with pytest.raises(ValueError, match="is one of a set of OME-TIFF files"):
        read_images(tmp_path)
    images = read_images(tmp_path / "z0.ome.tif")
    np.testing.assert_array_equal(images.pixels, test_tiff.STACK)
    assert (images.pixel_size, images.unit) == ((3, 0.25, 0.5), "µm")


def test_a_home_folder_by_its_sign(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("USERPROFILE", str(path.parent))
    tifffile.imwrite(path, GRAY)
    np.testing.assert_array_equal(read_images("~/in.tif").pixels[0], SCALED)


def test_what_is_not_there(tmp_path):
    for reader in (read_images, read_labels, read_probabilities, image_files):
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "nowhere")


# Damaged files -------------------------------------------------------------------


@pytest.mark.parametrize("name", fuzz_files.readers())
def test_damaged_files_are_read_or_refused_by_name(name):
    reader, files = fuzz_files.readers()[name]
    counts = fuzz_files.fuzz(reader, files, count=50, seed=1)
    assert counts["refused"] > 5
    assert set(counts) <= fuzz_files.allowed(name)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_pictures_that_are_cut(mode, kind, path):
    if (mode, kind) == ("P", "jpeg"):
        pytest.skip("JPEG has no color tables")
    whole = fuzz_files.picture(GRAY, kind, mode)
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match=r"in\.tif"):
            read_images(path)


def test_a_picture_that_promises_gigabytes(path):
    data = bytearray(fuzz_files.picture(GRAY, "png"))
    data[16:24] = (12_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="promises 12000 × 12000 pixels"):
        read_images(path)
