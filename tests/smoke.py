"""Smoke test of an installed wheel: what a user does first, with nothing but NumPy beside it.

Run it with the interpreter that the wheel is installed for, from anywhere::

    python tests/smoke.py tests/golden/dialogue_repo tests/audio/hello.wav
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import sysconfig
import tempfile
import wave
from pathlib import Path

import numpy as np

import moshi_rs

REPOSITORY = Path(__file__).resolve().parents[1]
FRAMES = 10
SEED = 7


def expect(condition: bool, what: str) -> None:
    """Ends the process with a message unless the condition holds; unlike assert, with -O too."""
    if not condition:
        sys.exit(f"smoke test failed: {what}")


def installed() -> None:
    """The package in use is the installed one, complete, and says what it is."""
    package = Path(moshi_rs.__file__).resolve().parent
    expect(not package.is_relative_to(REPOSITORY / "python"), f"{package} is the source tree")
    expect((package / "py.typed").is_file(), "py.typed is missing")
    expect((package / "_core.pyi").is_file(), "_core.pyi is missing")
    print(f"moshi_rs {moshi_rs.__version__} in {package}")
    for key, value in moshi_rs.build_info().items():
        print(f"  {key}: {value}")
    expect(moshi_rs.build_info()["version"] == moshi_rs.__version__, "versions differ")
    expect(moshi_rs.build_info()["profile"] == "release", "not a release build")


def global_lock() -> None:
    """A free-threaded interpreter stays free-threaded."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        expect(not sys._is_gil_enabled(), "importing moshi_rs switched the GIL on")  # type: ignore[attr-defined, unused-ignore]


def sessions(folder: Path | None) -> None:
    """Equal seeds give equal frames, within a session and after a reset; None is the box."""
    model = moshi_rs.StreamingModel.load(folder)
    phases = np.arange(FRAMES * model.frame_size) * (2 * np.pi * 220 / model.sample_rate)
    frames = (0.1 * np.sin(phases)).astype(np.float32).reshape(FRAMES, model.frame_size)
    session = model.new_session(seed=SEED)
    first = [session.step(frame) for frame in frames]
    session.reset()
    for again in (session, model.new_session(seed=SEED)):
        for (pcm, text), frame in zip(first, frames, strict=True):
            same_pcm, same_text = again.step(frame)
            expect(pcm.dtype == np.float32 and pcm.shape == (model.frame_size,), "shape of audio")
            expect(bool(np.isfinite(pcm).all()), "audio is not finite")
            expect(np.array_equal(pcm, same_pcm) and text == same_text, "equal seeds differ")
    expect(any(pcm.any() for pcm, _ in first), "the model is silent")
    print(f"sessions: {FRAMES} frames, {''.join(text for _, text in first)!r}")


def codec(folder: Path | None) -> None:
    """Mimi encodes and decodes, and refuses what it cannot encode."""
    mimi = moshi_rs.Mimi.load(folder)
    pcm = np.linspace(-0.5, 0.5, 4 * mimi.frame_size, dtype=np.float32)
    codes = mimi.encode(pcm)
    expect(codes.dtype == np.uint32 and codes.shape == (mimi.num_codebooks, 4), "shape of codes")
    expect(int(codes.max()) < mimi.cardinality, "a code out of range")
    speech = mimi.decode(codes)
    expect(speech.shape == pcm.shape and bool(np.isfinite(speech).all()), "decoded audio")
    try:
        mimi.encode(np.full(mimi.frame_size, np.nan, np.float32))
    except moshi_rs.InputError as error:
        expect(isinstance(error, ValueError), "InputError is a ValueError")
        print(f"codec: {codes.shape[0]} codebooks; NaN is refused: {error}")
    else:
        expect(False, "NaN passed as audio")


def missing_model(folder: Path) -> None:
    """A folder that is not there is a typed error that names it."""
    try:
        moshi_rs.StreamingModel.load(folder)
    except moshi_rs.CheckpointNotFoundError as error:
        expect(folder.name in str(error), f"the error does not name the folder: {error}")
    else:
        expect(False, "a missing folder was loaded")


def command_line(recording: Path, out: Path) -> None:
    """The console script of this very environment runs, and the model in the box answers."""
    script = Path(sysconfig.get_path("scripts")) / "moshi-rs"

    def moshi(*arguments: str | Path) -> str:
        done = subprocess.run(
            [script, *arguments], cwd=out.parent, capture_output=True, text=True, encoding="utf-8"
        )
        expect(done.returncode == 0, f"moshi-rs {arguments}: {done.returncode}\n{done.stderr}")
        return done.stdout

    expect(moshi_rs.__version__ in moshi("--version"), "moshi-rs --version")
    moshi("run", recording, "-o", out, "--seed", str(SEED))
    with wave.open(str(out)) as written, wave.open(str(recording)) as spoken:
        seconds = written.getnframes() / written.getframerate()
        expect(seconds >= spoken.getnframes() / spoken.getframerate(), f"{seconds} s of answer")
    print(f"command line: {seconds:.2f} s of answer")


def main() -> None:
    """Runs every check."""
    parser = argparse.ArgumentParser(description="Smoke test of an installed moshi-rs wheel.")
    parser.add_argument("folder", type=Path, help="a model folder")
    parser.add_argument("recording", type=Path, help="a wav file")
    arguments = parser.parse_args()
    folder, recording = arguments.folder.resolve(), arguments.recording.resolve()
    print(f"Python {platform.python_version()}, {platform.platform()}, NumPy {np.__version__}")
    installed()
    global_lock()
    for model in (folder, None):
        sessions(model)
        codec(model)
    with tempfile.TemporaryDirectory() as scratch:
        missing_model(Path(scratch) / "no-such-model")
        command_line(recording, Path(scratch) / "answer.wav")
    print("smoke test passed")


if __name__ == "__main__":
    main()
