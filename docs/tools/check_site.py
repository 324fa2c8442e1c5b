"""Checks a built site: no request to other hosts, no dead link, nothing public missing.

Usage: ``python docs/tools/check_site.py site``.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import moshi_rs

ROOT = Path(__file__).resolve().parents[2]
# A link to a file, without the part of it.
MARKDOWN_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
# Attributes that a browser follows by itself, and not only when the reader clicks.
FETCHED = {
    "audio": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}
# Links that name a page and fetch nothing.
NAMES_ONLY = {"canonical", "next", "prev", "alternate"}
STYLE_FETCH = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^)\"'\s]*)")


class Page(HTMLParser):
    """What a page fetches, links to and can be linked at."""

    def __init__(self, text: str) -> None:
        """Reads HTML."""
        super().__init__()
        self.fetched: list[str] = STYLE_FETCH.findall(text)
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collects addresses."""
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        # What the theme's script fetches for: stars of a repository, a library for diagrams.
        if values.get("data-md-component") == "source" or "mermaid" in values.get("class", ""):
            self.fetched.append(f"https://for.{tag}")
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and NAMES_ONLY & set(values.get("rel", "").split()):
            return
        self.fetched += [values[name] for name in FETCHED.get(tag, ()) if name in values]


def is_foreign(address: str) -> bool:
    """True for an address on another host."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in {"http", "https", "ws", "wss"}


def check(site: Path) -> list[str]:
    """Everything that is wrong with a site."""
    problems: list[str] = []
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    rust = site / "rust"
    own = {path: page for path, page in pages.items() if rust not in path.parents}
    if len(own) < 20 or len(pages) - len(own) < 100:
        problems.append(f"only {len(own)} pages and {len(pages) - len(own)} of Rust")
    for path, page in pages.items():
        foreign = [address for address in page.fetched if is_foreign(address)]
        problems += [f"{path}: fetches {address}" for address in foreign]
    for path in site.rglob("*.css"):
        for address in STYLE_FETCH.findall(path.read_text(encoding="utf-8")):
            problems.append(f"{path}: fetches {address}")
    for path, page in own.items():
        problems += [f"{path}: dead link {link}" for link in dead_links(path, page, pages)]

    readme = ROOT / "README.md"
    targets = MARKDOWN_LINK.findall(readme.read_text(encoding="utf-8"))
    problems += [f"{readme}: dead link {t}" for t in targets if not (ROOT / t).exists()]

    shown: set[str] = set()
    for path in site.glob("reference/*/*.html"):
        shown |= pages[path].anchors
    missing = [name for name in public_names() if name not in shown]
    problems += [f"the reference lacks {name}" for name in missing]
    return problems


def dead_links(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """Links to files or anchors of the site that do not exist."""
    dead = []
    for link in page.links:
        parts = urlsplit(link)
        # The page for what is not found is shown at any address: its links are absolute.
        if is_foreign(link) or parts.scheme or path.name == "404.html":
            continue
        target = path
        if parts.path:
            target = (path.parent / unquote(parts.path)).resolve()
            if target.is_dir():
                target /= "index.html"
        if not target.is_file():
            dead.append(link)
        elif parts.fragment and target in pages:
            anchor = unquote(parts.fragment)
            # Line numbers of code have names that start with underscores.
            if anchor not in pages[target].anchors and not anchor.startswith("__"):
                dead.append(link)
    return dead


def public_names() -> list[str]:
    """Full names of everything that the Python reference must have."""
    names = []
    for name in moshi_rs.__all__:
        value = getattr(moshi_rs, name)
        if name in {"__version__", "errors"}:
            continue
        if isinstance(value, type) and issubclass(value, Exception):
            names.append(f"moshi_rs.errors.{name}")
            continue
        names.append(f"moshi_rs.{name}")
        if isinstance(value, type):
            names += [f"moshi_rs.{name}.{m}" for m in vars(value) if not m.startswith("_")]
    return names


def main() -> int:
    """Prints what is wrong."""
    site = Path(sys.argv[1]).resolve()
    problems = check(site)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"{site}: {len(public_names())} names in the reference, no foreign address")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
