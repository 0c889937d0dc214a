"""Links from the documents to files and folders of the project that are no documents: each becomes a page of the site.

A file's page shows its text, a folder's page lists its files; a folder that is a package of the API reference leads there.
"""

import html
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

_PREFIX = "files"


class ToProjectFiles(SphinxTransform):
    """Has links to files and folders lead to their pages; what leads to neither is left for Sphinx to complain of."""

    # Before Sphinx collects what is to be downloaded.
    default_priority = 10

    def apply(self, **kwargs: Any) -> None:
        """Replaces the links of one document."""
        root = Path(self.env.srcdir)
        for link in [*self.document.findall(download_reference), *self.document.findall(pending_xref)]:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(self.env.docname), link["reftarget"].partition("#")[0]))
            if link.get("refdomain") or not (root / path).exists():
                continue
            page = f"api/{path}/index" if path in _api_packages(root, self.config.autoapi_dirs) else f"{_PREFIX}/{path}"
            if page.startswith(_PREFIX):
                linked = getattr(self.env, "project_files", None) or set()
                self.env.project_files = linked | {path}  # type: ignore[attr-defined]
            uri = relative_uri(f"{self.env.docname}.html", f"{page}.html")
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def _api_packages(root: Path, folders: list[str]) -> set[str]:
    tops = {Path(folder).name for folder in folders}
    return {path.parent.relative_to(root).as_posix() for top in tops for path in (root / top).rglob("__init__.py")}


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    root = Path(app.srcdir)
    linked = getattr(app.env, "project_files", set())
    for path in sorted(linked):
        body = _list(root, path, linked) if (root / path).is_dir() else _text(app, root / path)
        yield f"{_PREFIX}/{path}", {"title": path, "body": f"<h1>{html.escape(path)}</h1>\n{body}"}, "page.html"


def _list(root: Path, path: str, linked: set[str]) -> str:
    """Returns the names in a folder, of which those that some document links to lead to their pages."""
    items = []
    for inside in sorted((root / path).iterdir()):
        if inside.name.startswith((".", "__pycache__")):
            continue
        name, shown = inside.relative_to(root).as_posix(), f"<code>{html.escape(inside.name)}</code>"
        if name in linked:
            shown = f'<a href="{relative_uri(f"{_PREFIX}/{path}.html", f"{_PREFIX}/{name}.html")}">{shown}</a>'
        items.append(f"<li>{shown}</li>")
    return "<ul>\n" + "\n".join(items) + "\n</ul>"


def _text(app: Sphinx, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    try:
        language = get_lexer_for_filename(path.name).aliases[0]
    except ClassNotFound:
        language = "text"
    return app.builder.highlighter.highlight_block(text, language, force=True)  # type: ignore[attr-defined, no-any-return]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_transform(ToProjectFiles)
    app.connect("html-collect-pages", _pages)
    # What was linked is kept in the environment of a build from nothing, which is how `make docs` builds.
    return {"parallel_read_safe": False, "parallel_write_safe": True}
