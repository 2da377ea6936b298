"""The last touches to a page's HTML, where Sphinx leaves something to wish for."""

import re
from html import escape
from textwrap import shorten

from docutils import nodes
from sphinx.application import Sphinx

# An inline formula and the punctuation that touches it.
FORMULA = re.compile(
    r'[(\[“]*<span class="math notranslate nohighlight">[^<]*</span>[.,:;!?)\]”]*'
)
# A word of inline code, and the joints at which a phone or a table may break it: not
# after its first letter.
CODE = re.compile(r'(?<=<span class="pre">)[^<]+')
JOINT = re.compile(r"(?<!^.)(?<=[._(=/])(?=[^\W\d]|&quot;)")

# An exercise's title comes in parentheses, and a solution's repeats it in its link.
EXERCISE = re.compile(r'(class="caption-number">Exercise [\d.]+) </span> \((.*)\)</p>')
SOLUTION = re.compile(r"Solution to(<a [^>]*>) (Exercise [\d.]+) \(.*\)</a>")

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
    body = EXERCISE.sub(r"\1.</span> \2</p>", body)
    body = SOLUTION.sub(r"Solution to \1\2</a>", body)
    # The role that docutils gives to a source is deprecated, and no item of a list.
    context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')


def describe(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object
) -> None:
    """Say what a page is about, with a picture, for search engines and for links."""
    if doctree is None:
        return
    first = next(
        (
            one.astext()
            for one in doctree.findall(nodes.paragraph)
            if isinstance(one.parent, nodes.section) and len(one.astext()) > 60
        ),
        app.config.html_title,
    )
    base = app.config.html_baseurl or ""
    if base and not base.endswith("/"):
        base += "/"
    description = shorten(first, 200, placeholder=" …")
    title = f"{context['title']} · {app.config.html_title}"
    named = {"description": description, "twitter:card": "summary_large_image"}
    properties = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": app.config.html_title if pagename == "index" else title,
        "og:description": description,
        "og:image": f"{base}_static/preview.png",
        "og:image:alt": "A micrograph of nerve tissue and the cells found in it",
    }
    for kind, values in (("name", named), ("property", properties)):
        for key, value in values.items():
            context["metatags"] += f'\n<meta {kind}="{key}" content="{escape(value)}">'


def sign(app: Sphinx, config: object) -> None:
    """Put the title beside the logo, and the repository's address into the footer."""
    address = config.html_theme_options.get("repository_url", "")
    names = ("LICENSE", "MIT license"), ("CITATION.cff", "How to cite")
    links = []
    if address:
        branch = config.html_theme_options.get("repository_branch", "main")
        links = [f'<a href="{escape(address)}">Repository</a>']
        links += [
            f'<a href="{escape(address)}/blob/{branch}/{file}">{name}</a>'
            for file, name in names
        ]
    license = "Text and code: MIT license" if not links else " · ".join(links)
    config.html_theme_options["logo"] = {"text": config.html_title}
    config.html_theme_options["extra_footer"] = f"<p>{license}</p>"


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", sign)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", touch_up)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
