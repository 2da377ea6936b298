"""An image larger than memory, predicted from one Zarr array into another.

    python benchmarks/large_image.py [--side 20000] [--channels 4]

The image is the first training slices (or the synthetic stand-in's), mirrored and put
side by side, 8 bits. It is predicted in a process of its own, on one thread, by an
untrained network. Writes results/large-image.json: seconds, the peak of the memory, and
what the process had before it began, the network included; and how far three windows
are from `predict` in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr
from memory import peak_megabytes

from unet_lib import UNet, data
from unet_lib._files import write_text
from unet_lib.blocks import halo, predict_into
from unet_lib.predict import predict
from unet_lib.train.folder import circumstances

RECORD = Path(__file__).resolve().parent.parent / "results" / "large-image.json"


def draw(folder: Path, side: int) -> str:
    """Write the image; return whose slices it is made of."""
    stacks = data.load_or_stand_in()
    gray = np.rint(stacks.train_images * 255).astype(np.uint8)
    size = gray.shape[-1]
    image = zarr.create_array(
        folder / "image", shape=(side, side), dtype="uint8", chunks=(1024, 1024)
    )
    for row in range(0, side, size):
        mirrored = [
            gray[(row // size + n) % len(gray)][:: (-1) ** (row // size), :: (-1) ** n]
            for n in range(-(-side // size))
        ]
        image[row : row + size] = np.hstack(mirrored)[: side - row, :side]
    return stacks.source


def network_of(channels: int) -> UNet:
    torch.manual_seed(0)
    return UNet(base_channels=channels).eval()


def measure(folder: Path, side: int, channels: int) -> dict:
    """Predict block by block; what it took."""
    torch.set_num_threads(1)
    network = network_of(channels)
    image = zarr.open_array(folder / "image", mode="r")
    cell = zarr.create_array(
        folder / "cell", shape=(side, side), dtype="float32", chunks=(1024, 1024)
    )
    before, start = peak_megabytes(), time.perf_counter()
    predict_into(network, image, cell, value_range=(0, 255), progress=True)
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "before_mb": before, "peak_mb": peak_megabytes()}


def difference(folder: Path, side: int, channels: int) -> float:
    """The largest one from `predict` in memory, on three windows along the diagonal."""
    network = network_of(channels)
    image = zarr.open_array(folder / "image", mode="r")
    cell = zarr.open_array(folder / "cell", mode="r")
    reach, width, found = halo(network), 512, []
    for start in (0, side // 2 // 16 * 16, max(0, side - width) // 16 * 16):
        top = max(0, start - reach)
        part = slice(top, min(side, start + width + reach))
        expected = predict(network, image[part, part] / np.float32(255))
        inner = slice(start - top, start - top + width)
        whole = cell[start : start + width, start : start + width]
        found.append(np.abs(expected[inner, inner] - whole).max())
    return float(max(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000, help="pixels")
    parser.add_argument("--channels", type=int, default=4, help="of the first level")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the process
    chosen = parser.parse_args()
    size = {"side": chosen.side, "channels": chosen.channels}
    if chosen.folder is not None:
        print(json.dumps(measure(chosen.folder, **size)))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="large-image-") as name:
        source = draw(Path(name), chosen.side)
        command = [sys.executable, __file__, "--folder", name]
        command += ["--side", str(chosen.side), "--channels", str(chosen.channels)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        record = size | {"data": source} | json.loads(done.stdout)
        record["difference"] = difference(Path(name), **size)
    record["zarr"] = zarr.__version__
    record |= circumstances(torch.device("cpu"))
    write_text(RECORD, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
