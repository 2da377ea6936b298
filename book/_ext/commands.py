"""The command line of unet_lib with its options, read from the source.

A command is a function `run_NAME` of unet_lib.cli: tyro makes its options from the
signature and their help from the docstring. The same is read here without tyro or
torch; tests/test_reference.py compares it with what `unet-lib NAME --help` prints.
"""

import ast
import re
from collections.abc import Iterator
from textwrap import indent
from typing import NamedTuple

import griffe
from docutils import nodes
from docutils.statemachine import StringList
from reference import PACKAGE, text
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

OPTION = re.compile(r"(?<![\w`-])--[a-z][\w-]*")


class Option(NamedTuple):
    """An option or, without dashes, an argument."""

    shown: str  # as the help shows it: --tile INT
    default: str | None  # as the source has it
    help: str


def commands(package: griffe.Module) -> Iterator[tuple[str, griffe.Function]]:
    """Yield the name and the function of each command, in the order of the overview."""
    cli = package["cli"]
    for function in re.findall(r"run_\w+", str(cli["COMMANDS"].value)):
        yield function.removeprefix("run_"), cli[function].final_target


def metavar(kind: ast.expr) -> str:
    """Return what tyro shows for the values of a type: INT, {map,none}."""
    if isinstance(kind, ast.BinOp):  # A | B | None
        parts = [one for one in (metavar(kind.left), metavar(kind.right)) if one]
        if len(parts) == 1:
            return parts[0]
        return "|".join(one if one.startswith("{") else f"{{{one}}}" for one in parts)
    if isinstance(kind, ast.Subscript):
        name, inside = ast.unparse(kind.value).rpartition(".")[2], kind.slice
        parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if name == "Literal":
            return "{" + ",".join(str(ast.literal_eval(one)) for one in parts) + "}"
        if name == "tuple" and ast.unparse(parts[-1]) == "...":
            one = metavar(parts[0])
            return f"[{one} [{one} ...]]"
        if name == "tuple":
            return " ".join(map(metavar, parts))
        one = metavar(parts[0])  # Annotated, or a marker of tyro
        return one[1:].partition(" [")[0] if name == "UseAppendAction" else one
    return {"bool": "", "None": ""}.get(ast.unparse(kind), ast.unparse(kind).upper())


def option(name: str, written: str, default: str | None, help: str) -> Option:
    if given := re.search(r"\bname=['\"]?(\w+)", written):
        name = given[1]
    values = metavar(ast.parse(written, mode="eval").body)
    if given := re.search(r"\bmetavar=['\"]?([\w ]+)", written):
        values = given[1]
    if "Positional[" in written:
        return Option(name.upper(), default, help)
    flag = "--" + name.replace("_", "-")
    if not values and "FlagCreatePairsOff" not in written:
        values = f"--no-{flag.removeprefix('--')}"
        return Option(f"{flag}, {values}", default, help)
    return Option(f"{flag} {values}".strip(), default, help)


def said(thing: griffe.Object) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    return {
        item.name: " ".join(item.description.split())
        for section in griffe.parse(thing.docstring, "google", warnings=False)
        if section.kind is griffe.DocstringSectionKind.parameters
        for item in section.value
    }


def options(command: griffe.Function) -> Iterator[Option]:
    """Yield the arguments and options of a command, fields of a class one by one."""
    help = said(command)
    for one in command.parameters:
        if fields := re.search(r"OmitArgPrefixes\[(\w+)\]", str(one.annotation)):
            yield from fields_of(command.module[fields[1]])
        else:
            default = None if one.default is None else str(one.default)
            kind = str(one.annotation)
            alias = command.module.members.get(kind)  # of an option's type
            if alias and not alias.is_alias and alias.is_attribute:
                kind = str(alias.value)
            yield option(one.name, kind, default, help[one.name])


def fields_of(thing: griffe.Class | griffe.Alias) -> Iterator[Option]:
    thing = thing.final_target if thing.is_alias else thing
    help = said(thing)
    for field in thing.attributes.values():
        kind = str(field.annotation)
        settings = re.sub(r"^Annotated\[(\w+),.*", r"\1", kind)
        if settings in thing.module.members:  # a class of settings of its own
            yield from fields_of(thing.module[settings])
        elif field.name in help:
            yield option(field.name, kind, str(field.value), help[field.name])


def prose(words: str) -> str:
    """Return text of the terminal as reStructuredText."""
    return OPTION.sub(r"``\g<0>``", words.replace("*", r"\*"))


def written(name: str, command: griffe.Function) -> Iterator[str]:
    """Yield a command's text and options as reStructuredText."""
    found = [*options(command)]
    arguments = [one.shown for one in found if not one.shown.startswith("--")]
    usage = " ".join([f"unet-lib {name}", *arguments, "[OPTIONS]"])
    summary, *details = text(command).partition("\n\nArgs:")[0].split("\n\n")
    yield from (summary, "", ".. code-block:: text", "", f"   {usage}", "")
    for part in details:
        code = part.startswith("  ")
        yield from (".. code-block:: bash", "") if code else ()
        yield from (indent(part, " ") if code else prose(part)).splitlines()
        yield ""
    yield from (f".. program:: unet-lib {name}", "")
    for one in found:
        yield from (f".. option:: {one.shown}", "", f"   {prose(one.help)}")
        valued = one.shown.startswith("--") and " " in one.shown
        yield from (f"   Default: ``{one.default}``.", "") if valued else ("",)


class Commands(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        package = self.env.app.unet_lib
        for module in [package["config"], *package["cli"].modules.values()]:
            self.env.note_dependency(str(module.filepath))
        return [self.section(*one) for one in commands(package)]

    def section(self, name: str, command: griffe.Function) -> nodes.section:
        section = nodes.section(ids=[f"unet-lib-{name}"])
        section += nodes.title("", "", nodes.literal("", f"unet-lib {name}"))
        lines = StringList([*written(name, command)], str(command.filepath))
        self.state.nested_parse(lines, 0, section)
        return section


def setup(app: Sphinx) -> dict:
    app.add_directive(f"{PACKAGE.replace('_', '-')}-commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
