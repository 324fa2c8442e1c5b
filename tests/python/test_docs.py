"""Every Python example of the README and the guides runs as written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Page name and code: the blocks of a page build on each other."""
    pages = ((page, BLOCK.findall(page.read_text(encoding="utf-8"))) for page in PAGES)
    return [(str(page.relative_to(ROOT)), "\n".join(blocks)) for page, blocks in pages if blocks]


def test_the_readme_and_the_guides_have_examples() -> None:
    names = [name for name, _ in examples()]
    assert "README.md" in names
    assert len(names) >= 4


def show(folder: Path, at: Path) -> None:
    """A link, or a copy where links are a privilege, as on Windows."""
    try:
        at.symlink_to(folder)
    except OSError:
        shutil.copytree(folder, at)


@pytest.mark.parametrize(("name", "code"), examples(), ids=[name for name, _ in examples()])
def test_example_runs(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in ("tests", "docs"):
        show(ROOT / entry, tmp_path / entry)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(code, name, "exec"), namespace)
    assert "moshi_rs" in namespace
