"""What a BioImage Model Zoo package says about a network, besides its weights."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_lib._checks import as_array, check_images
from unet_lib.blocks import halo
from unet_lib.data.synthetic import synthetic_em
from unet_lib.export._graph import OPSET, WholeImage, missing

PAPER = (
    "Ronneberger, Fischer, Brox 2015: U-Net: Convolutional Networks for Biomedical "
    "Image Segmentation",
    "10.1007/978-3-319-24574-4_28",
)
README = Path(__file__).with_name("package.md")
NAME = re.compile(r"[A-Za-z0-9_+\- ()]{5,128}")  # what the zoo takes as a name


def test_input(whole: WholeImage, image: np.ndarray | None) -> np.ndarray:
    """The center of the image, ``(1, channels, size, size)``, float32, 0 to 1."""
    channels = whole.network.arguments["in_channels"]
    size = 2 * halo(whole.network) + 4 * whole.step
    if image is None:
        image, _ = synthetic_em(channels, size)
    image = as_array(image, "image")
    expected = (size, size) if channels == 1 else (channels, size, size)
    planes = image[None] if image.ndim == 2 and channels == 1 else image
    if planes.ndim != 3 or len(planes) != channels or min(planes.shape[1:]) < size:
        raise ValueError(
            f"Expected an image of shape {expected} or larger, for the test of the "
            f"package, got {image.shape}: give one such image, or none for the "
            "synthetic stand-in."
        )
    planes = check_images(planes, "image")
    top, left = ((side - size) // 2 for side in planes.shape[1:])
    center = planes[None, :, top : top + size, left : left + size]
    return np.ascontiguousarray(center, np.float32)


def card(
    name: str, authors: Sequence[str], license: str, cite: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The fields of the description that say who made the network."""
    try:
        from bioimageio.spec.model import v0_5 as zoo
    except ImportError as error:
        raise missing(error) from error
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            "The name of a package must be 5 to 128 letters, digits, spaces and "
            f"_+-(), not {name!r}."
        )
    if isinstance(authors, str):
        raise ValueError(f"authors must be a list of names: pass [{authors!r}].")
    try:
        return {
            "name": name,
            "authors": [zoo.Author(name=author) for author in authors],
            "license": zoo.LicenseId(license),
            "cite": [
                zoo.CiteEntry(text=text, doi=zoo.Doi(doi))
                for text, doi in (PAPER, *cite)
            ],
        }
    except (TypeError, ValueError) as error:  # pydantic's is a ValueError
        raise ValueError(
            "The description does not fit the model zoo: expected authors as names, a "
            'license as an SPDX identifier such as "MIT" or "CC-BY-4.0", and what to '
            "cite as pairs of a text and a DOI such as 10.1371/journal.pbio.1000502; "
            f"got authors={authors!r}, license={license!r}, cite={cite!r}."
        ) from error


def readme(
    whole: WholeImage,
    name: str,
    synthetic: bool,
    pixel_size: float | None,
    white: float,
) -> str:
    """The documentation of a package: what to watch for."""
    around, step = halo(whole.network), whole.step
    maps, test, zeros = "the probability of cell", "a part of a real image.", ""
    if whole.classes > 2:
        maps = f"the probabilities of {whole.classes} classes"
    if synthetic:
        test = "the synthetic stand-in: drawn, not recorded."
    pixels = "Not stated: ask the authors for the pixel size of the training images."
    if pixel_size is not None:
        pixels = f"The training images have {pixel_size:g} nm per pixel."
    if whole.network.padding == "same":  # computes pixels near the border from zeros
        zeros = f", except within {around} pixels of its border"
    return README.read_text("utf-8").format(
        name=name,
        channels=whole.network.arguments["in_channels"],
        maps=maps,
        test=test,
        pixels=pixels,
        white=white,
        zeros=zeros,
        sizes=", ".join(str(2 * around + n * step) for n in (1, 2, 3)),
        step=step,
        halo=around,
    )


def pack(
    folder: Path,
    path: Path,
    whole: WholeImage,
    card: dict[str, Any],
    pixel_size: float | None,
    white: float,
) -> None:
    """Write the package of the files in a folder."""
    from bioimageio.spec import save_bioimageio_package
    from bioimageio.spec.model import v0_5 as zoo

    images, probabilities = _tensors(folder, whole, pixel_size, white)
    version = torch.__version__.partition("+")[0]
    onnx = {"source": folder / "weights.onnx", "opset_version": OPSET}
    weights: Any = {
        "torchscript": {"source": folder / "weights.pt", "pytorch_version": version},
        "onnx": onnx | {"parent": "torchscript"},
    }
    description = zoo.ModelDescr(
        **card,
        description="A U-Net that takes images of any size.",
        covers=[zoo.FileDescr(source=folder / "cover.png")],
        documentation=zoo.FileDescr(source=folder / "README.md"),
        tags=["unet2d", "pytorch", "2d", "semantic-segmentation"],
        inputs=[images],
        outputs=[probabilities],
        weights=weights,
        config=zoo.Config.model_validate({"unet": whole.network.arguments}),
    )
    save_bioimageio_package(description, output_path=path)


def _tensors(
    folder: Path, whole: WholeImage, pixel_size: float | None, white: float
) -> tuple[Any, Any]:
    """What the package says about the images and the probabilities."""
    around, step = halo(whole.network), whole.step
    unit = None if pixel_size is None else "nanometer"
    space: dict[str, Any] = {"type": "space", "scale": pixel_size or 1.0, "unit": unit}
    size = {"min": 2 * around + step, "step": step}
    gray = [f"channel{n}" for n in range(whole.network.arguments["in_channels"])]
    division = [{"id": "scale_linear", "kwargs": {"gain": 1 / white}}]
    maps = ["cell"]
    if whole.classes > 2:
        maps = [f"class{n}" for n in range(whole.classes)]
    images: dict[str, Any] = {
        "id": "images",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": gray}],
        "data": {"type": "float32", "range": (0, float(white))},
        "preprocessing": division if white != 1 else [],  # the zoo refuses by 1
        "pad": {"mode": "reflect"},  # a default would not be written
        "test_tensor": {"source": folder / "test-input.npy"},
    }
    probabilities: dict[str, Any] = {
        "id": "probabilities",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": maps}],
        "data": {"type": "float32", "range": (0, 1)},
        "test_tensor": {"source": folder / "test-output.npy"},
    }
    for side in "yx":
        axis = space | {"id": side}
        images["axes"].append(axis | {"size": size, "concatenable": True})
        size_of = {"tensor_id": "images", "axis_id": side}
        probabilities["axes"].append(axis | {"size": size_of, "halo": around})
    return images, probabilities
