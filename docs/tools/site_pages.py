"""What the site does beyond mkdocs: pages of the top folder, and links as GitHub reads them.

Pages are written so that their links work in the repository. Here, a link to another page of the
site becomes a link within it, a line that only links to a program becomes the program, and a link
to any other file leads to GitHub.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "https://github.com/moshi-rs/moshi-rs/blob/main"

# Files of the top folder that are pages of the site.
TOP_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
# A line that is nothing but a link to a program.
PROGRAM = re.compile(r"^\[([^\]]+)\]\(([^)\s]+\.(py|rs))\)$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts every decision record into the navigation."""
    records = sorted(path.name for path in Path(config.docs_dir, "adr").glob("*.md"))
    config.nav = _fill(config.nav, {"adr/": [f"adr/{name}" for name in records]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the top folder."""
    for source, page in TOP_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: object) -> str:
    """Turns links of the repository into links of the site, and shows linked programs."""
    site_path = page.file.src_uri
    sources = {page: source for source, page in TOP_PAGES.items()}
    repository_path = sources.get(site_path, f"docs/{site_path}")

    def show(link: re.Match[str]) -> str:
        title, target, language = link.groups()
        path = ROOT / _beside(repository_path, target)
        fence = f'```{"python" if language == "py" else "rust"} title="{title}"'
        return f"{fence}\n{path.read_text(encoding='utf-8').rstrip()}\n```"

    def rewrite(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if files.get_file_from_path(_beside(site_path, target)):
            return link[0]
        path = _beside(repository_path, target)
        inside = TOP_PAGES.get(path) or path.removeprefix("docs/")
        if files.get_file_from_path(inside):
            return f"]({relpath(inside, dirname(site_path) or '.')}{anchor})"
        if (ROOT / path).exists():
            return f"]({SOURCES}/{path}{anchor})"
        return link[0]

    # Code is left alone: what looks like a link in it is none.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    for index in range(0, len(parts), 2):
        parts[index] = LINK.sub(rewrite, PROGRAM.sub(show, parts[index]))
    return "".join(parts)


def _beside(path: str, target: str) -> str:
    """The path of what a file links to."""
    return normpath(f"{dirname(path) or '.'}/{target}")


def _fill(nav: object, lists: dict[str, list[str]]) -> object:
    if isinstance(nav, str):
        return lists.get(nav, nav)
    if isinstance(nav, list):
        return [_fill(entry, lists) for entry in nav]
    if isinstance(nav, dict):
        return {title: _fill(entry, lists) for title, entry in nav.items()}
    return nav
