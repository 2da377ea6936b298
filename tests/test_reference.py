"""The reference is whole, says what Python says, and links to chapters that exist.

What it is compared with is the imported library and the help that the commands print;
it is itself read from the source. How it looks in the book is tested in test_book.py.
"""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import commands
import pytest
import record
import reference

from unet_lib import cli, data
from unet_lib.data.tiff import write_tiff

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = reference.load(ROOT)
START = (record.BOOK / "reference.md").read_text("utf-8")
MODULES = sorted(module.path.partition(".")[2] for module in reference.modules(PACKAGE))
# Used in all chapters, and in none yet.
WITHOUT_CHAPTER = {"plot", "plot.colors", "data.tiff", "data.omezarr"}
ENTRIES = [
    pytest.param(entry, id=entry.path)
    for name in MODULES
    for entry in reference.entries(PACKAGE[name])
]


def dotted(module):
    """Its name in unet_lib: data.tiff."""
    return module.path.partition(".")[2]


def imported(entry):
    return getattr(importlib.import_module(entry.module.path), entry.name)


ROW = """\
# `unet_lib.{0}`

```{{eval-rst}}
.. unet-lib:: {0}
```
"""


def test_each_module_has_its_page():
    """The parts of a package are on the package's page."""
    names = {name.partition(".")[0] for name in MODULES}
    pages = {path.stem: path for path in record.BOOK.glob("reference-*.md")}
    assert set(pages) == {f"reference-{name}" for name in names}
    for name in names:
        written = pages[f"reference-{name}"].read_text("utf-8")
        assert written == ROW.format(name), f"expected:\n{ROW.format(name)}"


def test_the_ten_functions_to_start_with_have_examples_that_run(tmp_path, monkeypatch):
    """The page's examples, as one session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNET_BOOK_DATA", "synthetic")
    monkeypatch.setattr(data, "print", lambda *_: None, raising=False)
    write_tiff(
        "micrographs.tif", data.synthetic_stacks().train_images[:2, :64, :80], "ZYX"
    )
    block = re.compile(
        r"^\{py:\w+\}`unet_lib\.([\w.]+)`.*?^```pycon\n(.*?)^```$", re.M | re.S
    )
    named, examples = zip(*block.findall(START), strict=True)
    session = doctest.DocTestParser().get_doctest(
        "".join(examples), {}, "reference.md", "reference.md", 0
    )
    assert doctest.DocTestRunner(verbose=False).run(session).failed == 0
    assert len(set(named)) == 10
    for name, example in zip(named, examples, strict=True):
        assert name in {entry.id.partition(".")[2] for entry in ENTRIES}
        assert f"{name.rpartition('.')[2]}(" in example


@pytest.mark.parametrize(("name", "command"), [*commands.commands(PACKAGE)])
def test_the_options_of_a_command_are_those_of_its_help(name, command, capsys):
    assert cli.main([name, "--help"]) == 0
    found, option = {}, ""
    for line in capsys.readouterr().out.splitlines():
        words = line.strip("│ ")
        if re.match(r"[│ ] (--?[a-z]|[A-Z]+(  |$))", line):
            option, _, words = words.partition("  ")
            found[option] = ""
        if option:
            found[option] = f"{found[option]} {words.strip()}".strip()
    assert found.pop("-h, --help")
    ours = {one.shown: one for one in commands.options(command)}
    assert set(ours) == set(found)
    for option, one in ours.items():
        assert found[option].startswith(one.help), option
        if "default: " in found[option] and one.default not in ("()", "None"):
            value = eval(one.default, {"Path": Path})
            shown = re.search(r"\(default: (.*?)\)", found[option])[1]
            assert shown in (str(value), repr(value))


def test_each_command_is_on_the_page():
    assert [name for name, _ in commands.commands(PACKAGE)] == list(cli.COMMANDS)
    text = "\n".join(commands.written(*next(commands.commands(PACKAGE))))
    assert ".. program:: unet-lib data" in text
    assert ".. option:: --folder PATH" in text


@pytest.mark.parametrize("name", MODULES)
def test_each_public_name_of_a_module_is_an_entry(name):
    module = importlib.import_module(f"unet_lib.{name}")
    public = {
        key
        for key, value in vars(module).items()
        if key in getattr(module, "__all__", [key])
        and not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or callable(value))
    }
    assert public
    assert {entry.name for entry in reference.entries(PACKAGE[name])} == public


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_says_what_it_is_and_how_it_is_called(entry):
    assert reference.text(entry)
    if entry.is_class and reference.is_error(entry):
        assert issubclass(imported(entry), Exception)
        return
    shown = reference.signature(entry)
    assert shown.startswith(f"{entry.name}(")
    # Of functions, dataclasses and named tuples alike.
    for name in inspect.signature(imported(entry)).parameters:
        assert re.search(rf"[(, *]{name}[:,=)]", shown), (name, shown)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_names_a_chapter_that_is_there(entry):
    chapters = re.findall(r":doc:`([^`]*)`", reference.sentence(entry))
    assert bool(chapters) == (dotted(entry.module) not in WITHOUT_CHAPTER)
    assert all((record.BOOK / f"{chapter}.md").exists() for chapter in chapters)


def test_no_chapter_is_named_by_its_number():
    for path in sorted((ROOT / "unet_lib").rglob("*.py")):
        assert not re.search(r"\bchapter\s+\d", path.read_text("utf-8"), re.I), path


def last_entry(source, tmp_path):
    """The last entry in a package of this one module."""
    (tmp_path / "unet_lib").mkdir()
    (tmp_path / "unet_lib" / "__init__.py").write_text("")
    (tmp_path / "unet_lib" / "part.py").write_text(source)
    return reference.entries(reference.load(tmp_path)["part"])[-1]


def test_an_entry_takes_over_its_modules_chapter(tmp_path):
    source = '"""Part.\n\nBuilt in :doc:`data`.\n"""\ndef act(n): "Do it."'
    entry = last_entry(source, tmp_path)
    assert next(reference.written(entry)) == ".. py:function:: act(n)"
    assert reference.sentence(entry) == "Built in :doc:`data`."


def test_an_entry_keeps_a_chapter_of_its_own(tmp_path):
    source = '"""Built in :doc:`data`."""\ndef act(): "Do it. Used in :doc:`training`."'
    assert "training" in reference.sentence(last_entry(source, tmp_path))


def test_a_named_tuple_shows_its_fields_and_what_is_said_beside_them(tmp_path):
    source = (
        '"""Part."""\nfrom typing import NamedTuple\n\n\n'
        'class Axis(NamedTuple):\n    """One side."""\n\n'
        "    tile: int  # pixels\n    tiles: int\n"
    )
    lines = [*reference.written(last_entry(source, tmp_path))]
    assert lines[0] == ".. py:class:: Axis(tile: int, tiles: int)"
    assert "   :param tile: pixels" in lines
    assert not [line for line in lines if ":param tiles" in line]


def test_what_is_private_or_from_elsewhere_is_no_entry(tmp_path):
    source = "from json import dumps\ndef _hidden(): pass\ndef act(): pass\n"
    (tmp_path / "unet_lib").mkdir()
    (tmp_path / "unet_lib" / "__init__.py").write_text("")
    (tmp_path / "unet_lib" / "part.py").write_text(source)
    module = reference.load(tmp_path)["part"]
    assert [entry.name for entry in reference.entries(module)] == ["act"]
