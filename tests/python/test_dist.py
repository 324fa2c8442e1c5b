"""The check of distributions knows every file that a release is made of."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from support import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "tests" / "check_dist.py"))
NATIVE: re.Pattern[str] = SCRIPT["NATIVE"]


@pytest.mark.parametrize(
    "name",
    [
        # For the stable ABI: Linux and macOS, Windows.
        "_core.abi3.so",
        "_core.pyd",
        # For the free-threaded interpreter: Linux, macOS, Windows.
        "_core.cpython-314t-x86_64-linux-gnu.so",
        "_core.cpython-314t-aarch64-linux-gnu.so",
        "_core.cpython-314t-x86_64-linux-musl.so",
        "_core.cpython-314t-aarch64-linux-musl.so",
        "_core.cpython-314t-darwin.so",
        "_core.cp314t-win_amd64.pyd",
    ],
)
def test_native_modules_of_all_platforms_are_known(name: str) -> None:
    assert NATIVE.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["_core.pyi", "_core.so", "_core.abi3.so.1", "libcuda.so", "a.pyd"]
)
def test_other_files_are_not_taken_for_one(name: str) -> None:
    assert not NATIVE.fullmatch(name)


FILES = [
    Path("dist/moshi_rs-1.2.3-cp310-abi3-win_amd64.whl"),
    Path("dist/moshi_rs-1.2.3-cp314-cp314t-win_amd64.whl"),
    Path("dist/moshi_rs-1.2.3.tar.gz"),
]


@pytest.mark.parametrize("tag", [None, "v1.2.3"])
def test_a_tag_that_is_the_version_passes(tag: str | None) -> None:
    assert SCRIPT["check_version"](FILES, tag) == "1.2.3"


def test_a_tag_or_a_file_of_another_version_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"v1\.2\.4"):
        SCRIPT["check_version"](FILES, "v1.2.4")
    with pytest.raises(SystemExit, match=r"1\.2\.4"):
        SCRIPT["check_version"]([*FILES, Path("moshi_rs-1.2.4.tar.gz")], "v1.2.3")
