"""Networks for other programs: ONNX files, and packages for the BioImage Model Zoo.

What is exported is a network with `predict` around it: the mirrored border, the size
arithmetic and the softmax are part of the graph, so that an image of any size goes in
and probabilities of the same size come out. The border is that of :doc:`overlap-tile`,
around a single tile. The export needs the packages of the extra ``unet-lib[export]``.
Used in :doc:`own-images`.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from unet_lib._checks import is_real
from unet_lib._files import check_output, written
from unet_lib.export import _package
from unet_lib.export._graph import quiet, whole_image, write_onnx, write_torchscript

__all__ = ["export_bioimage", "export_onnx"]


def export_onnx(network: nn.Module, path: str | Path, overwrite: bool = False) -> None:
    """Write a network as an ONNX file that takes images of any size.

    Its input ``images`` is ``(batch, channels, height, width)``, float32, 0 to 1. Its
    output ``probabilities`` is ``(batch, 1, height, width)``, of *cell*; for more than
    two classes ``(batch, classes, height, width)``. They equal those of `predict` with
    one pass (no test-time augmentation) up to rounding. An image is computed in one
    piece, so memory limits its size: 1024 x 1024 pixels with 64 base channels need
    about 1 GB. The file's metadata holds the network's arguments as JSON, under
    ``unet``.

    Args:
        network: a `UNet` of two classes or more, also in a wrapper, on any device. It
            stays as it is; a copy is exported, in float32 and evaluation mode.
        path: the file to write; its name ends in ``.onnx``.
        overwrite: replace the file if it exists.

    Raises:
        ValueError: if the network has one class, or the name has another ending.
        OSError: if the file exists or cannot be written.
        ImportError: if the packages of the extra ``export`` are not installed.

    Example:
        >>> export_onnx(UNet(base_channels=2), "network.onnx")  # doctest: +SKIP
    """
    whole = whole_image(network)
    path = Path(path)
    check_output(path, (".onnx",), overwrite=overwrite)
    with written(path) as temporary:
        write_onnx(whole, temporary)


def export_bioimage(
    network: nn.Module,
    path: str | Path,
    image: np.ndarray | None = None,
    *,
    name: str = "U-Net",
    authors: Sequence[str] = (),
    license: str = "MIT",
    cite: Sequence[tuple[str, str]] = (),
    pixel_size: float | None = None,
    white: float = 255,
    overwrite: bool = False,
) -> None:
    """Write a network as a package of the BioImage Model Zoo.

    The package holds the network as TorchScript and as ONNX, a test input with its
    output, and a README that says what to watch for in other programs. These cut large
    images into blocks, so the package declares the halo and the step of ``2**depth``
    pixels with which blocks join exactly, and asks for mirrored borders. ``bioimageio
    test PACKAGE.zip`` checks it.

    Args:
        network: as for `export_onnx`.
        path: the package to write; its name ends in ``.zip``.
        image: an image like those in training, ``(height, width)`` or, with several
            channels, ``(channels, height, width)``; float, 0 to 1. Its center becomes
            the test input. None uses the synthetic stand-in, and the README says so.
        name: 5 to 128 letters, digits, spaces and ``_+-()``.
        authors: names of those who trained the network.
        license: of the weights, an SPDX identifier.
        cite: what to cite besides the paper, such as the data set: pairs of a text and
            a DOI.
        pixel_size: nanometers per pixel of the images that the network was trained on.
        white: the gray value that became 1 in training: 255 for 8-bit images, 1 for
            images that are already scaled. The package divides by it.
        overwrite: replace the file if it exists.

    Raises:
        ValueError: for a network, an image or a description that cannot be packaged.
        OSError: if the file exists or cannot be written.
        ImportError: if the packages of the extra ``export`` are not installed.

    Example:
        >>> export_bioimage(  # doctest: +SKIP
        ...     load_pretrained(),
        ...     "membranes.zip",
        ...     images[0],
        ...     name="Membranes of ISBI 2012",
        ...     authors=["The U-Net book authors"],
        ...     cite=[("Cardona et al. 2010", "10.1371/journal.pbio.1000502")],
        ...     pixel_size=4,
        ... )
    """
    whole = whole_image(network)
    path = Path(path)
    check_output(path, (".zip",), overwrite=overwrite)
    for argument, value in {"pixel_size": pixel_size, "white": white}.items():
        if value is not None and not (is_real(value) and 0 < value < math.inf):
            raise ValueError(f"{argument} must be a number above 0, not {value!r}.")
    test = _package.test_input(whole, image)
    card = _package.card(name, authors, license, cite)
    with tempfile.TemporaryDirectory() as name_of_folder, quiet():
        folder = Path(name_of_folder)
        with torch.inference_mode():
            output = whole(torch.from_numpy(test)).numpy()
        np.save(folder / "test-input.npy", test * np.float32(white))
        np.save(folder / "test-output.npy", output)
        pair = np.hstack([test[0, 0], output[0, 0]])
        pixels = np.rint(255 * pair).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "cover.png")
        text = _package.readme(whole, name, image is None, pixel_size, white)
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_onnx(whole, folder / "weights.onnx")
        write_torchscript(whole, folder / "weights.pt")
        with written(path) as temporary:
            _package.pack(folder, temporary, whole, card, pixel_size, white)
