"""What CONTRIBUTING.md names is there, and the workflow does what .ci/run does."""

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import record
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
COMMANDS = "".join(
    re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# What a build, a run or an installation makes.
MADE = {"_build/html/data.html", "runs/again"}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_names_is_there(command):
    words = shlex.split(command)
    for option, value in itertools.pairwise(words):
        if option in ("--group", "--only-group"):
            assert value in PROJECT["dependency-groups"]
    paths = {word for word in words if "/" in word} - MADE
    assert all((ROOT / path).exists() for path in paths), paths
    # Options of our own programs, and the pages that they are given.
    program = next((word for word in words if word.startswith("book/")), None)
    if program:
        run = subprocess.run(
            [sys.executable, ROOT / program, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        for word in words[words.index(program) + 1 :]:
            assert word in run.stdout or word in record.pages(), word


def test_the_command_for_a_text_needs_no_torch():
    groups = PROJECT["dependency-groups"]
    assert {"include-group": "text"} in groups["book"]
    assert not [one for one in groups["book"] if "torch" in str(one)]
    barred = "import sys; sys.modules['torch'] = sys.modules['unet_lib'] = None; "
    code = (
        f"{barred}sys.path.insert(0, 'book'); import record; record.read_page('data')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_the_text_names_is_there():
    outside = re.sub(r"^```bash\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"(?<!`)`([\w./-]+(?:/|\.\w+))`(?!`)", outside)
    named += re.findall(r"\]\(([^)#:]+)\)", outside)
    assert len(named) > 5
    for name in set(named) - MADE:
        assert (ROOT / name).exists(), name


def test_the_readme_leads_here():
    assert COMMANDS
    assert "](CONTRIBUTING.md)" in (ROOT / "README.md").read_text("utf-8")


def test_the_workflow_checks_first_and_publishes_what_was_checked():
    source = (ROOT / ".github" / "workflows" / "book.yml").read_text("utf-8")
    workflow = yaml.safe_load(source)
    # YAML 1.1, which PyYAML reads, takes the word `on` for true.
    assert workflow[True]["push"] == {"branches": ["main"]}
    check, publish = workflow["jobs"]["check"], workflow["jobs"]["publish"]
    assert "bash .ci/run" in [step.get("run") for step in check["steps"]]
    assert publish["needs"] == "check"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    (upload,) = [
        step
        for step in check["steps"]
        if "upload-pages-artifact" in step.get("uses", "")
    ]
    assert f"{upload['with']['path']}/index.html" in (ROOT / ".ci" / "run").read_text()
    # Only main is published, not what is proposed.
    assert upload["if"] == publish["if"] == "github.event_name == 'push'"
    for step in check["steps"] + publish["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
