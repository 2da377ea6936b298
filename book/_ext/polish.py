"""The last touches to a page's HTML, where Sphinx leaves something to wish for."""

import re

from sphinx.application import Sphinx

# An inline formula and the punctuation that touches it.
FORMULA = re.compile(
    r'[(\[“]*<span class="math notranslate nohighlight">[^<]*</span>[.,:;!?)\]”]*'
)
# A word of inline code, and the joints at which a phone or a table may break it: not
# after its first letter.
CODE = re.compile(r'(?<=<span class="pre">)[^<]+')
JOINT = re.compile(r"(?<!^.)(?<=[._(=/])(?=[^\W\d]|&quot;)")

# The lines of a long signature: Sphinx makes them a list of definitions of nothing.
LINES = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.DOTALL)


def as_lines(signature: re.Match) -> str:
    lines = signature[1].replace("<dd>", '<span class="sig-line">')
    return lines.replace("</dd>", "</span>")


def touch_up(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object
) -> None:
    if "body" not in context:
        return
    # A browser would let a line begin with the comma after a formula.
    body = FORMULA.sub(
        r'<span style="white-space: nowrap">\g<0></span>', context["body"]
    )
    body = CODE.sub(lambda word: JOINT.sub("<wbr>", word[0]), body)
    body = LINES.sub(as_lines, body)
    # The role that docutils gives to a source is deprecated, and no item of a list.
    context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", touch_up)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
