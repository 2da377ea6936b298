"""The reference of unet_lib, and the ways between it and the chapters.

Nothing of the library is imported, so that the build needs no torch: griffe reads
its source, and Sphinx's Napoleon the sections of its docstrings; sphinx.ext.viewcode is
given the source as text.

A module that lies in unet_lib itself has a page of its own, book/reference-NAME.md, and
the parts of a package are on the package's page.

A docstring says in one sentence where a thing comes from: "Built in :doc:`data`.", or
"Used in", or "Shown in". A module's sentence holds for all in it that have none of
their own. Each chapter ends with a list of the entries whose sentence names it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import griffe
from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

PACKAGE = "unet_lib"
CHAPTER = re.compile(r"(?:Built|Used|Shown) in\s[^.]*:doc:`.*?\.(?=\s|$)", re.DOTALL)
# Otherwise "Returns: float32, 0 to 1: the soft-max" would make a type of its own line.
SECTIONS = Config(napoleon_use_rtype=False)


def load(folder: str | Path) -> griffe.Module:
    """Read the package in this folder, statically."""
    return griffe.load(
        PACKAGE,
        search_paths=[folder],
        try_relative_path=False,
        allow_inspection=False,
    )


def modules(package: griffe.Module) -> Iterator[griffe.Module]:
    """Yield the modules that have doors, named in ``__all__``, in packages too.

    The command line has a page of another kind.
    """
    for module in package.modules.values():
        if module.is_alias or module.name == "cli":  # an alias is imported
            continue
        if module.exports:
            yield module
        yield from modules(module)


def entries(module: griffe.Module) -> list[griffe.Function | griffe.Class]:
    """Return the public functions and classes that the module itself defines."""
    return [
        member
        for member in module.members.values()
        if member.is_public
        and not (member.is_alias or member.is_attribute or member.is_module)
    ]


def text(thing: griffe.Object) -> str:
    return thing.docstring.value if thing.docstring else ""


def sentence(entry: griffe.Object) -> str:
    """Return the sentence that says where an entry comes from, "" if none does."""
    found = CHAPTER.search(text(entry)) or CHAPTER.search(text(entry.module))
    return found.group() if found else ""


def described(thing: griffe.Object) -> Iterator[str]:
    """Yield a docstring as reStructuredText, a line at a time."""
    yield from GoogleDocstring(text(thing), SECTIONS, what="function").lines()
    yield ""


def is_error(thing: griffe.Class) -> bool:
    return any(str(base).endswith("Error") for base in thing.bases)


def signature(thing: griffe.Object) -> str:
    """Return how a function or a class is called; of a named tuple, its fields."""
    if thing.is_class and "NamedTuple" in map(str, thing.bases):
        fields = [f"{one.name}: {one.annotation}" for one in thing.attributes.values()]
        return f"{thing.name}({', '.join(fields)})"
    if thing.is_attribute or (thing.is_class and is_error(thing)):
        return thing.name
    return re.sub(r"\((?:self|cls)(?:, )?", "(", thing.signature(), count=1)


def field_comments(thing: griffe.Class) -> Iterator[str]:
    """Yield what the comments beside a named tuple's fields say of them."""
    for field in thing.attributes.values():
        _, _, comment = thing.module.lines[field.lineno - 1].partition("  # ")
        if comment and "property" not in field.labels:
            yield f":param {field.name}: {comment}"


def written(thing: griffe.Object) -> Iterator[str]:
    """Yield the entry of a function, a class or a part of a class."""
    if thing.is_class:
        kind = "exception" if is_error(thing) else "class"
    elif thing.is_function:
        kind = "method" if thing.parent.is_class else "function"
    else:
        kind = "property"
    yield f".. py:{kind}:: {signature(thing)}"
    if "classmethod" in thing.labels:
        yield "   :classmethod:"
    yield ""
    body = [*described(thing)]
    if thing.is_class:
        body += [*field_comments(thing), ""]
    if thing.is_class:
        for part in thing.members.values():
            shown = part.is_function or "property" in part.labels
            if shown and part.is_public and part.docstring:
                body += written(part)
    yield from (indent(line, "   ") for line in body)


def page(module: griffe.Module) -> str:
    """Return the name of the page that holds a module."""
    return f"reference-{module.path.split('.')[1]}"


class Reference(SphinxDirective):
    """All that is public in a module, and a section for each part of a package."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.env.app.unet_lib[self.arguments[0]]
        parts = []
        for part in modules(module):
            section = nodes.section(ids=[part.path.replace(".", "-")])
            section += nodes.title("", "", nodes.literal("", part.path))
            section += self.content_of(part)
            parts.append(section)
        return [*self.content_of(module), *parts]

    def content_of(self, module: griffe.Module) -> list[nodes.Node]:
        lines = [".. default-role:: py:obj", "", f".. py:module:: {module.path}", ""]
        lines += described(module)
        members = [module.members.get(name) for name in module.exports or []]
        if aliases := [member for member in members if member and member.is_alias]:
            origins = [f"`{alias.target_path}`" for alias in aliases]
            lines += [f"From here too: {', '.join(origins)}.", ""]
        for entry in entries(module):
            lines += written(entry)
        self.env.note_dependency(str(module.filepath))
        found = nodes.Element()
        self.state.nested_parse(StringList(lines, str(module.filepath)), 0, found)
        return found.children


class Modules(SphinxDirective):
    """A list of all modules: what each is about, and links to what it has."""

    def run(self) -> list[nodes.Node]:
        rows = nodes.bullet_list()
        for module in sorted(modules(self.env.app.unet_lib), key=lambda one: one.path):
            if found := entries(module):
                self.env.note_dependency(str(module.filepath))
                rows += row(module, [entry.name for entry in found])
        return [rows]


def row(module: griffe.Module, names: list[str]) -> nodes.list_item:
    """Return links to a module and to these names in it."""
    links = [link(module.path, module.path), nodes.Text(": ")]
    for name in names:
        links += [link(f"{module.path}.{name}", name), nodes.Text(", ")]
    return nodes.list_item("", nodes.paragraph("", "", *links[:-1]))


def read_package(app: Sphinx) -> None:
    app.unet_lib = load(Path(app.srcdir).parent)


def list_entries(app: Sphinx, doctree: nodes.document) -> None:
    """End a chapter with a list of the entries that come from it."""
    rows = nodes.bullet_list()
    for module in modules(app.unet_lib):
        here = f":doc:`{app.env.docname}`"
        names = [entry.name for entry in entries(module) if here in sentence(entry)]
        if names:
            app.env.note_dependency(str(module.filepath))
            rows += row(module, names)
    if len(rows):
        section = nodes.section(ids=["in-unet-lib"])
        section += nodes.title("", "In ", nodes.literal("", PACKAGE))
        section += rows
        doctree.next_node(nodes.section).append(section)


def link(target: str, shown: str) -> addnodes.pending_xref:
    return addnodes.pending_xref(
        "",
        nodes.literal("", shown),
        refdomain="py",
        reftype="obj",
        reftarget=target,
        refexplicit=True,
        refwarn=True,
    )


def look_in_package(
    app: Sphinx, env, node: addnodes.pending_xref, shown: nodes.Node
) -> nodes.Node | None:
    """Find `weights.weight_map` of a docstring as unet_lib.weights.weight_map."""
    if node.get("refdomain") != "py" or node["reftarget"].startswith(PACKAGE):
        return None
    target = f"{PACKAGE}.{node['reftarget']}"
    domain = env.get_domain("py")
    if target not in domain.objects:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", target, node, shown
    )


def find_source(app: Sphinx, name: str) -> tuple[str, dict] | None:
    """Give viewcode the text of a module and where its parts are, without an import."""
    if name.partition(".")[0] != PACKAGE:
        return None
    path = app.unet_lib[name.partition(".")[2]].filepath
    analyzer = ModuleAnalyzer.for_file(str(path), name)
    return analyzer.code, analyzer.find_tags()


def setup(app: Sphinx) -> dict:
    app.setup_extension("sphinx.ext.viewcode")
    app.add_directive("unet-lib", Reference)
    app.add_directive("unet-lib-modules", Modules)
    app.connect("viewcode-find-source", find_source)
    app.connect("builder-inited", read_package)
    # Before the contents of a page are collected.
    app.connect("doctree-read", list_entries, priority=100)
    app.connect("missing-reference", look_in_package)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
