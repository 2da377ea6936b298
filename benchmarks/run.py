"""Speed against other software, side by side in one run.

    uv run --group benchmarks benchmarks/run.py             all of it
    uv run --group benchmarks benchmarks/run.py weight-map  one part

Each line compares two ways to the same result: first the results are compared, then
both are called in turns, so that whatever else the machine does slows both. What is
reported is the ratio of the medians. Prints a table and writes
results/benchmarks/<device>.json; parts that were not measured keep their rows there.
"""

import argparse
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from deformations import deformations
from inference import inference
from overlap_tiles import overlap_tiles
from training import training
from training_cpu import training_cpu
from weight_maps import weight_maps

from unet_lib import data
from unet_lib._files import write_text
from unet_lib.train import best_device
from unet_lib.train.folder import circumstances

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
PARTS = {
    "weight-map": weight_maps,
    "deformation": deformations,
    "overlap-tile": overlap_tiles,
    "training-cpu": training_cpu,
    "training": training,
    "inference": inference,
}


def measured(device: str, source: str) -> dict:
    """When, with what and on which data a part was measured."""
    record = circumstances(torch.device(device)) | {"data": source}
    for package in ("scipy", "scikit-image", "elasticdeform", "monai"):
        try:
            record[package] = version(package)
        except ImportError:
            record[package] = None
    return record


def write_record(rows: list[dict], record: dict) -> None:
    """Into the device's file, in place of what it has of the same parts."""
    name = re.sub(r"\W+", "-", record["device"]).strip("-").lower()
    path = RESULTS / f"{name}.json"
    kept = {"parts": {}, "rows": []}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
    new = {row["part"] for row in rows}
    parts = kept["parts"] | dict.fromkeys(new, record)
    rows = rows + [row for row in kept["rows"] if row["part"] not in new]
    order = [*PARTS, *parts]
    written = {key: record[key] for key in ("device", "device_type")}
    written["parts"] = {part: parts[part] for part in sorted(parts, key=order.index)}
    written["rows"] = sorted(rows, key=lambda row: order.index(row["part"]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(written, indent=1) + "\n")


def print_rows(rows: list[dict]) -> None:
    print(f"{'ms':>10}  what, against what")
    for row in rows:
        print(f"{1000 * row['seconds']:>10.2f}  {row['what']}")
        print(f"{1000 * row['other_seconds']:>10.2f}  {row['other']}")
        found = [f"ratio {row['ratio']:.2f}"]
        if row.get("tiles_per_second"):
            found.append(f"{row['tiles_per_second']:.1f} tiles/s")
        if row.get("peak_gib"):
            found.append(f"{row['peak_gib']:.2f} GiB")
        if row.get("share"):
            found.append(f"{row['share']:.0%} of the rate")
        if row.get("target"):
            found.append(f"target: {row['target']}")
        print(" " * 12 + ", ".join(found))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # Not by argparse's choices, which would refuse that none is given.
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; else all")
    chosen = parser.parse_args(arguments).parts or list(PARTS)
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"Expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}.")
    stacks = data.load_or_stand_in()
    device = best_device()
    threads = torch.get_num_threads()
    rows = []
    for name in chosen:
        rows += [{"part": name} | row for row in PARTS[name](stacks, device)]
        torch.set_num_threads(threads)
    print_rows(rows)
    if rows:
        write_record(rows, measured(device, stacks.source))


if __name__ == "__main__":
    main()
