"""What README.md shows of the recorded runs: its picture and its table.

python book/front.py            write both anew, from results/ and the stacks
python book/front.py --measure  first record all pages and run the README's two
                                commands, and time them into results/times.json
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "book" / "_static" / "front.png"
RUN = ROOT / "results" / "quarter-width"
TIMES = ROOT / "results" / "times.json"
BLOCK = re.compile(
    r"(?<=<!-- From results/, by book/front.py. -->\n).*?(?=<!-- End. -->)", re.DOTALL
)


def table() -> str:
    """The README's table, from the recorded files alone."""
    run = json.loads((RUN / "metrics.json").read_text("utf-8"))
    times = json.loads(TIMES.read_text("utf-8"))
    slices = f"{run['held_out'][0]} to {run['held_out'][-1]}"
    here = f"{times['cores']} cores, {times['device']}"
    there = f"{run['threads']} cores, {run['device']}"
    score = f"pixel error {run['pixel_error']:.4f} on slices {slices}, one pass"
    rows = [
        ("build the book", times["build"], here, "the site, all outputs recorded"),
        ("run the tests", times["tests"], here, ""),
        ("run all notebooks", times["notebooks"], here, "every page, quick setting"),
        ("train the small network", run["seconds"], there, score),
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
            "The slices are held out of the training stack. For comparison, the",
            "paper's Table 1 gives 0.0611 for U-Net on the challenge's test slices,",
            f"which are others. Training: {run['date']}, commit `{run['commit']}`; the",
            f"rest: {times['date']}, without the first downloads.",
            "",
            "",
        ]
    )


def picture() -> None:
    """A held-out slice beside its segmentation, as a PNG."""
    import matplotlib.pyplot as plt

    from unet_lib import data, load_network, plot
    from unet_lib.predict import predict

    stacks = data.load_isbi2012()
    held_out = json.loads((RUN / "metrics.json").read_text("utf-8"))["held_out"][0]
    image = stacks.train_images[held_out]
    cells = predict(load_network(RUN / "network.safetensors"), image) > 0.5
    plot.use_style()
    shown = [image, plot.overlay_labels(image, cells.astype("uint8"), alpha=0.6)]
    figure = plot.show_images([part[60:380, 100:420] for part in shown])
    temporary = PICTURE.with_name(".front.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, PICTURE)
    plt.close("all")


def measure(names: list[str]) -> None:
    """Time the recording of all pages and the README's commands, once set up."""
    import torch

    from unet_lib.checkpoint import circumstances, write_text

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
    parser.add_argument(
        "--measure", nargs="+", default=[], choices=["notebooks", "build", "tests"]
    )
    if names := parser.parse_args().measure:
        measure(names)
    picture()
    text = BLOCK.sub(lambda _: table(), README.read_text("utf-8"))
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
