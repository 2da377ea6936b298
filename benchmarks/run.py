"""Speed against other software, side by side in one run.

    uv run --group benchmarks benchmarks/run.py             all of it
    uv run --group benchmarks benchmarks/run.py weight-map  one part

Each line compares two ways to the same result: first the results are compared, then
both are called in turns, so that whatever else the machine does slows both. What is
reported is the ratio of the medians. Prints a table and writes
results/benchmarks/<device>.json.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import find_boundaries
from skimage.transform import warp

from unet_lib import UNet, data
from unet_lib.augment import Augmentation, TileSampler, displacement_field, resample
from unet_lib.checkpoint import circumstances, write_text
from unet_lib.predict import plan_tiles, predict
from unet_lib.train import best_device
from unet_lib.weights import label_cells, weight_map

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def seconds(call: Callable) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Medians of both, called in turns after one call each to warm up."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    return {"seconds": mine, "other_seconds": other, "ratio": other / mine}


def naive_weight_map(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0):
    """One distance transform of the whole slice for each cell, then a sort."""
    cells = label_cells(labels)
    distances = np.stack(
        [
            ndimage.distance_transform_edt(cells != number)
            for number in range(1, cells.max() + 1)
        ]
    )
    nearest, second = np.sort(distances, axis=0)[:2]
    share = np.mean(labels == 1)
    balance = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    term = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return balance + np.where(labels == 1, 0, term)


def windowed_weight_map(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0):
    """One distance transform for each cell, in a window as far as the term reaches."""
    reach = int(np.ceil(sigma * np.sqrt(2 * np.log(1e7))))
    cells = np.pad(label_cells(labels), reach)
    nearest, second = np.full((2, *cells.shape), np.inf)
    for number, (rows, columns) in enumerate(ndimage.find_objects(cells), start=1):
        window = (
            slice(rows.start - reach, rows.stop + reach),
            slice(columns.start - reach, columns.stop + reach),
        )
        distance = ndimage.distance_transform_edt(cells[window] != number)
        farther = np.maximum(nearest[window], distance)
        second[window] = np.minimum(second[window], farther)
        nearest[window] = np.minimum(nearest[window], distance)
    inner = (slice(reach, -reach), slice(reach, -reach))
    cell = labels > 0
    balance = np.where(cell, 0.5 / cell.mean(), 0.5 / (1 - cell.mean()))
    term = w0 * np.exp(-((nearest + second)[inner] ** 2) / (2 * sigma**2))
    return balance + np.where(cell, 0, term)


def many_cells(size: int, count: int) -> np.ndarray:
    """Labels of a large slice: each pixel belongs to the nearest of random seeds."""
    seeds = np.zeros(size**2, np.int32)
    places = np.random.default_rng(0).choice(size**2, count, replace=False)
    seeds[places] = np.arange(1, count + 1)
    seeds = seeds.reshape(size, size)
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    cells = seeds[tuple(nearest)]
    return np.where(find_boundaries(cells), 0, cells)


def weight_maps(stacks: data.Stacks, device: str) -> list[dict]:
    """On one core: a slice of the stack, and a large one with 2,000 cells."""
    torch.set_num_threads(1)
    naive = (naive_weight_map, "a transform a cell, whole slice, sorted")
    windowed = (windowed_weight_map, "a transform a cell, in a window")
    labels, large = stacks.train_labels[0], many_cells(2048, 2000)
    rows = []
    for slice_labels, (other, name), repeats in (
        (labels, naive, 7),
        (labels, windowed, 7),
        (large, windowed, 3),
    ):
        np.testing.assert_allclose(
            weight_map(slice_labels), other(slice_labels), rtol=1e-5, atol=2e-6
        )
        row = compare(
            lambda s=slice_labels: weight_map(s),
            lambda s=slice_labels, other=other: other(s),
            repeats,
        )
        side, cells = len(slice_labels), label_cells(slice_labels).max()
        what = f"weight map, {side}×{side}, {cells:,} cells, one core"
        rows.append(row | {"what": what, "other": name})
    return rows


def deformations(stacks: data.Stacks, device: str) -> list[dict]:
    """Image, labels and weights, deformed and turned, against one array deformed."""
    batch, size, labels = 8, 572, stacks.train_labels[:8]
    threads = torch.get_num_threads()
    sampler = TileSampler(
        stacks.train_images[:8],
        labels,
        weight_map(labels),
        size,
        size,
        Augmentation(contrast=0, brightness=0),
        device=device,
    )
    random = np.random.default_rng(0)
    grid = random.normal(0, 10, (2, 3, 3))
    image = np.pad(stacks.train_images[0], 30, mode="reflect")
    rows = []

    def ours():
        sampler.batch(range(batch))

    others = {}
    try:
        import elasticdeform

        others["elasticdeform on the CPU, one array, order 1"] = lambda: (
            elasticdeform.deform_grid(image, grid, order=1, mode="mirror")
        )
    except ImportError:
        print("elasticdeform is not installed (it has no wheels here): left out")
    field = displacement_field(torch.from_numpy(grid)[None].float(), image.shape)
    places = np.indices(image.shape) + field[0].numpy()
    others["scikit-image on the CPU, one array, field given"] = lambda: warp(
        image, places, order=1, mode="reflect"
    )
    ours_once = resample(
        torch.from_numpy(image)[None, None], torch.from_numpy(places)[None].float()
    )[0, 0].numpy()
    for name, call in others.items():
        difference = np.abs(call() - ours_once)[30:-30, 30:-30].max()
        assert difference < 1e-3, (name, difference)
        row = compare(ours, lambda call=call: [call() for _ in range(batch)], 15)
        where = f"{threads} threads" if device == "cpu" else device
        what = f"{batch} tiles {size}×{size}, 3 maps, turned too, {where}"
        rows.append(row | {"what": what, "other": f"{name}, {batch} times"})
    return rows


def overlap_tiles(stacks: data.Stacks, device: str) -> list[dict]:
    """One slice by the cheapest plan, against tiles of 572 and against MONAI."""
    network = UNet(base_channels=64 if device == "cuda" else 16).to(device).eval()
    image = stacks.train_images[0]
    others = {"the same with tiles of 572": lambda: predict(network, image, tile=572)}
    try:
        from monai.inferers import sliding_window_inference

        others["MONAI sliding_window_inference, tiles of 572"] = lambda: monai_predict(
            sliding_window_inference, network, image, device
        )
    except ImportError:
        print("MONAI is not installed (uv run --group benchmarks): left out")
    rows = []
    for name, call in others.items():
        np.testing.assert_allclose(predict(network, image), call(), atol=1e-4)
        row = compare(lambda: predict(network, image), call, 3)
        tile = plan_tiles(network, image.shape)[0].tile
        channels = network.arguments["base_channels"]
        what = f"a 512×512 slice, {channels} channels, one tile of {tile}"
        rows.append(row | {"what": what, "other": name})
    return rows


@torch.inference_mode()
def monai_predict(inferer, network, image, device) -> np.ndarray:
    """MONAI expects a network that keeps the size; so pad, and weigh the rim away."""
    tile, output, stride = 572, 388, 384
    border = (tile - output) // 2
    reach = 2 * stride + tile - stride  # two tiles a side cover 512
    after = reach - border - len(image)
    padded = np.pad(image, (border, after), mode="reflect")
    window = torch.full((tile, tile), 1e-12, device=device)
    window[border : border + output, border : border + output] = 1

    def same_size(tiles):
        scores = network(tiles)
        return torch.nn.functional.pad(scores, (border,) * 4)

    scores = inferer(
        torch.from_numpy(padded)[None, None].to(device),
        (tile, tile),
        1,
        same_size,
        overlap=1 - stride / tile,
        roi_weight_map=window,
    )
    cell = torch.softmax(scores, dim=1)[0, 1].cpu().numpy()
    return cell[border : border + len(image), border : border + len(image)]


PARTS = {
    "weight-map": weight_maps,
    "deformation": deformations,
    "overlap-tile": overlap_tiles,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; else all")
    chosen = parser.parse_args().parts or list(PARTS)
    stacks = data.load_or_stand_in()
    device = best_device()
    threads = torch.get_num_threads()
    rows = []
    for name in chosen:
        rows += PARTS[name](stacks, device)
        torch.set_num_threads(threads)
    print(f"{'what':<52}{'ms':>9}  {'against':<52}{'ms':>9}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['what']:<52}{1000 * row['seconds']:>9.1f}  {row['other']:<52}"
            f"{1000 * row['other_seconds']:>9.1f}{row['ratio']:>8.1f}"
        )
    record = circumstances(torch.device(device)) | {"data": stacks.source}
    for package in ("scipy", "scikit-image", "elasticdeform", "monai"):
        try:
            record[package] = version(package)
        except ImportError:
            record[package] = None
    if set(chosen) == set(PARTS):
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", record["device"]).strip("-").lower()
        text = json.dumps(record | {"rows": rows}, indent=1) + "\n"
        write_text(RESULTS / f"{name}.json", text)


if __name__ == "__main__":
    main()
