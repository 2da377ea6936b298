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
import re
from pathlib import Path

import numpy as np
import torch

from unet_lib import networks
from unet_lib._files import write_text
from unet_lib.networks import load_network, save_network
from unet_lib.results import spreads
from unet_lib.results.table import FIXED
from unet_lib.train import TrainConfig
from unet_lib.train.folder import differences

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results" / "quarter-adam-10000" / "best"
CARD = networks.FILE.with_suffix(".md")
SOURCE = Path(networks.__file__)
TITLES = {
    "pixel_error": "pixel error",
    "rand_error": "Rand error",
    "warping_error": "warping error",
    "v_rand": "V-Rand (1 is best)",
    "v_info": "V-Info (1 is best)",
}


def publish(network: Path) -> None:
    """Write the weights and their hash."""
    save_network(load_network(network), networks.FILE, torch.float16)
    found = hashlib.sha256(networks.FILE.read_bytes()).hexdigest()
    text = SOURCE.read_text("utf-8")
    write_text(SOURCE, re.sub('SHA256 = ".*"', f'SHA256 = "{found}"', text))


def recipe() -> str:
    """The fields of its configuration that are not the paper's, a line each."""
    path = RECORDS / "0-0" / "config.json"
    paper = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    found = json.loads(path.read_text("utf-8"))
    lines = []
    for name in differences(path, paper):
        value = found[name]
        if name == "augmentation":
            value = {k: v for k, v in value.items() if v != paper[name][k]}
        lines.append(f"| `{name}` | `{value}` |")
    return "\n".join(lines)


def held_out(versions: int) -> str:
    """Mean and deviation over folds and the worst run, a line for each figure."""
    folds = sorted(RECORDS.glob("[1-5]-*"))
    best, fixed = spreads(RECORDS, versions), spreads(RECORDS, versions, FIXED)
    curves = [
        json.loads((fold / "scores.json").read_text("utf-8"))["scores"][f"{versions}"]
        for fold in folds
    ]
    lines = []
    for name, title in TITLES.items():
        values = [one["figures"][name]["value"] for one in curves]
        worst = min(values) if name.startswith("v_") else max(values)
        numbers = [best[name].mean, best[name].folds, worst, fixed[name].mean]
        digits = 6 if name == "warping_error" else 4
        cells = " | ".join(f"{number:.{digits}f}" for number in numbers)
        usual = np.median([one["figures"][name]["threshold"] for one in curves])
        lines.append(f"| {title} | {cells} | {usual:.1f} |")
    return "\n".join(lines)


def card() -> str:
    """The card, from the records alone."""
    run, scores = (
        json.loads((RECORDS / "0-0" / f"{name}.json").read_text("utf-8"))
        for name in ("metrics", "scores")
    )
    network = networks.load_pretrained()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    versions, folds = scores["versions"], sorted(RECORDS.glob("[1-5]-*"))
    return f"""# The published network

<!-- Written by book/publish.py from results/quarter-adam-10000/best. -->

A U-Net as in Ronneberger, Fischer and Brox (2015), but with \
{network.arguments["base_channels"]} channels on its first level
where the paper has 64: {parameters:,} parameters, \
{networks.FILE.stat().st_size / 1e6:.1f} MB in half precision. It is not the
paper's network, and its figures are not the paper's.

```python
from unet_lib import load_pretrained
from unet_lib.predict import predict

probabilities = predict(load_pretrained(), images, versions={versions})
```

`images` are grey, `(slices, height, width)`, float32, 0 to 1, of any size; the result
is the probability of cell.

## What it learnt from

All 30 slices of the ISBI 2012 training stack: serial-section transmission electron
microscopy of the ventral nerve cord of a *Drosophila* larva, 4 x 4 nm a pixel, 50 nm
a slice (Cardona et al. 2010, doi:10.1371/journal.pbio.1000502). Nothing of the test
stack.

## How

`unet-lib experiments results/experiments.toml --only quarter-adam-10000/best/0-0`:
{run["steps"]:,} steps, {run["seconds"] / 60:.0f} minutes, {run["threads"]} thread(s) \
of {run["device"]}, {run["date"]}, commit `{run["commit"]}`,
torch {run["torch"]}. Unlike the paper's recipe in

| field of `TrainConfig` | here |
|---|---|
{recipe()}

## How well

This very network has seen all labelled slices, so no held-out figure of it exists.
These are of {len(folds)} networks trained in the same way, each scored on the six
neighbouring slices that it had not seen, {versions} versions of a slice averaged; at \
the best
threshold of each, as the challenge scores, and the mean at the fixed threshold {FIXED}.

| | mean of folds | their deviation | worst | mean at {FIXED} | best threshold, median |
|---|---|---|---|---|---|
{held_out(versions)}

The weight map makes a network call membrane sooner than the labels do, so thresholds
below {FIXED} suit most figures better.

## Limits

One stack, one tissue, one microscope, one group's labels. It knows dark membranes on
light cells at about 4 nm a pixel; it has not been tried on anything else, and images
of another kind or scale need a network trained on them. The held-out slices are
neighbours of training slices, so another piece of tissue is likely to do worse. It
merges and splits cells, as the figures say: it is for learning and for comparing, not
for tracing nerves without somebody to check.

## Licence

MIT, as the code. The challenge's page names no licence for the images and asks that
only the training stack be used for training; cite Cardona et al. for them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", type=Path, help="of a run")
    if network := parser.parse_args().network:
        publish(network)
        networks.SHA256 = hashlib.sha256(networks.FILE.read_bytes()).hexdigest()
    write_text(CARD, card())


if __name__ == "__main__":
    main()
