"""Settings of the documentation site: `tox -e docs` builds it with Sphinx from the same Markdown."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = copyright = PROJECT["authors"][0]["name"]  # noqa: A001 - Sphinx's name for it
version = release = PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpick_ignore_regex = []

# GitHub makes an anchor of each heading, and the pages link to those
myst_heading_anchors = 4

# a name in single backticks is that of an object where there is one, and code elsewhere
default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"{project} {version}"
html_baseurl = PROJECT["urls"]["Documentation"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "source_repository": PROJECT["urls"]["Source"],
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"


def repository_links(text: str, outside: str) -> str:
    """Have links to files that are no pages of the site lead to the repository.

    Args:
        text: Markdown.
        outside: a pattern of what comes before the path of such a file.
    """
    text = re.sub(r"\]\(\.\./README\.md", "](index.md", text)
    return re.sub(rf"\]\({outside}(?=\w)", f"]({PROJECT['urls']['Source']}/", text)


def read_page(app, docname, source):
    source[0] = repository_links(source[0], r"\.\./")


def read_included(app, path, parent, content):
    """Read the README, which lies beside the pages' folder."""
    pages = re.sub(r"\]\(docs/", "](./", content[0])
    pages = re.sub(r"\]\((\./images/|\./)(\w+\.svg)", r"](\1\2", pages)
    content[0] = repository_links(pages, r"(?!https?:|#|\./)")


def setup(app):
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
