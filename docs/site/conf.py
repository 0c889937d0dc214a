"""Sphinx's settings for the site that `make docs` builds from the project's own Markdown and docstrings."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "IMPALA over gRPC"
author = "the authors of impala-grpc"
project_copyright = author
html_title = project

extensions = [
    "myst_parser",
    "autoapi.extension",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    # MathJax itself, with its fonts: the site asks no other host for anything.
    "sphinx-mathjax-offline",
    "cross_links",
    "project_files",
    "plain_docstrings",
]

# The source folder is the project's: README.md and examples/README.md are pages too, and links between pages hold as they stand.
root_doc = "docs/site/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md", "examples/README.md", "api/**"]
exclude_patterns = [".*", "*.egg-info", "benchmarks", "build", "results", "runs", "tests"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

_ROOT = Path(__file__).resolve().parents[2]
autoapi_dirs = [str(_ROOT / package) for package in ("impala", "learner_server", "actor_client", "run_directory")]
autoapi_root = "api"
autoapi_options = ["members", "show-module-summary", "special-members"]
autoapi_member_order = "bysource"
autoapi_add_toctree_entry = False
autoapi_keep_files = False
# Names that are assigned several at once it does not find, and links to none of them are lost.
suppress_warnings = ["autoapi.python_import_resolution"]
autodoc_typehints = "signature"
napoleon_custom_sections = [("Raises on construction", "Raises")]
# In docstrings a name between backticks is code.
default_role = "code"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_extra_path = ["first/index.html"]


def _leave_formulas_alone(app: Sphinx, document: nodes.document) -> None:
    r"""Hands displayed formulas to MathJax as they stand: Sphinx puts those of several lines into `split`, which takes no \tag."""
    begin, end = app.config.mathjax_display
    for formula in document.findall(nodes.math_block):
        formula["no-wrap"] = True
        formula.children = [nodes.Text(f"{begin}{formula.astext()}{end}")]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("doctree-read", _leave_formulas_alone)
