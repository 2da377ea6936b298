"""The commands that use a trained network: predict and score."""

import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from tqdm.auto import tqdm
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from unet_lib import _messages
from unet_lib._files import check_folder, check_output, write_text
from unet_lib.cli.cells import evaluate_instances
from unet_lib.cli.files import Reading

if TYPE_CHECKING:
    from unet_lib.data.images import Images
    from unet_lib.model import UNet


@dataclass(frozen=True)
class Options:
    """How a network predicts.

    Args:
        reading: how pixels become gray values.
        versions: average over this many rotated versions of each slice.
        device: "cpu", "cuda" or "mps"; None uses the fastest one available.
        tile: pixels per side of a tile, 572 in the paper; None uses the cheapest.
        max_pixels: the most pixels of a tile, which bounds the memory needed.
    """

    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    versions: Literal[1, 7, 8] = 1
    device: str | None = None
    tile: int | None = None
    max_pixels: int = 1024 * 1024

    def load(self, network: Path) -> "UNet":
        from unet_lib.networks import load_network
        from unet_lib.train.processes import join

        return load_network(network, join(self.device, batch=1).device)


DEFAULTS = Options()


def run_predict(
    network: Positional[Path],
    images: Positional[Path],
    output: Positional[Path],
    *,
    prediction: OmitArgPrefixes[Options] = DEFAULTS,
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

    A folder of images of one size is a stack. If OUTPUT is a folder too, each of its
    images, of whatever size, gets a TIFF of its own there, named after it; TIFFs that
    exist are kept, so after an interruption the same command continues.

    If OUTPUT ends in .zarr, an OME-Zarr image is written block by block, and IMAGES may
    be an OME-Zarr image that is larger than the memory. After an interruption the same
    command continues with the blocks in OUTPUT.partial.

    --versions is test-time augmentation: the average over the paper's 7 rotations, or
    over 4 rotations by 90 degrees and their mirror images. It takes 7 or 8 times as
    long.

    Args:
        network: a .safetensors file of a training run.
        images: a TIFF, PNG or JPEG, one image or a stack, a folder of them, or a .zarr.
        output: the TIFF to write, a folder for one TIFF per image, or a name.zarr.
        prediction: how the network predicts.
        overwrite: replace OUTPUT, or the TIFFs in it, if they exist.
    """
    from unet_lib.data.omezarr import is_zarr

    images.stat()  # before OUTPUT, whose form depends on whether this is a folder
    if is_zarr(output) or is_zarr(images):
        _predict_zarr(network, images, output, prediction, overwrite)
    elif images.is_dir() and (output.is_dir() or not output.suffix):
        _predict_folder(network, images, output, prediction, overwrite)
    else:
        check_output(output, (".tif", ".tiff"), [network, images], overwrite)
        found = prediction.reading.read(images)
        _predict_one(prediction.load(network), found, images, output, prediction)
        print(f"Probabilities of cell written to {output}.")


def _predict_one(
    model: "UNet",
    found: "Images",
    images: Path,
    output: Path,
    options: Options,
    progress: bool = True,
) -> None:
    from unet_lib.predict import predict

    pixels = _stack(model, found, images, output)
    probabilities = predict(
        model, pixels, options.tile, options.max_pixels, options.versions, progress
    )
    found.write(output, probabilities, classes=model.arguments["num_classes"] > 2)


def _stack(model: "UNet", found: "Images", images: Path, output: Path) -> np.ndarray:
    """The pixels for a network, of one size."""
    pixels = found.for_channels(model.arguments["in_channels"])
    if isinstance(pixels, list):
        raise ValueError(
            f"{images} holds images of different sizes, which are not a stack: give "
            f"the name of a folder as OUTPUT, such as {output.with_suffix('')}, and "
            "each gets a TIFF of its own."
        )
    return pixels


def _predict_folder(
    network: Path, images: Path, output: Path, options: Options, overwrite: bool
) -> None:
    """One TIFF for each image of a folder."""
    from unet_lib.data.images import auto_range, image_files

    check_folder(output)
    if output.is_dir() and output.samefile(images):
        raise ValueError(
            f"{output} is the folder of the images, and what is written there would be "
            "read the next time: give another folder."
        )
    files = image_files(images)
    names = {file: output / f"{file.stem}.tif" for file in files}
    for one, other in itertools.combinations(files, 2):
        if names[one].name.lower() == names[other].name.lower():
            raise ValueError(
                f"{one.name} and {other.name} in {images} would both be written to "
                f"{names[one]}: rename one of them."
            )
    todo = [file for file in files if overwrite or not names[file].exists()]
    model, reading = options.load(network), options.reading
    if reading.value_range == "auto":  # one range for all, as in training
        reading = replace(reading, value_range=auto_range(images, reading.channel))
    output.mkdir(parents=True, exist_ok=True)
    try:
        for file in tqdm(todo, unit="image"):
            found = reading.read(file)
            _predict_one(model, found, file, names[file], options, progress=False)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped. {output} holds whole files only, and those that are written are "
            "kept: the same command continues from there."
        ) from None
    print(f"Probabilities of cell of {len(todo)} images written to {output}.")
    if kept := len(files) - len(todo):
        said = "1 that was there is" if kept == 1 else f"{kept} that were there are"
        replaced = "it" if kept == 1 else "them"
        print(f"{said} kept; --overwrite replaces {replaced}.")


def _predict_zarr(
    network: Path, images: Path, output: Path, options: Options, overwrite: bool
) -> None:
    """Block by block into an OME-Zarr image."""
    from unet_lib.blocks import predict_into
    from unet_lib.data.omezarr import is_zarr, read_zarr, written_zarr

    _check_zarr(images, output, options, overwrite)
    reading, limits = options.reading, None
    if is_zarr(images):
        if reading.gray:
            raise ValueError(
                f"{images} has channels, and not colors that --gray could convert: "
                "choose one with --channel."
            )
        found, limits = read_zarr(images, reading.channel, reading.value_range)
    else:
        found = reading.read(images)
    model = options.load(network)
    pixels = _stack(model, found, images, output)
    classes = model.arguments["num_classes"]
    writing = written_zarr(output, found, classes if classes > 2 else None)
    try:
        with writing as (target, record):
            predict_into(
                model,
                pixels,
                target,
                value_range=limits,
                max_pixels=options.max_pixels,
                record=record,
                progress=True,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped. The blocks that are done are kept: the same command continues "
            "from there."
        ) from None
    print(f"Probabilities of cell written to {output}.")


def _check_zarr(images: Path, output: Path, options: Options, overwrite: bool) -> None:
    """Refuse, before the work, what cannot be done with an OME-Zarr image."""
    if output.suffix.lower() != ".zarr":
        raise ValueError(
            f"{output} must end in .zarr: an OME-Zarr image is predicted block by "
            "block, into another one."
        )
    if options.tile is not None or options.versions != 1:
        raise ValueError(
            "--tile and --versions are for images in memory: leave them out, or write "
            "a TIFF of images that fit."
        )
    if output.exists() and images.exists() and output.samefile(images):
        raise ValueError(
            f"{output} is the input and would be lost: give another name for the "
            "output."
        )
    if output.exists() and not overwrite:
        raise FileExistsError(
            f"{output} exists: give another name, or add --overwrite to replace it."
        )
    inside = ("zarr.json", ".zgroup", ".zarray")
    if output.exists() and not any((output / name).is_file() for name in inside):
        raise FileExistsError(
            f"{output} is not a Zarr folder, and is not replaced: give another name."
        )
    check_folder(output.parent)


def run_evaluate(
    labels: Positional[Path],
    found: Positional[Path],
    *,
    instances: FlagCreatePairsOff[bool] = False,
    unknown: int | None = None,
    output: Path | None = None,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Score a probability map by the challenge's five metrics, or cells.

    Probabilities of cell are compared with labels as the ISBI 2012 challenge's own
    software does: pixel error, Rand error and warping error (0 is best), V-Rand and
    V-Info (1 is best), each at its best threshold. The pixel error is 1 - Dice of the
    cell class, not the fraction of wrong pixels. A warning says where a metric
    misleads. The JSON file holds every threshold and every slice.

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
            --instances, a number for each cell, -1 = unknown.
        found: a TIFF of the same shape, from 0 to 1, as from predict, or a folder,
            matched by name with that of the labels; with --instances, the cells found.
        instances: compare cells by their numbers.
        unknown: with --instances, the value that marks pixels without a label; -1
            always does.
        output: the JSON file; None is FOUND, ending in .evaluation.json.
        overwrite: replace that file if it exists.
    """
    from unet_lib.data.images import read_labels, read_probabilities
    from unet_lib.data.labeled import in_order_of
    from unet_lib.metrics import evaluate

    output = output or found.with_suffix(".evaluation.json")
    check_output(output, (".json",), [labels, found], overwrite)
    reference = read_labels(labels, not instances, unknown)
    result = read_labels(found, False) if instances else read_probabilities(found)
    if labels.is_dir() and found.is_dir():
        reference = in_order_of(result, reference)
    record: dict[str, Any] = {"labels": labels.name}
    if instances:
        record |= {"found": found.name} | evaluate_instances(labels, reference, result)
    else:
        scores = evaluate(reference.pixels, result.pixels, progress=True)
        _messages.print_scores(scores)
        record |= {"probabilities": found.name, "shape": np.shape(reference.pixels)}
        record |= scores.to_dict()
    write_text(output, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"\nWritten to {output}.")
