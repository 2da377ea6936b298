"""The commands that use a trained network: predict and score."""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from unet_lib import _messages
from unet_lib._files import check_output, write_text
from unet_lib.cli.cells import evaluate_instances


def run_predict(
    network: Positional[Path],
    images: Positional[Path],
    output: Positional[Path],
    *,
    channel: int | None = None,
    grey: FlagCreatePairsOff[bool] = False,
    value_range: Annotated[
        tuple[float, float] | Literal["auto"] | None, tyro.conf.arg(name="range")
    ] = None,
    versions: Literal[1, 7, 8] = 1,
    device: str | None = None,
    tile: int | None = None,
    max_pixels: int = 1024 * 1024,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Segment images with a trained network.

    The probability of cell is written for each pixel of a gray image or stack of any
    size, as a float32 TIFF that Fiji opens, with the axes and the pixel size of the
    images. Integer images are scaled by the largest value of their type unless --range
    says otherwise; floating-point images must lie between 0 and 1. A network with
    several channels takes colors or channels; one with more than two classes writes the
    probabilities of all of them.

    Example:

      unet-lib predict results/recorded-run/network.safetensors \\
          test-volume.tif probabilities.tif

    --versions is test-time augmentation: the average over the paper's 7 rotations, or
    over the 8 quarter turns and mirror images, takes 7 or 8 times as long.

    Args:
        network: a .safetensors file of a training run.
        images: a TIFF, PNG or JPEG, one image or a stack, or a folder of them.
        output: the TIFF to write.
        channel: the one channel or color to take, counted from 1.
        grey: convert colors to gray.
        value_range: LOW HIGH, the values that become 0 and 1; or auto, by percentiles.
        versions: average over so many rotated versions of each slice.
        device: "cpu", "cuda" or "mps"; None takes the fastest one available.
        tile: pixels per side of a tile, 572 in the paper; None computes the fewest.
        max_pixels: the most pixels of a tile, which bounds the memory needed.
        overwrite: replace OUTPUT if it exists.
    """
    from unet_lib.data.images import read_images
    from unet_lib.networks import load_network
    from unet_lib.predict import predict
    from unet_lib.train.processes import join

    check_output(output, (".tif", ".tiff"), [network, images], overwrite)
    found = read_images(images, channel, grey, value_range)
    model = load_network(network, join(device, batch=1).device)
    pixels = found.for_channels(model.arguments["in_channels"])
    if isinstance(pixels, list):
        raise ValueError(
            f"{images} holds images of different sizes: give them one file at a time."
        )
    probabilities = predict(model, pixels, tile, max_pixels, versions, progress=True)
    found.write(output, probabilities, classes=model.arguments["num_classes"] > 2)
    print(f"Probabilities of cell written to {output}.")


def run_evaluate(
    labels: Positional[Path],
    found: Positional[Path],
    *,
    instances: FlagCreatePairsOff[bool] = False,
    output: Path | None = None,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Score a probability map by the challenge's five metrics, or cells.

    Probabilities of cell are compared with labels as the ISBI 2012 challenge's own
    software does: pixel error, Rand error and warping error (0 is best), V-Rand and
    V-Info (1 is best), each at its best threshold. The pixel error is 1 - Dice of the
    cell class, not the fraction of wrong pixels. A warning says where a metric
    misleads. All of it, with every threshold and every slice, is written as JSON.

    Example: score a network on the stack that it was trained on.

      unet-lib predict results/recorded-run/network.safetensors \\
          train-volume.tif probabilities.tif
      unet-lib evaluate train-labels.tif probabilities.tif

    With --instances, both files are label images with a number for each cell, the
    second as from cells. Scores (1 is best) are the Cell Tracking Challenge's SEG,
    intersection over union and Dice of all cells' pixels, and AP50 and F1 of the cells
    found with a Jaccard index above 0.5; merges and splits are counted.

      unet-lib evaluate labels.tif cells.tif --instances

    Args:
        labels: a TIFF, a PNG or a folder of them: 0 = membrane, 1 or 255 = cell; with
            --instances, a number for each cell.
        found: a TIFF of the same shape, from 0 to 1, as from predict; with
            --instances, the cells found.
        instances: compare cells by their numbers.
        output: the JSON file; None is FOUND, ending in .evaluation.json.
        overwrite: replace that file if it exists.
    """
    from unet_lib.data.images import read_labels, read_probabilities
    from unet_lib.metrics import evaluate

    output = output or found.with_suffix(".evaluation.json")
    check_output(output, (".json",), [labels, found], overwrite)
    if instances:
        evaluate_instances(labels, found, output)
        return
    cell = read_labels(labels).pixels
    probabilities = read_probabilities(found).pixels
    scores = evaluate(cell, probabilities, progress=True)
    _messages.print_scores(scores)
    record = {
        "labels": labels.name,
        "probabilities": found.name,
        "shape": np.shape(cell),
        **scores.to_dict(),
    }
    write_text(output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"\nWritten to {output}.")
