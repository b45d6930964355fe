# SPDX-License-Identifier: Apache-2.0
"""Sphinx builds these pages: `make docs`. A warning is an error."""

import container

project = "container"
version = release = container.__version__
copyright = "the authors of container"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
exclude_patterns = ["demo.py"]
html_theme = "alabaster"
html_theme_options = {"description": "Linux containers from Python", "page_width": "1080px"}
# Signatures as the source has them, types included; members in its order.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# The default role: single backquotes name something of Python.
default_role = "py:obj"
