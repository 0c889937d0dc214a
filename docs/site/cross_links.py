"""From a name in a document to its place in the API reference, and from a docstring to the section of the primer it names."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

_PRIMER = "docs/primer"
_SECTION = re.compile(r"docs/primer\.md, section (\d+(?:\.\d+)?)")


def _link(app: Sphinx, document: nodes.document, page: str) -> None:
    objects = app.env.domains["py"].objects  # type: ignore[attr-defined]
    for literal in list(document.findall(nodes.literal)):
        entry = objects.get(literal.astext())
        if entry and not isinstance(literal.parent, nodes.reference):
            literal.replace_self(make_refnode(app.builder, page, entry.docname, entry.node_id, literal.deepcopy()))
    if not page.startswith("api/"):
        return
    for text in list(document.findall(nodes.Text)):
        if found := _SECTION.search(text):
            link = make_refnode(app.builder, page, _PRIMER, _place(app, found[1]), nodes.inline("", found[0]))
            before, after = nodes.Text(text[: found.start()]), nodes.Text(text[found.end() :])
            text.parent.replace(text, [before, link, after])


def _place(app: Sphinx, section: str) -> str:
    """Returns the id of a section of the primer."""
    for slug, (_, place, _) in app.env.metadata[_PRIMER]["myst_slugs"].items():
        if slug.startswith(f"{section.replace('.', '')}-"):
            return str(place)
    raise LookupError(f"docs/primer.md: no section {section}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
