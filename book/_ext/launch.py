"""Links to the repository, and those that open a chapter's notebook elsewhere.

The one setting is the repository's address in _config.yml: it gives each page its links
to the repository, its issues and the page's source, and each chapter those to Colab and
Binder; while it is empty there are none. Sphinx-book-theme has links to these services
too, but to notebooks that lie beside the pages; ours lie in notebooks/.
"""

from pathlib import Path
from urllib.parse import quote

from sphinx.application import Sphinx
from sphinx.config import Config


def links(address: str, branch: str, name: str) -> dict[str, str]:
    """Return the addresses that open notebooks/<name>.ipynb, by the service's name.

    Colab opens notebooks of GitHub alone, Binder those of any public repository.
    """
    address = address.removesuffix("/").removesuffix(".git")
    notebook = f"notebooks/{name}.ipynb"
    place, branch = quote(address, safe=""), quote(branch, safe="")
    binder = f"https://mybinder.org/v2/git/{place}/{branch}?urlpath=lab/tree/{notebook}"
    host, _, repository = address.removeprefix("https://").partition("/")
    if host != "github.com":
        return {"Binder": binder}
    colab = "https://colab.research.google.com/github"
    return {"Colab": f"{colab}/{repository}/blob/{branch}/{notebook}", "Binder": binder}


def show_buttons(app: Sphinx, config: Config) -> None:
    """Have the theme show its own buttons, where there is a repository."""
    options = config.html_theme_options
    for button in ("repository", "issues", "edit_page"):
        options[f"use_{button}_button"] = bool(options["repository_url"])


def offer_services(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object
) -> None:
    """Put the links into the theme's header, in its own form."""
    address = app.config.html_theme_options["repository_url"]
    recording = Path(app.srcdir).parent / "notebooks" / f"{pagename}.ipynb"
    if not address or doctree is None or not recording.exists():
        return
    branch = app.config.html_theme_options["repository_branch"]
    logos = {"Colab": "logo_colab.png", "Binder": "logo_binder.svg"}
    buttons = [
        {
            "type": "link",
            "text": service,
            "tooltip": f"Run this chapter on {service}",
            "icon": f"_static/images/{logos[service]}",
            "url": url,
        }
        for service, url in links(address, branch, pagename).items()
    ]
    context["header_buttons"].append(
        {
            "type": "group",
            "tooltip": "Run this chapter",
            "icon": "fas fa-rocket",
            "buttons": buttons,
            "label": "launch-buttons",
        }
    )


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", show_buttons)
    # After the theme has begun its list of buttons.
    app.connect("html-page-context", offer_services, priority=501)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
