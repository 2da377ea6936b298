"""Learning rates for the paper's optimizer, tried on training slices only.

    python benchmarks/learning_rate.py                  every trial
    python benchmarks/learning_rate.py 16:444:900:1e-3  channels, tile, steps, rate

Slices 0 to 20 are trained on and 21 to 23 watched; 24 to 29, which the book reports
on, are never read. Writes results/learning-rate/<trial>.json: what was asked, what was
logged, on what.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from unet_lib import data
from unet_lib._files import write_text
from unet_lib.train import TrainConfig, fit
from unet_lib.train.folder import circumstances

RESULTS = Path(__file__).resolve().parent.parent / "results" / "learning-rate"
TRIALS = [f"16:444:900:{rate}" for rate in ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")]
TRIALS += [
    f"{channels}:444:1500:{rate}"  # momentum 0.99 needs more steps than the others had
    for channels in (16, 64)
    for rate in ("1e-4", "3e-4", "1e-3", "3e-3")
]
TRIALS += [f"64:252:150:{rate}" for rate in ("1e-4", "1e-3")]


def configuration(trial: str) -> TrainConfig:
    channels, tile, steps, rate = trial.split(":")
    return TrainConfig(
        base_channels=int(channels),
        tile=int(tile),
        steps=int(steps),
        learning_rate=float(rate),
        seed=1,
        held_out=(21, 22, 23),
        watch_at=(int(steps) // 4, int(steps) // 2),
        device="cpu",
    )


def write_record(trial: str, record: dict) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{trial.replace(':', '-')}.json"
    write_text(path, json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="*", help="channels:tile:steps:rate; else all")
    torch.set_num_threads(1)
    stacks = data.load_isbi2012()
    images, labels = stacks.train_images[:24], stacks.train_labels[:24]
    for trial in parser.parse_args().trials or TRIALS:
        config = configuration(trial)
        record = {"config": dataclasses.asdict(config)}
        try:
            run = fit(config, images, labels)
            record |= {"history": run.history, "metrics": run.metrics}
        except FloatingPointError as error:
            record |= {"history": [], "metrics": {}, "error": str(error)}
        write_record(trial, record | circumstances(torch.device("cpu")))


if __name__ == "__main__":
    main()
