"""OME-Zarr: read with axes and pixel size, written whole, with a pyramid."""

import json
import re
import sys

import numpy as np
import pytest
import tifffile

from unet_lib import cli
from unet_lib.data import omezarr
from unet_lib.data.images import read_images
from unet_lib.data.omezarr import is_zarr, read_zarr, written_zarr
from unet_lib.model import UNet
from unet_lib.networks import load_network, save_network
from unet_lib.predict import predict

zarr = pytest.importorskip("zarr")
pytest.importorskip("ome_zarr")

from ome_zarr import format as formats  # noqa: E402
from ome_zarr.io import parse_url  # noqa: E402
from ome_zarr.reader import Reader  # noqa: E402
from ome_zarr.writer import write_image  # noqa: E402
from ome_zarr_models.v05 import Image  # noqa: E402

NUMBERS = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50)).astype(np.uint8)
SIZES = {"z": 0.5, "y": 0.2, "x": 0.1}
MICRONS = dict.fromkeys("zyx", "micrometer")


def image(path, pixels, axes, fmt=None, scale=SIZES, units=MICRONS):
    """An OME-Zarr image by the reference library."""
    write_image(
        pixels,
        str(path),
        axes=axes,
        fmt=fmt or formats.CurrentFormat(),
        scale={axis: (scale or {}).get(axis, 1.0) for axis in axes},
        axes_units={a: unit for a, unit in (units or {}).items() if a in axes},
        scale_factors=[2],
    )
    return path


def seen(path):
    """What the reference library reads: levels and metadata; its models approve."""
    Image.from_zarr(zarr.open_group(path, mode="r"))
    (node,) = Reader(parse_url(str(path)))()
    return [level.compute() for level in node.data], node.metadata


def whole(images):
    """All of the pixels, read in the way of `predict_into`."""
    middle = [slice(None)] * (images.pixels.ndim - 3)
    rows, columns = (slice(0, length) for length in images.pixels.shape[-2:])
    return np.stack(
        [images.pixels[(n, *middle, rows, columns)] for n in range(len(images.names))]
    )


@pytest.mark.parametrize("fmt", [formats.FormatV04(), formats.FormatV05()])
@pytest.mark.parametrize(
    ("axes", "pixels", "expected", "named", "lengths"),
    [
        ("yx", NUMBERS[0, 0], NUMBERS[:1, 0], "YX", ()),
        ("zyx", NUMBERS[:, 0], NUMBERS[:, 0], "ZYX", (2,)),
        ("cyx", NUMBERS[0], NUMBERS[:1], "CYX", ()),
        ("tczyx", NUMBERS[:1, None, :1], NUMBERS[:1, 0], "YX", ()),
        ("tczyx", NUMBERS[None], NUMBERS.swapaxes(0, 1), "ZCYX", (3,)),
        ("tcyx", NUMBERS, NUMBERS, "TCYX", (2,)),
        ("tzyx", NUMBERS, NUMBERS.reshape(6, 40, 50), "TZYX", (2, 3)),
    ],
)
def test_axes_become_slices_and_channels(
    axes, pixels, expected, named, lengths, fmt, tmp_path
):
    path = image(tmp_path / "a.zarr", pixels, axes, fmt)
    images, limits = read_zarr(path)
    assert (images.axes, images.lengths, limits) == (named, lengths, (0, 255))
    assert images.pixels.shape == expected.shape
    np.testing.assert_array_equal(whole(images), expected)
    depth = 0.5 if "z" in axes else None
    assert images.pixel_size == (depth, 0.2, 0.1)
    assert images.unit == "µm"


def test_channels_and_ranges_are_chosen(tmp_path):
    path = image(tmp_path / "a.zarr", NUMBERS, "tcyx")
    images, limits = read_zarr(path, channel=2, value_range=(10, 90))
    np.testing.assert_array_equal(whole(images), NUMBERS[:, 1])
    assert (images.axes, limits) == ("TYX", (10, 90))
    floats = image(tmp_path / "b.zarr", NUMBERS[0, 0] / np.float32(300), "yx")
    assert read_zarr(floats)[1] == (0, 1)
    dark = image(tmp_path / "c.zarr", NUMBERS[0, 0].astype(np.uint16) * 16, "yx")
    with pytest.warns(UserWarning, match=r"value_range=\(0, 4095\)"):
        assert read_zarr(dark)[1] == (0, 65535)


def test_a_pixel_size_that_is_not_said_is_none(tmp_path):
    path = image(tmp_path / "a.zarr", NUMBERS[0, 0], "yx", scale=None, units=None)
    assert read_zarr(path)[0].pixel_size is None
    units = {"y": "micrometer", "x": "nanometer"}
    path = image(tmp_path / "b.zarr", NUMBERS[0, 0], "yx", units=units)
    assert read_zarr(path)[0].pixel_size is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": 4}, "a.zarr has 3 channels, counted from 1: .* no channel 4"),
        ({"value_range": "auto"}, r"give two values, .*--range LOW HIGH"),
        ({"value_range": (9, 1)}, "two numbers LOW < HIGH"),
    ],
)
def test_options_refused(options, message, tmp_path):
    path = image(tmp_path / "a.zarr", NUMBERS, "tcyx")
    with pytest.raises(ValueError, match=message):
        read_zarr(path, **options)


def spoilt(tmp_path, what):
    path = tmp_path / "a.zarr"
    pixels = NUMBERS[0, 0].astype(np.float32)
    if what == "range":
        return image(path, pixels, "yx")
    if what == "nan":
        pixels[3, 4] = np.nan
        return image(path, pixels, "yx")
    if what == "signed":
        return image(path, NUMBERS[0, 0].astype(np.int16) - 9, "yx")
    image(path, pixels / 255, "yx", formats.FormatV04())
    array = path / "s0" / ".zarray"
    said = json.loads(array.read_text())
    group = path / ".zattrs"
    image_said = json.loads(group.read_text())
    if what == "pickle":
        said["compressor"] = {"id": "pickle", "protocol": 5}
    elif what == "chunks":
        said["chunks"] = [2**16, 2**16]
    elif what == "shape":
        said["shape"] = [2**40, 50]
    elif what == "axes":
        image_said["multiscales"][0]["axes"][0]["name"] = "q"
    elif what == "nothing":
        image_said = {}
    elif what == "no level":
        image_said["multiscales"][0]["datasets"][0]["path"] = "absent"
    array.write_text(json.dumps(said))
    group.write_text(json.dumps(image_said))
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("range", r"expected values from 0 to 1\. Say which .*--range 0 255"),
        ("nan", "expected finite real numbers"),
        ("signed", "from -9 to 246.*--range -9"),
        ("pickle", "pickle"),  # by zarr itself: it would run code,
        ("chunks", "Store it in smaller ones"),
        ("shape", "expected sides up to 1048576"),
        ("axes", "its axes are QX, expected some of TCZYX"),
        ("nothing", "describes no image"),
        ("no level", "cannot be read as a Zarr image: .*absent"),
    ],
)
def test_files_refused(what, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        read_zarr(spoilt(tmp_path, what))
    assert "a.zarr" in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*b\.zarr"):
        read_zarr(tmp_path / "b.zarr")
    assert is_zarr(tmp_path / "b.zarr")
    assert not is_zarr(tmp_path)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ome_zarr", None)
    with pytest.raises(ImportError, match=r'ome_zarr.*pip install "unet-lib\[zarr\]"'):
        read_zarr(tmp_path)


@pytest.mark.parametrize(("axes", "classes"), [("zyx", None), ("yx", None), ("zyx", 3)])
def test_a_result_has_a_pyramid_and_the_pixel_size(
    axes, classes, tmp_path, monkeypatch
):
    monkeypatch.setattr(omezarr, "CHUNK", 8)
    pixels = NUMBERS[:, 0, :37, :26] if "z" in axes else NUMBERS[0, 0, :37, :26]
    images, _ = read_zarr(image(tmp_path / "in.zarr", pixels, axes))
    result = np.random.default_rng(0).random((len(images.names), 3, 37, 26), "float32")
    result = result if classes else result[:, 0]
    with written_zarr(tmp_path / "out.zarr", images, classes) as (target, record):
        assert target.shape == result.shape
        assert target.dtype == np.float32
        for number, part in enumerate(result):
            target[(number, *[slice(0, n) for n in part.shape])] = part
        record.write_text("{}")
        assert not (tmp_path / "out.zarr").exists()
    assert not (tmp_path / "out.zarr.partial").exists()
    levels, metadata = seen(tmp_path / "out.zarr")
    expected = result.swapaxes(0, 1) if classes else result
    expected = expected if "z" in axes else expected[0]
    for level in levels:
        np.testing.assert_allclose(level, expected, rtol=0, atol=1e-6)
        height, width = expected.shape[-2:]
        cut = expected[..., : height // 2 * 2, : width // 2 * 2]
        pairs = cut.reshape(*cut.shape[:-2], height // 2, 2, width // 2, 2)
        expected = pairs.mean((-3, -1))
    assert [level.shape[-2:] for level in levels] == [
        (37, 26),
        (18, 13),
        (9, 6),
        (4, 3),
    ]
    named = [axis["name"] for axis in metadata["axes"]]
    assert named == [*("c" * bool(classes)), *axes]
    assert all(axis["unit"] == "micrometer" for axis in metadata["axes"][-2:])
    scale, shift = metadata["coordinateTransformations"][2]
    assert scale["scale"][-2:] == pytest.approx([0.8, 0.4])
    assert shift["translation"][-2:] == pytest.approx([0.3, 0.15])
    again, _ = read_zarr(tmp_path / "out.zarr")
    assert again.pixel_size == images.pixel_size
    assert again.unit == "µm"


# From the command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = UNet(base_channels=2, depth=2)
    save_network(network, "network.safetensors")
    image(tmp_path / "in.zarr", NUMBERS[:, 0], "zyx")
    return tmp_path


PREDICT = ["predict", "network.safetensors", "in.zarr", "out.zarr", "--device", "cpu"]


def test_predict_takes_ome_zarr(here, capsys):
    assert cli.main(PREDICT) == 0
    captured = capsys.readouterr()
    assert "written to out.zarr" in captured.out
    assert "block/s" in captured.err
    levels, _ = seen(here / "out.zarr")
    network = load_network("network.safetensors")
    expected = predict(network, NUMBERS[:, 0] / np.float32(255))
    np.testing.assert_allclose(levels[0], expected, atol=1e-5)
    assert cli.main(PREDICT) == 1
    assert "add --overwrite to replace it" in capsys.readouterr().err
    assert cli.main([*PREDICT, "--overwrite"]) == 0


def test_predict_writes_ome_zarr_of_a_tiff(here):
    tifffile.imwrite("in.tif", NUMBERS[:, 0], imagej=True, metadata={"axes": "ZYX"})
    arguments = ["predict", "network.safetensors", "in.tif", "out.zarr"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    network = load_network("network.safetensors")
    expected = predict(network, read_images("in.tif").pixels)
    np.testing.assert_allclose(seen(here / "out.zarr")[0][0], expected, atol=1e-5)


def test_a_stopped_command_goes_on(here, monkeypatch, capsys):
    forward, left = UNet.forward, [1]

    def stops(network, batch):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return forward(network, batch)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", stops)
        assert cli.main(PREDICT) == 130
    assert "the same command continues from there." in capsys.readouterr().err
    assert not (here / "out.zarr").exists()
    record = here / "out.zarr.partial" / "blocks.json"
    assert len(json.loads(record.read_text())["blocks"]) == 1
    save_network(UNet(base_channels=1, depth=2), "other.safetensors")
    other = [*PREDICT[:1], "other.safetensors", *PREDICT[2:]]
    assert cli.main(other) == 1
    assert "of another run: network was" in capsys.readouterr().err
    image(here / "wide.zarr", NUMBERS[0, 0], "yx")
    assert cli.main([*PREDICT[:2], "wide.zarr", *PREDICT[3:]]) == 1
    assert "holds part of another result, of shape (2, 40" in capsys.readouterr().err
    assert cli.main(PREDICT) == 0
    assert sorted(path.name for path in (here / "out.zarr").iterdir()) == [
        "0",
        "zarr.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.zarr", "out.tif"], "out.tif must end in .zarr"),
        (["in.zarr", "in.zarr", "--overwrite"], "is the input and would be lost"),
        (["in.zarr", "out.zarr", "--versions", "8"], "--versions are for images in"),
        (["in.zarr", "out.zarr", "--tile", "44"], "--tile and --versions"),
        (["in.zarr", "out.zarr", "--gray"], "not colors that --gray"),
        (["in.zarr", "old.zarr"], "old.zarr exists: give another name"),
        (["in.zarr", "old.zarr", "--overwrite"], "is not a Zarr folder"),
        (["in.zarr", "network.safetensors/out.zarr"], "is not a folder"),
        (["color.zarr", "out.zarr"], "color.zarr has 3 channels, .*--channel"),
    ],
)
def test_predict_refuses_before_the_work(arguments, message, here, capsys):
    (here / "old.zarr").mkdir()
    (here / "old.zarr" / "mine.txt").touch()
    image(here / "color.zarr", NUMBERS, "tcyx")
    assert cli.main(["predict", "network.safetensors", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(here.glob("out*"))
    assert (here / "old.zarr" / "mine.txt").exists()
