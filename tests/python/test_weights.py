"""The check of real weights, on the small checkpoints of this repository."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from support import DIALOGUE, GOLDEN, REPOSITORY, copy_case, tensors

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = REPOSITORY / "tests" / "weights.py"


def check(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "--frames", "20", *options],
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_good_folder_passes() -> None:
    code, output = check(DIALOGUE, "--dtype", "f32")
    assert code == 0, output
    assert "38400 of 38400 finite" in output
    assert "for every session" in output
    assert "ms per frame" in output
    assert "0 failed" in output


def test_a_recording_takes_the_place_of_the_signal() -> None:
    audio = REPOSITORY / "tests" / "audio"
    texts = [check(DIALOGUE)[1], check(DIALOGUE, "--audio", str(audio / "hello.wav"))[1]]
    spoken = [line for text in texts for line in text.splitlines() if line.startswith("  text: ")]
    assert len(set(spoken)) == 2
    code, output = check(DIALOGUE, "--audio", str(audio / "wav_u8_8000_mono.wav"))
    assert code == 1
    assert "24000 Hz" in output


def test_what_has_no_ears_runs_as_a_language_model() -> None:
    code, output = check(GOLDEN / "tts")
    assert code == 0, output
    assert "text logits" in output


def test_weights_that_are_not_finite_fail(tmp_path: Path) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "model")
    weights = tensors(folder / "model.safetensors")
    weights["text_linear.weight"] = np.full_like(weights["text_linear.weight"], np.nan)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    code, output = check(folder)
    assert code == 1
    assert "FAIL CheckpointError" in output
    assert "text_linear.weight" in output


@pytest.mark.parametrize("options", [(), ("--reference-dtype", "bf16")])
def test_the_original_is_compared_where_it_is_installed(options: tuple[str, ...]) -> None:
    installed = all(importlib.util.find_spec(name) for name in ("torch", "moshi"))
    code, output = check(DIALOGUE, "--require-reference", *options)
    assert code == (0 if installed else 1), output
    assert ("decoded sound" if installed else "FAIL PyTorch") in output


def test_comparisons_can_fail(capsys: pytest.CaptureFixture[str]) -> None:
    defined: dict[str, Any] = runpy.run_path(str(SCRIPT))
    ours = np.arange(12).reshape(3, 4)
    theirs = ours.copy()
    theirs[1, 2] = 99
    for name, values, passes in [
        ("same", ours.copy(), True),
        ("differs", theirs, False),
        ("short", ours[:2], False),
        ("empty", ours[:0], False),
    ]:
        report = defined["Report"]()
        report.equal(name, ours, values)
        assert (report.passed, report.failed) == (int(passes), int(not passes)), name
    assert "11 of 12 equal; first at [1, 2]: 6, PyTorch 99" in capsys.readouterr().out
    for values, passes in [([0.0, 1.0], True), ([0.0, np.inf], False), ([], False)]:
        report = defined["Report"]()
        report.finite("sound", np.array(values))
        assert report.failed == int(not passes)
