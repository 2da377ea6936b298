"""The reference is whole, says what Python says, and links to chapters that exist.

What it is compared with is the imported library; it is itself read from the source.
How it looks in the book is tested in test_book.py.
"""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import record
import reference

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = reference.load(ROOT)
PAGE = (record.BOOK / "reference.md").read_text("utf-8")
MODULES = PAGE.partition(".. unet-lib::")[2].strip("`\n ").split()
# The commands explain themselves; nobody imports how files are written, nor what
# `plot.explore` is made of.
LEFT_OUT = {"cli"}
# Used in all chapters, and in none yet.
WITHOUT_CHAPTER = {"plot", "plot.colours", "data.images", "data.tiff", "export"}
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


def test_each_module_is_on_the_page():
    assert len(MODULES) == len(set(MODULES))
    assert (
        set(MODULES)
        == {dotted(module) for module in reference.modules(PACKAGE)} - LEFT_OUT
    )


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


def entry_of(source, tmp_path):
    """The lines of the last entry in a package of this one module."""
    (tmp_path / "unet_lib").mkdir()
    (tmp_path / "unet_lib" / "__init__.py").write_text("")
    (tmp_path / "unet_lib" / "part.py").write_text(source)
    entry = reference.entries(reference.load(tmp_path)["part"])[-1]
    return [*reference.written(entry, reference.sentence(entry))]


def test_an_entry_takes_over_its_modules_chapter(tmp_path):
    source = '"""Part.\n\nBuilt in :doc:`data`.\n"""\ndef act(n): "Do it."'
    lines = entry_of(source, tmp_path)
    assert lines[0] == ".. py:function:: act(n)"
    assert "   Built in :doc:`data`." in lines


def test_an_entry_keeps_a_chapter_of_its_own(tmp_path):
    source = '"""Built in :doc:`data`."""\ndef act(): "Do it. Used in :doc:`training`."'
    text = "\n".join(entry_of(source, tmp_path))
    assert "training" in text
    assert "data" not in text


def test_a_named_tuple_shows_its_fields_and_what_is_said_beside_them(tmp_path):
    source = (
        '"""Part."""\nfrom typing import NamedTuple\n\n\n'
        'class Axis(NamedTuple):\n    """One side."""\n\n'
        "    tile: int  # pixels\n    tiles: int\n"
    )
    lines = entry_of(source, tmp_path)
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
