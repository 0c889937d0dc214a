"""Docstrings here are plain text with names between backticks, not reStructuredText: this says so to Sphinx."""

import re
from typing import Any

from sphinx.application import Sphinx

# What would begin emphasis, a substitution or a reference: `[*leading]`, `|log pi/mu|`, `unrolls_`.
_MARKUP = re.compile(r"([*|]|(?<=\w)_(?!\w))")


def plain(lines: list[str]) -> list[str]:
    """Returns a docstring of which only backticks and Google's sections mean something; what is indented after a colon stands."""
    escaped = []
    for line in lines:
        parts = line.split("`")
        parts[::2] = [_MARKUP.sub(r"\\\1", part) for part in parts[::2]]
        escaped.append("`".join(parts))
    for index, line in enumerate(lines):
        after = lines[index + 1 : index + 3]
        if line.endswith(":") and len(after) == 2 and not after[0].strip() and _indent(after[1]) > _indent(line):
            escaped[index] += ":"
            end = index + 2
            while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > _indent(line)):
                escaped[end] = lines[end]
                end += 1
    return escaped


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _process(*arguments: Any) -> None:
    lines = arguments[-1]
    lines[:] = plain(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    # Before napoleon, which makes fields of Google's sections.
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
