"""What CONTRIBUTING.md names is there, and the workflow does what .ci/run does."""

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import record
import yaml
from packaging.version import Version

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


def test_each_tool_of_the_book_has_its_line():
    tools = [*(ROOT / "book").glob("*.py"), *(ROOT / "book" / "_ext").glob("*.py")]
    named = re.findall(r"^\| `(.*?)` \| ", TEXT, re.MULTILINE)
    assert sorted(named) == sorted(tool.relative_to(ROOT).as_posix() for tool in tools)


def test_the_readme_leads_here():
    assert COMMANDS
    assert "](CONTRIBUTING.md)" in (ROOT / "README.md").read_text("utf-8")


def workflow():
    source = (ROOT / ".github" / "workflows" / "book.yml").read_text("utf-8")
    return yaml.safe_load(source)


def test_the_workflow_checks_first_and_publishes_what_was_checked():
    # YAML 1.1, which PyYAML reads, takes the word `on` for true.
    assert workflow()[True]["push"] == {"branches": ["main"]}
    jobs = workflow()["jobs"]
    check, publish = jobs["check"], jobs["publish"]
    assert "bash .ci/run" in [step.get("run") for step in check["steps"]]
    assert set(publish["needs"]) == set(jobs) - {"publish"}
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    (upload,) = [
        step
        for step in check["steps"]
        if "upload-pages-artifact" in step.get("uses", "")
    ]
    assert f"{upload['with']['path']}/index.html" in (ROOT / ".ci" / "run").read_text()
    # Only main is published, not what is proposed.
    assert upload["if"] == publish["if"] == "github.event_name == 'push'"
    for job in jobs.values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_the_workflow_tries_other_systems_and_the_lowest_versions():
    jobs = workflow()["jobs"]
    systems = jobs["systems"]["strategy"]["matrix"]["os"]
    assert {name.partition("-")[0] for name in systems} >= {"windows", "macos"}
    python = jobs["systems"]["strategy"]["matrix"]["python-version"]
    least = re.match(r">=(\d+\.\d+)", PROJECT["project"]["requires-python"])[1]
    assert least in python
    assert least == jobs["bounds"]["steps"][1]["with"]["python-version"]
    resolutions = [step.get("env", {}) for step in jobs["bounds"]["steps"]]
    assert {"UV_RESOLUTION": "lowest-direct"} in resolutions


def test_the_repository_has_one_address():
    """Where the book's setting names it, the package's page must not name another."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    urls = PROJECT["project"].get("urls", {})
    expected = {"Repository": address["url"], "Issues": f"{address['url']}/issues"}
    assert urls == (expected if address["url"] else {}), (
        "give [project.urls] in pyproject.toml the address of _config.yml"
    )


def test_the_changelog_begins_with_the_version():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## ([\d.]+)", changes, re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert newest == PROJECT["project"]["version"] == citation["version"]


def test_jupyter_book_is_version_1():
    """Version 2 is another program; the texts say so where people install it."""
    for text in (TEXT, (ROOT / "README.md").read_text("utf-8")):
        assert "Jupyter Book 1" in text
    assert Version(metadata.version("jupyter-book")).major == 1
