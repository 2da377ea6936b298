"""The commands: exit codes, what they print, what they teach."""

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from unet_lib import cli, data, train
from unet_lib.augment import Augmentation, TileSampler
from unet_lib.cli.files import write_preview
from unet_lib.config import TrainConfig
from unet_lib.metrics import evaluate
from unet_lib.model import UNet
from unet_lib.networks import load_network, save_network
from unet_lib.predict import predict
from unet_lib.results import table as experiments

PREDICT = sys.modules["unet_lib.predict"]  # the module, not its function


@pytest.fixture
def stacks(monkeypatch):
    """Small stacks that pass for the real ones; records the folder asked for."""
    images, labels = data.synthetic_em(2, 48, seed=0)
    small = data.Stacks(images, labels, images, None, "ISBI 2012")
    asked = []

    def load(folder=None):
        asked.append(folder)
        return small

    monkeypatch.setattr(data, "load_isbi2012", load)
    monkeypatch.setattr(data, "synthetic_stacks", lambda: small)
    return small, asked


def flat(text):
    """What is said in a box of tyro's, in one line."""
    return " ".join(text.replace("│", " ").split())


def test_data_prints_a_table(stacks, capsys):
    small, asked = stacks
    assert cli.main(["data", "--folder", "mine"]) == 0
    assert asked == [Path("mine")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ISBI 2012")
    rows = {line[:12].strip(): line for line in lines[2:]}
    assert list(rows) == ["train images", "train labels", "test images", "test labels"]
    assert "2 × 48 × 48" in rows["train images"]
    assert f"{small.train_images.mean():.3f}" in rows["train images"]
    assert f"{small.train_images.std():.3f}" in rows["train images"]
    assert f"{100 * np.mean(small.train_labels == 0):.2f}%" in rows["train labels"]
    assert rows["test labels"].endswith("absent")


def test_data_without_a_folder_asks_for_the_usual_places(stacks):
    assert cli.main(["data"]) == 0
    assert stacks[1] == [None]


def test_data_synthetic_says_so(stacks, capsys):
    assert cli.main(["data", "--synthetic"]) == 0
    assert stacks[1] == []
    assert "not the ISBI 2012 stacks" in capsys.readouterr().out


@pytest.mark.usefixtures("stacks")
def test_data_exports_once(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["data", "--export", str(out)]) == 0
    assert sorted(os.listdir(out / "train" / "labels")) == ["00.png", "01.png"]
    assert str(out) in capsys.readouterr().out
    assert cli.main(["data", "--export", str(out)]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


def test_data_that_cannot_be_had(tmp_path, capsys):
    assert cli.main(["data", "--folder", str(tmp_path / "nowhere")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("unet-lib: ")
    assert "nowhere" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["data", "--size"], ["data", "--folder", "a", "--synthetic"]],
)
def test_wrong_usage(arguments, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"unet-lib (data|COMMAND) --help", captured.err)


COMMANDS = (
    "data",
    "train",
    "predict",
    "cells",
    "evaluate",
    "experiments",
    "export",
)


def test_help_teaches(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert "Example:" in overview
    for command in COMMANDS:
        assert re.search(rf"(?m)^  {command} +[A-Z].*\.$", overview)
        assert cli.main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert re.search(rf"Example(: .*\.|:)\n\n(  .*\n)*  unet-lib {command} ", text)
        _, *lines = text.splitlines()  # tyro breaks no usage; a terminal does
        assert max(map(len, lines)) <= 88
    assert cli.main(["data", "-h"]) == 0
    text = capsys.readouterr().out
    assert "UNET_BOOK_DATA" in text
    assert "255 = cell" in text


def test_help_comes_without_torch_and_runs_as_a_module():
    code = "import sys; from unet_lib import cli; cli.main(['train', '--help']); "
    code += "sys.exit('torch' in sys.modules)"
    for command in (["-c", code], ["-m", "unet_lib.cli", "train", "--help"]):
        done = subprocess.run([sys.executable, *command], capture_output=True)
        assert done.returncode == 0, done.stderr
        assert b"--base-channels" in done.stdout


def test_a_command_line_without_tyro_says_so():
    bar = "import sys; sys.modules['tyro'] = None; "
    for code in (
        "import unet_lib.cli",
        "import runpy; runpy.run_module('unet_lib.cli', run_name='__main__')",
    ):
        done = subprocess.run(
            [sys.executable, "-c", bar + code], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "The command line needs tyro: run `pip install tyro`." in done.stderr


@pytest.fixture(scope="module")
def thirty_slices():
    """As many as the real stack has, so that folds exist."""
    return data.synthetic_em(30, 48, seed=0)


@pytest.fixture
def small_stacks(monkeypatch, thirty_slices):
    """Thirty small slices in the place of the real ones."""
    images, labels = thirty_slices
    stacks = data.Stacks(images, labels, images, None, "ISBI 2012")
    asked = []
    monkeypatch.setattr(
        data, "load_isbi2012", lambda folder=None: asked.append(folder) or stacks
    )
    return asked


TINY = {
    "base_channels": 1,
    "depth": 1,
    "tile": 24,
    "steps": 2,
    "augmentation": {"deformation": 2.0},
    "device": "cpu",
}


@pytest.mark.usefixtures("small_stacks")
def test_train_records_a_run_of_the_configuration(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    folder = tmp_path / "run"
    arguments = ["train", str(folder), "--config", str(config), "--fold", "5"]
    assert cli.main(arguments) == 0
    assert (
        "Slices 24, 25, 26, 27, 28, 29: pixel error (1 - Dice"
        in capsys.readouterr().out
    )
    recorded = json.loads((folder / "config.json").read_text())
    assert {name: recorded[name] for name in TINY if name != "augmentation"} == {
        name: value for name, value in TINY.items() if name != "augmentation"
    }
    assert recorded["augmentation"]["deformation"] == 2.0
    assert recorded["held_out"] == [24, 25, 26, 27, 28, 29]
    # What a run has written is itself a configuration: the run again.
    again = tmp_path / "again"
    assert cli.main(["train", str(again), "--config", str(folder / "config.json")]) == 0
    assert (again / "network.safetensors").read_bytes() == (
        folder / "network.safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("small_stacks")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(TINY | {"stepz": 5}), "config.json: Unknown field(s) stepz"),
        (json.dumps(TINY | {"steps": 0}), "config.json: steps must be"),
        (json.dumps(TINY | {"held_out": [30]}), "Cannot hold out"),
        (json.dumps(TINY | {"tile": 25}), "nearest legal"),
        (json.dumps(TINY | {"held_out": [[1]]}), "config.json: held_out must be"),
        (json.dumps(TINY | {"sigma": 10**400}), "config.json: sigma must be"),
        (json.dumps(TINY | {"augmentation": None}), "Augmentation, got None"),
        ("[1, 2]", "config.json: Expected a dictionary"),
        ("{broken", "config.json is not valid JSON: "),
        ("[" * 100_000, "config.json is not valid JSON: "),
        (b"\xff", "config.json is not valid JSON: "),
        (None, "No such file"),
    ],
)
def test_train_refuses_a_wrong_configuration(text, message, tmp_path, capsys):
    config = tmp_path / "config.json"
    if text is not None:
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
    for options in ([], ["--seed", "1", "--contrast", "0.1"]):
        arguments = ["train", str(tmp_path / "run"), "--config", str(config)]
        assert cli.main(arguments + options) == 1
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run" / "history.csv").exists()


# Each field of a configuration with a value that is not its default.
OTHERS = {
    "in_channels": 3,
    "num_classes": 4,
    "base_channels": 3,
    "depth": 2,
    "padding": "same",
    "dropout": 0.25,
    "batch_norm": True,
    "weighting": "none",
    "w0": 5.0,
    "sigma": 4.0,
    "tile": 28,
    "batch": 2,
    "optimizer": "adam",
    "momentum": 0.5,
    "learning_rate": 0.002,
    "schedule": "constant",
    "steps": 7,
    "average": 0.5,
    "precision": "bfloat16",
    "compile": True,
    "deterministic": True,
    "seed": 3,
    "held_out": (3, 4),
    "watch_at": (1, 2),
    "save_every": 9,
    "device": "cpu",
}
INSTANCES = {"instances": True}  # by itself: not with more than two classes
TURNED = {
    "deformation": 3.0,
    "rotation": False,
    "mirror": True,
    "contrast": 0.125,
    "brightness": 0.25,
}


def as_options(values):
    """Fields as they are given on the command line."""
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        else:
            yield f"--{option}"
            yield from map(str, value if isinstance(value, tuple) else (value,))


@pytest.fixture
def asked(monkeypatch, small_stacks):
    """What `unet-lib train` asks `fit` for."""
    asked = []

    def fit(config, images, labels, folder, watchers):
        asked.append((config, folder, watchers))
        return train.Run(None, [], {})

    monkeypatch.setattr(train, "fit", fit)
    return asked


def test_options_are_a_configuration(asked, tmp_path):
    assert cli.main(["train", "run"]) == 0
    assert asked.pop() == (TrainConfig(), Path("run"), ())  # the paper's
    wanted = TrainConfig(**OTHERS, augmentation=Augmentation(**TURNED))
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {*OTHERS, *INSTANCES, "augmentation"} == names
    for kind, given in ((TrainConfig, OTHERS | INSTANCES), (Augmentation, TURNED)):
        for field in dataclasses.fields(kind):
            assert given.get(field.name, None) != field.default, field.name
    options = [*as_options(OTHERS | TURNED), "--watch", "wandb"]
    assert cli.main(["train", "run", *options]) == 0
    assert asked.pop() == (wanted, Path("run"), ("wandb",))
    twice = [f"--watch={watcher}" for watcher in ("tensorboard", "wandb")]
    assert cli.main(["train", *twice, "run"]) == 0
    assert asked.pop()[2] == ("tensorboard", "wandb")
    # One at a time over a file of the others, and back over a file of the defaults.
    config = tmp_path / "config.json"
    config.write_text(json.dumps(dataclasses.asdict(TrainConfig())))
    for name, value in (OTHERS | INSTANCES | TURNED).items():
        arguments = ["train", "run", "--config", str(config)]
        assert cli.main([*arguments, *as_options({name: value})]) == 0
        changed = {name: value}
        if name in TURNED:
            changed = {"augmentation": Augmentation(**changed)}
        assert asked.pop()[0] == TrainConfig(**changed)
    config.write_text(json.dumps(dataclasses.asdict(wanted)))
    arguments = ["train", "run", "--config", str(config), "--fold", "1"]
    assert cli.main([*arguments, "--no-compile", "--rotation", "--watch-at"]) == 0
    turned = Augmentation(**TURNED | {"rotation": True})
    changes = {"compile": False, "watch_at": (), "augmentation": turned}
    expected = dataclasses.replace(wanted, **changes, held_out=(0, 1, 2, 3, 4, 5))
    assert asked.pop()[0] == expected


def test_every_field_is_explained(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out.partition("run options")[2]
    text = " " + flat(text)
    for kind, others in ((TrainConfig, OTHERS | INSTANCES), (Augmentation, TURNED)):
        said = inspect.getdoc(kind).partition("Args:")[2]
        for field in dataclasses.fields(kind):
            assert re.search(rf"^    {field.name}: \S", said, re.M), field.name
            if field.name in others:
                option = field.name.replace("_", "-")
                shown = re.split(rf" --{option}[ ,]", text)[1]
                default = shown.partition("(default: ")[2]
                value = "" if field.default == () else field.default
                assert default.startswith(f"{value})"), field.name


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--precision", "half"],
            2,
            "invalid choice 'half' for argument '--precision'",
        ),
        (["--steps", "many"], 2, "invalid literal for int() with base 10: 'many'"),
        (["--w0"], 2, "--w0"),
        (["--watch", "paper"], 2, "invalid choice 'paper' for argument '--watch'"),
        (["--fold", "6"], 2, "invalid choice '6' for argument '--fold'"),
        (["--stepz", "5"], 2, "Unrecognized options: --stepz, 5"),
        (["--config"], 2, "--config"),
        (["--steps", "0"], 2, "steps must be an integer from 1 to 2147483647, not 0"),
        (["--momentum", "1"], 2, "momentum must be a number of at least 0 and below 1"),
        (["--contrast", "-1"], 2, "contrast must be a number of at least 0, not -1"),
        (["--device", "gpu"], 1, "device must be"),
        (["--fold", "1", "--held-out", "3"], 1, "--fold and --held-out both"),
    ],
)
@pytest.mark.usefixtures("small_stacks")
def test_train_refuses_a_wrong_option(options, code, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", str(folder), *options]) == code
    captured = capsys.readouterr()
    assert message in flat(captured.err)
    assert captured.err.startswith("unet-lib: ") == (code == 1)
    assert captured.out == ""
    assert not folder.exists()


def test_train_refuses_a_folder_that_cannot_be_one(asked, tmp_path, capsys):
    place = tmp_path / "file"
    place.touch()
    for folder in (place, place / "run"):
        assert cli.main(["train", str(folder)]) == 1
        assert "file is not a folder" in capsys.readouterr().err
    assert not asked  # not for data either


@pytest.fixture
def ends(monkeypatch, small_stacks):
    """Make `unet-lib train` end as told."""

    def end(problem):
        def fit(*args, **options):
            if isinstance(problem, str):
                exec(compile(problem, train.__file__, "exec"))
            raise problem

        monkeypatch.setattr(train, "fit", fit)
        return cli.main(["train", "run"])

    return end


def test_memory_without_a_word_is_said(ends, capsys):
    assert ends(MemoryError()) == 1
    assert capsys.readouterr().err == "unet-lib: there is not enough memory for this.\n"


@pytest.mark.parametrize("problem", [OSError, ImportError, MemoryError])
def test_what_ends_a_run_is_said_in_one_line(problem, ends, capsys):
    assert ends(problem("take a smaller tile")) == 1
    captured = capsys.readouterr()
    assert captured.err == "unet-lib: take a smaller tile\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "problem",
    [
        KeyError("steps"),
        RuntimeError("of another package"),
        ValueError("inhomogeneous shape"),  # no words of ours
        "import numpy; numpy.array([[1], [1, 2]])",
    ],
)
def test_a_bug_is_said_in_one_line_with_its_traceback_in_a_file(
    problem, ends, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert ends(problem) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "this is a bug in unet-lib" in said
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    text = file.read_text("utf-8")
    assert text.startswith("unet-lib train run\n")
    assert "Traceback (most recent call last)" in text
    assert "in run_train" in text


def test_a_warning_is_said_in_one_line(monkeypatch, stacks, capsys):
    def load(folder):
        warnings.warn("the file is old.", stacklevel=1)
        return stacks[0]

    monkeypatch.setattr(data, "load_isbi2012", load)
    assert cli.main(["data"]) == 0
    assert capsys.readouterr().err == "unet-lib: warning: the file is old.\n"


RESUMED = "unet-lib: stopped. Nothing recorded was lost: run the same command again to"
UNWRITTEN = "unet-lib: stopped. Nothing was written: run the same command again.\n"


def test_ctrl_c_says_how_to_go_on(ends, capsys, monkeypatch, tmp_path):
    assert ends(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.startswith(RESUMED)
    assert ends(KeyboardInterrupt("stopped after 30 steps.")) == 130
    assert capsys.readouterr().err == "unet-lib: stopped after 30 steps.\n"

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load_isbi2012", stop)
    monkeypatch.setattr(cli.predict, "check_output", stop)
    monkeypatch.setattr(experiments, "read_table", stop)
    for command, said in [
        (["data"], UNWRITTEN),
        (["train", "run"], RESUMED),
        (["predict", "a", __file__, "c"], UNWRITTEN),
        (["evaluate", "a", "b"], UNWRITTEN),
        (["experiments", "a"], RESUMED),
    ]:
        assert cli.main(command) == 130
        captured = capsys.readouterr()
        assert captured.err.startswith(said)
        assert captured.err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_in_a_process_of_its_own():
    # A job in the background, as of some CI, has the signal ignored.
    code = "import signal, time; signal.signal(2, signal.default_int_handler); "
    code += "from unet_lib import cli, data; "
    code += "data.load_isbi2012 = lambda folder: (print('began', flush=True), "
    code += "time.sleep(60)); raise SystemExit(cli.main(['data']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"began\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].decode() == UNWRITTEN
    assert process.returncode == 130


@pytest.mark.skipif(os.name == "nt", reason="has no broken pipes of this kind")
@pytest.mark.parametrize("command", ["train --help", "--help"])
def test_a_reader_that_leaves_is_no_error(command):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "unet_lib.cli", *command.split()],
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_a_terminal_without_the_letters_does_not_stop_a_command(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "unet_lib.cli", "data", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--synthetic" in done.stdout


def test_a_tilde_in_a_path_is_the_home_folder(stacks, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for options in (["--folder", "~/mine"], ["--folder=~/mine"]):
        assert cli.main(["data", *options]) == 0
        assert stacks[1].pop() == tmp_path / "mine"


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_of_several_processes_the_first_reports(rank, asked, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert cli.main(["train", "run"]) == 0
    reported = "" if rank == "1" else "Recorded in run.\n"
    assert capsys.readouterr().out == reported


@pytest.mark.usefixtures("small_stacks")
def test_a_run_of_a_file_and_options(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    arguments = ["train", str(tmp_path / "run"), "--config", str(config)]
    arguments += ["--steps", "1", "--no-rotation", "--schedule", "constant"]
    assert cli.main([*arguments, "--held-out", "3", "4"]) == 0
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["steps"] == 1
    assert recorded["schedule"] == "constant"
    assert recorded["held_out"] == [3, 4]
    assert recorded["augmentation"]["rotation"] is False
    assert recorded["augmentation"]["deformation"] == 2.0  # as in the file


# Files of one's own.

SMALL = ["--device=cpu", "--base-channels=1", "--depth=1", "--tile=24", "--steps=1"]


@pytest.fixture
def own(tmp_path, monkeypatch, thirty_slices):
    """A folder of images and one of masks, of two sizes, to train on from here."""
    monkeypatch.chdir(tmp_path)
    for folder, stack in zip(("images", "masks"), thirty_slices, strict=True):
        (tmp_path / folder).mkdir()
        pixels = np.rint(255 * stack).astype(np.uint8)
        for n in range(4):
            name = f"cell-{n}{'.tif' if folder == 'images' else '_mask.tif'}"
            size = {"resolution": (4, 4), "metadata": {"unit": "um"}}
            tifffile.imwrite(
                f"{folder}/{name}", pixels[n, : 48 - n // 2], imagej=True, **size
            )
    return ["train", "run", "--images", "images", "--labels", "masks", *SMALL]


def test_train_on_files_is_fit_of_their_arrays(own, thirty_slices, tmp_path, capsys):
    assert cli.main([*own, "--hold-out", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "4 images of 2 sizes, 1 channel, a pixel 0.25 × 0.25 µm." in out
    assert "Held out: cell-3.tif." in out
    assert "Held out, cell-3.tif: pixel error (1 - Dice of the cell class) 0." in out
    images, labels = (
        [one[n, : 48 - n // 2] for n in range(4)] for one in thirty_slices
    )
    images = [np.rint(255 * one).astype(np.float32) / np.float32(255) for one in images]
    config = TrainConfig(
        device="cpu", base_channels=1, depth=1, tile=24, steps=1, held_out=(3,)
    )
    train.fit(config, images, labels, "arrays", progress=False)
    networks = [tmp_path / run / "network.safetensors" for run in ("run", "arrays")]
    assert networks[0].read_bytes() == networks[1].read_bytes()
    record = json.loads(Path("run/files.json").read_text())
    assert record["files"][1] == {"image": "cell-1.tif", "labels": "cell-1_mask.tif"}
    assert record["pixel_size"][1:] == [0.25, 0.25]
    assert record["unit"] == "µm"
    assert record["held_out"] == ["cell-3.tif"]
    # Finished, it is the same run again; other labels are another one.
    assert cli.main([*own, "--hold-out", "0.3"]) == 0
    mask = tifffile.imread("masks/cell-0_mask.tif")
    tifffile.imwrite("masks/cell-0_mask.tif", 255 - mask)
    assert cli.main([*own, "--hold-out", "0.3"]) == 1
    assert "a run on other labels" in capsys.readouterr().err


def test_of_one_image_none_can_be_held_out(own, capsys):
    """And no option that would be refused is advised."""
    one = ["--images", "images/cell-0.tif", "--labels", "masks/cell-0_mask.tif"]
    assert cli.main([*own, *one, "--hold-out=0.2"]) == 1
    assert "--hold-out needs two images or more" in flat(capsys.readouterr().err)
    assert cli.main([*own, *one]) == 0
    assert "--hold-out" not in capsys.readouterr().out


def test_a_preview_is_there_before_the_first_step(own, monkeypatch, capsys):
    def step(*arguments):
        assert Path("run/preview.png").exists()
        assert str(Path("run/preview.png")) in capsys.readouterr().out
        raise KeyboardInterrupt

    monkeypatch.setattr(train.steps, "next_step", step)
    assert cli.main(own) == 130


def test_a_preview_shows_images_labels_and_weights(tmp_path):
    images, labels = np.full((2, 40, 40), 0.6, np.float32), np.zeros((2, 40, 40), int)
    labels[:, :20, :15], labels[:, :20, 25:], labels[:, 30:] = 1, 1, -1
    weights = np.where(labels < 0, 0, 4).astype(np.float32)
    weights[1, :20] = 1
    sampler = TileSampler(images, labels, weights, tile=24, output=20)
    write_preview(tmp_path / "preview.png", sampler, ["a.tif", "b.tif"])
    shown = np.asarray(Image.open(tmp_path / "preview.png"))
    assert shown.shape == (16 + 2 * (16 + 8 + 320), 3 * 328, 3)
    for number in range(2):
        top = 32 + number * 344
        image, label, weight = (
            shown[top : top + 320, x : x + 320] for x in (0, 328, 656)
        )
        assert (image == 153).all()
        left, right, between, unknown = (
            label[80, 60],
            label[80, 260],
            label[80, 160],
            label[300, 9],
        )
        assert left.max() == right.max() == 255
        assert (left != right).any()
        assert not between.any()
        assert (unknown == 96).all()
        assert (weight[80] == (128 if number else 255)).all()
        assert not weight[300].any()


def stored(names, pixels):
    for name in names:
        tifffile.imwrite(name, pixels)


MASKS = [f"masks/cell-{n}_mask.tif" for n in range(4)]
BLOCKS = np.kron(np.arange(9).reshape(3, 3), np.ones((16, 16))).astype(np.int16)


def blocks(labels=BLOCKS):
    """Masks with a number for each of eight cells, or with other labels."""
    for n, name in enumerate(MASKS):
        tifffile.imwrite(name, labels[: 48 - n // 2])


@pytest.mark.parametrize(
    ("options", "fields", "said"),
    [
        (["--instances"], {"instances": True}, "pixel error (1 - Dice"),
        (["--num-classes=9"], {"num_classes": 9}, ": mean Dice of the classes above 0"),
        (["--instances", "--unknown=8"], {"instances": True}, "pixel error"),
    ],
)
def test_train_on_numbers_of_cells_or_classes(options, fields, said, own, capsys):
    blocks()
    assert cli.main([*own, *options, "--held-out", "1", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Held out, cell-1\.tif, cell-3\.tif: ", out)
    assert said in out
    recorded = json.loads(Path("run/config.json").read_text())
    assert {name: recorded[name] for name in fields} == fields


def test_train_on_colors_and_from_a_network(own, thirty_slices, capsys):
    """The files say how many channels there are, and the network its width."""
    images, labels = (one[:3] for one in thirty_slices)
    colors = np.rint(255 * np.stack([images, 1 - images, images**2], -1))
    tifffile.imwrite("stack.tif", colors.astype(np.uint8), photometric="rgb")
    tifffile.imwrite("labels.tif", labels, photometric="minisblack")
    stack = ["--images=stack.tif", "--labels=labels.tif"]
    assert cli.main(["train", "colors", *stack, *SMALL, "--hold-out=0.4"]) == 0
    assert "Held out: stack.tif (slice 2)." in capsys.readouterr().out
    assert json.loads(Path("colors/config.json").read_text())["in_channels"] == 3
    more = ["--from=colors/network.safetensors", "--tile=24", "--steps=1"]
    assert cli.main(["train", "more", *stack, *more, "--learning-rate=1e-30"]) == 0
    fields = json.loads(Path("more/config.json").read_text())
    assert [fields[n] for n in ("in_channels", "base_channels", "depth")] == [3, 1, 1]
    first, second = (
        load_network(f"{n}/network.safetensors") for n in ("colors", "more")
    )
    for old, new in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(old, new)
    assert "No image is held out" in capsys.readouterr().out


def network(**arguments):
    save_network(UNet(**{"base_channels": 1, "depth": 1} | arguments), "n.safetensors")


FROM = ["--from", "n.safetensors"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda: stored(MASKS[1:2], BLOCKS[:40] % 2), [],
         "cell-1.tif has 48 × 48 pixels and cell-1_mask.tif 40 × 48"),
        (lambda: os.rename(MASKS[2], "masks/x.tif"), [],
         "without labels: cell-2.tif; without an image: x.tif"),
        (lambda: blocks(0 * BLOCKS), [],
         "nothing to learn: all pixels of the slices to train on are of class 0"),
        (blocks, [], "cell-0_mask.tif has labels of 9 values, from 0 to 8: expected 0 "
         "(background) and 1 or 255 (cell). Give --instances"),
        (blocks, ["--num-classes=3"], "expected 3 classes, from 0 (background) to 2. "
         "Give --instances (instances=True) if they number cells"),
        (lambda: stored(MASKS[:1], BLOCKS - 2), ["--instances"],
         "256 pixels labeled -2: expected whole numbers from -1."),
        (lambda: stored(MASKS[:1], BLOCKS % 2 + 254 * (BLOCKS == 3)), [],
         "--unknown 255 (unknown=255) if 255 marks pixels without a label"),
        (lambda: None, ["--unknown=0"], "-1 is unknown in any case, and 0"),
        (lambda: blocks(-1 + 0 * BLOCKS), [],
         "nothing to learn: all pixels of the slices to train on are unknown (-1)"),
        (lambda: network(in_channels=3), FROM,
         "cell-0.tif has 1 channel, and the network takes 3"),
        (network, [*FROM, "--base-channels=2"], "has base_channels=1, and the "
         "configuration says base_channels=2"),
        (lambda: None, FROM, "No network at n.safetensors"),
        (lambda: None, ["--fold=1"], "--fold and --data are for the book's stack"),
        (lambda: None, ["--hold-out=0.2", "--held-out=1"], "both say what to hold out"),
        (lambda: None, ["--hold-out=1"], "leaves images to train on, such as"),
        (lambda: None, ["--held-out=4"], "Cannot hold out slices [4] of 4"),
        (lambda: None, ["--labels=images"], "in places of their own, got run, images"),
        (lambda: None, ["--channel=2"], "cell-0.tif has 1 channel, counted"),
    ],
)  # fmt: skip
def test_train_refuses_files(change, options, message, own, capsys):
    change()
    assert cli.main([*own, *options]) == 1
    assert message in flat(capsys.readouterr().err)
    assert not Path("run").exists()


def test_train_wants_images_and_labels(capsys):
    for one in ("--images", "--labels"):
        assert cli.main(["train", "run", one, "folder"]) == 1
        assert "Expected both --images and --labels" in capsys.readouterr().err


def test_an_image_without_a_cell_is_named(own, capsys):
    stored(MASKS[1:2], 0 * tifffile.imread(MASKS[1]))
    assert cli.main(own) == 0
    assert "warning: no cell is labeled in cell-1.tif" in capsys.readouterr().err


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of two tiny runs, in the folder that commands are given in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "table.toml"
    tile = UNet(base_channels=1, depth=1).input_size(8)
    path.write_text(
        "[scales.tiny]\nbase_channels = 1\ndepth = 1\nsteps = 1\ndevice = 'cpu'\n"
        f"tile = {tile}\n[variants.plain]\n[[runs]]\nscale = 'tiny'\n"
        "variants = ['plain']\nfolds = [5, 1]\nseeds = [0]\n"
    )
    return path


def listed(capsys, *options):
    """What `--list` prints: the state of each run."""
    assert cli.main(["experiments", "results/table.toml", "--list", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def test_experiments_makes_and_lists(small_stacks, table, capsys):
    first, second = "tiny/plain/5-0", "tiny/plain/1-0"
    assert listed(capsys) == {first: "missing", second: "missing"}
    assert not small_stacks  # to list, no data are needed
    assert not (table.parent.parent / "runs").exists()
    command = ["experiments", "results/table.toml", "--data", "mine"]
    assert cli.main([*command, "--only", "*/1-0"]) == 0
    assert small_stacks == [Path("mine")]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{second}: missing"
    assert out[-1] == "1 run(s) made and recorded in results."
    assert (table.parent / second / "scores.json").exists()
    assert (table.parent.parent / "runs" / second / "network.safetensors").exists()
    assert listed(capsys) == {first: "missing", second: "recorded"}
    assert listed(capsys, "--only", "*/1-*") == {second: "recorded"}
    assert cli.main([*command, "--only", "*/1-0"]) == 0
    assert capsys.readouterr().out == "0 run(s) made and recorded in results.\n"
    # Without its record, what --work holds of it counts.
    (table.parent / second).rename(table.parent / "aside")
    assert listed(capsys, "--work", "elsewhere")[second] == "missing"
    assert listed(capsys)[second] == "begun"


def test_experiments_that_are_others_are_named(table, capsys):
    record = table.parent / "tiny" / "plain" / "1-0"
    record.mkdir(parents=True)
    (record / "config.json").write_text(json.dumps(dataclasses.asdict(TrainConfig())))
    assert listed(capsys)["tiny/plain/1-0"].startswith("recorded with another base_ch")
    (record / "config.json").write_text("{broken")
    assert cli.main(["experiments", str(table), "--list"]) == 1
    assert "config.json is not a run's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing from unet-lib experiments: TABLE"),
        (["results/table.toml", "--fold", "1"], 2, "Unrecognized options: --fold"),
        (["nowhere.toml"], 1, "unet-lib: nowhere.toml: No such file or directory."),
        (["broken.toml"], 1, "broken.toml is not valid TOML: "),
        (["results/table.toml", "--only", "full/*"], 1, "named like 'full/*'"),
        (["results/table.toml", "--only", "full/*", "--list"], 1, "named like"),
        (["results/table.toml", "--data", "nowhere"], 1, "train-volume.tif cannot be"),
        (["results/table.toml", "--work", "broken.toml"], 1, "is not a folder"),
    ],
)
def test_experiments_refuses(arguments, code, message, table, capsys):
    Path("broken.toml").write_text("runs = ")
    assert cli.main(["experiments", *arguments]) == code
    captured = capsys.readouterr()
    assert message in flat(captured.err)
    assert captured.err.startswith("unet-lib: ") == (code == 1)
    assert captured.out == ""
    assert os.listdir("results") == ["table.toml"]
    assert not os.path.exists("runs")


@pytest.mark.parametrize("shape", [(30, 41), (2, 30, 41)])
def test_predict_writes_a_stack_that_imagej_reads(shape, tmp_path, capsys):
    network = UNet(base_channels=2, depth=1).to(memory_format=torch.channels_last)
    save_network(network, tmp_path / "network.safetensors")
    gray = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", gray)
    arguments = [str(tmp_path / name) for name in ("network.safetensors", "in.tif")]
    output = tmp_path / "out.tif"
    assert cli.main(["predict", *arguments, str(output)]) == 0
    with tifffile.TiffFile(output) as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZYX"[-len(shape) :]
        written = file.asarray()
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, predict(network, gray / np.float32(255)))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".safetensors",
        ".tif",
        ".tif",
    ]


@pytest.mark.parametrize("versions", [1, 7, 8])
@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 20, 31), "CYX"), ((2, 3, 20, 31), "ZCYX")]
)
def test_predict_takes_channels_and_gives_classes(versions, shape, axes, tmp_path):
    network = UNet(in_channels=3, num_classes=4, base_channels=2, depth=1)
    network = network.to(memory_format=torch.channels_last)
    save_network(network, tmp_path / "network.safetensors")
    images = np.random.default_rng(0).random(shape, np.float32)
    tifffile.imwrite(tmp_path / "in.tif", images, imagej=True, metadata={"axes": axes})
    paths = [
        str(tmp_path / name) for name in ("network.safetensors", "in.tif", "out.tif")
    ]
    assert cli.main(["predict", *paths, "--versions", str(versions)]) == 0
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.series[0].axes == axes
        written = file.asarray()
    np.testing.assert_array_equal(written, predict(network, images, versions=versions))
    assert written.shape == (*shape[:-3], 4, *shape[-2:])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(np.full((8, 8), 200.0, np.float32), "from 0 to 1"), (None, "not a TIFF")],
)
def test_predict_refuses_what_is_no_gray_image(pixels, message, tmp_path, capsys):
    save_network(UNet(base_channels=1, depth=1), tmp_path / "network.safetensors")
    source = tmp_path / "in.tif"
    if pixels is None:
        source.write_text("no picture")
    else:
        tifffile.imwrite(source, pixels)
    network, output = tmp_path / "network.safetensors", tmp_path / "out.tif"
    assert cli.main(["predict", str(network), str(source), str(output)]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def listing(folder):
    """What lies in a folder, byte for byte."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/map.tif", "no folder"),
        ("folder", "is a folder"),
        ("in.tif", "is one of the inputs"),
        ("network.safetensors", r"must end in \.tif or \.tiff"),
        ("old.tif", "add --overwrite"),
        ("map.png", r"must end in \.tif or \.tiff"),
        ("map", r"must end in \.tif or \.tiff"),
    ],
)
def test_predict_refuses_an_output_before_it_reads(
    output, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("network.safetensors", "in.tif", "old.tif"):
        Path(name).write_text("is not looked at")
    before = listing(tmp_path)
    command = ["predict", "network.safetensors", "in.tif", output]
    assert cli.main(command) == 1
    assert re.search(message, capsys.readouterr().err)
    if output != "old.tif":
        assert cli.main([*command, "--overwrite"]) == 1
        assert re.search(message, capsys.readouterr().err)
    assert listing(tmp_path) == before


def test_predict_takes_a_device_tiles_and_an_old_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = UNet(base_channels=1, depth=1)
    save_network(network, tmp_path / "network.safetensors")
    tifffile.imwrite("in.tif", np.full((40, 50), 200, np.uint8))
    Path("out.tif").write_text("old")
    asked = []

    def spy(network, images, tile, max_pixels, versions, progress):
        asked.append((tile, max_pixels, versions))
        return images

    monkeypatch.setattr(PREDICT, "predict", spy)
    command = ["predict", "network.safetensors", "in.tif", "out.tif", "--overwrite"]
    assert cli.main(command) == 0
    options = ["--tile", "24", "--max-pixels", "9999", "--versions", "7"]
    assert cli.main([*command, *options, "--device", "cpu"]) == 0
    assert asked == [(None, PREDICT.MAX_PIXELS, 1), (24, 9999, 7)]
    assert tifffile.imread("out.tif").shape == (40, 50)
    assert cli.main([*command, "--device", "gpu"]) == 1
    assert "device must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--channel", "2"], lambda colors: colors[..., 1] / 255),
        (["--gray"], lambda colors: colors @ [0.299, 0.587, 0.114] / 255),
        (["--gray", "--range", "50", "150"], lambda colors: gray_between(colors)),
        (["--channel", "1", "--range", "auto"], lambda colors: between(colors)),
    ],
)
def test_predict_takes_gray_values_as_told(
    options, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_network(UNet(base_channels=1, depth=1), tmp_path / "network.safetensors")
    colors = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    tifffile.imwrite("in.tif", colors, photometric="rgb")
    monkeypatch.setattr(PREDICT, "predict", lambda network, images, *a, **k: images)
    command = ["predict", "network.safetensors", "in.tif", "out.tif"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "--channel" in said
    assert "--gray" in said
    assert cli.main([*command, *options]) == 0
    np.testing.assert_allclose(
        tifffile.imread("out.tif"), expected(colors), rtol=0, atol=1e-6
    )


def gray_between(colors):
    return ((colors - 50.0) / 100).clip(0, 1) @ [0.299, 0.587, 0.114]


def between(colors):
    low, high = np.percentile(colors[..., 0], (0.5, 99.5))
    return ((colors[..., 0] - low) / (high - low)).clip(0, 1)


def test_a_range_the_wrong_way_round_is_refused_by_its_option(tmp_path, capsys):
    save_network(UNet(base_channels=1, depth=1), tmp_path / "network.safetensors")
    tifffile.imwrite(tmp_path / "in.tif", np.full((40, 50), 200, np.uint8))
    paths = [str(tmp_path / f) for f in ("network.safetensors", "in.tif", "out.tif")]
    assert cli.main(["predict", *paths, "--range", "9", "1"]) == 1
    assert "--range LOW HIGH" in capsys.readouterr().err
    assert cli.main(["predict", *paths, "--max-pixels", "9"]) == 1
    least = re.search(r"--max-pixels (\d+)", capsys.readouterr().err)[1]
    assert cli.main(["predict", *paths, "--max-pixels", least]) == 0


@pytest.fixture
def pair(tmp_path):
    """Labels and probabilities of two small slices, and their two files."""
    _, labels = data.synthetic_em(2, 48, seed=1)
    noise = np.random.default_rng(0).random(labels.shape)
    probabilities = (0.7 * labels + 0.3 * noise).astype(np.float32)
    files = [str(tmp_path / name) for name in ("labels.tif", "map.tif")]
    tifffile.imwrite(files[0], labels * 255, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(files[1], probabilities, metadata=None, byteorder=">")
    return labels, probabilities, files


def test_evaluate_prints_and_writes_the_figures(pair, tmp_path, capsys):
    labels, probabilities, files = pair
    assert cli.main(["evaluate", *files]) == 0
    scores = evaluate(labels, probabilities)
    out = capsys.readouterr().out
    lines = out.splitlines()
    rows = {line[:42].strip(): line[42:].split() for line in lines[1:6]}
    error = "pixel error (1 - Dice of the cell class)"
    titles = [error, "Rand error", "warping error", "V-Rand", "V-Info"]
    assert list(rows) == titles
    for row, curve in zip(rows.values(), scores.curves.values(), strict=True):
        assert row == [f"{curve.value:.6f}", f"{curve.threshold:.1f}"]
    start = lines.index("each slice at these thresholds") + 2
    for number, line in enumerate(lines[start : start + 2]):
        shown = [
            f"{curve.per_slice[number, curve.thresholds == curve.threshold][0]:.6f}"
            for curve in scores.curves.values()
        ]
        assert line.split() == [str(number), *shown]
    assert "warning" not in out
    record = json.loads((tmp_path / "map.evaluation.json").read_text())
    assert record.pop("labels") == "labels.tif"
    assert record.pop("probabilities") == "map.tif"
    assert record.pop("shape") == [2, 48, 48]
    assert record == scores.to_dict()
    assert len(list(tmp_path.iterdir())) == 3


def test_evaluate_warns_and_writes_where_it_is_told(pair, tmp_path, capsys):
    labels, _, files = pair
    tifffile.imwrite(files[1], np.zeros(labels.shape, np.float32))
    output = tmp_path / "out.json"
    assert cli.main(["evaluate", *files, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "warning: The warping error" in out
    assert json.loads(output.read_text())["warnings"]
    assert not (tmp_path / "map.evaluation.json").exists()


@pytest.mark.parametrize(
    "stored",
    [lambda cell: cell > 0, lambda cell: cell, lambda cell: cell * np.uint16(255)],
)
def test_evaluate_reads_labels_of_every_kind(stored, pair, tmp_path):
    labels, _, files = pair
    tifffile.imwrite(files[0], stored(labels))
    assert cli.main(["evaluate", *files]) == 0
    written = json.loads((tmp_path / "map.evaluation.json").read_text())
    assert written["figures"]["v_rand"]["value"] > 0.5
    # One slice alone is an image, whether or not its file calls it a stack.
    tifffile.imwrite(files[0], stored(labels)[:1])
    tifffile.imwrite(files[1], pair[1][0])
    assert cli.main(["evaluate", *files, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (lambda a: a * 128, lambda p: p, "such as 128: expected labels of 0"),
        (lambda a: a + 1, lambda p: p, "such as 2"),
        (lambda a: a, lambda p: p * 255, "divide a map of 0 to 255 by 255"),
        (lambda a: a, lambda p: p[:1], "got (2, 48, 48) and (1, 48, 48)"),
        (lambda a: a, lambda p: p * np.float32(np.nan), "NaN"),
    ],
)
def test_evaluate_refuses(labels, probabilities, message, pair, tmp_path, capsys):
    tifffile.imwrite(pair[2][0], labels(pair[0]))
    tifffile.imwrite(pair[2][1], probabilities(pair[1]))
    assert cli.main(["evaluate", *pair[2]]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "map.evaluation.json").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "add --overwrite"),
        ("labels.tif", "must end in"),
        ("scores.txt", r"must end in \.json"),
        ("nowhere/a.json", "no folder"),
    ],
)
def test_evaluate_refuses_an_output_before_it_reads(
    output, message, pair, tmp_path, capsys
):
    (tmp_path / "map.evaluation.json").write_text("old")
    for file in pair[2]:
        Path(file).write_text("is not looked at")
    before = listing(tmp_path)
    options = ["--output", str(tmp_path / output)] if output else []
    assert cli.main(["evaluate", *pair[2], *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert listing(tmp_path) == before


def test_evaluate_overwrites_if_asked(pair, tmp_path):
    output = tmp_path / "map.evaluation.json"
    output.write_text("old")
    assert cli.main(["evaluate", *pair[2], "--overwrite"]) == 0
    assert json.loads(output.read_text())["labels"] == "labels.tif"


def test_evaluate_refuses_what_is_no_tiff(pair, capsys):
    with open(pair[2][1], "w") as file:
        file.write("no picture")
    assert cli.main(["evaluate", *pair[2]]) == 1
    assert "not a TIFF" in capsys.readouterr().err
