"""What `fit` learns from: classes, instances, lists, unknown pixels, a start."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.segmentation import expand_labels

from unet_lib.data import synthetic_em
from unet_lib.metrics import pixel_error
from unet_lib.model import UNet
from unet_lib.networks import load_network
from unet_lib.predict import predict
from unet_lib.train import TrainConfig, examples, fit, folder, steps
from unet_lib.weights import label_cells, part, weight_map

IMAGES, LABELS = synthetic_em(slices=3, size=40, seed=1)
# Cells that touch, each with its number.
CELLS = np.stack([expand_labels(label_cells(one), 9) for one in LABELS])
SIZES = [IMAGES[0], IMAGES[1, :33], IMAGES[2, :, :37]]
SIZED = [LABELS[0], LABELS[1, :33], LABELS[2, :, :37]]
CONFIG = TrainConfig(
    base_channels=2, depth=1, tile=24, steps=3, held_out=(2,), device="cpu"
)


def run(images=IMAGES, labels=LABELS, path=None, network=None, **changes):
    config = replace(CONFIG, **changes)
    return fit(config, images, labels, path, progress=False, network=network)


def same_network(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def outcome(result):
    return {k: v for k, v in result.metrics.items() if k != "seconds"}


# Classes.


def three_classes():
    """Background, cells in the left half, cells in the right half."""
    classes = LABELS.astype(np.int64)
    classes[..., 20:] *= 2
    return classes


def test_more_classes(tmp_path):
    classes = three_classes()
    classes[2, :5] = -1
    result = run(labels=classes, path=tmp_path, num_classes=3, watch_at=(2,))
    network = load_network(tmp_path / "network.safetensors")
    assert network.arguments["num_classes"] == 3
    called = predict(network, IMAGES[2]).argmax(0)
    counts = np.zeros((3, 3))
    for truth, ours in zip(classes[2].ravel(), called.ravel(), strict=True):
        counts[truth, ours] += truth >= 0  # one by one
    dice = [2 * counts[c, c] / (counts[c].sum() + counts[:, c].sum()) for c in range(3)]
    assert result.metrics["dice"] == pytest.approx(dice)
    assert result.metrics["mean_dice"] == pytest.approx(np.mean(dice[1:]))
    assert "pixel_error" not in result.metrics
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_dice"]) for row in rows if row["mean_dice"]] == [
        row["mean_dice"] for row in result.history if "mean_dice" in row
    ]
    assert (tmp_path / "watched" / "step-000002.png").exists()
    assert outcome(run(labels=classes, path=tmp_path, num_classes=3)) == outcome(result)


def test_a_class_that_is_nowhere_has_no_dice():
    found = np.zeros((4, 2, 2), np.float32)
    found[1], found[0, 0] = 0.5, 0.9
    config = replace(CONFIG, num_classes=4)
    truth = np.array([[0, 1], [1, 3]], np.uint8)
    scores = examples.score(config, [truth], [found])
    assert scores["dice"] == pytest.approx([2 / 3, 1 / 2, None, 0])
    assert scores["mean_dice"] == pytest.approx(1 / 4)


def test_classes_are_weighed_as_classes():
    classes = three_classes()
    sampler = steps.build_sampler(replace(CONFIG, num_classes=3), IMAGES, classes)
    np.testing.assert_array_equal(
        sampler.maps[:, 2], weight_map(classes, num_classes=3)
    )
    assert (sampler.maps[:, 2].numpy() != weight_map(classes)).any()


# Instances.


@pytest.mark.parametrize("weighting", ["map", "none"])
def test_instances_are_parted_and_weighed(weighting):
    config = replace(CONFIG, instances=True, weighting=weighting)
    cells = CELLS.astype(np.int32)
    cells[0, :7] = -1
    sampler = steps.build_sampler(config, IMAGES, cells)
    parted = part(cells)
    assert ((cells > 0) & (parted == 0)).sum() > 50  # there are gaps to learn
    np.testing.assert_array_equal(sampler.maps[:, 1], np.sign(parted))
    weights = weight_map(parted) if weighting == "map" else parted != -1
    np.testing.assert_array_equal(sampler.maps[:, 2], weights)


def test_instances_learn_and_score_cell_against_background(tmp_path):
    cells = 300 * CELLS.astype(np.int64)
    cells[2, :, :9] = -1
    result = run(labels=cells, path=tmp_path, instances=True)
    known = cells[2] >= 0
    found = predict(load_network(tmp_path / "network.safetensors"), IMAGES[2])
    parted = (part(cells[2]) > 0)[known]
    curve = pixel_error(parted[None], found[known][None])
    assert result.metrics["pixel_error"] == curve.value
    # As the same cells would be, drawn by hand with their gaps.
    drawn = np.sign(part(cells))
    tiles = [
        steps.build_sampler(replace(CONFIG, instances=i), IMAGES, one).batch([0, 1])
        for i, one in ((True, cells), (False, drawn))
    ]
    assert torch.equal(tiles[0][1], tiles[1][1])
    # Other numbers are other data.
    with pytest.raises(ValueError, match="on other labels"):
        run(labels=np.where(cells == 300, 301, cells), path=tmp_path, instances=True)


# Unknown pixels.


def test_what_is_unknown_does_not_matter():
    """Whatever the truth is there, the same network and score come out."""
    unknown = np.zeros(LABELS.shape, bool)
    unknown[:, 10:22, 5:30] = True
    known = np.where(unknown, -1, LABELS.astype(int))
    result = run(labels=known)
    again = run(labels=known.astype(np.float32))
    assert same_network(result.network, again.network)
    found = predict(result.network, IMAGES[2])[~unknown[2]]
    curve = pixel_error(LABELS[2][~unknown[2]][None], found[None])
    assert result.metrics["pixel_error"] == curve.value
    assert result.history[-1]["loss"] != run().history[-1]["loss"]


def test_a_gradient_of_unknown_pixels_is_none(monkeypatch):
    labels = np.where(IMAGES > 0.5, -1, LABELS.astype(int))
    step, seen = steps.train_step, []

    def spy(network, optimizer, image, label, weight, *rest):
        seen.append(float((weight == 0).float().mean()))
        return step(network, optimizer, image, label, weight, *rest)

    monkeypatch.setattr(steps, "train_step", spy)
    run(labels=labels, weighting="none")
    assert all(0.1 < share < 0.9 for share in seen)


# Slices of different sizes, channels.


def test_different_sizes_are_trained_watched_and_resumed(tmp_path):
    result = run(SIZES, SIZED, tmp_path, watch_at=(2,))
    curve = pixel_error(SIZED[2], predict(result.network, SIZES[2]))
    assert result.metrics["pixel_error"] == curve.value
    again = run(SIZES, SIZED, tmp_path)
    assert same_network(result.network, again.network)
    with pytest.raises(ValueError, match="on other images"):
        run([SIZES[0], 1 - SIZES[1], SIZES[2]], SIZED, tmp_path)


def test_several_held_out_sizes_are_scored_together():
    result = run(SIZES, SIZED, held_out=(0, 2), steps=1)
    found = [predict(result.network, SIZES[z]).ravel() for z in (0, 2)]
    truth = [SIZED[z].ravel() for z in (0, 2)]
    curve = pixel_error(np.hstack(truth)[None], np.hstack(found)[None])
    assert result.metrics["pixel_error"] == curve.value


def test_a_list_of_one_size_is_the_stack(tmp_path):
    first = run(path=tmp_path)
    second = run([*IMAGES], [*LABELS], tmp_path)  # finished: it is the same run
    assert same_network(first.network, second.network)
    assert folder.fingerprint([*IMAGES], [*LABELS]) == folder.fingerprint(
        IMAGES, LABELS
    )


@pytest.mark.parametrize("listed", [False, True])
def test_channels(listed):
    colored = np.stack([IMAGES, 1 - IMAGES, IMAGES**2], 1)
    images, labels = colored, LABELS
    if listed:
        images = [one[..., : 36 + z] for z, one in enumerate(images)]
        labels = [one[..., : 36 + z] for z, one in enumerate(labels)]
    network = run(images, labels, in_channels=3).network
    assert network.arguments["in_channels"] == 3
    assert predict(network, colored).shape == LABELS.shape


def test_one_channel_may_be_named():
    plain = run(steps=1)
    named = run(IMAGES[:, None], steps=1)
    assert same_network(plain.network, named.network)
    assert outcome(plain) == outcome(named)


def test_a_preview_is_of_what_is_learned(tmp_path):
    """Before the first step, in the run's folder, and not where nothing is left."""
    seen = []

    def started(sampler):
        assert (tmp_path / "config.json").exists()
        assert not (tmp_path / "history.csv").exists()
        seen.append(sampler)

    for _ in range(2):
        fit(CONFIG, IMAGES, LABELS, tmp_path, progress=False, started=started)
    (sampler,) = seen
    np.testing.assert_array_equal(sampler.maps[:, 0], IMAGES[:2])
    np.testing.assert_array_equal(sampler.maps[:, 1], LABELS[:2])
    np.testing.assert_array_equal(sampler.maps[:, 2], weight_map(LABELS[:2]))


# A network to start from.


def start(**changes):
    torch.manual_seed(5)
    return UNet(**{"base_channels": 2, "depth": 1, "dropout": 0.0} | changes)


def test_a_run_starts_from_a_network():
    network, untouched = start(), start()
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    result = run(network=network, steps=1, learning_rate=1e-30, average=0.5)
    assert same_network(network, untouched)
    assert not network.training
    for name, tensor in result.network.state_dict().items():
        torch.testing.assert_close(tensor, untouched.state_dict()[name])
    assert result.network.arguments["dropout"] == CONFIG.dropout
    assert not same_network(run(steps=1).network, result.network)
    # In a wrapper, and in half precision, it is the same network.
    wrapped = torch.nn.DataParallel(start())
    again = run(network=wrapped, steps=1, learning_rate=1e-30, average=0.5)
    assert same_network(again.network, result.network)
    run(network=start().bfloat16(), steps=1)


def test_a_start_is_part_of_the_run(tmp_path):
    result = run(path=tmp_path, network=start())
    data = json.loads((tmp_path / "data.json").read_text())
    assert set(data) == {"images", "labels", "start_weights"}
    assert same_network(result.network, run(path=tmp_path, network=start()).network)
    other = start()
    with torch.no_grad():
        other.classify.bias[0] += 1e-3
    for network in (other, None):
        with pytest.raises(ValueError, match="a run on other start weights"):
            run(path=tmp_path, network=network)
    plain = tmp_path / "plain"
    run(path=plain)
    with pytest.raises(ValueError, match="a run on other start weights"):
        run(path=plain, network=start())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"in_channels": 3}, "has in_channels=3, .* says in_channels=1"),
        ({"num_classes": 4}, "has num_classes=4, .* says num_classes=2"),
        ({"base_channels": 1}, "has base_channels=1, .* says base_channels=2"),
        ({"padding": "same"}, "has padding='same', .* says padding='valid'"),
        ({"batch_norm": True}, "has batch_norm=True, .* says batch_norm=False"),
        ({"depth": 2}, "has depth=2, .* depth=1: take TrainConfig.depth=2"),
    ],
)
def test_a_start_of_another_kind_is_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run(path=tmp_path / "run", network=start(**changes))
    assert not (tmp_path / "run").exists()
