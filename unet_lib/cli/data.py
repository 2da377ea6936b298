"""The command that gets the published stacks."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff

from unet_lib import _messages
from unet_lib._files import check_folder

SOURCE = tyro.conf.create_mutex_group(required=False)


def run_data(
    *,
    folder: Annotated[Path | None, SOURCE] = None,
    synthetic: Annotated[FlagCreatePairsOff[bool], SOURCE] = False,
    export: Path | None = None,
) -> None:
    """Get and check the stacks; write them as one image per slice.

    Every pixel of the ISBI 2012 stacks is checked. They are looked for in --folder, in
    the folder that the environment variable UNET_BOOK_DATA names, and in the user's
    cache; otherwise they are downloaded into the cache. The folder holds
    train-volume.tif, train-labels.tif, test-volume.tif and perhaps test-labels.tif.

    Example: write each slice as a PNG for another tool, offline with --synthetic.

      unet-lib data --export slices

    This gives slices/train/images/00.png, slices/train/labels/00.png (255 = cell,
    0 = membrane), slices/test/images/00.png, and so on.

    Args:
        folder: the folder that holds the stacks.
        synthetic: use the synthetic stand-in: the same shapes, other pictures.
        export: write one PNG per slice into this new or empty folder.
    """
    from unet_lib import data

    if export:
        check_folder(export)
        if export.exists() and any(export.iterdir()):
            raise FileExistsError(
                f"{export} is not an empty folder: name a new one, or empty it."
            )
    if synthetic:
        stacks = data.synthetic_stacks()
        print("The synthetic stand-in, not the ISBI 2012 stacks.")
    else:
        stacks = data.load_isbi2012(folder)
        print("ISBI 2012, every pixel as published.")
    _messages.print_stacks(stacks)
    if export:
        data.export_slices(stacks, export)
        print(f"One PNG per slice written to {export}.")
