"""What README.md and the landing page show of the recorded runs: pictures, tables.

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
# The published network, and those made like it with a fold held out.
PUBLISHED = ROOT / "results" / "quarter-adam-10000" / "best"
RECIPE = ROOT / "results" / "quarter-sgd-30000" / "paper"
TIMES = ROOT / "results" / "times.json"
TITLES = {
    "pixel_error": "pixel error (0 is best)",
    "rand_error": "Rand error (0 is best)",
    "warping_error": "warping error (0 is best)",
    "v_rand": "V-Rand (1 is best)",
    "v_info": "V-Info (1 is best)",
}
# Their text is never empty.
TRAINED, TABLE = (
    re.compile(
        rf"(?<=<!-- From results/, by {by} -->\n).*?(?=<!-- End. -->)", re.DOTALL
    )
    for by in ("book/front.py: what has been trained.", "book/front.py.")
)


def trained() -> str:
    """What of the table of experiments has a record, and the best networks' scores."""
    from unet_lib.config import TrainConfig
    from unet_lib.results.table import read_table, state

    results, paper = ROOT / "results", TrainConfig()
    asked = read_table(results / "experiments.toml")
    done = [one for one in asked if state(one, ROOT / "none", results) == "recorded"]
    config = json.loads((PUBLISHED / "0-0" / "config.json").read_text("utf-8"))
    width = config["base_channels"]

    def count(**fields: object) -> str:
        """How many of the runs whose configurations have these fields are there."""
        have, want = (
            sum(fields.items() <= vars(one.config).items() for one in runs)
            for runs in (done, asked)
        )
        return f"{have or 'none'} of {want}"

    recipe = count(base_channels=width, optimizer=paper.optimizer, steps=paper.steps)
    wide = count(base_channels=paper.base_channels)
    (steps,) = {
        one.config.steps
        for one in asked
        if one.config.base_channels == paper.base_channels
    }
    text = f"""**What has been trained:** {len(done)} of the {len(asked)} runs in
        `results/experiments.toml`, almost all with networks a quarter as wide as the
        paper's ({width} channels on the first level, not {paper.base_channels}); most
        use Adam. Trained as we read the paper, with SGD, for {paper.steps:,} steps:
        {recipe} planned runs. **What has not:** the paper's recipe to its end at the
        paper's own width; at that width, we have finished {wide} planned runs of
        {steps:,} steps."""
    return f"{filled(text)}\n\n{scores()}\n"


def scores() -> str:
    """The scores of the paper's recipe and of our best, beside the authors'."""
    from unet_lib.config import TrainConfig
    from unet_lib.results import reported, spreads

    paper, authors = TrainConfig(), reported(ROOT / "results" / "authors.toml")
    titles, found = [""], []
    for folder in (RECIPE, PUBLISHED):
        text = (folder / "1-0" / "config.json").read_text("utf-8")
        config = TrainConfig.from_dict(json.loads(text))
        optimizer = {"sgd": "SGD", "adam": "Adam"}[config.optimizer]
        titles.append(
            f"our networks: {config.base_channels} channels, {optimizer}, "
            f"{config.steps:,} steps"
        )
        found.append(spreads(folder, 7))
    titles.append(f"the paper's network: {paper.base_channels} channels, SGD")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, title in TITLES.items():
        digits = 6 if name == "warping_error" else 4
        ours = [
            f"{one[name].mean:.{digits}f} ± {one[name].folds:.{digits}f}"
            for one in found
        ]
        cells = [title, *ours, f"{authors[name]:.{digits}f}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = """**Ours cannot be compared with the paper's digit by digit:** they are for
        held-out slices of the training stack, the paper's for the test stack, which has
        other labels. Ours are means ± standard deviations of five networks, each on
        slices it has not seen, with the paper's seven rotations and the best threshold,
        as in the challenge. Those of the first column were trained as we read the
        paper, but at a quarter of its width and with smaller tiles. The sources of the
        paper's numbers are in `results/authors.toml`."""
    return "\n".join(lines) + f"\n\n{filled(text)}"


def filled(text: str) -> str:
    return fill(" ".join(text.split()), 88)


def table() -> str:
    """How long things take, from the recorded files alone."""
    run = json.loads((PUBLISHED / "0-0" / "metrics.json").read_text("utf-8"))
    times = json.loads(TIMES.read_text("utf-8"))
    here = f"{times['cores']} cores, {times['device']}"
    there = f"{run['threads']} core{'s' * (run['threads'] > 1)}, {run['device']}"
    rows = [
        ("build the book", times["build"], here, "the site, from recorded outputs"),
        ("run the tests", times["tests"], here, "a pass or a failure for each"),
        ("run all notebooks", times["notebooks"], here, "every page, quick settings"),
        ("train the published network", run["seconds"], there, "`load_pretrained()`"),
    ]
    lines = [
        f"| {what} | {seconds / 60:.1f} min | {where} | {gives} |"
        for what, seconds, where, gives in rows
    ]
    text = f"""The published network was trained on {run["date"]}, commit
        `{run["commit"]}`; the other times were measured on {times["date"]}, without
        downloads."""
    head = ["| | takes | on | gives |", "|---|---|---|---|"]
    return "\n" + "\n".join([*head, *lines]) + f"\n\n{filled(text)}\n\n"


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
    # At the end, since the tests compare the README with this file.
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
