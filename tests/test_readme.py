"""What the README tells its reader to do is what is checked."""

import ast
import importlib
import re
import subprocess
from pathlib import Path

import front
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_ci_runs_the_two_commands_of_the_readme():
    (block,) = blocks("bash")
    run = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--commands"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == block
    build, test = block.splitlines()
    assert build.endswith("jupyter-book build book -W --keep-going")
    assert test.endswith("pytest -n auto --dist worksteal")


def test_ci_runs_the_tests_last():
    steps = [
        line
        for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
        if line.startswith("run ")
    ]
    assert steps[0] == 'run "${commands[0]}"'
    assert steps[-1] == 'run "${commands[1]}"'
    for tool in ("ruff check", "ruff format --check", "lint-imports", "mypy"):
        assert any(tool in step for step in steps)


def test_each_file_that_the_readme_links_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_figures_are_those_of_the_recorded_files():
    assert front.TABLE.findall(README) == [front.table()]
    assert front.TRAINED.findall(README) == [front.trained()]
    # What has been trained is said above all commands.
    assert README.index("**What has been trained:**") < README.index("## Two commands")


def test_the_screenshot_is_small():
    assert 20_000 < front.SCREENSHOT.stat().st_size < 200_000


@pytest.mark.parametrize("code", blocks("python"))
def test_code_in_the_readme_runs(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UNET_BOOK_DATA", "synthetic")
    for statement in ast.walk(ast.parse(code)):
        if isinstance(statement, ast.ImportFrom):
            importlib.import_module(statement.module)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["probabilities"].shape == names["stacks"].train_images[:1].shape
