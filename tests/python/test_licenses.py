"""The licences that wheels carry are those of what is in them."""

from __future__ import annotations

import re
import subprocess

import pytest

from support import REPOSITORY

LISTED = re.compile(r"^(\S+) (\S+) \| ([^|]+) \| https?://\S+( \| .+)?$", re.MULTILINE)
RULE = "=" * 80


@pytest.fixture(scope="module")
def notice() -> str:
    return (REPOSITORY / "THIRD-PARTY-LICENSES").read_text(encoding="utf-8")


def wheel_targets() -> list[str]:
    about = (REPOSITORY / "about.toml").read_text(encoding="utf-8")
    table = re.search(r"^targets = \[(.*?)\]", about, re.MULTILINE | re.DOTALL)
    assert table is not None
    return re.findall(r'"([^"]+)"', table.group(1))


def packages(target: str) -> set[tuple[str, str]]:
    """Name and version of every package of others in a wheel for a target."""
    command = ["cargo", "tree", "--locked", "--package", "moshi-py", "--features", "metal"]
    command += ["--target", target, "--edges", "normal", "--prefix", "none", "--format", "{p}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pairs = {tuple(line.split()[:2]) for line in done.stdout.splitlines() if line}
    return {(name, v.removeprefix("v")) for name, v in pairs if not name.startswith("moshi-")}


def test_every_package_in_a_wheel_is_listed(notice: str) -> None:
    listed = {(name, version) for name, version, *_ in LISTED.findall(notice)}
    targets = wheel_targets()
    assert len(targets) == 6
    shipped = set[tuple[str, str]]().union(*(packages(target) for target in targets))
    assert len(shipped) > 100
    assert shipped <= listed, "the dependencies changed: run make licenses"
    # The generator follows an edge if any of the targets has it, cargo if this one has it.
    assert listed <= packages("all"), "the dependencies changed: run make licenses"


def test_every_listed_package_has_the_text_of_its_licence(notice: str) -> None:
    listed = {name for name, *_ in LISTED.findall(notice)}
    sections = notice.split(f"\n{RULE}\n")[1:]
    titles, texts = sections[0::2], sections[1::2]
    assert len(titles) == len(texts) > 10
    covered = {name for title in titles for name in title.split(", for ")[1].split()}
    assert covered == listed
    assert all(len(text.split()) > 50 for text in texts)
