"""The published network: its weights, the hash that is asked of them, its card.

    python book/publish.py runs/quarter-adam-10000/best/0-0/network.safetensors
    python book/publish.py      the card and its picture alone

The first form takes a run's network, rounds it to half precision and makes it the one
that `unet_lib.load_pretrained` gives. What the card recommends follows from the
five-fold record of the same recipe.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import torch

from unet_lib import networks
from unet_lib._files import write_text
from unet_lib.networks import load_network, save_network
from unet_lib.results import spreads, training_figures
from unet_lib.results.table import VERSIONS
from unet_lib.train import TrainConfig
from unet_lib.train.folder import differences

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results" / "quarter-adam-10000" / "best"
CARD = networks.FILE.with_suffix(".md")
PICTURE = ROOT / "book" / "_static" / "published.png"
SOURCE = Path(networks.__file__)
TITLES = {
    "pixel_error": "pixel error",
    "rand_error": "Rand error",
    "warping_error": "warping error",
    "v_rand": "V-Rand (1 is best)",
    "v_info": "V-Info (1 is best)",
}
# What the fields of a configuration mean, as the card says it.
SETTINGS = {
    "augmentation.mirror": "tiles mirrored at random",
    "average": "decay of the moving average of the weights (0: no average)",
    "base_channels": "channels on the first level",
    "dropout": "dropout rate",
    "optimizer": "optimizer",
    "precision": "arithmetic of the convolutions",
    "steps": "training steps",
    "tile": "input size of a tile, pixels",
}


def publish(network: Path) -> None:
    """Write the weights and their hash."""
    save_network(load_network(network), networks.FILE, torch.float16)
    found = hashlib.sha256(networks.FILE.read_bytes()).hexdigest()
    text = SOURCE.read_text("utf-8")
    write_text(SOURCE, re.sub('SHA256 = ".*"', f'SHA256 = "{found}"', text))


def recipe() -> str:
    """The settings of its configuration that are not the paper's, a line each."""
    path = RECORDS / "0-0" / "config.json"
    found = json.loads(path.read_text("utf-8"))
    paper = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    lines = []
    for name in differences(path, paper):
        pairs = [(name, found[name], paper[name])]
        if name == "augmentation":
            pairs = [
                (f"{name}.{field}", value, paper[name][field])
                for field, value in found[name].items()
                if value != paper[name][field]
            ]
        for field, here, there in pairs:
            values = " | ".join(map(in_words, (here, there)))
            lines.append(f"| {SETTINGS[field]} | {values} | `{field}` |")
    return "\n".join(lines)


def in_words(value: bool | float | str) -> str:
    """A setting as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return {"adam": "Adam", "sgd": "SGD"}.get(value, value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def curves(versions: int) -> list[dict]:
    """The curves of each held-out fold of the record."""
    texts = [path.read_text("utf-8") for path in RECORDS.glob("[1-5]-*/scores.json")]
    return [json.loads(text)["scores"][f"{versions}"]["figures"] for text in texts]


def mean_at(name: str, versions: int) -> np.ndarray:
    """A score's mean over the folds at each fixed threshold."""
    values = [one[name]["values"] for one in curves(versions)]
    return np.mean(np.array(values, float), axis=0)


def recommended() -> tuple[int, float, float]:
    """The versions and thresholds whose means over the folds were the best.

    For cells by V-Rand, by which the challenge ranks, and for pixels by pixel error:
    one threshold for all slices, as somebody needs who has no labels.
    """
    thresholds = np.array(curves(7)[0]["v_rand"]["thresholds"])
    versions = max(VERSIONS, key=lambda n: np.nanmax(mean_at("v_rand", n)))
    cells = thresholds[np.nanargmax(mean_at("v_rand", versions))]
    pixels = thresholds[np.nanargmin(mean_at("pixel_error", versions))]
    return versions, round(float(cells), 1), round(float(pixels), 1)


def held_out(versions: int, threshold: float) -> str:
    """Mean and deviation over folds and the worst run, a line for each score."""
    best, fixed = (spreads(RECORDS, versions, at) for at in (None, threshold))
    lines = []
    for name, title in TITLES.items():
        values = [one[name]["value"] for one in curves(versions)]
        worst = min(values) if name.startswith("v_") else max(values)
        numbers = [fixed[name].mean, best[name].mean, best[name].folds, worst]
        digits = 6 if name == "warping_error" else 4
        cells = " | ".join(f"{number:.{digits}f}" for number in numbers)
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def trained_on() -> str:
    """The scores of the slices that the network itself was trained on."""
    found = training_figures(RECORDS / "0-0")
    return ", ".join(
        f"{title.partition(' (')[0]} {found[name]:.4f}"
        for name, title in TITLES.items()
        if name in ("pixel_error", "v_rand", "v_info")
    )


def picture() -> None:
    """A test slice beside its cells, as the card recommends to make them."""
    import matplotlib.pyplot as plt

    from unet_lib import data, plot
    from unet_lib.predict import predict

    versions, threshold, _ = recommended()
    image = data.load_isbi2012().test_images[0]
    cells = predict(networks.load_pretrained(), image, versions=versions) > threshold
    plot.use_style()
    overlaid = plot.overlay_labels(image, cells.astype("uint8"), alpha=0.5)
    parts = [part[60:380, 100:420] for part in (image, overlaid)]
    figure = plot.show_images(parts, ["test slice 0", f"cells, above {threshold}"])
    temporary = PICTURE.with_name(".published.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, PICTURE)
    plt.close("all")


def card() -> str:
    """The card, from the records alone."""
    run = json.loads((RECORDS / "0-0" / "metrics.json").read_text("utf-8"))
    network = networks.load_pretrained()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    versions, cells, pixels = recommended()
    name = RECORDS.relative_to(ROOT / "results").as_posix()
    return f"""# The published network

<!-- Written by book/publish.py from results/{name}. -->

A U-Net as in Ronneberger, Fischer and Brox (2015), but with \
{network.arguments["base_channels"]} channels on its first level
where the paper has 64: {parameters:,} parameters, \
{networks.FILE.stat().st_size / 1e6:.1f} MB in half precision. It is not the
paper's network, and its scores are not the paper's.

![A slice of nerve tissue beside its cells in color](../book/_static/published.png)

## How to use it

```python
from unet_lib import load_pretrained
from unet_lib.predict import predict

probabilities = predict(load_pretrained(), images, versions={versions})
cells = probabilities > {cells}
```

`images` are gray, `(slices, height, width)`, float32, 0 to 1, of any size, with about
4 nm per pixel; the result is the probability of cell.

- **Test-time augmentation:** `versions={versions}` averages the predictions for \
{versions} rotated versions
  of each image. We compared 1, the paper's 7, and 8 (quarter turns, each also
  mirrored); at a fixed threshold, {versions} had the best V-Rand, averaged over five
  folds.
- **Threshold:** {cells} to separate cells (V-Rand), {pixels} for the area of cells
  and membrane (pixel error). Thresholds below 0.5 are best because the weight map makes
  the network predict more membrane than the labels contain.

## What it was trained on

All 30 slices of the ISBI 2012 training stack: serial-section transmission electron
microscopy of the ventral nerve cord of a *Drosophila* larva, 4 x 4 nm per pixel, 50 nm
per slice (Cardona et al. 2010, doi:10.1371/journal.pbio.1000502). The test stack was
not used.

## How it was trained

`unet-lib experiments results/experiments.toml --only {name}/0-0`:
{run["steps"]:,} steps in {run["seconds"] / 60:.0f} minutes on \
{run["threads"]} core{"s" * (run["threads"] > 1)} of an {run["device"]}, {run["date"]},
commit `{run["commit"]}`, torch {run["torch"]}. It differs from the paper's recipe,
as we read it, in these settings:

| setting | here | the paper's recipe | field of `TrainConfig` |
|---|---|---|---|
{recipe()}

## How good it is

This network was trained on all labeled slices, so it has no held-out score of its own.
These are the scores of {len(curves(7))} networks trained in the same way, each scored
with `versions={versions}` on the six consecutive slices held out from its training. The
first column is the mean at the recommended threshold, {cells}. In the others, each fold
is scored at its own best threshold, as in the challenge. All choices were made on these
folds, so the first column is slightly optimistic, and the others more so.

The errors are best at 0. The pixel error is about the area of cells and membrane, and
all other scores are about cells that are merged or split;
[The challenge's metrics](../book/metrics.md) defines them.

| | mean at {cells} | mean at best | standard deviation | worst fold |
|---|---|---|---|---|
{held_out(versions, cells)}

On the slices it was trained on, without test-time augmentation, it reaches
{trained_on()}.

## Limits

The training data are one stack of one tissue from one microscope, labeled by one group.
The network has only seen dark membranes around light cells at about 4 nm per pixel; for
images of another kind or scale, train or fine-tune a network on them. The held-out
slices are neighbors of training slices, so scores on another piece of tissue are likely
to be worse. The network merges and splits some cells, as the scores show: use it to
learn and as a baseline, and proofread its segmentation before tracing neurons.

## License

MIT, like the code. The challenge's page names no license for the images and asks that
only the training stack be used for training; cite Cardona et al. for them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", type=Path, help="of a run")
    if network := parser.parse_args().network:
        publish(network)
        networks.SHA256 = hashlib.sha256(networks.FILE.read_bytes()).hexdigest()
    picture()
    write_text(CARD, card())


if __name__ == "__main__":
    main()
