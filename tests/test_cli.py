"""The commands: exit codes, what they print, what they teach."""

import ast
import os
import subprocess
import sys

import numpy as np
import pytest

from unet_lib import cli, data


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


def test_data_prints_a_table(stacks, capsys):
    small, asked = stacks
    assert cli.main(["data", "--folder", "mine"]) == 0
    assert asked == ["mine"]
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
    assert "usage: unet-lib" in capsys.readouterr().err


def test_help_teaches(capsys):
    assert cli.main(["--help"]) == 0
    assert "data" in capsys.readouterr().out
    assert cli.main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert "example:" in text
    assert "UNET_BOOK_DATA" in text
    assert "255 = cell" in text


def test_cli_imports_what_a_command_needs_when_it_runs():
    with open(cli.__file__, encoding="utf-8") as file:
        body = ast.parse(file.read()).body
    names = set()
    for statement in body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add(statement.module)
    assert names <= set(sys.stdlib_module_names)


def test_cli_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "unet_lib.cli", "data", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train-volume.tif cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
