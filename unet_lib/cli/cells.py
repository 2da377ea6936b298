"""The command that numbers and measures cells, and how they are scored."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm
from tyro.conf import FlagCreatePairsOff, Positional

from unet_lib import _messages
from unet_lib._files import check_output, write_text

if TYPE_CHECKING:
    from unet_lib.data.images import Images


def run_cells(
    probabilities: Positional[Path],
    output: Positional[Path],
    *,
    threshold: float = 0.5,
    watershed: float | None = None,
    smallest: int = 0,
    sizes: Path | None = None,
    overwrite: FlagCreatePairsOff[bool] = False,
) -> None:
    """Number the cells of a probability map and measure them.

    Cells are the connected components of the pixels above the threshold. If cells that
    touch come out as one, --watershed H splits components at their necks: where the
    distance to the background is lower than on both sides by more than H pixels.
    OUTPUT is a label image that Fiji opens, with the axes and the pixel size of the
    probabilities: 0 = background, and a number for each cell of a slice. Sizes go to a
    CSV file with one row per cell: area, center, diameter and axes, also in the unit of
    the pixel size if the file has one, and of a folder the name of the file. This needs
    pip install "unet-lib[cells]".

    Example: from images to cells; touching cells are split, and specks are removed.

      unet-lib predict network.safetensors images.tif probabilities.tif
      unet-lib cells probabilities.tif cells.tif --watershed 5 --smallest 100

    Args:
        probabilities: a TIFF or a folder, from 0 to 1, as from predict.
        output: the TIFF of labels to write.
        threshold: a pixel belongs to a cell if its probability is above this.
        watershed: H in pixels; a smaller H splits more, None splits nothing.
        smallest: cells of fewer pixels are removed.
        sizes: the CSV file; None is OUTPUT, ending in .csv.
        overwrite: replace these files if they exist.
    """
    from unet_lib.cells import find_cells, measure_cells
    from unet_lib.data.images import read_probabilities

    sizes = sizes or output.with_suffix(".csv")
    check_output(output, (".tif", ".tiff"), [probabilities], overwrite)
    check_output(sizes, (".csv",), [probabilities], overwrite)
    found = read_probabilities(probabilities)
    if isinstance(found.pixels, list):
        raise ValueError(
            f"{probabilities} holds images of different sizes: give them one file at a "
            "time."
        )
    labels = np.zeros(found.pixels.shape, np.int32)
    for number in tqdm(range(len(labels)), "cells", unit="slice"):
        labels[number] = find_cells(
            found.pixels[number], threshold, watershed, smallest
        )
    pixel, unit = found.pixel_size, found.unit
    table = measure_cells(labels, pixel and pixel[1:], unit or "unit")
    found.write(output, _stored(labels))
    columns = {name: column.tolist() for name, column in table.items()}
    if len({*found.names}) > 1:
        columns = {"file": [found.names[z] for z in columns["slice"]], **columns}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{n:.6g}" if isinstance(n, float) else n for n in row])
    write_text(sizes, text.getvalue())
    count = len(table["label"])
    print(f"{count} cells in {len(labels)} slices written to {output}, sizes: {sizes}.")


def evaluate_instances(
    labels: Path, reference: "Images", found: "Images"
) -> dict[str, Any]:
    """Score label images, print a table, and return it with the shape."""
    from scipy import ndimage

    from unet_lib.cells import score_cells

    for number, one in enumerate(reference.pixels):
        pieces = ndimage.label(one > 0)[1]
        if pieces > 1 and np.ptp(one[one > 0]) == 0:
            _messages.print_warning(
                f"{labels} has one number in {pieces} separate pieces in slice "
                f"{number}, and they count as one cell: if these are binary labels, "
                "number the pieces first, as unet-lib cells does."
            )
            break
    scores = score_cells(reference.pixels, found.pixels)
    _messages.print_cell_scores(scores)
    return {"shape": np.shape(reference.pixels), **scores.to_dict()}


def _stored(labels: np.ndarray) -> np.ndarray:
    """Labels in the smallest type that Fiji has for so many numbers.

    Beyond 16 bits that is float32, which holds whole numbers up to 2**24.
    """
    small = labels.max() <= np.iinfo(np.uint16).max
    return labels.astype(np.uint16 if small else np.float32)
