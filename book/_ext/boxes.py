"""Boxes that hold code cells, and the bars under which a figure's code is folded.

A code cell cannot stand inside a directive, so a box has a start and an end:

    :::{box-start} Keep this
    :class: keep
    :::

    text and code cells

    :::{box-end}
    :::
"""

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective


class start_node(nodes.Element):
    """Where a box begins; its children are the title's."""


class end_node(nodes.Element):
    """Where a box ends."""


class Start(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {  # noqa: RUF012 - as docutils wants it
        "class": directives.class_option,
    }

    def run(self) -> list[nodes.Node]:
        title, messages = self.state.inline_text(self.arguments[0], self.lineno)
        start = start_node("", *title, classes=self.options.get("class", []))
        self.set_source_info(start)
        return [start, *messages]


class End(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [end_node()]


class MakeBoxes(SphinxTransform):
    """Put what is between a start and its end into an admonition."""

    default_priority = 11  # once sphinx-exercise has put its solutions together

    def apply(self) -> None:
        for start in list(self.document.findall(start_node)):
            box = nodes.admonition("", nodes.title("", "", *start.children))
            box["classes"] = list(start["classes"])
            siblings = start.parent.children
            after = siblings[siblings.index(start) + 1 :]
            inside = []
            for node in after:
                if isinstance(node, end_node):
                    break
                inside.append(node)
            else:
                raise ExtensionError(
                    f"{start.source}:{start.line}: expected a box-end after this "
                    "box-start, in the same section; add it, without a heading between."
                )
            for node in [*inside, after[len(inside)]]:
                node.parent.remove(node)
            box += inside
            start.replace_self(box)


class NameBars(SphinxPostTransform):
    """Put the bar of folded code under its figure, and say whose code it is."""

    default_priority = 200  # once MyST-NB has folded the code
    formats = ("html",)

    def run(self, **_: object) -> None:
        for cell in self.document.findall(nodes.container):
            if cell.get("hide_mode") != "input" or not cell.children:
                continue
            bar = cell.children[0]
            code = bar.astext().lstrip()
            title = "Imports" if code.startswith(("import ", "from ")) else None
            figures = [
                one["ids"][0] for one in cell.findall(nodes.figure) if one["ids"]
            ]
            if figures:
                numbers = self.env.toc_fignumbers[self.env.docname]["figure"]
                title = "Code of Figure " + ".".join(map(str, numbers[figures[0]]))
            if title:
                bar["prompt_show"] = bar["prompt_hide"] = title
            if len(cell.children) > 1:
                cell.children.append(cell.children.pop(0))


def setup(app: Sphinx) -> dict:
    app.add_node(start_node)
    app.add_node(end_node)
    app.add_directive("box-start", Start)
    app.add_directive("box-end", End)
    app.add_transform(MakeBoxes)
    app.add_post_transform(NameBars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
