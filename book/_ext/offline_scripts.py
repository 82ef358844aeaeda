"""Leave out what only serves to run code on a server: Jupyter Book brings sphinx-thebe along, which names another host.

The book has no such server. A chapter is downloaded and run where the reader is.
"""


def without_thebe(app, pagename, templatename, context, doctree):
    scripts, styles = context.get("script_files", []), context.get("css_files", [])
    context["script_files"] = [script for script in scripts if not _is_thebe(script)]
    context["css_files"] = [style for style in styles if not _is_thebe(style)]


def _is_thebe(asset):
    body = getattr(asset, "attributes", {}).get("body", "")
    return "thebe" in str(getattr(asset, "filename", None) or "") or "THEBE_JS_URL" in body


def setup(app):
    app.connect("html-page-context", without_thebe, priority=900)  # after all have added theirs
    return {"parallel_read_safe": True, "parallel_write_safe": True}
