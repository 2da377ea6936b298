"""The command that writes a network for other programs."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from unet_lib._files import check_output


def run_export(
    network: Positional[Path],
    output: Positional[Path],
    *,
    image: Path | None = None,
    name: str = "U-Net",
    author: UseAppendAction[tuple[str, ...]] = (),
    license: str = "MIT",
    cite: Annotated[
        UseAppendAction[tuple[tuple[str, str], ...]], tyro.conf.arg(metavar="TEXT DOI")
    ] = (),
    pixel_size: float | None = None,
    white: float = 255,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Write a network for other programs, as ONNX or for the BioImage Model Zoo.

    OUTPUT.onnx takes images of any size, from 0 to 1, and gives the same probabilities
    as predict. OUTPUT.zip is a package of the BioImage Model Zoo with the network as
    TorchScript and ONNX, for Fiji with deepImageJ, ilastik, QuPath and others; the
    options from --image to --white describe it, and its README says what to watch for.

    Example:

      unet-lib export results/recorded-run/network.safetensors network.onnx

    A package, checked by the zoo's own command:

      unet-lib export results/recorded-run/network.safetensors membranes.zip \\
          --image test-volume.tif --name "Membranes of ISBI 2012" --pixel-size 4 \\
          --cite "Cardona et al. 2010" 10.1371/journal.pbio.1000502
      bioimageio test membranes.zip

    Args:
        network: a .safetensors file of a training run.
        output: the .onnx or .zip to write.
        image: an image whose center becomes the test input; for a stack, its first.
        name: of the package.
        author: somebody who trained the network; repeat the option for each.
        license: of the weights, an SPDX identifier.
        cite: what to cite besides the paper, with its DOI; repeat it for each.
        pixel_size: nanometers per pixel of the training images.
        white: the gray value that became 1 in training: 255 for 8-bit images.
        overwrite: replace OUTPUT if it exists.
    """
    from unet_lib.export import export_bioimage, export_onnx
    from unet_lib.networks import load_network

    read = [network] if image is None else [network, image]
    check_output(output, (".onnx", ".zip"), read, overwrite)
    model = load_network(network)
    if output.suffix.lower() == ".onnx":
        if image or author or cite or pixel_size:
            raise ValueError(
                "--image, --author, --cite and --pixel-size describe a package: give "
                "an OUTPUT that ends in .zip, or leave them out."
            )
        export_onnx(model, output, overwrite)
        print(f"ONNX written to {output}.")
        return
    pixels = None
    if image is not None:
        from unet_lib.data.images import read_images

        pixels = read_images(image).for_channels(model.arguments["in_channels"])[0]
    export_bioimage(
        model,
        output,
        pixels,
        name=name,
        authors=author,
        license=license,
        cite=cite,
        pixel_size=pixel_size,
        white=white,
        overwrite=overwrite,
    )
    print(f"Package written to {output}: check it with `bioimageio test {output}`.")
