"""The programs of docs/examples run."""

from __future__ import annotations

import json
import runpy
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import moshi_rs
from pages import workplace
from support import DIALOGUE, FRAME, REPOSITORY, copy_case, edit_config, tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOLDER = REPOSITORY / "docs" / "examples"


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace(tmp_path)
    monkeypatch.chdir(tmp_path)


def program(name: str) -> dict[str, Any]:
    """What a program defines, after it has run without being the main one."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def test_every_program_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    programs = {path.stem for path in FOLDER.glob("*.py")}
    assert programs
    assert programs <= tested


def alone(seed: int, frames: int) -> str:
    """What the model in the box says to silence in a session of its own."""
    session = moshi_rs.StreamingModel.load().new_session(seed=seed)
    return "".join(session.step(np.zeros(FRAME, np.float32))[1] for _ in range(frames))


def test_batch() -> None:
    defined = program("batch")
    assert defined["texts"] == [alone(seed, 12) for seed in range(4)]
    assert all(defined["texts"])


def test_asyncio_sessions() -> None:
    defined = program("asyncio_sessions")
    assert defined["texts"] == [alone(seed, 8) for seed in range(3)]
    assert all(defined["texts"])


def test_microphone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    played: list[np.ndarray[Any, Any]] = []

    class Stream:
        """Calls back once per frame that is asked for."""

        def __init__(
            self, *, samplerate: int, blocksize: int, callback: Callable[..., None], **_: object
        ) -> None:
            assert (samplerate, blocksize) == (24_000, FRAME)
            self.callback = callback

        def __enter__(self) -> None:
            for _ in range(5):  # two frames more than may wait
                out = np.full((FRAME, 1), np.nan, np.float32)
                self.callback(np.zeros((FRAME, 1), np.float32), out, FRAME, None, None)
                played.append(out)

        def __exit__(self, *_: object) -> None:
            out = np.full((FRAME, 1), np.nan, np.float32)
            self.callback(np.zeros((FRAME, 1), np.float32), out, FRAME, None, None)
            played.append(out)

    module = types.ModuleType("sounddevice")
    monkeypatch.setattr(module, "Stream", Stream, raising=False)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    defined = program("microphone")
    defined["talk"](moshi_rs.StreamingModel.load(DIALOGUE, seed=1), frames=3)
    silent = [bool(np.all(frame == 0)) for frame in played]
    assert silent == [True] * 5 + [False]
    assert np.all(np.isfinite(played[-1]))
    assert capsys.readouterr().out.strip()


def test_transcribe(tmp_path: Path) -> None:
    folder = transcription_model(tmp_path / "model")
    transcribe = program("transcribe")["transcribe"]
    text = transcribe(folder, REPOSITORY / "tests" / "audio" / "hello.wav")
    assert len(text) > 20
    with pytest.raises(SystemExit, match="not mono"):
        transcribe(folder, REPOSITORY / "tests" / "audio" / "wav_u8_8000_mono.wav")


def transcription_model(folder: Path) -> Path:
    """The dialogue model without what speaks."""
    copy_case("dialogue_repo", folder)
    timing = {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 1.0}
    edit_config(folder, model_type="stt", n_q=8, dep_q=0, delays=[0] * 9, stt_config=timing)
    config = json.loads((folder / "config.json").read_text())
    needless = [f"emb.{k}." for k in range(8, config["n_q"] + 8)] + ["depformer", "linears."]
    kept = {
        name: value
        for name, value in tensors(folder / "model.safetensors").items()
        if not name.startswith(tuple(needless))
    }
    (folder / "model.safetensors").unlink()
    save_file(kept, folder / "model.safetensors")
    return folder
