"""Checks a built site: no link within it leads nowhere, and no page has a browser ask another host for anything.

    python docs/site/check.py build/site

Exit code 1 with a line for each fault. Links to elsewhere are not followed: a build needs no network.
"""

import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

# What a browser loads by itself, and the attribute that says from where.
_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src", "object": "data"}


def read_pages(site: Path) -> dict[Path, BeautifulSoup]:
    """Returns every page of a site, parsed, by its path within it."""
    return {path.relative_to(site): BeautifulSoup(path.read_bytes(), "html.parser") for path in sorted(site.rglob("*.html"))}


def faults_of(site: Path, pages: dict[Path, BeautifulSoup]) -> list[str]:
    """Returns a line for each link that leads nowhere and for each thing that is loaded from elsewhere."""
    anchors = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    faults = []
    for path, page in pages.items():
        for name, attribute in _LOADED.items():
            loaded = [str(tag[attribute]) for tag in page.find_all(name) if tag.get(attribute)]
            faults += [f"{path}: loads {uri}" for uri in loaded if urlsplit(uri).scheme not in ("", "data") or uri.startswith("//")]
            faults += [f"{path}: {fault}" for uri in loaded if (fault := _dead(site, path, uri, anchors))]
        links = [str(tag["href"]) for tag in page.find_all("a", href=True)]
        faults += [f"{path}: {fault}" for uri in links if (fault := _dead(site, path, uri, anchors))]
    return faults


def _dead(site: Path, page: Path, uri: str, anchors: dict[Path, set[str]]) -> str:
    parts = urlsplit(uri)
    if parts.scheme or parts.netloc:
        return ""
    target = (site / page.parent / unquote(parts.path)).resolve() if parts.path else (site / page).resolve()
    if not target.is_file():
        return f"no file for {uri}"
    within = target.relative_to(site.resolve())
    if parts.fragment and within in anchors and unquote(parts.fragment) not in anchors[within]:
        return f"no place for {uri}"
    return ""


def main(site: Path) -> int:
    """Prints the faults of a site; returns the exit code."""
    pages = read_pages(site)
    if not pages:
        print(f"{site}: no pages")
        return 1
    faults = sorted(set(faults_of(site, pages)))
    print("\n".join(faults) or f"{len(pages)} pages, no dead link, nothing loaded from elsewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
