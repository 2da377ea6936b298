"""`unet-lib predict` of a folder: one TIFF for each of its images."""

import os
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_lib import cli
from unet_lib.data import images as reader
from unet_lib.model import UNet
from unet_lib.networks import load_network, save_network
from unet_lib.predict import predict

GRAYS = [
    np.random.default_rng(n).integers(0, 256, (30 + n, 41 - n)).astype(np.uint8)
    for n in range(3)
]
COMMAND = ["predict", "network.safetensors", "in", "out", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of a PNG, a TIFF with a pixel size and a stack, of unlike sizes."""
    monkeypatch.chdir(tmp_path)
    save_network(UNet(base_channels=2, depth=2), "network.safetensors")
    (tmp_path / "in").mkdir()
    Image.fromarray(GRAYS[0]).save("in/a.png")
    microns = {"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}
    tifffile.imwrite("in/b.tif", GRAYS[1], **microns)
    stack = {"imagej": True, "metadata": {"axes": "ZYX"}}
    tifffile.imwrite("in/c.tiff", np.stack([GRAYS[2]] * 2), **stack)
    return tmp_path


def test_each_image_gets_a_file_named_after_it(here, capsys):
    assert cli.main(COMMAND) == 0
    captured = capsys.readouterr()
    assert "3 images written to out" in captured.out
    assert "3/3" in captured.err
    network = load_network("network.safetensors")
    assert sorted(os.listdir("out")) == ["a.tif", "b.tif", "c.tif"]
    for name, gray in zip("abc", GRAYS, strict=True):
        found = tifffile.imread(f"out/{name}.tif")
        expected = predict(network, gray / np.float32(255))
        np.testing.assert_allclose(found - expected, 0, atol=1e-5)
        assert found.dtype == np.float32
        assert found.ndim == (3 if name == "c" else 2)
    assert reader.read_probabilities("out/b.tif").pixel_size == (None, 0.5, 0.25)
    assert reader.read_probabilities("out/b.tif").unit == "µm"


def test_what_is_there_is_kept(here, monkeypatch, capsys):
    """The same command goes on after an error or an interruption."""
    written = reader.Images.write

    def stops(images, path, *arguments, **options):
        if images.names == ("b.tif",):
            raise KeyboardInterrupt
        written(images, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(reader.Images, "write", stops)
        assert cli.main(COMMAND) == 130
    assert "those that are written are kept" in capsys.readouterr().err
    assert os.listdir("out") == ["a.tif"]
    (here / "out" / "a.tif").write_text("of mine")
    assert cli.main(COMMAND) == 0
    said = capsys.readouterr().out
    assert "2 images written to out" in said
    assert "1 that was there is kept; --overwrite replaces it." in said
    assert (here / "out" / "a.tif").read_text() == "of mine"
    assert cli.main([*COMMAND, "--overwrite"]) == 0
    assert tifffile.imread("out/a.tif").shape == GRAYS[0].shape


def test_options_hold_for_each_image(here):
    assert cli.main([*COMMAND, "--range", "50", "150"]) == 0
    gray = np.float32((GRAYS[1] - 50.0) / 100).clip(0, 1)
    expected = predict(load_network("network.safetensors"), gray)
    np.testing.assert_allclose(tifffile.imread("out/b.tif"), expected, atol=1e-5)


def test_a_range_by_percentiles_is_that_of_the_folder(here):
    """As in training: not that of each image by itself."""
    dark = GRAYS[0] // 2
    Image.fromarray(dark).save("in/a.png")
    assert cli.main([*COMMAND, "--range", "auto"]) == 0
    every = [one.ravel() for one in (dark, GRAYS[1], GRAYS[2], GRAYS[2])]
    low, high = np.percentile(np.concatenate(every), (0.5, 99.5))
    gray = np.float32((dark - low) / (high - low)).clip(0, 1)
    expected = predict(load_network("network.safetensors"), gray)
    np.testing.assert_allclose(tifffile.imread("out/a.tif"), expected, atol=1e-5)


def test_a_folder_of_one_size_is_a_stack_too(here):
    for name in ("b.tif", "c.tiff"):
        (here / "in" / name).unlink()
    Image.fromarray(GRAYS[0]).save("in/d.png")
    assert cli.main([*COMMAND[:3], "out.tif", *COMMAND[4:]]) == 0
    assert tifffile.imread("out.tif").shape == (2, 30, 41)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sizes", "out.tif"], "different sizes.* folder as OUTPUT, such as out,"),
        (["sizes", "out.zarr"], "different sizes.* folder as OUTPUT"),
        (["in", "in"], "in is the folder of the images"),
        (["in", "network.safetensors/out"], "is not a folder"),
        (["in/b.tif", "out"], "must end in"),
        (["inn", "out"], "inn: No such file"),
        (["twice", "out"], "a.png and A.tif in twice .*out.a.tif: rename"),
        (["empty", "out"], "empty holds no images"),
        (["mixed", "out"], "notes.txt is not a TIFF"),
    ],
)
def test_refused_before_the_work(arguments, message, here, capsys):
    for name in ("twice", "empty", "mixed", "sizes"):
        (here / name).mkdir()
    for number, gray in enumerate(GRAYS):
        Image.fromarray(gray).save(f"sizes/{number}.png")
    Image.fromarray(GRAYS[0]).save("twice/a.png")
    tifffile.imwrite("twice/A.tif", GRAYS[0])
    (here / "mixed" / "notes.txt").write_text("no picture")
    assert cli.main(["predict", "network.safetensors", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(here.glob("out*"))


def test_an_image_that_cannot_be_read_is_named(here, capsys):
    """Those before it are kept."""
    (here / "in" / "b.tif").write_bytes((here / "in" / "b.tif").read_bytes()[:-9])
    assert cli.main(COMMAND) == 1
    assert "b.tif" in capsys.readouterr().err
    assert os.listdir("out") == ["a.tif"]
