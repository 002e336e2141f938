"""Settings of Sphinx; `make docs` builds the pages and treats each warning as an error."""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT))
IPYTHON = CHECKOUT / "docs" / "_build" / "ipython"
os.environ |= {"PYTHONPATH": str(CHECKOUT), "IPYTHONDIR": str(IPYTHON)}  # for the kernel of the notebook
(IPYTHON / "profile_default").mkdir(parents=True, exist_ok=True)
(IPYTHON / "profile_default" / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n")

from skyclass import __version__  # noqa: E402

project = "skyclass"
author = "the skyclass developers"
project_copyright = "2026, the skyclass developers"
version = release = __version__
extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_nb"]
exclude_patterns = ["_build", "generated"]
html_theme = "pydata_sphinx_theme"
html_title = f"skyclass {__version__}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
templates_path = ["_templates"]
html_sidebars = {"**": ["pages"]}
html_theme_options = {"navbar_center": [], "navigation_with_keys": False, "show_toc_level": 2}
html_show_sourcelink = False

# Single backquotes are code, as in the docstrings.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]
