"""What the library refuses: each row is a call and what its error says.

A refusal is a ValueError that a check of our own raises, not something deep inside,
and before anything is written. What needs a file or a patch stands with its
module's tests, and so do the tables of metrics and predict.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import traceback
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from matplotlib import pyplot as plt

import unet_lib
from unet_lib import plot
from unet_lib.augment import (
    Augmentation,
    TileSampler,
    deform,
    displacement_field,
    resample,
)
from unet_lib.blocks import halo, predict_into
from unet_lib.cells import find_cells, measure_cells, score_cells
from unet_lib.data import Stacks, export_slices, folds, load_dic_hela, load_isbi2012
from unet_lib.data.dic_hela import synthetic_cells
from unet_lib.data.synthetic import synthetic_em
from unet_lib.data.tiff import write_tiff
from unet_lib.export import export_bioimage, export_onnx
from unet_lib.metrics import evaluate
from unet_lib.model import UNet, incoming_nodes, input_size, output_size, valid_sizes
from unet_lib.networks import save_network
from unet_lib.predict import predict
from unet_lib.train import TrainConfig, fit, weighted_cross_entropy
from unet_lib.weights import (
    border_distances,
    class_balance,
    label_cells,
    part,
    weight_map,
)

HOUSE = Path(unet_lib.__file__).parent
TESTS = Path(__file__).parent
NAN, INFINITY = np.nan, np.inf

IMAGES, LABELS = synthetic_em(slices=4, size=48, seed=1)
WEIGHTS = np.ones(IMAGES.shape, np.float32)
IMAGE, LABEL = IMAGES[0], LABELS[0]
FLOATS, GRID = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 3, 3)
NETWORK = UNet(base_channels=1, depth=2)
PADDED = UNet(base_channels=1, depth=2, padding="same")
ONE_CLASS = UNet(num_classes=1, base_channels=1, depth=1)
BATCH_NORM = UNet(base_channels=1, depth=2, padding="same", batch_norm=True)
GRAYS = (np.add.outer(20 * np.arange(12), 20 * np.arange(12)) % 256).astype(np.uint8)
SCORES, CLASSES = torch.zeros(2, 2, 5, 4), torch.zeros(2, 5, 4, dtype=torch.int64)
PIXELS = torch.ones(2, 5, 4)  # their weights


def stacks(**changes):
    given = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES,
        "test_labels": None,
        "source": "synthetic",
    }
    return Stacks(**given | changes)


def sampler(**changes):
    given = {"images": IMAGES, "labels": LABELS, "weights": WEIGHTS}
    return TileSampler(**given | {"tile": 32, "output": 20} | changes)


def loss(**changes):
    given = {"scores": SCORES, "labels": CLASSES, "weights": PIXELS}
    return weighted_cross_entropy(**given | changes)


def block(source=IMAGE, target=None, network=NETWORK, **options):
    target = np.zeros((48, 48), np.float32) if target is None else target
    return predict_into(network, source, target, **options)


UNKNOWN = np.where(np.arange(48) < 9, -1, LABEL.astype(int))
SIZES = [IMAGE, IMAGE[:40, :44]]  # of different sizes, and their labels
SIZED = [LABEL, LABEL[:40, :44]]
NUMBERED = np.arange(1, 5)[:, None, None]


def run(images=IMAGES, labels=LABELS, network=None, **changes):
    tile = UNet(base_channels=1, depth=1).input_size(8)
    small = {"base_channels": 1, "depth": 1, "tile": tile, "steps": 1}
    config = TrainConfig(**small | {"device": "cpu"} | changes)
    return fit(config, images, labels, "run", progress=False, network=network)


def package(network=NETWORK, path="a.zip", **options):
    return export_bioimage(network, path, **options)


def axes():
    return plt.figure().add_subplot()


def draw(*values):
    return IMAGE


def labels_refused(function):
    return [
        (lambda: function(np.zeros(4, int)), r"got \(4,\)"),
        (lambda: function(np.zeros((1, 1, 4, 4), int)), r"got \(1, 1, 4, 4\)"),
        (lambda: function(np.zeros((0, 4), int)), r"at least one pixel, got \(0, 4\)"),
        (lambda: function(np.zeros((4, 4), np.float32)), "got float32"),
        (lambda: function(np.full((4, 4), NAN)), "got float64"),
        (lambda: function(np.zeros((4, 4), int) - 2), "from 0 on.*, got int64 from -2"),
        (lambda: function(np.full((4, 4), 2**40)), "up to 2147483647"),
        (lambda: function(np.full((4, 4), "cell")), "integers from 0 on.*, got <U4"),
        (lambda: function(GRAYS), "single pixels .* look like gray values"),
    ]


EXTRA = all(map(find_spec, ("onnx", "onnxscript", "bioimageio")))
# fmt: off
EXPORTED = [
    (lambda: export_onnx(NETWORK, "a.tif"), r"a\.tif must end in \.onnx"),
    (lambda: package(path="a.onnx"), r"a\.onnx must end in \.zip"),
    (lambda: package(image=IMAGE[0]), r"shape \(64, 64\) or larger, .* got \(48,\)"),
    (lambda: package(image=IMAGE), r"shape \(64, 64\) or larger, .* got \(48, 48\)"),
    (lambda: package(image=np.zeros((2, 56, 56))), r"got \(2, 56, 56\)"),
    (lambda: package(image=np.full((64, 64), 9)), "image of floats from 0 to 1"),
    (lambda: package(pixel_size=0), "pixel_size must be a number above 0, not 0"),
    (lambda: package(pixel_size="4 nm"), "pixel_size must be .* not '4 nm'"),
    (lambda: package(white=-1), "white must be .* not -1"),
    (lambda: package(white=INFINITY), "white must be .* not inf"),
    (lambda: package(name="net"), "5 to 128 letters, .* not 'net'"),
    (lambda: package(name="Zellen/Ränder"), "5 to 128 letters"),
    (lambda: package(authors="A. Author"), r"pass \['A. Author'\]"),
    (lambda: package(authors=[1]), r"authors as names, .* authors=\[1\]"),
    (lambda: package(license="free"), "SPDX identifier .* license='free'"),
    (lambda: package(cite=["doi"]), "pairs of a text and a DOI"),
    (lambda: package(cite=[("Cardona", "no DOI")]), "a DOI such as 10.1371"),
]
REFUSED = [
    # data, synthetic
    *[(partial(folds, *n), f"k={n[1]} and slices={n[0]}")
      for n in [(30, 1), (30, 0), (30, -2), (4, 5), (1, 1), (30, 2.5), ("30", 5)]],
    (lambda: synthetic_em(0, 64), "slices >= 1 and size >= 16"),
    (lambda: synthetic_em(2, 15), "slices >= 1 and size >= 16"),
    (lambda: synthetic_em(-1, 512), "slices >= 1 and size >= 16"),
    (lambda: synthetic_em(2.5, 64), r"needs integers .* slices=2\.5"),
    (lambda: synthetic_em(2, "64"), "needs integers .* size='64'"),
    (lambda: synthetic_em(2, 64, -1), "a seed >= 0; got .* seed=-1"),
    (lambda: load_isbi2012("nowhere"), r"nowhere.train-volume\.tif cannot be read"),
    (lambda: export_slices((IMAGES, LABELS), "out"), "Stacks, got tuple: load_isbi"),
    (lambda: stacks(train_images=IMAGE), r"train_images .* shape \(48, 48\)"),
    (lambda: stacks(test_images=None), "test_images .* got NoneType"),
    (lambda: stacks(train_images=IMAGES[:0]), r"train_images .* \(0, 48, 48\)"),
    (lambda: stacks(train_images=IMAGES * NAN), "from 0 to 1, .* with NaN"),
    (lambda: stacks(test_images=IMAGES * 255), "test_images from 0 to 1"),
    (lambda: stacks(train_images=LABELS), "floats from 0 to 1, got uint8"),
    (lambda: stacks(train_labels=None), "train_labels .* got NoneType"),
    (lambda: stacks(train_labels=LABELS[:3]), "of the shape of its images, got"),
    (lambda: stacks(train_labels=LABELS * 255), "0 .* and 1 .*, .* to 255"),
    (lambda: stacks(train_labels=LABELS - 1.0), "0 .* and 1 .*, got float64 from -1"),
    (lambda: stacks(test_labels=LABELS.astype(int) - 1), "test_labels .* from -1 to 0"),
    (lambda: stacks(test_labels=LABELS.astype(str)), "test_labels .* got <U"),
    (lambda: load_dic_hela("nowhere"), r"no readable images of sequence 01 .*t002"),
    (lambda: synthetic_cells(0, 64), "slices >= 1 and size >= 64"),
    (lambda: synthetic_cells(2, 63), "slices >= 1 and size >= 64"),
    (lambda: synthetic_cells(2.5, 64), r"needs integers .* slices=2\.5"),
    (lambda: synthetic_cells(2, 64, -1), "a seed >= 0; got .* seed=-1"),
    # cells
    (lambda: find_cells(np.zeros(4)), r"probabilities of shape .* got \(4,\)"),
    (lambda: find_cells(IMAGES[:0]), r"at least one pixel, got \(0, 48, 48\)"),
    (lambda: find_cells(np.zeros((20, 20, 3))), "looks like color"),
    (lambda: find_cells([IMAGE, IMAGE[1:]]), "of different sizes"),
    (lambda: find_cells(IMAGE * 255), r"from 0 to 1, .*float32\(255\)"),
    (lambda: find_cells(IMAGE * NAN), "from 0 to 1, got float32 with NaN"),
    *[(partial(find_cells, IMAGE, threshold), "threshold from 0 to 1, got")
      for threshold in (-0.1, 1.5, NAN, "0.5", None)],
    *[(partial(find_cells, IMAGE, watershed=h), "pixels above 0, got .*: pass None")
      for h in (0, -1, NAN, INFINITY, "2")],
    *[(partial(find_cells, IMAGE, smallest=n), "smallest .* from 0 on, got")
      for n in (-1, 2.5, None)],
    (lambda: measure_cells(np.zeros(4, int)), r"labels of shape .* got \(4,\)"),
    (lambda: measure_cells(IMAGE), "integers from 0 on, got float32"),
    (lambda: measure_cells(LABEL.astype(int) - 1), "from 0 on, got int64 from -1"),
    *[(partial(measure_cells, LABEL, size), r"\(height, width\) of a pixel, got")
      for size in [(1,), (1, 2, 3), (0, 1), (1, -1), (NAN, 1), ("1", "1"), 0.2]],
    (lambda: score_cells(LABEL, LABEL[1:]), r"one shape, got \(48, 48\) and \(47, 48"),
    (lambda: score_cells(LABEL[0], LABEL[0]), r"reference of shape .* got \(48,\)"),
    (lambda: score_cells(IMAGE, LABEL), "reference of integers .*, got float32"),
    (lambda: score_cells(LABEL, IMAGE), "found of integers .*, got float32"),
    (lambda: score_cells(LABEL, LABEL.astype(int) - 1), "found of .* int64 from -1"),
    (lambda: score_cells(LABEL.astype(int) - 2, LABEL), "reference of .* from -2"),
    (lambda: score_cells(LABEL, np.full((48, 48), 2**40)), "found .* up to 2147483647"),
    (lambda: score_cells(np.zeros((20, 20, 3), int), LABEL), "looks like color"),
    # model
    (lambda: UNet(in_channels=0), "in_channels must be an integer from 1 on, not 0"),
    (lambda: UNet(num_classes=-1), "num_classes .* not -1"),
    (lambda: UNet(base_channels=1.5), r"base_channels .* not 1\.5"),
    (lambda: UNet(depth=0), "depth .* not 0"),
    (lambda: UNet(depth="4"), "depth .* not '4'"),
    (lambda: UNet(padding="mirror"), '"valid" or "same", not \'mirror\''),
    (lambda: UNet(padding=1), "padding .* not 1"),
    (lambda: UNet(dropout=1.0), r"dropout must be from 0 to below 1, not 1\.0"),
    (lambda: UNet(dropout=-0.1), r"dropout .* not -0\.1"),
    (lambda: UNet(dropout=NAN), "dropout .* not nan"),
    (lambda: UNet(dropout="0.5"), "dropout .* not '0.5'"),
    (lambda: UNet(batch_norm=1), "batch_norm must be True or False, not 1"),
    (lambda: NETWORK(torch.zeros(1, 44, 44)), r"width\), got \(1, 44, 44\)"),
    (lambda: NETWORK(torch.zeros(44, 44)), "batch, 1"),
    (lambda: NETWORK(torch.zeros(1, 2, 44, 44)), "batch, 1"),
    (lambda: NETWORK(torch.zeros(1, 1, 44, 45)), "input of 45 pixels"),
    (lambda: NETWORK(torch.zeros(1, 1, 0, 44)), "input of 0 pixels"),
    (lambda: NETWORK(torch.zeros(1, 1, 44, 44).byte()), "floats .*, got torch.uint8"),
    (lambda: NETWORK(torch.zeros(1, 1, 44, 44).long()), "floats .*, got torch.int64"),
    (lambda: NETWORK(torch.zeros(1, 1, 44, 44).double()), "float32, as the network's"),
    (lambda: NETWORK(np.zeros((1, 1, 44, 44))), "tensor, got ndarray: .*from_numpy"),
    (lambda: NETWORK.output_size(45), "nearest legal size.* 44, 48"),
    (lambda: NETWORK.output_size(0), "input of 0 pixels"),
    (lambda: NETWORK.output_size(44.0), r"whole pixels, got 44\.0"),
    (lambda: NETWORK.input_size(0), "at least one pixel, got 0"),
    (lambda: PADDED.input_size(-3), "at least one pixel, got -3"),
    (lambda: NETWORK.input_size(INFINITY), "whole pixels, got inf"),
    (lambda: PADDED.input_size(20.5), r"whole pixels, got 20\.5"),
    (lambda: NETWORK.valid_sizes(1.5, 100), r"whole pixels, got 1\.5"),
    (lambda: NETWORK.valid_sizes(1, "100"), "whole pixels, got '100'"),
    (lambda: incoming_nodes(torch.nn.ReLU()), "Conv2d or a Conv.*, got ReLU"),
    (lambda: output_size(45, depth=2), "nearest legal size.* 44, 48"),
    (lambda: input_size(0), "at least one pixel, got 0"),
    (lambda: valid_sizes(1.5, 100), r"whole pixels, got 1\.5"),
    (lambda: BATCH_NORM(torch.zeros(1, 1, 4, 4)), "tile of 8 pixels, or a batch of 2"),
    (lambda: save_network(torch.nn.ReLU(), "a"), "a UNet, or one in .* got ReLU"),
    (lambda: save_network(NETWORK, "a", torch.int8), "torch.float16, got torch.int8"),
    (lambda: save_network(NETWORK, "a", "float16"), "torch.float16, got 'float16'"),
    # tiff
    (lambda: write_tiff("a.tif", IMAGES.astype(float), "ZYX"), "float32, .* float64"),
    (lambda: write_tiff("a.tif", IMAGES, "YX"), r"\(4, 48, 48\) and 'YX'"),
    (lambda: write_tiff("a.tif", IMAGES, "SYX"), "axes of YX, .* and 'SYX'"),
    (lambda: write_tiff("a.tif", IMAGES, "ZYX", (1, 0, 1)), r"positive .*\(1, 0, 1\)"),
    (lambda: write_tiff("a.tif", IMAGE, "XY"), "axes of YX, .* and 'XY'"),
    # weights
    *[row for function in (label_cells, weight_map, border_distances, part)
      for row in labels_refused(function)],
    (lambda: label_cells(UNKNOWN), "-1 for unknown pixels, .* is taken by fit, Tile"),
    (lambda: part(LABELS, gap=-1), "a gap as an integer from 0 on, got -1"),
    (lambda: part(LABELS, gap=0.5), r"a gap as an integer from 0 on, got 0\.5"),
    (lambda: weight_map([LABEL, LABEL[0, 1:]]), r"one slice, .* got \(47,\)"),
    (lambda: weight_map(3 * LABEL, num_classes=3), "up to 3: pass num_classes=4"),
    (lambda: weight_map(LABEL, num_classes=1), "num_classes of at least 2, got 1"),
    (lambda: class_balance(3 * LABEL, 3), "3 classes, 0 to 2, got labels up to 3"),
    (lambda: label_cells(LABELS), "one slice"),
    (lambda: label_cells(np.zeros((1, 1 << 15), int)), "at most 32767 pixels a side"),
    (lambda: border_distances(LABELS), "one slice"),
    *[(partial(weight_map, LABEL, **options), "w0 >= 0 and sigma > 0, got")
      for options in [{"w0": -1}, {"w0": NAN}, {"w0": INFINITY}, {"sigma": 0},
                      {"sigma": -5}, {"sigma": NAN}, {"sigma": INFINITY},
                      {"w0": "10"}]],
    (lambda: border_distances(LABEL, reach=-1), "a reach from 0 on, got -1"),
    (lambda: border_distances(LABEL, reach=NAN), "a reach from 0 on, got nan"),
    (lambda: class_balance(np.zeros((0, 3), int)), "Expected at least one pixel"),
    (lambda: class_balance(np.full((2, 2), NAN)), "Expected labels of integers"),
    (lambda: class_balance(np.zeros((4, 4), int) - 2), "integers from 0 on"),
    # augment
    *[(partial(Augmentation, **{name: value}), f"{name} .* not {value}")
      for name in ("deformation", "contrast", "brightness")
      for value in (-1, NAN, INFINITY)],
    (lambda: Augmentation(deformation="10"), "deformation .* not '10'"),
    (lambda: Augmentation(rotation="no"), "rotation must be True or False, not 'no'"),
    (lambda: Augmentation(mirror=1), "mirror must be True or False, not 1"),
    (lambda: displacement_field(GRID[0], (8, 8)), r"got \(2, 3, 3\)"),
    (lambda: displacement_field(GRID[:, :1], (8, 8)), "shape"),
    (lambda: displacement_field(GRID[..., :1], (8, 8)), "two points"),
    (lambda: displacement_field(GRID.long(), (8, 8)), "floats, got torch.int64"),
    (lambda: deform(FLOATS[0], GRID), r"got \(1, 8, 8\)"),
    (lambda: deform(FLOATS.byte(), GRID), "floats, got torch.uint8"),
    (lambda: deform(FLOATS, GRID.expand(2, 2, 3, 3)), "one set of coordinates"),
    (lambda: resample(FLOATS, FLOATS), "coordinates"),
    (lambda: resample(FLOATS[:, :0], FLOATS.expand(1, 2, 8, 8)), "at least one"),
    (lambda: sampler(labels=LABELS[:1]), "of one shape"),
    (lambda: sampler(weights=WEIGHTS[:, :-1]), "of one shape"),
    (lambda: sampler(images=IMAGE, labels=LABEL, weights=WEIGHTS[0]), "one shape"),
    (lambda: sampler(images=IMAGES[:0], labels=LABELS[:0], weights=WEIGHTS[:0]),
     "at least one pixel"),
    (lambda: sampler(images=IMAGES * NAN), "images .* NaN"),
    (lambda: sampler(images=LABELS), "images .* got uint8"),
    (lambda: sampler(labels=LABELS.astype(float)), "labels of integers"),
    (lambda: sampler(labels=LABELS.astype(int) - 2), "from -2"),
    (lambda: sampler(images=SIZES, labels=SIZED[:1], weights=SIZES), "as many slices"),
    (lambda: sampler(images=SIZES, labels=SIZED, weights=[*SIZES[:1], SIZES[1][1:]]),
     r"weights of one shape \(height, width\).*\(40, 44\), .*\(39, 44\) number 1"),
    (lambda: sampler(images=[SIZES[0], 255 * SIZES[1]], labels=SIZED, weights=SIZES),
     r"Expected images\[1\] from 0 to 1, .* pass images\[1\] / np"),
    (lambda: sampler(images=[SIZES[0], np.stack([SIZES[1]] * 2)], labels=SIZED,
                     weights=SIZES), "or images with channels"),
    (lambda: sampler(weights=WEIGHTS * INFINITY), "weights .* infinity"),
    (lambda: sampler(weights=-WEIGHTS), "floats of 0 and above, got float32 from -1"),
    (lambda: sampler(images=IMAGES * 255), r"from 0 to 1, .*float32\(255\)"),
    (lambda: sampler(images=IMAGES - 1), "from 0 to 1, got float32 from -"),
    (lambda: sampler(tile=32.0), "Expected integers"),
    (lambda: sampler(seed=-1), "a seed from 0 on, got 20, 32 and -1"),
    (lambda: sampler(tile=20, output=32), "0 < output <= tile"),
    (lambda: sampler(tile=33), "an even number apart"),
    (lambda: sampler(output=0), "0 < output"),
    (lambda: sampler().batch([]), "at least one"),
    # configuration
    *[(partial(TrainConfig, **{name: value}), f"{name} must be an integer from")
      for name, value in [("tile", 0), ("tile", 572.0), ("batch", 0), ("batch", 1.5),
                          ("steps", 0), ("save_every", -1), ("seed", 0.5),
                          ("depth", 0), ("base_channels", "16")]],
    (lambda: TrainConfig(steps=1e4), r"steps .* from 1 to 2147483647, not 10000\.0"),
    (lambda: TrainConfig(steps=10**400), "steps .* from 1 to 2147483647, not 1000"),
    (lambda: TrainConfig(steps=True), "steps must be an integer .* not True"),
    *[(partial(TrainConfig, seed=seed),
       f"seed must be an integer from 0 to 4294967295, not {seed}")
      for seed in (-1, 2**32)],
    *[(partial(TrainConfig, **{name: value}), f"{name} must be a.* not {value}")
      for name, value in [("learning_rate", 0), ("learning_rate", NAN),
                          ("learning_rate", INFINITY), ("momentum", 1),
                          ("momentum", -0.1), ("average", 1), ("average", NAN),
                          ("dropout", 2), ("w0", -1), ("sigma", 0)]],
    (lambda: TrainConfig(w0="10"), "w0 must be a number of at least 0, not '10'"),
    (lambda: TrainConfig(w0=True), "w0 must be a number of at least 0, not True"),
    (lambda: TrainConfig(sigma=10**400), "sigma must be a number above 0, not 1000"),
    (lambda: TrainConfig(momentum=1), "of at least 0 and below 1, not 1"),
    (lambda: TrainConfig(optimizer="lion"), "'sgd' or 'adam', not 'lion'"),
    *[(partial(TrainConfig, **{name: value}), f"{name} must be .* or .*, not {value!r}")
      for name, value in [("padding", "zeros"), ("weighting", None), ("schedule", 1),
                          ("precision", "half"), ("compile", "yes"), ("compile", 1),
                          ("batch_norm", 1), ("batch_norm", "batch"),
                          ("deterministic", None)]],
    (lambda: TrainConfig(held_out=3), "held_out .* of at least 0, .* not 3"),
    (lambda: TrainConfig(held_out=[[1]]), r"held_out .* not \[\[1\]\]"),
    (lambda: TrainConfig(held_out="12"), "held_out .* not '12'"),
    (lambda: TrainConfig(held_out=(1.5,)), r"held_out .* not \(1\.5,\)"),
    (lambda: TrainConfig(held_out=(-1,)), r"held_out .* not \(-1,\)"),
    (lambda: TrainConfig(held_out=(1, 1)), "held_out must be distinct"),
    (lambda: TrainConfig(watch_at=("10",)), "watch_at must be integers"),
    (lambda: TrainConfig(num_classes=1), "num_classes .* from 2 to .*, not 1"),
    (lambda: TrainConfig(in_channels=0), "in_channels .* from 1 to .*, not 0"),
    (lambda: TrainConfig(instances=True, num_classes=3), "got num_classes=3: leave"),
    (lambda: TrainConfig(device=0), 'device must be a string such as "cpu", or None'),
    (lambda: TrainConfig(augmentation={}), "must be an Augmentation, not {}"),
    (lambda: TrainConfig.from_dict([1]), r"fields of TrainConfig, got \[1\]"),
    (lambda: TrainConfig.from_dict({"rate": 1}), "rate of TrainConfig; known are aug"),
    (lambda: TrainConfig.from_dict({"augmentation": None}), "Augmentation, got None"),
    (lambda: TrainConfig.from_dict({"augmentation": {"turn": 1}}), "turn of Augmen"),
    # blocks
    (lambda: halo(torch.nn.ReLU()), "a UNet, or one in .* got ReLU"),
    (lambda: block(IMAGE.tolist()), "with a shape, a dtype and slices, .* got a list"),
    (lambda: block(IMAGE[0]), r"\(height, width\) or \(slices, .*got \(48,\)"),
    (lambda: block(IMAGES[None]), r"height, width\) with .*got \(1, 4, 48, 48\)"),
    (lambda: block(IMAGE[:0]), r"at least one pixel, got \(0, 48\)"),
    (lambda: block(np.dstack([IMAGE] * 3)), "source .* looks like color"),
    (lambda: block(IMAGES, network=UNet(3, base_channels=1)),
     r"\(3, height, width\) or \(slices, 3, .* got \(4, 48, 48\)"),
    (lambda: block(network=UNet(num_classes=1, base_channels=1)), "two classes"),
    (lambda: block(IMAGE * 1j), "real numbers, got complex64"),
    (lambda: block(GRAYS), r"got uint8: give .*value_range=\(0, 255\)"),
    (lambda: block(IMAGE > 0.5), r"got bool: give .*value_range=\(0, 1\)"),
    (lambda: block(IMAGE * 255), r"in and around rows 0 to 47 .* value_range=\(0, 255"),
    (lambda: block(IMAGE - 1), "from 0 to 1, got float32 from -"),
    (lambda: block(np.where(LABEL, IMAGE, NAN)), "finite .* NaN or infinity in and"),
    *[(partial(block, value_range=given), "two finite numbers .low, high.")
      for given in [(1, 0), (0,), (0, 1, 2), 5, (0, NAN), ("0", "1"), (0, INFINITY)]],
    *[(partial(block, target=target), "target of shape .48, 48. and type float32")
      for target in (IMAGE[1:].copy(), IMAGE.astype(np.float64), LABEL, [0])],
    (lambda: block(IMAGES), r"target of shape \(4, 48, 48\) .*of shape \(48, 48\)"),
    (lambda: block(block=0), "block must be an integer from 1 on, not 0"),
    (lambda: block(block=64.0), r"block must be an integer .* not 64\.0"),
    (lambda: block(max_pixels=9), r"take max_pixels=\d+ or more"),
    (lambda: block(max_pixels=1e6), "max_pixels must be an integer"),
    (lambda: block(network=PADDED, max_pixels=999), "pass max_pixels=2304, or "),
    (lambda: block(network=PADDED, max_pixels="9"), "max_pixels must be an integer"),
    # train
    (lambda: loss(scores=SCORES[:, 0]), r"got \(2, 5, 4\)"),
    (lambda: loss(scores=SCORES[0, 0, 0]), "Expected scores"),
    (lambda: loss(scores=SCORES[..., :-1]), "Expected scores"),
    (lambda: loss(labels=CLASSES[:, None]), "Expected scores"),
    (lambda: loss(weights=PIXELS[:1]), "Expected scores"),
    (lambda: loss(scores=SCORES[:0], labels=CLASSES[:0], weights=PIXELS[:0]),
     "at least one pixel"),
    (lambda: loss(scores=SCORES.long()), "scores of floats"),
    (lambda: loss(labels=CLASSES.int()), "labels of int64, got .*int32"),
    (lambda: loss(labels=CLASSES.double()), "labels of int64"),
    (lambda: loss(labels=CLASSES + 2), "labels from 0 to 1, .* got 2 to 2"),
    (lambda: loss(labels=CLASSES - 100), "got -100 to -100"),  # torch ignores -100
    (lambda: loss(weights=-PIXELS), "weights of 0 and above, finite, got -1"),
    (lambda: loss(weights=PIXELS * NAN), "weights of 0 and above, finite, got nan"),
    (lambda: loss(weights=PIXELS * INFINITY), "finite, got inf"),
    (lambda: fit({}, IMAGES, LABELS, "run"), "TrainConfig, got dict: .*from_dict"),
    (lambda: run(IMAGE, LABEL), "of one shape"),
    (lambda: run(IMAGES, LABELS[:3]), "of one shape"),
    (lambda: run(IMAGES[:0], LABELS[:0]), "at least one pixel"),
    (lambda: run(np.dstack([IMAGE] * 3), np.dstack([LABEL] * 3)), "looks like color"),
    (lambda: run(IMAGES * NAN), "images from 0 to 1, got float32 with NaN"),
    (lambda: run(IMAGES * np.float32(255)), r"pass images / np.float32\(255\)"),
    (lambda: run((IMAGES * 255).astype(np.uint8)), "got uint8"),
    (lambda: run(IMAGES.astype(str)), "floats from 0 to 1, got <U32"),
    (lambda: run(labels=LABELS * 255), "pass labels > 0"),
    (lambda: run(labels=LABELS * 0.5), "0 .membrane. and 1 .cell., .*got float64"),
    (lambda: run(labels=np.where(LABELS > 0, 1, NAN)), "with NaN .* such as nan"),
    (lambda: run(depth=2, tile=4, padding="same", batch_norm=True),
     "single pixel on the lowest level"),
    (lambda: run(labels=LABELS.astype(int) - 2), r"0 .* 1 .*, or -1 .* from -2 to -1"),
    (lambda: run(labels=LABELS.astype(int) - 1), "all pixels .* are of class 0"),
    (lambda: run(labels=0 * LABELS), "nothing to learn: all pixels .* are of class 0"),
    (lambda: run(labels=1 + 0 * LABELS), "nothing to learn: .* are of class 1"),
    (lambda: run(labels=0 * LABELS - 1.0), r"nothing to learn: .* are unknown \(-1\)"),
    (lambda: run(labels=LABEL * NUMBERED), r"instances=True\) if they number cells, "
     r"num_classes=5 if they number classes, or pass labels > 0"),
    (lambda: run(labels=LABEL * NUMBERED, num_classes=3),
     r"labels of 3 classes, .*num_classes=5.*, or instances=True"),
    (lambda: run(labels=LABELS * 0.5, instances=True), "integers from 0 on, or -1"),
    (lambda: run(labels=LABELS * 0.5, num_classes=3), "integers from 0 on, or -1"),
    (lambda: run(SIZES, SIZED[::-1]), r"of one shape \(height, width\).* number 0"),
    (lambda: run(SIZES, SIZED + SIZED), r"as many slices, got \[2, 4\]"),
    (lambda: run(np.stack([IMAGES] * 2, 1)), r"2 channel.* TrainConfig\(in_channels=2"),
    (lambda: run(in_channels=3), r"1 channel.* TrainConfig\(in_channels=1"),
    (lambda: run(np.stack([IMAGES] * 2, -1), in_channels=2), "moveaxis.one, -1, 0"),
    (lambda: run(labels=np.where(NUMBERED > 3, -1, LABELS.astype(int)), held_out=(3,)),
     r"held-out slices \[3\] are -1"),
    (lambda: run(network=NETWORK), r"has depth=2, .* says depth=1: take .*\(depth=2"),
    (lambda: run(network=UNet(in_channels=3, num_classes=5, base_channels=1, depth=1)),
     r"has in_channels=3, num_classes=5, .* says in_channels=1, num_classes=2"),
    (lambda: run(network=torch.nn.ReLU()), "a UNet, or one in .* got ReLU"),
    (lambda: run(held_out=(4,)), "hold out slices"),
    (lambda: run(held_out=(0, 1, 2, 3)), "leave some to train on"),
    (lambda: run(tile=21), "legal size"),
    (lambda: run(device="gpu"), 'device must be "cpu", .* not \'gpu\''),
    # plot
    (lambda: plot.show_images(IMAGE), "goes into a list"),
    (lambda: plot.show_images([]), "at least one"),
    (lambda: plot.show_images([IMAGE, IMAGE[1:]]), r"one size, .* \[\(47, 48\)"),
    (lambda: plot.show_images([np.full((8, 8), 255)]), "1, got int64 from 255"),
    (lambda: plot.show_images([IMAGE * NAN]), "from 0 to 1, got float32 with NaN"),
    (lambda: plot.show_images([IMAGE[:0]]), r"from 0 to 1, got float32 of shape \(0"),
    (lambda: plot.show_images([IMAGE.astype(str)]), "from 0 to 1, got <U32"),
    (lambda: plot.show_images([IMAGE] * 2, ["one"]), "Expected 2 titles, got 1"),
    (lambda: plot.show_images([IMAGE], columns=0), "columns as an integer above 0"),
    (lambda: plot.show_images([IMAGE], width=0), "width as a finite number above 0"),
    (lambda: plot.show_weight_map(axes(), IMAGES), r"one slice.*\(4, 48, 48\)"),
    (lambda: plot.show_weight_map(axes(), IMAGE[:0]), r"at least one .*\(0, 48\)"),
    (lambda: plot.show_weight_map(axes(), IMAGE * NAN), "float32 with NaN"),
    (lambda: plot.show_weight_map(axes(), IMAGE - 9), "above, got float32 from -"),
    (lambda: plot.show_weight_map(axes(), IMAGE, maximum=NAN), "maximum .* got nan"),
    (lambda: plot.overlay(IMAGES[:2], LABEL, "cell"), r"one slice.*\(2, 48, 48\)"),
    (lambda: plot.overlay(IMAGE, LABEL[:, 1:], "cell"), r"one shape.*48\).*47\)"),
    (lambda: plot.overlay(IMAGE * 255, LABEL, "cell"), "from 0 to 1, got float32"),
    (lambda: plot.overlay(IMAGE * NAN, LABEL, "cell"), "image of finite .* NaN"),
    (lambda: plot.overlay(IMAGE, LABEL * NAN, "cell"), "mask of finite .* NaN"),
    (lambda: plot.overlay(IMAGE, LABEL.astype(str), "cell"), "mask .* got <U"),
    (lambda: plot.overlay(IMAGE, LABEL, "weight"), "cell, membrane, .* got 'weight'"),
    (lambda: plot.overlay(IMAGE, LABEL, "cell", alpha=2), "alpha from 0 to 1, got 2"),
    (lambda: plot.overlay_labels(IMAGE, LABEL[1:]), r"one shape.*48\).*\(47, 48\)"),
    (lambda: plot.overlay_labels(IMAGE * NAN, LABEL), "image of finite .* NaN"),
    (lambda: plot.overlay_labels(IMAGE, LABEL, NAN), "alpha from 0 to 1, got nan"),
    (lambda: plot.color_cells(np.zeros((4, 4))), "integers.*float64"),
    (lambda: plot.color_cells(np.full((4, 4), -1)), "int64 from -1"),
    (lambda: plot.color_cells(LABELS), "one slice"),
    (lambda: plot.color_cells(LABEL[:0]), "at least one"),
    (lambda: plot.color_cells(LABEL.astype(str)), "labels .* got <U"),
    (lambda: plot.color_cells(LABEL, like=IMAGE), r"like .*, got shape \(48, 48\)"),
    (lambda: plot.color_stack(LABELS.astype(float)), "integers.*float"),
    (lambda: plot.compare(IMAGE, IMAGE[1:], ("a", "b"), "A slice"), "one size"),
    (lambda: plot.compare(IMAGE, IMAGE, ("a", "b"), "A", width=0), "width .* got 0"),
    (lambda: plot.scale_bar(axes(), -5), "nanometers as .* above 0, got -5"),
    (lambda: plot.scale_bar(axes(), 100, 0), "nanometers_per_pixel .* got 0"),
    (lambda: plot.outline(axes(), 0, 0, 0, 8), "height as a finite number .* got 0"),
    (lambda: plot.outline(axes(), 0, 0, 8, NAN), "width .* got nan"),
    (lambda: plot.outline(axes(), 0, 0, 8, 8, "no"), "matplotlib color, got 'no'"),
    (lambda: plot.explore(draw, {}, "A slice"), "one or two labels"),
    (lambda: plot.explore(draw, {"x": []}, "A slice"), "one or two labels"),
    (lambda: plot.explore(draw, {"x": 3}, "A slice"), "one or two labels"),
    (lambda: plot.explore(draw, [1, 2], "A slice"), r"dictionary .* got \[1, 2\]"),
    (lambda: plot.explore(draw, {"x": [0.1]}, "A slice", start={"x": 0.3}),
     r"cannot start at 0\.3"),
    (lambda: plot.explore(draw, {"x": [0.1]}, "A slice", live_values={"x": [0.2]}),
     r"cannot start at 0\.1"),
    (lambda: plot.explore(draw, {"x": [0.1]}, "A slice", live_values={"y": [0.2]}),
     r"labels \['x'\], got 'y'"),
    (lambda: plot.explore(draw, {"x": [1]}, "A slice", width=0), "width .* got 0"),
    (lambda: plot.explore(lambda x: IMAGE * NAN, {"x": [1]}, "A slice"), "with NaN"),
    (lambda: plot.explore(lambda n: np.zeros((n, n)), {"n": [70, 80]}, "A", width=64),
     "one size"),
    # export; without its extra, importing fails before what a row is about
    (lambda: export_onnx(torch.nn.ReLU(), "a.onnx"), "Expected a UNet, .* got ReLU"),
    (lambda: export_onnx(ONE_CLASS, "a.onnx"), "at least two classes"),
    *(EXPORTED if EXTRA else []),
]
# fmt: on

# Public, and not in the table: where else, or why.
ELSEWHERE = {
    "test_cli.py": {"cli.main"},
    **({} if EXTRA else {"test_export.py": {"export.export_bioimage"}}),
    "test_data.py": {"data.load_or_stand_in"},
    "test_hela.py": {"data.dic_hela.load_hela_or_stand_in"},
    "test_experiments.py": {
        "results.table.read_table",
        "results.table.run_table",
        "results.table.state",
    },
    "test_images.py": {
        "data.images.Images",
        "data.images.Images.for_channels",
        "data.images.Images.write",
        "data.images.read_images",
        "data.images.read_labels",
        "data.images.read_probabilities",
    },
    "test_labeled.py": {"data.labeled.read_labels_of"},
    "test_metrics.py": {
        "metrics.evaluate",
        "metrics.pixel_error",
        "metrics.rand_error",
        "metrics.v_info",
        "metrics.v_rand",
        "metrics.warping_error",
    },
    "test_model.py": {"networks.load_network"},
    "test_predict.py": {"predict.plan_axis", "predict.plan_tiles", "predict.predict"},
    "test_omezarr.py": {
        "data.omezarr.is_zarr",
        "data.omezarr.read_zarr",
        "data.omezarr.written_zarr",
    },
    "test_pretrained.py": {"networks.load_pretrained"},
    "test_records.py": {
        "results.ablation_table",
        "results.changes",
        "results.figures",
        "results.per_slice",
        "results.reported",
        "results.seed_band",
        "results.spreads",
        "results.training_figures",
    },
    "test_tiff.py": {"data.tiff.read_tiff"},
    "test_topology.py": {
        "metrics.topology.mismatches",
        "metrics.topology.thin",
        "metrics.topology.warp",
    },
}
EXEMPT = {
    "augment.TileSampler.draw": "takes a tile's number; the sampler is checked",
    "train.steps.build_network": "takes a configuration, checked",
    "train.steps.build_optimizer": "takes a configuration, checked",
    "train.steps.build_sampler": "takes what `fit` has checked",
    "train.steps.train_step": "its network and its loss check their arrays",
    "data.synthetic_stacks": "takes nothing",
    "cells.CellScores": "a result",
    "cells.CellScores.to_dict": "takes nothing",
    "metrics.Scores": "a result",
    "metrics.Scores.to_dict": "takes nothing",
    "results.as_error": "takes a figure's name and any value",
    "metrics.pairs.f_score": "takes counts of `pixel_error`, checked",
    "metrics.pairs.information_f": "takes `overlaps`",
    "metrics.pairs.overlaps": "takes components of `evaluate`, checked",
    "metrics.pairs.pair_counts": "takes `overlaps`",
    "model.initialize": "takes a network",
    "plot.use_style": "takes nothing",
    "predict.mirror_pad": "takes what `predict` has checked, and its plan",
    "plot.colors.check_picture": "is a check",
    "plot.colors.rgb": "refused by `outline` and `overlay`",
    "plot.slider.divider": "takes what `compare` has checked",
    "plot.slider.smallest": "takes a figure's pixels",
    "plot.slider.encode": "takes a picture of `explore`, checked",
    "plot.slider.live_control": "takes what `explore` has checked",
    "plot.slider.page": "takes what `explore` has checked",
    "metrics.topology.simple_points": "takes nothing",
    "train.processes.best_device": "takes nothing",
    "config.TrainConfig.rate": "takes a step of the run",
}
# Of the commands, argparse checks what they are given.
EXEMPT |= {
    f"cli.run_{name}": "a command; `main` tells what it refuses"
    for name in (
        "cells",
        "data",
        "evaluate",
        "experiments",
        "export",
        "predict",
        "train",
    )
}


def doors(module):
    """Qualified names of what a module offers: the functions, classes and methods.

    ``__all__`` names them; what else a module holds trusts its callers.
    """
    names = set()
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        function = inspect.unwrap(thing) if callable(thing) else None
        if getattr(thing, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(function):
            names.add(name)
        elif inspect.isclass(thing) and not issubclass(thing, Exception | tuple):
            names.add(name)  # an exception or a NamedTuple holds what it is given
            names |= {
                f"{name}.{method}"
                for method, value in vars(thing).items()
                if not method.startswith("_")
                and inspect.isfunction(getattr(value, "__func__", value))
            }
    return {f"{module.__name__.removeprefix('unet_lib.')}.{name}" for name in names}


def refusal(call):
    """The message of a refused call, and the public callable that it called."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - matched by the caller
        call()
    frames = [
        frame.f_code
        for frame, _ in traceback.walk_tb(caught.tb)
        if HOUSE in Path(frame.f_code.co_filename).parents
    ]
    path = Path(frames[0].co_filename).relative_to(HOUSE).with_suffix("")
    module = ".".join(part for part in path.parts if part != "__init__")
    name = frames[0].co_qualname
    for ending in (".__init__", ".__post_init__"):
        name = name.removesuffix(ending)
    last = Path(list(traceback.walk_tb(caught.tb))[-1][0].f_code.co_filename)
    return str(caught.value), f"{module}.{name}", HOUSE in last.parents


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, ours = refusal(call)
    assert re.search(message, found, re.DOTALL)
    assert ours, f"not our own error: {found}"
    assert not any(tmp_path.iterdir())
    plt.close("all")


def test_every_door_is_in_the_table():
    table = {refusal(call)[1] for call, _ in REFUSED}
    plt.close("all")
    names = set()
    for module in pkgutil.walk_packages(unet_lib.__path__, "unet_lib."):
        if "._" not in module.name:
            names |= doors(importlib.import_module(module.name))
    assert {"weights.weight_map", "augment.TileSampler.batch"} <= names
    elsewhere = set().union(*ELSEWHERE.values())
    missing = names - table - elsewhere - set(EXEMPT)
    assert not missing, f"no row says what these refuse: {sorted(missing)}"
    idle = (elsewhere | set(EXEMPT)) & table
    assert not idle, f"in the table by now: {sorted(idle)}"
    for file, some in ELSEWHERE.items():
        words = set(re.findall(r"\w+", (TESTS / file).read_text("utf-8")))
        assert {name.rpartition(".")[2] for name in some} <= words, file


# An advice leads out: after the error, what it says to pass is passed.


def advised(message):
    """The expression after the first "pass" of a message."""
    text = re.search(r": pass (.+)", message, re.DOTALL)[1]
    for end in range(len(text), 0, -1):
        try:
            found = ast.parse(text[:end].strip(), mode="eval").body
        except SyntaxError:
            continue
        if not isinstance(found, ast.Tuple):  # "labels > 0, or" begins with one
            return text[:end].strip()
    raise AssertionError(f"nothing to pass in: {message}")


def follow(function, name, array):
    """Call with what each error says, at most four times, and return the advices."""
    advices = []
    for _ in range(4):
        try:
            function(array)
        except ValueError as error:
            advices.append(advised(str(error)))
            given = {name: array, "np": np, "skimage": skimage}
            array = eval(advices[-1], given)
        else:
            return advices
    raise AssertionError(f"does not lead out: {advices}")


EIGHT_BIT = np.random.default_rng(0).integers(1, 256, IMAGE.shape).astype(np.uint8)
MAP = np.linspace(0, 1, LABEL.size, dtype=np.float32).reshape(LABEL.shape)
INSTANCES = label_cells(LABEL)
VOID = np.where(LABEL > 0, 1, NAN)
SMALL = UNet(base_channels=1, depth=1).eval()
COLORED = UNet(base_channels=1, depth=1, in_channels=3).eval()
HOLED = np.where(np.arange(48) < 9, NAN, IMAGE)
THREE = np.stack([EIGHT_BIT] * 3, -1)


def seen(images):
    assert predict(SMALL, images).shape == IMAGE.shape


@pytest.mark.parametrize(
    ("function", "name", "array", "first"),
    [
        (seen, "images", EIGHT_BIT, "images / np.float32(255)"),
        (seen, "images", EIGHT_BIT.astype(np.uint16), "images / np.float32(255)"),
        (seen, "images", EIGHT_BIT.astype(np.uint16) * 16, "images / np.float32(4095)"),
        (
            seen,
            "images",
            EIGHT_BIT.astype(np.uint16) * 257,
            "images / np.float32(65535)",
        ),
        (seen, "images", EIGHT_BIT * np.uint32(2**24), "images / np.float32(429496729"),
        (seen, "images", EIGHT_BIT - 128.0, "(images + 127.0) / 254.0"),
        (seen, "images", EIGHT_BIT.astype(np.int16) - 128, "(images + 127.0) / 254.0"),
        (seen, "images", (EIGHT_BIT - 128.0).astype(np.float16), "(images + 127.0)"),
        (seen, "images", EIGHT_BIT * 1e30, "images / 2.5"),
        (seen, "images", IMAGE * 1.8 - 0.4, "np.clip(images, 0, 1)"),
        (seen, "images", IMAGE - 1, "(images + "),
        (seen, "images", IMAGE * 0 - 1, "(images + 1.0) / 1.0"),
        (seen, "images", HOLED, "np.where(np.isfinite(images), images, 0)"),
        (seen, "images", IMAGE > 0.5, "images.astype(np.float32)"),
        (seen, "images", THREE, "images[..., :3] @"),
        (seen, "images", np.dstack([THREE, EIGHT_BIT]), "images[..., :3] @"),
        (lambda a: predict(COLORED, a), "images", THREE, "np.moveaxis(images, -1, -3)"),
        (lambda a: sampler(images=a), "images", (IMAGES * 255).round(), "images / np"),
        (
            lambda a: stacks(train_images=a),
            "train_images",
            IMAGES * 255,
            "train_images",
        ),
        (
            lambda a: stacks(train_labels=a),
            "train_labels",
            LABELS * 255,
            "train_labels",
        ),
        (lambda a: evaluate(a, MAP), "labels", LABEL * 255, "labels > 0"),
        (lambda a: evaluate(a, MAP), "labels", INSTANCES, "labels > 0"),
        (lambda a: evaluate(a, MAP), "labels", UNKNOWN, "labels > 0"),
        (lambda a: evaluate(a, MAP), "labels", LABEL * 0.8, "labels > 0"),
        (lambda a: evaluate(a, MAP), "labels", VOID, "labels > 0"),
        (
            lambda a: evaluate(a, MAP),
            "labels",
            np.dstack([LABEL] * 3),
            "labels[..., :3]",
        ),
        (lambda a: evaluate(LABEL, a), "probabilities", MAP * 255, "probabilities / "),
        (weight_map, "labels", LABEL * 0.8, "labels > 0"),
        (label_cells, "labels", UNKNOWN, "labels > 0"),
        (weight_map, "labels", LABEL * 2**40, "skimage.segmentation.relabel"),
        (weight_map, "labels", GRAYS, "labels > 120"),
        (label_cells, "labels", HOLED, "labels > 0"),
        (measure_cells, "labels", INSTANCES * 1.0, "labels.astype(np.int64)"),
        (weight_map, "labels", UNKNOWN.astype(np.float16), "labels.astype(np.int64)"),
    ],
)
def test_an_advice_leads_out(function, name, array, first):
    assert follow(function, name, array)[0].startswith(first)


@pytest.mark.parametrize("cell", [0.8, 2, 255])
def test_an_advice_keeps_what_is_unknown(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = []
    labels = np.broadcast_to(np.where(UNKNOWN > 0, cell, UNKNOWN), IMAGES.shape)
    follow(lambda a: run(labels=given.append(a) or a), "labels", labels)
    np.testing.assert_array_equal(given[1], np.broadcast_to(UNKNOWN, IMAGES.shape))


def test_the_other_advices_lead_out():
    """Of grays, of sizes, of one pixel, of types."""
    with pytest.raises(ValueError, match=r"or skimage\.measure\.label"):
        weight_map(GRAYS)
    weight_map(skimage.measure.label(GRAYS, connectivity=1))
    for size in (43, 45, 1):
        message, _, _ = refusal(lambda size=size: output_size(size, depth=2))
        for legal in re.search(r"size\(s\) ([\d, ]+)\.", message)[1].split(", "):
            assert output_size(int(legal), depth=2) > 0
    message, _, _ = refusal(lambda: BATCH_NORM(torch.zeros(1, 1, 4, 4)))
    tile, batch = map(int, re.findall(r"(\d+) (?:pixels, or|or more)", message))
    BATCH_NORM(torch.zeros(1, 1, tile, tile))
    BATCH_NORM(torch.zeros(batch, 1, 4, 4))
    loss(labels=CLASSES.int().long())
    NETWORK(torch.zeros(1, 1, 44, 44).double().to(torch.float32))
    message, _, _ = refusal(lambda: predict(SMALL, IMAGE, max_pixels=9))
    predict(SMALL, IMAGE, max_pixels=int(re.search(r"=(\d+) or more", message)[1]))


@pytest.mark.parametrize("beyond", [1.0000001, 1 + 5e-6, -5e-6])
def test_rounding_is_not_refused(beyond):
    """It is clipped: what comes out is that of 0 or 1."""
    rounded, exact = MAP.astype(np.float64), MAP.astype(np.float64)
    rounded[5:9], exact[5:9] = beyond, round(beyond)
    np.testing.assert_array_equal(predict(SMALL, rounded), predict(SMALL, exact))
    first, second = evaluate(LABEL, rounded), evaluate(LABEL, exact)
    assert first.to_dict() == second.to_dict()
    given = stacks(train_images=np.broadcast_to(rounded, IMAGES.shape))
    assert 0 <= given.train_images.min() <= given.train_images.max() <= 1
    half = np.full((9, 9), beyond, np.float16)
    assert predict(SMALL, half).shape == (9, 9)
    with pytest.raises(ValueError, match=r"pass np\.clip"):
        predict(SMALL, rounded + 100 * (rounded - exact))


def test_slices_of_different_sizes_are_named():
    with pytest.raises(ValueError, match=r"images .* different sizes: pass them one"):
        predict(SMALL, [IMAGE, IMAGE[1:]])
    with pytest.raises(ValueError, match=r"labels .* different sizes"):
        part([LABEL, LABEL[1:]])


def test_a_number_for_each_cell_is_not_gray_values():
    """However many cells, pixels apart or not; grays are told by single pixels."""
    checker = np.zeros((40, 40), np.int32)
    checker[::2, ::2] = np.arange(1, 401).reshape(20, 20)
    np.testing.assert_array_equal(label_cells(checker), checker)
    checker[0, 0] = 2  # one number twice: no longer one piece a cell
    with pytest.raises(ValueError, match="400 single pixels with 399 different"):
        label_cells(checker)
    slices = np.stack([LABEL, np.pad(GRAYS, (0, 36))])
    with pytest.raises(ValueError, match="gray values"):
        weight_map(slices)
