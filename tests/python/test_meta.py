"""The package itself: versions, classes, types, documentation, imports."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import json
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import moshi_rs
from moshi_rs import _core
from support import FRAME, REPOSITORY

CLASSES = [
    moshi_rs.LanguageModel,
    moshi_rs.LmStep,
    moshi_rs.LmStream,
    moshi_rs.Mimi,
    moshi_rs.MimiStream,
    moshi_rs.Session,
    moshi_rs.StreamingModel,
]


def public_members(owner: type) -> list[str]:
    return [name for name in vars(owner) if not name.startswith("_")]


@pytest.fixture
def objects(
    model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, lm: moshi_rs.LanguageModel
) -> list[object]:
    stream = lm.stream()
    made = [lm, stream.step([0] * 8), stream, mimi, mimi.stream(), model.new_session(), model]
    assert [type(each) for each in made] == CLASSES
    return made


def test_versions_are_equal() -> None:
    manifest = (REPOSITORY / "Cargo.toml").read_text()
    section = manifest.split("[workspace.package]")[1]
    found = re.search(r'^version = "([^"]+)"', section, re.MULTILINE)
    assert found is not None
    assert moshi_rs.__version__ == found.group(1)
    assert importlib.metadata.version("moshi-rs") == moshi_rs.__version__
    assert moshi_rs.build_info()["version"] == moshi_rs.__version__


def test_build_info_says_what_a_bug_report_needs() -> None:
    info = moshi_rs.build_info()
    assert set(info) == {
        "commit",
        "cpu_flags",
        "devices",
        "executors",
        "features",
        "profile",
        "target",
        "version",
    }
    assert info["devices"][0] == "cpu"
    assert set(info["features"]) == set(info["devices"][1:])
    assert "-" in info["target"]


def test_everything_public_is_exported_and_documented() -> None:
    assert sorted(moshi_rs.__all__) == moshi_rs.__all__
    native = {name for name in _core.__all__ if name != "cli_main"}
    assert native <= set(moshi_rs.__all__)
    inspected = 0
    for owner in CLASSES:
        assert owner.__module__ == "moshi_rs"
        assert inspect.getdoc(owner)
        for name in public_members(owner):
            doc = getattr(vars(owner)[name], "__doc__", None) or ""
            assert doc.strip(), f"{owner.__name__}.{name}"
            inspected += 1
    assert inspected > 50
    assert inspect.getdoc(moshi_rs.step_batch)
    assert inspect.getdoc(moshi_rs.build_info)


def test_every_option_is_documented() -> None:
    inspected = 0
    for owner in CLASSES:
        for name in public_members(owner):
            member = getattr(owner, name)
            if not callable(member):
                continue
            for parameter in inspect.signature(member).parameters:
                if parameter != "self":
                    assert f"{parameter}:" in (member.__doc__ or ""), f"{owner.__name__}.{name}"
                    inspected += 1
    assert inspected > 40


def test_classes_are_frozen(objects: list[Any]) -> None:
    for each in objects:
        owner = type(each)
        with pytest.raises(AttributeError):
            each.surprise = 1
        for name in public_members(owner):
            with pytest.raises(AttributeError):
                setattr(each, name, 1)
        with pytest.raises(TypeError):
            owner()
        with pytest.raises(TypeError):
            type("Sub", (owner,), {})


def test_live_state_is_not_copied_behind_the_back(objects: list[Any]) -> None:
    for each in objects:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(each)
        with pytest.raises(TypeError, match="pickle"):
            copy.copy(each)


def test_stub_equals_the_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "moshi_rs"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found" in done.stdout


def test_import_is_light() -> None:
    script = "import json, sys, moshi_rs; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(json.loads(done.stdout))
    assert "moshi_rs._core" in modules
    ours = {f"moshi_rs.{name}" for name in ("chat", "cli", "rustymimi")}
    assert not modules & ({"numpy", "torch", "sounddevice", "logging", "asyncio"} | ours)


def test_package_is_typed() -> None:
    files = importlib.metadata.files("moshi-rs")
    assert files
    package = REPOSITORY / "python" / "moshi_rs"
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_only_numpy_is_required(model: moshi_rs.StreamingModel) -> None:
    required = importlib.metadata.requires("moshi-rs") or []
    hard = [line for line in required if "extra ==" not in line]
    assert hard == ["numpy>=1.24"]
    assert model.step(np.zeros(FRAME, np.float32))[0].dtype == np.float32
