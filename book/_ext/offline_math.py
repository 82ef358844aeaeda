"""Serve MathJax from the site itself, so that the mathematics shows without a network.

The files come from the package ``sphinx-mathjax-offline`` (MathJax 3.2.2, Apache-2.0). Without it the site builds all
the same and loads MathJax from the address that Sphinx names by default.
"""

from importlib.util import find_spec
from pathlib import Path
from shutil import copy2, copytree


def mathjax() -> Path | None:
    """The folder that the package keeps MathJax in, if the package is installed."""
    spec = find_spec("sphinx-mathjax-offline")
    return Path(spec.origin).parent / "static" / "mathjax" if spec else None


def point_to_it(app, config):
    if mathjax():
        config.mathjax_path = "mathjax/tex-chtml-full.js"  # below _static


def copy_it(app, error):
    if error is None and app.builder.format == "html" and mathjax():
        target = Path(app.outdir, "_static", "mathjax")
        copytree(mathjax() / "output" / "chtml", target / "output" / "chtml", dirs_exist_ok=True)  # the fonts
        copy2(mathjax() / "tex-chtml-full.js", target)


def setup(app):
    app.connect("config-inited", point_to_it)
    app.connect("build-finished", copy_it)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
