"""The commands of the page on images of your own, from PNG files to a label TIFF."""

import re
import shlex

import numpy as np
import pytest
import record
import tifffile
from PIL import Image
from test_chapters import kept

from unet_lib import cli, data
from unet_lib.cells import find_cells, score_cells
from unet_lib.config import Augmentation
from unet_lib.train import TrainConfig

PAGE = (record.BOOK / "own-images.md").read_text("utf-8")
SMALL = ["--steps", "2", "--base-channels", "2", "--batch", "1"]


def commands():
    """The page's five commands as lists of arguments."""
    (block,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with five images to train on and two to test on, as PNG files."""
    monkeypatch.chdir(tmp_path)
    for folder, count in (("train", 5), ("test", 2)):
        images, labels = data.synthetic_cells(count, size=72, seed=count)
        for kind, stack in (("images", 255 * images), ("labels", labels)):
            (tmp_path / folder / kind).mkdir(parents=True)
            for number, pixels in enumerate(np.rint(stack).astype(np.uint8)):
                Image.fromarray(pixels).save(f"{folder}/{kind}/{number:02}.png")
    return tmp_path


def test_the_commands_lead_from_png_files_to_a_label_tiff(here, monkeypatch):
    train, predict, cells, evaluate, export = commands()
    assert cli.main([*train, *SMALL]) == 0
    assert (here / "run" / "preview.png").exists()
    assert cli.main(predict) == 0
    assert cli.main([*cells, "--threshold", "0"]) == 0
    found = tifffile.imread("cells.tif")
    assert found.shape == (2, 72, 72)
    assert found.dtype == np.uint16
    rows = (here / "cells.csv").read_text("utf-8").splitlines()[1:]
    assert len(rows) == sum(len(np.unique(one[one > 0])) for one in found) > 0
    assert cli.main(evaluate) == 0
    assert (here / "cells.evaluation.json").exists()
    # What is in the file is for test_export.py, which takes its time.
    monkeypatch.setattr("unet_lib.export.write_onnx", lambda whole, path: path.touch())
    assert cli.main(export) == 0
    assert (here / "cells.onnx").exists()


def test_the_python_to_keep_gives_the_numbers_of_the_commands(here):
    train, predict, cells, *_ = commands()
    assert cli.main([*train, *SMALL]) == 0
    assert cli.main(predict) == 0
    assert cli.main([*cells, "--threshold", "0.4"]) == 0
    box = kept("own-images")
    config = TrainConfig(
        instances=True,
        held_out=(4,),
        depth=2,
        base_channels=2,
        batch_norm=True,
        dropout=0.0,
        augmentation=Augmentation(deformation=3, rotation=False),
        tile=108,
        steps=2,
        optimizer="adam",
        learning_rate=0.01,
    )
    network = box["learn"](config, "train", "again")
    found = box["number_cells"](
        network, "test/images", "again.tif", threshold=0.4, watershed=2, smallest=30
    )
    ours, theirs = tifffile.imread("again.tif"), tifffile.imread("cells.tif")
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, found)


def test_the_page_and_its_commands_have_one_configuration():
    (shown,) = re.findall(r"^config = (TrainConfig\(.*?^\))", PAGE, re.M | re.S)
    config = eval(shown, {"TrainConfig": TrainConfig, "Augmentation": Augmentation})
    train = commands()[0]
    values = dict(zip(train, [*train[1:], ""], strict=True))
    for option, value in values.items():
        name = option.removeprefix("--").replace("-", "_")
        if hasattr(config, name) and not isinstance(getattr(config, name), bool):
            assert str(getattr(config, name)) in (value, f"{value}.0"), option
    assert config.instances
    assert config.batch_norm
    assert not config.augmentation.rotation
    assert config.augmentation.deformation == float(values["--deformation"])


def test_the_watershed_of_the_page_parts_two_cells_that_touch():
    y, x = np.indices((40, 70))
    cells = np.zeros((40, 70), int)
    for number, middle in ((1, 24), (2, 46)):
        cells[np.hypot(y - 20, x - middle) < 13] = number
    whole = (cells > 0).astype(np.float32)
    assert find_cells(whole).max() == 1
    assert score_cells(cells, find_cells(whole, watershed=2, smallest=30)).seg > 0.9
