"""Devices: what a build lacks, what a machine lacks, and what the log says."""

from __future__ import annotations

import logging
from typing import Literal, cast

import pytest

import moshi_rs
from moshi_rs import errors
from support import DIALOGUE, GOLDEN

BUILT = set(moshi_rs.build_info()["devices"])
GPUS = ("cuda", "metal")
MISSING = [cast(Literal["cuda", "metal"], device) for device in GPUS if device not in BUILT]


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("moshi_rs", level)]


@pytest.mark.parametrize("device", MISSING)
def test_a_device_that_the_build_lacks_names_the_command_that_adds_it(
    device: Literal["cuda", "metal"],
) -> None:
    with pytest.raises(errors.DeviceError) as caught:
        moshi_rs.StreamingModel.load(DIALOGUE, device=device)
    command = f'pip install . --config-settings=build-args="--features {device}"'
    assert f"device {device}: " in str(caught.value)
    assert command in str(caught.value)


def test_no_build_knows_both_gpus() -> None:
    assert MISSING


@pytest.mark.parametrize("device", GPUS)
def test_codec_and_language_model_alone_run_on_the_cpu(device: str) -> None:
    for load, path in (
        (moshi_rs.LanguageModel.load, GOLDEN / "moshi"),
        (moshi_rs.Mimi.load, GOLDEN / "mimi" / "mimi.safetensors"),
    ):
        with pytest.raises(errors.DeviceError, match=r'on the CPU .* use device="cpu"'):
            load(path, device=device)  # type: ignore[arg-type]
        load(path, device="cpu")
        load(path, device="auto")


def test_the_log_says_what_computes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="moshi_rs"):
        model = moshi_rs.StreamingModel.load(DIALOGUE, device="cpu")
        logged = messages(caplog, logging.INFO)
        assert any("loaded" in m and "on cpu (" in m for m in logged), logged
        assert model.device == "cpu"
        caplog.clear()
        moshi_rs.Mimi.load(DIALOGUE)
        [codec, *_] = messages(caplog, logging.INFO)
        assert codec.startswith("codec ")
        assert " on cpu (" in codec
        caplog.clear()
        moshi_rs.LanguageModel.load(DIALOGUE)
        [language_model, *_] = messages(caplog, logging.INFO)
        assert language_model.startswith("language model ")
        assert " on cpu (" in language_model


def test_cuda_opens_or_names_what_is_missing_and_auto_follows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """True in every build, with a driver and without one."""
    reason = None
    try:
        assert moshi_rs.StreamingModel.load(DIALOGUE, device="cuda").device == "cuda"
    except errors.DeviceError as error:
        reason = str(error)
    with caplog.at_level(logging.WARNING, logger="moshi_rs"):
        model = moshi_rs.StreamingModel.load(DIALOGUE, device="auto")
    warnings = messages(caplog, logging.WARNING)
    if "cuda" not in BUILT:
        assert reason is not None
        assert "build it from source" in reason
        assert warnings == []
    elif reason is None:
        assert (model.device, warnings) == ("cuda", [])
    else:
        assert "driver must be installed" in reason
        assert model.device == "cpu"
        assert warnings == [f"{reason}; device auto takes the CPU instead"]
