"""Settings of the documentation site, which `tox -e docs` builds with Sphinx from these pages."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = copyright = PROJECT["authors"][0]["name"]  # noqa: A001 - Sphinx's name for it
version = release = PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
logging.getLogger("alembic").setLevel(logging.WARNING)  # autodoc imports it
exclude_patterns = ["_build"]
# several classes have an attribute `type`, so the annotation "type" is that of none of them
suppress_warnings = ["ref.python"]

# GitHub makes an anchor of each heading, and the pages link to those
myst_heading_anchors = 4

# a name in single backticks is that of an object where there is one, and code elsewhere
default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # SQLAlchemy's have labels of its own documentation
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"{project} {version}"
html_baseurl = PROJECT["urls"]["Documentation"]
html_copy_source = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Have links to files outside this folder, which are no pages, lead to the repository."""
    up = "../" * docname.count("/")
    text = source[0].replace(f"]({up}../README.md", f"]({up}index.md")
    source[0] = text.replace(f"]({up}../", f"]({PROJECT['urls']['Source']}/")


def read_included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Do the same for the README, which lies beside this folder."""
    text = re.sub(r"\]\((?!https?:|#|docs/)", f"]({PROJECT['urls']['Source']}/", content[0])
    content[0] = text.replace("](docs/", "](")


def setup(app: Sphinx) -> None:
    """Connect what this file does to Sphinx, which calls this."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
