"""What a BioImage Model Zoo package says about a network, besides its weights."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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
    least, step = 2 * halo(whole.network) + whole.step, whole.step
    return README.read_text("utf-8").format(
        name=name,
        channels=whole.network.arguments["in_channels"],
        maps="the probability of cell"
        if whole.classes == 2
        else f"the probabilities of {whole.classes} classes",
        test="The test input is the synthetic stand-in: drawn, not recorded."
        if synthetic
        else "The test input is a part of a real image.",
        pixels="Not stated: ask the authors for the pixel size of the training images."
        if pixel_size is None
        else f"The training images have {pixel_size:g} nm per pixel.",
        white=white,
        # A padded network computes the pixels near the border from zeros.
        zeros=f", except within {halo(whole.network)} pixels of its border"
        if whole.network.padding == "same"
        else "",
        least=least,
        next=least + step,
        then=least + 2 * step,
        step=step,
        halo=halo(whole.network),
    )


def cover(image: np.ndarray, probabilities: np.ndarray) -> Image.Image:
    """The first channel of the test input beside the first map of its output."""
    pair = np.hstack([image[0, 0], probabilities[0, 0]])
    return Image.fromarray((255 * pair).round().astype(np.uint8))


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
    description = zoo.ModelDescr(
        **card,
        description="A U-Net that takes images of any size.",
        covers=[zoo.FileDescr(source=folder / "cover.png")],
        documentation=zoo.FileDescr(source=folder / "README.md"),
        tags=["unet2d", "pytorch", "2d", "semantic-segmentation"],
        inputs=[images],
        outputs=[probabilities],
        weights=zoo.WeightsDescr(
            torchscript=zoo.TorchscriptWeightsDescr(
                source=folder / "weights.pt",
                pytorch_version=zoo.Version(torch.__version__.partition("+")[0]),
            ),
            onnx=zoo.OnnxWeightsDescr(
                source=folder / "weights.onnx",
                opset_version=OPSET,
                parent="torchscript",
            ),
        ),
        config=zoo.Config.model_validate({"unet": whole.network.arguments}),
    )
    save_bioimageio_package(description, output_path=path)


def _tensors(
    folder: Path, whole: WholeImage, pixel_size: float | None, white: float
) -> tuple[Any, Any]:
    """What the package says about the images and the probabilities."""
    from bioimageio.spec.model import v0_5 as zoo

    arguments = whole.network.arguments
    unit: Any = None if pixel_size is None else "nanometer"
    scale, around, step = pixel_size or 1.0, halo(whole.network), whole.step

    def channels(names: list[str]) -> Any:
        return zoo.ChannelAxis(channel_names=[zoo.Identifier(one) for one in names])

    def file(name: str) -> Any:
        return zoo.FileDescr(source=folder / name)

    sides = [zoo.AxisId("y"), zoo.AxisId("x")]
    sizes = zoo.ParameterizedSize(min=2 * around + step, step=step)
    gray = [f"channel{n}" for n in range(arguments["in_channels"])]
    maps = (
        [f"class{n}" for n in range(whole.classes)] if whole.classes > 2 else ["cell"]
    )
    images = zoo.InputTensorDescr(
        id=zoo.TensorId("images"),
        axes=[zoo.BatchAxis(), channels(gray)]
        + [
            zoo.SpaceInputAxis(
                id=side, size=sizes, unit=unit, scale=scale, concatenable=True
            )
            for side in sides
        ],
        data=zoo.IntervalOrRatioDataDescr(type="float32", range=(0, float(white))),
        preprocessing=[
            zoo.ScaleLinearDescr(kwargs=zoo.ScaleLinearKwargs(gain=1 / white))
        ],
        pad=zoo.ReflectPadding(mode="reflect"),  # a default would not be written
        test_tensor=file("test-input.npy"),
    )
    probabilities = zoo.OutputTensorDescr(
        id=zoo.TensorId("probabilities"),
        axes=[zoo.BatchAxis(), channels(maps)]
        + [
            zoo.SpaceOutputAxisWithHalo(
                id=side,
                halo=around,
                size=zoo.SizeReference(tensor_id=images.id, axis_id=side),
                unit=unit,
                scale=scale,
            )
            for side in sides
        ],
        data=zoo.IntervalOrRatioDataDescr(type="float32", range=(0, 1)),
        test_tensor=file("test-output.npy"),
    )
    return images, probabilities
