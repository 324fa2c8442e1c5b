"""Models that the tests share: loading is cheap, but not free."""

from __future__ import annotations

import sys

import pytest

import moshi_rs
from support import DIALOGUE, FRAME, GOLDEN, Array, expected

# rustymimi has no wheels for later interpreters; on these, its absence is an error.
collect_ignore = [] if sys.version_info < (3, 14) else ["test_rustymimi.py"]
# Windows has no pseudo-terminals of this kind.
if sys.platform == "win32":
    collect_ignore.append("test_terminal.py")


@pytest.fixture(scope="session")
def model() -> moshi_rs.StreamingModel:
    return moshi_rs.StreamingModel.load(DIALOGUE)


@pytest.fixture(scope="session")
def mimi() -> moshi_rs.Mimi:
    return moshi_rs.Mimi.load(GOLDEN / "mimi" / "mimi.safetensors")


@pytest.fixture(scope="session")
def lm() -> moshi_rs.LanguageModel:
    return moshi_rs.LanguageModel.load(GOLDEN / "moshi")


@pytest.fixture(scope="session")
def frames() -> Array:
    """Audio for the dialogue model, ``[60, FRAME]``."""
    return expected("dialogue_repo")["pcm"].reshape(-1, FRAME)


@pytest.fixture(scope="session")
def codec_pcm() -> Array:
    """Audio for the codec, ``[24 * FRAME]``."""
    return expected("mimi")["pcm"].reshape(-1)
