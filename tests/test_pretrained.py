"""The published network: its file, its hash, its card."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import publish
import pytest
import torch
from safetensors import safe_open

import unet_lib
from unet_lib import UNet, networks
from unet_lib.metrics import pixel_error
from unet_lib.predict import predict

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results" / "quarter-adam-10000" / "best"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the file, in its place."""
    copy = tmp_path / networks.FILE.name
    shutil.copy(networks.FILE, copy)
    monkeypatch.setattr(networks, "FILE", copy)
    return copy


def test_one_line_loads_it():
    network = unet_lib.load_pretrained()
    assert isinstance(network, UNet)
    assert not network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.zeros(1, 1, 188, 188)).shape == (1, 2, 4, 4)


def test_its_file_is_small_and_in_half_precision():
    assert networks.FILE.stat().st_size < 8_000_000
    with safe_open(networks.FILE, framework="pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert dtypes == {"F16"}


def test_it_is_of_the_recorded_run():
    config = json.loads((RECORDS / "0-0" / "config.json").read_text("utf-8"))
    arguments = unet_lib.load_pretrained().arguments
    assert arguments.items() <= (config | {"in_channels": 1, "num_classes": 2}).items()
    assert config["held_out"] == []  # trained on all slices


def test_a_damaged_file_is_refused(copy):
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(ValueError, match=f"expected SHA-256 .*, got {found}"):
        unet_lib.load_pretrained()


def test_a_missing_file_is_named(copy):
    copy.unlink()
    with pytest.raises(FileNotFoundError, match=r"pretrained.safetensors is missing"):
        unet_lib.load_pretrained()


def test_it_segments_what_it_has_learnt(isbi2012):
    probability = predict(unet_lib.load_pretrained(), isbi2012.train_images[12])
    labels = isbi2012.train_labels[12]
    assert (
        pixel_error(labels, probability).value
        < 0.5 * pixel_error(labels, np.ones(labels.shape)).value
    )


def test_its_card_is_of_the_records():
    card = publish.CARD.read_text("utf-8")
    assert card == publish.card()
    # And once more by hand: the mean of the folds, at each one's best threshold.
    versions = re.search(r"versions=(\d)\)", card)[1]
    values, fixed = [], {"1": [], "7": [], "8": []}
    for path in sorted(RECORDS.glob("[1-5]-*/scores.json")):
        scores = json.loads(path.read_text("utf-8"))["scores"]
        values.append(max(scores[versions]["figures"]["v_rand"]["values"]))
        for number, found in fixed.items():
            found.append(scores[number]["figures"]["v_rand"]["values"])
    numbers = re.search(r"\| V-Rand .*?\| ([\d.]+) \| ([\d.]+) \|", card)
    assert float(numbers[2]) == pytest.approx(sum(values) / len(values), abs=5e-5)
    # What it recommends is the best that one threshold reached in all folds.
    means = [max(map(sum, zip(*found, strict=True))) / 5 for found in fixed.values()]
    assert float(numbers[1]) == pytest.approx(max(means), abs=5e-5)


def test_its_card_shows_a_picture_and_code_that_runs():
    card = publish.CARD.read_text("utf-8")
    assert (publish.CARD.parent / re.search(r"\]\((.*png)\)", card)[1]).exists()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"images": np.zeros((1, 64, 64), np.float32)}
    exec(compile(code, "pretrained.md", "exec"), names)
    assert names["cells"].shape == (1, 64, 64)
