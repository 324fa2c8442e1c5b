"""Every Python block of the documentation runs as written, or says why not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from moshi_rs import errors
from pages import PAGES, Block, blocks, workplace
from support import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

# A block in another language would escape the checks.
LANGUAGES = {"python", "sh", "text", ""}
NONE = "\N{EN DASH}"
PYTHON = [block for block in blocks() if block.language == "python"]


def by_page(blocks: list[Block]) -> list[tuple[str, str]]:
    """Page names and code: the blocks of a page build on each other."""
    names = dict.fromkeys(block.page for block in blocks)
    return [(name, "\n".join(b.code for b in blocks if b.page == name)) for name in names]


EXAMPLES = by_page([block for block in PYTHON if block.reason is None])


def test_pages_have_examples() -> None:
    names = [name for name, _ in EXAMPLES]
    assert {"README.md", "docs/index.md", "docs/guide/quickstart.md"} <= set(names)
    assert len(names) >= 10
    fences = sum(
        line.lstrip().startswith("```")
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
    )
    assert fences == 2 * len(blocks())


def test_every_block_is_in_a_language_that_is_checked() -> None:
    assert {block.language for block in blocks()} <= LANGUAGES


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_example_runs(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(code, name, "exec"), namespace)
    assert "moshi_rs" in namespace


def test_a_block_that_does_not_run_says_why() -> None:
    excused = [block for block in blocks() if block.reason is not None]
    assert excused
    for block in excused:
        assert block.language == "python", f"{block.page}: only Python runs"
        assert len(block.reason or "") > 10, f"{block.page}: {block.reason!r} is no reason"
        compile(block.code, block.page, "exec")


def test_every_exception_has_a_row_in_troubleshooting() -> None:
    page = (REPOSITORY / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", page, re.MULTILINE))
    assert set(rows) == set(errors.__all__)
    for name, also in rows.items():
        builtin = [b for b in getattr(errors, name).__mro__[1:] if b.__module__ == "builtins"]
        expected = NONE if builtin[0] is Exception else f"`{builtin[0].__name__}`"
        assert also == expected, name


def test_an_image_is_built_of_sources_only() -> None:
    ignored = (REPOSITORY / ".containerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in ignored if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    taken = {rule.removeprefix("!") for rule in rules[1:]}
    assert all((REPOSITORY / name).exists() for name in taken)
    manifest = (REPOSITORY / "Cargo.toml").read_text(encoding="utf-8")
    members = re.findall(r'"([^"]+)"', manifest.split("members = [")[1].split("]")[0])
    needed = {"Cargo.lock", "Cargo.toml", *(member.removesuffix("/*") for member in members)}
    assert all(name in taken or f"{name}/Cargo.toml" in taken for name in needed)
