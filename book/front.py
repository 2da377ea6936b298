"""What README.md and the landing page show of the recorded runs: pictures, a table.

python book/front.py            write them, from results/, notebooks/ and the stacks
python book/front.py --screenshot
                                also take a picture of the built book's first page
python book/front.py --measure notebooks build tests
                                first record all pages and run the README's two
                                commands, and time them into results/times.json
python book/front.py --measure scores
                                first score the recorded network's held-out slices, and
                                those that it trained on, into its scores.json
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from textwrap import fill

import yaml

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
STATIC = ROOT / "book" / "_static"
PICTURE = STATIC / "front.png"
PREVIEW = STATIC / "preview.png"  # where a link to the book is shown
SCREENSHOT = STATIC / "screenshot.png"  # of the built book, for the README
CARDS = STATIC / "cards"
RUN = ROOT / "results" / "recorded-run"
# Made like the published network, with a fold held out.
PUBLISHED = ROOT / "results" / "quarter-adam-10000" / "best"
TIMES = ROOT / "results" / "times.json"
TITLES = {
    "pixel_error": "pixel error",
    "rand_error": "Rand error",
    "warping_error": "warping error",
    "v_rand": "V-Rand, 1 is best",
    "v_info": "V-Info, 1 is best",
}
# Their text is never empty.
TRAINED, TABLE = (
    re.compile(
        rf"(?<=<!-- From results/, by {by} -->\n).*?(?=<!-- End. -->)", re.DOTALL
    )
    for by in ("book/front.py: what has been trained.", "book/front.py.")
)


def trained() -> str:
    """What has a record, and what the table of experiments asks for besides."""
    from unet_lib.config import TrainConfig
    from unet_lib.results.table import read_table, state

    results, paper = ROOT / "results", TrainConfig()
    kinds = {True: set(), False: set()}
    for one in read_table(results / "experiments.toml"):
        done = state(one, results / "none", results) == "recorded"
        asked = one.config
        kinds[done].add((-asked.base_channels, asked.optimizer, asked.steps))
    lines = [
        f"**Trained so far:** {listed(kinds[True])}.",
        f"**Not trained yet:** {listed(kinds[False] - kinds[True])}.",
        f"The paper's network has {paper.base_channels} channels on its first level;",
        f"its recipe, as we read it, is SGD for {paper.steps:,} steps.",
    ]
    return fill(" ".join(lines), 88) + "\n"


def listed(kinds: set[tuple[int, str, int]]) -> str:
    """Channels, optimizers and steps in words, the widest first."""
    found: dict[tuple[int, str], list[str]] = {}
    for channels, optimizer, steps in sorted(kinds):
        found.setdefault((-channels, optimizer), []).append(f"{steps:,}")
    names = {"adam": "Adam", "sgd": "SGD"}
    return "; ".join(
        f"{channels} channels with {names[optimizer]}, {' and '.join(steps)} steps"
        for (channels, optimizer), steps in found.items()
    )


def table() -> str:
    """The README's table, from the recorded files alone."""
    from unet_lib.results import reported, spreads

    run = json.loads((RUN / "metrics.json").read_text("utf-8"))
    times = json.loads(TIMES.read_text("utf-8"))
    slices = f"{run['held_out'][0]} to {run['held_out'][-1]}"
    here = f"{times['cores']} cores, {times['device']}"
    there = f"{run['threads']} cores, {run['device']}"
    figures = json.loads((RUN / "scores.json").read_text("utf-8"))["figures"]
    five, authors = spreads(PUBLISHED, 7), reported(ROOT / "results" / "authors.toml")
    scores = []
    for name, title in TITLES.items():
        digits = 6 if name == "warping_error" else 4
        mean, spread, _, _ = five[name]
        numbers = figures[name]["value"], mean, spread, authors[name]
        one, mean, spread, theirs = (f"{number:.{digits}f}" for number in numbers)
        scores.append(f"| {title} | {one} | {mean} ± {spread} | {theirs} |")
    rows = [
        ("build the book", times["build"], here, "the site, from recorded outputs"),
        ("run the tests", times["tests"], here, ""),
        ("run all notebooks", times["notebooks"], here, "every page, quick settings"),
        ("train the small network", run["seconds"], there, "the scores below"),
    ]
    lines = [
        f"| {what} | {seconds / 60:.1f} min | {where} | {gives} |"
        for what, seconds, where, gives in rows
    ]
    return "\n".join(
        [
            "",
            "| | takes | on | gives |",
            "|---|---|---|---|",
            *lines,
            "",
            "No full-width network is in this table: ours are a quarter as wide as",
            "the paper's. The small network is scored on the held-out slices",
            f"{slices}, in one pass. The next column is the mean ± standard deviation",
            "of five folds, each scored by a network that has not seen it, with",
            "test-time augmentation over the paper's seven rotations. U-Net's scores",
            "are for the test slices, so the columns are not comparable:",
            "",
            "| | small network | Adam, 16 channels, 10,000 steps | U-Net, test stack |",
            "|---|---|---|---|",
            *scores,
            "",
            "U-Net's errors are from Table 1 of the paper, V-Rand and V-Info from the",
            "challenge's later ranking; `results/authors.toml` has the sources. The",
            f"small network was trained on {run['date']}, commit `{run['commit']}`;",
            f"the other times were measured on {times['date']}, without downloads.",
            "",
            "",
        ]
    )


def pictures() -> None:
    """A held-out slice and its segmentation: for the README, and for links."""
    from matplotlib.figure import Figure
    from PIL import Image

    from unet_lib import data, load_network, plot
    from unet_lib.predict import predict

    stacks = data.load_isbi2012()
    held_out = json.loads((RUN / "metrics.json").read_text("utf-8"))["held_out"][0]
    image = stacks.train_images[held_out]
    cells = predict(load_network(RUN / "network.safetensors"), image) > 0.5
    plot.use_style()
    shown = [image, plot.overlay_labels(image, cells.astype("uint8"), alpha=0.6)]
    shown = [part[60:380, 100:420] for part in shown]
    for path, size, title in (
        (PICTURE, (7, 3.5), None),
        (PREVIEW, (12, 6.3), "The U-Net book: from the paper to scored cells"),
    ):
        figure = Figure(figsize=size, layout="constrained")
        for axes, part in zip(figure.subplots(1, 2), shown, strict=True):
            axes.imshow(part, cmap="gray", vmin=0, vmax=1, interpolation="none")
            axes.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=28)
        stored = io.BytesIO()
        figure.savefig(stored, dpi=200 if title is None else 100)
        small = Image.open(stored).convert("RGB").quantize(256)
        small.save(path, optimize=True)


def cards() -> None:
    """The first picture of each recorded chapter, as its card on the landing page."""
    from PIL import Image, ImageOps

    CARDS.mkdir(exist_ok=True)
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    for chapter in contents["parts"][0]["chapters"]:
        name = chapter["file"]
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8")
        stored = next(
            output["data"][kind]
            for cell in json.loads(text)["cells"]
            for output in cell.get("outputs", [])
            for kind in ("image/png", "image/jpeg")
            if kind in output.get("data", {})
        )
        picture = Image.open(io.BytesIO(base64.b64decode(stored))).convert("RGB")
        if picture.width < 1.3 * picture.height:  # whole: a crop would behead the U
            card = ImageOps.pad(picture, (640, 360), color="white")
        else:  # the left, where panels begin, of what is wider than a card
            card = ImageOps.fit(picture, (640, 360), centering=(0.0, 0.5))
        card.save(CARDS / f"{name}.jpg", quality=80, optimize=True)


def screenshot() -> None:
    """The top of the built book's first page, in few colors."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    found = os.environ.get("UNET_BOOK_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto((ROOT / "_build" / "html" / "index.html").as_uri())
        page.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128).save(SCREENSHOT, optimize=True)


def score() -> None:
    """The challenge's scores of the recorded network, one pass, as it is stored."""
    import torch

    from unet_lib import data, load_network
    from unet_lib._files import write_text
    from unet_lib.metrics import evaluate
    from unet_lib.predict import predict
    from unet_lib.train.folder import circumstances

    stacks = data.load_isbi2012()
    held_out = json.loads((RUN / "metrics.json").read_text("utf-8"))["held_out"]
    network = load_network(RUN / "network.safetensors")
    trained = [z for z in range(len(stacks.train_images)) if z not in held_out]
    scores, training = (
        evaluate(
            stacks.train_labels[slices], predict(network, stacks.train_images[slices])
        ).to_dict()
        for slices in (held_out, trained)
    )
    record = {"held_out": held_out} | scores | circumstances(torch.device("cpu"))
    record["training"] = {"slices": trained, "versions": 1} | training
    write_text(RUN / "scores.json", json.dumps(record, indent=1) + "\n")


def measure(names: list[str]) -> None:
    """Time the recording of all pages and the README's commands, once set up."""
    import torch

    from unet_lib._files import write_text
    from unet_lib.train.folder import circumstances

    listed = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--commands"],
        capture_output=True,
        text=True,
        check=True,
    )
    build, tests = listed.stdout.splitlines()
    commands = {
        "notebooks": f"{sys.executable} book/record.py",
        "build": f"rm -rf _build && {build}",
        "tests": tests,
    }
    found = circumstances(torch.device("cpu"))
    times = json.loads(TIMES.read_text("utf-8")) if TIMES.exists() else {}
    times["cores"] = os.cpu_count()
    times |= {key: found[key] for key in ("device", "python", "torch", "date")}
    for name in names:
        started = time.perf_counter()
        subprocess.run(["bash", "-c", commands[name]], cwd=ROOT, check=True)
        times[name] = round(time.perf_counter() - started, 1)
        write_text(TIMES, json.dumps(times, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = ["scores", "notebooks", "build", "tests"]
    parser.add_argument("--measure", nargs="+", default=[], choices=known)
    parser.add_argument("--screenshot", action="store_true")
    options = parser.parse_args()
    if names := options.measure:
        if "scores" in names:
            score()
        if timed := [name for name in known[1:] if name in names]:
            measure(timed)
    if options.screenshot:
        screenshot()
    pictures()
    cards()
    text = TABLE.sub(lambda _: table(), README.read_text("utf-8"))
    text = TRAINED.sub(lambda _: trained(), text)
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
