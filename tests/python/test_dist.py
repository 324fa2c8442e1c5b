"""The check of distributions knows every file that a release is made of."""

from __future__ import annotations

import re
import runpy

import pytest

from support import REPOSITORY

SCRIPT = REPOSITORY / "tests" / "check_dist.py"
NATIVE: re.Pattern[str] = runpy.run_path(str(SCRIPT))["NATIVE"]


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


@pytest.mark.parametrize("name", ["_core.pyi", "_core.so", "_core.abi3.so.1", "libcuda.so", "a.pyd"])
def test_other_files_are_not_taken_for_one(name: str) -> None:
    assert not NATIVE.fullmatch(name)
