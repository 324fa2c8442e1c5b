"""The pages of the documentation, and what is in them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: *(?P<reason>.*?) *-->\n)?^ *```(?P<language>.*?)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    language: str
    code: str
    # Why it does not run; None when it does.
    reason: str | None


def blocks() -> list[Block]:
    """All blocks of all pages."""
    return [
        Block(name_of(page), found["language"], found["code"], found["reason"])
        for page in PAGES
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
    ]


def prose() -> list[tuple[str, str]]:
    """Page names and their texts without blocks."""
    return [(name_of(page), FENCE.sub("", page.read_text(encoding="utf-8"))) for page in PAGES]


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def workplace(folder: Path) -> None:
    """Makes a folder look like the top of a clone to programs that only read."""
    for entry in ("docs", "tests"):
        _show(REPOSITORY / entry, folder / entry)


def _show(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # On Windows, links are a privilege.
        shutil.copytree(source, target)
