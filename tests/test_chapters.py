"""What the boxes *Keep this* hold runs as it stands and gives the library's numbers."""

import re
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import record
import torch
from torch import nn

from unet_lib import UNet, data, metrics, weights
from unet_lib.augment import TileSampler
from unet_lib.loss import weighted_cross_entropy
from unet_lib.model import incoming_nodes
from unet_lib.predict import predict
from unet_lib.results import hela
from unet_lib.train import TrainConfig, fit


def kept(name):
    """Run the first cell of the box *Keep this* alone; return what it defines."""
    text = jupytext.writes(record.read_myst(name), fmt="md:myst")
    (box,) = re.findall(r":class: keep\n(.*?):::\{box-end\}", text, re.DOTALL)
    code, *_ = re.findall(r"```\{code-cell\} ipython3\n(.*?)^```$", box, re.S | re.M)
    defined = {}
    exec(compile(code, name, "exec"), defined)
    return defined


def test_the_network_to_keep_is_the_librarys():
    torch.manual_seed(0)
    ours = kept("architecture")["OurUNet"](channels=2, classes=3)
    theirs = UNet(base_channels=2, num_classes=3)
    theirs.load_state_dict(ours.state_dict())
    tile = torch.rand(2, 1, 188, 204)  # height and width differ
    scores = []
    for network in (ours, theirs):
        torch.manual_seed(1)  # the same dropout
        scores.append(network(tile))
    torch.testing.assert_close(*scores)


def test_the_network_to_keep_starts_like_the_librarys():
    torch.manual_seed(0)
    ours = kept("architecture")["OurUNet"](channels=16)
    layers = [
        layer
        for layer in ours.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert len(layers) == 23
    for layer in layers:
        assert not layer.bias.any()
        if layer.weight.numel() > 2_000:  # enough to tell
            expected = (2 / incoming_nodes(layer)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("cells", [0, 1, 5])
def test_the_map_and_the_loss_to_keep_are_the_librarys(cells):
    random = np.random.default_rng(cells)
    slices = np.zeros((2, 40, 50), np.uint8)
    for row, column in random.integers(3, 37, (cells, 2)):
        slices[0, row - 3 : row + 3, column - 3 : column + 3] = 1
    slices[1, 5:20, 5:20] = 1
    box, fraction = kept("weight-maps"), slices.mean()
    ours = [box["weight_map"](one, fraction) for one in slices]
    theirs = weights.weight_map(slices)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    scores = torch.from_numpy(random.normal(size=(2, 2, 40, 50)))
    pixels = torch.from_numpy(slices).long(), torch.from_numpy(theirs)
    torch.testing.assert_close(
        box["weighted_loss"](scores, *pixels), weighted_cross_entropy(scores, *pixels)
    )


@pytest.mark.parametrize(("tile", "output", "seed"), [(44, 4, 0), (61, 41, 3)])
def test_the_tile_to_keep_is_the_samplers(tile, output, seed):
    random = np.random.default_rng(seed)
    images = random.random((3, 60, 70), np.float32)  # height and width differ
    labels = random.integers(0, 2, images.shape)
    maps = random.random(images.shape, np.float32)
    stack = images, labels, maps
    random_tile = kept("augmentation")["random_tile"]
    sampler = TileSampler(*stack, tile, output, seed=seed)
    for index in range(4):
        ours = random_tile(index, *stack, tile, output, seed)
        theirs = [one.squeeze(0) for one in sampler.batch([index])]
        torch.testing.assert_close(ours[0], theirs[0][0], rtol=0, atol=1e-3)
        # In single precision, a position halfway between two pixels may go either way.
        assert ours[1].dtype == theirs[1].dtype
        assert (ours[1] != theirs[1]).double().mean() < 0.01
        torch.testing.assert_close(ours[2], theirs[2], rtol=0, atol=1e-3)


def test_the_loop_to_keep_trains_as_fit(monkeypatch):
    images, labels = data.synthetic_em(slices=30, size=64)
    stacks = SimpleNamespace(train_images=images, train_labels=labels)
    monkeypatch.setattr(data, "load_or_stand_in", lambda: stacks)
    box = kept("training")
    few = box["images"][:1], box["labels"][:1]
    network = {"base_channels": 2, "depth": 2, "dropout": 0.0}
    sampler = TileSampler(*few, weights.weight_map(few[1]), 60, 20)
    for optimizer in ("sgd", "adam"):
        torch.manual_seed(0)
        ours = UNet(**network)
        made = torch.optim.SGD(ours.parameters(), 1e-3, momentum=0.99)
        if optimizer == "adam":
            made = torch.optim.Adam(ours.parameters(), 1e-3)
        losses = box["train"](ours, sampler, made, steps=4)
        config = TrainConfig(
            **network, tile=60, optimizer=optimizer, steps=4, device="cpu"
        )
        run = fit(config, *few, progress=False)
        assert run.history[-1]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        pairs = zip(ours.parameters(), run.network.parameters(), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (61, 143), (130, 70)])
def test_the_stitching_to_keep_is_the_librarys(size):
    box = kept("overlap-tile")
    torch.manual_seed(0)
    network = UNet(base_channels=2, depth=2, dropout=0.5)  # left in training mode
    image = np.random.default_rng(0).random(size, np.float32)
    tile, border = 92, 20

    def run(part):
        return box["cell_probability"](network, part)

    ours = box["stitch"](image, run, tile, 52, border)
    np.testing.assert_allclose(ours, predict(network, image, tile=tile), atol=1e-6)
    # In one piece: a tile that covers the whole.
    length = network.input_size(max(size))
    whole = box["stitch"](image, run, length, 16, border)
    np.testing.assert_allclose(ours, whole, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 3, 8])
def test_the_scores_to_keep_are_the_librarys(cells):
    random = np.random.default_rng(cells)
    labels = np.zeros((30, 40), bool)  # height and width differ
    for row, column in random.integers(3, 27, (cells, 2)):
        labels[row - 3 : row + 3, column - 3 : column + 3] = True
    labels[:, ::7] = False  # at least two cells
    probabilities = np.clip(labels + random.normal(0, 0.4, labels.shape), 0, 1)
    box, library = kept("metrics"), metrics.evaluate(labels, probabilities)
    for name in ("v_rand", "v_info"):
        at_half = library.curves[name].values[5]
        assert box[name](labels, probabilities > 0.5) == pytest.approx(at_half)


def test_the_way_to_keep_is_that_of_the_recorded_runs():
    """`results.hela` prepares and enlarges as the page does, on frames of its own."""
    box = kept("touching-cells")
    images, labels = data.synthetic_cells(2, 128)
    frames = data.dic_hela.Frames(images, labels, np.array(["01"] * 2), np.arange(2))
    settings = hela.CellSettings(box["STEP"], 0.3, 0.65, 0.5, 0.5, 6.0, 500)
    small, _ = hela.prepared(frames, settings)
    np.testing.assert_array_equal(box["shrink"](images), small)
    torch.manual_seed(0)
    network = UNet(base_channels=2, depth=2)
    theirs = hela._probabilities(network, small, settings, 1)
    np.testing.assert_allclose(box["probability"](network, images), theirs, atol=1e-6)
    trained = box["train"](images, labels, held_out=[1], steps=1)
    assert box["probability"](trained, images).shape == images.shape
