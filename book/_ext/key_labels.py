"""A bibliography whose labels are the citation keys, [Ho2020], which is also what JupyterLab shows for a citation."""

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style
from pybtex.style.labels import BaseLabelStyle


class KeyLabels(BaseLabelStyle):
    def format_labels(self, sorted_entries):
        return (entry.key for entry in sorted_entries)


class KeyStyle(Style):
    default_label_style = KeyLabels


def as_list_items(app, pagename, templatename, context, doctree):
    """To who has the page read out, entries of a list are its items: docutils gives them a role that no list takes."""
    if "citation-list" in context.get("body", ""):
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app):
    register_plugin("pybtex.style.formatting", "keys", KeyStyle)
    app.connect("html-page-context", as_list_items)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
