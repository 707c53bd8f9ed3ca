"""Settings of the site: python -m sphinx -W -c tutorials/site . build/site builds it."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]  # the extension, and this checkout's package

import pyro_naf  # noqa: E402

project, author = "pyro_naf", "The pyro_naf developers"
copyright = author
version = release = pyro_naf.__version__

# The repository is the source, so that links between its pages lead on here as they do there.
root_doc = "tutorials/site/index"
include_patterns = [
    "tutorials/**.md",
    "tutorials/**.rst",
    "tutorials/**.ipynb",
    "tests/benchmarks/**.md",
    "pyro_naf/CHANGELOG.md",
]
exclude_patterns = [".*", "**/.*", "build", "dist", "venv", "tests/benchmarks/output"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "extension"]
html_theme = "furo"
html_title = f"pyro_naf {release}"
html_extra_path = ["top"]  # index.html, which leads on to the root document
html_static_path = ["style"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"

nb_execution_mode = "off"  # notebooks are shown as they are stored
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

# A reference to a name of this package that is not on the site is an error. Those to names of other
# packages are plain text, since their inventories would need a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!pyro_naf\.).*")]
suppress_warnings = ["myst.header"]  # of generated tables that begin with a heading of level 3
