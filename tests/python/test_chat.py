"""``moshi-rs chat`` with a fake ``sounddevice``: no hardware, no time."""

from __future__ import annotations

import _thread
import builtins
import importlib
import io
import re
import signal
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import moshi_rs
from fake_sounddevice import FakeSounddevice
from moshi_rs import _duplex, _terminal, cli
from moshi_rs._duplex import Duplex, Report, level_dbfs
from support import DIALOGUE, FRAME, Array, copy_case

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT = ["chat", "--model", str(DIALOGUE)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped, however slow the machine is that runs the tests."""
    monkeypatch.setattr(_duplex, "MAX_WAITING_FRAMES", 10_000)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, frames: Array) -> FakeSounddevice:
    module = FakeSounddevice(frames.reshape(-1).astype(np.float32))
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def spoken(
    model: moshi_rs.StreamingModel, frames: Array, seed: int, temperature: float | None = None
) -> tuple[Array, str]:
    """Audio ``[samples]`` and text of a new session."""
    session = model.new_session(seed=seed, temperature=temperature)
    outputs = [session.step(frame) for frame in frames]
    return np.concatenate([pcm for pcm, _ in outputs]), "".join(text for _, text in outputs)


@pytest.mark.usefixtures("patient")
def test_the_text_is_that_of_a_session_with_the_same_seed(
    model: moshi_rs.StreamingModel,
    frames: Array,
    fake: FakeSounddevice,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts = set()
    for seed in (5, 6):
        assert cli.main([*CHAT, "--seed", str(seed), "--temperature", "1.2"]) == 4
        _, text = spoken(model, frames, seed=seed, temperature=1.2)
        captured = capfd.readouterr()
        assert captured.out == f"{text}\n"
        assert f"seed {seed}" in captured.err
        assert "the input device stopped" in captured.err
        texts.add(text)
    assert len(texts) == 2
    assert "".join(texts).strip()
    for kind, device in (("input", 0), ("output", 1)):
        opened = fake.opened[kind]
        assert (opened["device"], opened["samplerate"], opened["channels"]) == (device, 24_000, 1)


@pytest.mark.usefixtures("patient")
def test_a_recording_has_the_user_on_the_left_and_the_model_on_the_right(
    model: moshi_rs.StreamingModel, frames: Array, fake: FakeSounddevice, tmp_path: Path
) -> None:
    path = tmp_path / "talk.wav"
    assert cli.main([*CHAT, "--seed", "5", "--record", str(path)]) == 4
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 24_000, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32_767
    own, _ = spoken(model, frames, seed=5)
    assert len(pcm) == len(own) == len(fake.recording)
    for channel, signal_ in ((0, fake.recording), (1, own)):
        np.testing.assert_allclose(pcm[:, channel], np.clip(signal_, -1, 1), atol=1 / 32_767)


@pytest.mark.usefixtures("patient")
def test_what_is_played_is_what_the_model_says(
    model: moshi_rs.StreamingModel, frames: Array, fake: FakeSounddevice
) -> None:
    own, _ = spoken(model, frames, seed=5)
    expected = sounding_blocks(own)
    assert len(expected) > 100

    def play_the_rest() -> bool:
        assert fake.output is not None
        deadline = time.monotonic() + 120
        while len(sounding_blocks(np.concatenate(fake.played))) < len(expected):
            assert time.monotonic() < deadline
            fake.output.block()
        return False

    fake.at_end = play_the_rest
    assert cli.main([*CHAT, "--seed", "5"]) == 4
    played = np.concatenate(fake.played)
    assert np.isfinite(played).all()
    np.testing.assert_array_equal(sounding_blocks(played), expected)


def sounding_blocks(pcm: Array) -> Array:
    """Blocks without those of silence, which stand where the model was not yet ready."""
    blocks = pcm.reshape(-1, 480)
    return blocks[blocks.any(axis=1)]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_at_the_start_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch, *, started: bool
) -> None:
    start = Duplex.start

    def interrupted(duplex: Duplex) -> None:
        if started:
            start(duplex)
        raise KeyboardInterrupt

    monkeypatch.setattr(Duplex, "start", interrupted)
    before = threading.active_count()
    assert cli.main(CHAT) == 130
    assert threading.active_count() == before


@pytest.mark.usefixtures("patient")
def test_ctrl_c_ends_the_conversation(
    fake: FakeSounddevice, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    talking = threading.Event()
    wait = Duplex.wait

    def observed_wait(duplex: Duplex, timeout_s: float) -> bool:
        talking.set()
        return wait(duplex, timeout_s)

    def interrupt() -> bool:
        assert talking.wait(60)
        _thread.interrupt_main()
        return True

    monkeypatch.setattr(Duplex, "wait", observed_wait)
    fake.at_end = interrupt
    before = signal.getsignal(signal.SIGINT)
    threads = threading.active_count()
    assert cli.main(CHAT) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.active_count() == threads
    captured = capfd.readouterr()
    assert captured.out.endswith("\n")
    assert "Traceback" not in captured.err
    assert re.search(r"\d+ frames of 80 ms", captured.err)
    assert re.search(r"seed \d+", captured.err)


def test_the_start_names_devices_and_headphones(
    fake: FakeSounddevice, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fake.devices
    assert cli.main([*CHAT, "--input-device", "usb", "--output-device", "2"]) == 4
    captured = capfd.readouterr()
    assert "input: USB Headset" in captured.err
    assert "output: USB Headset" in captured.err
    assert "headphones" in captured.err
    assert {settings["device"] for settings in fake.opened.values()} == {2}


def test_devices_are_listed(fake: FakeSounddevice, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--list-devices"]) == 0
    assert "1 Loud Speaker" in capfd.readouterr().out
    fake.devices.clear()
    assert cli.main(["chat", "--list-devices"]) == 4
    assert "no sound device" in capfd.readouterr().err


def no_microphone(fake: FakeSounddevice) -> None:
    del fake.defaults["input"]


def no_such_rate(fake: FakeSounddevice) -> None:
    fake.rates = {44_100}


def broken_loudspeaker(fake: FakeSounddevice) -> None:
    fake.broken = "output"


def broken_microphone(fake: FakeSounddevice) -> None:
    fake.broken = "input"


@pytest.mark.parametrize(
    ("options", "damage", "messages"),
    [
        ([], no_microphone, ["no input device", "--list-devices"]),
        (["--input-device", "piano"], None, ["--input-device piano", "No input devices"]),
        (["--output-device", "e"], None, ["--output-device e", "Multiple output devices"]),
        (["--output-device", "99"], None, ["--output-device 99", "--list-devices"]),
        (["--input-device", "1"], None, ["Not an input device", "Loud Speaker"]),
        ([], no_such_rate, ["Desk Microphone", "24000 Hz", "--input-device"]),
        ([], broken_loudspeaker, ["Device unavailable", "--list-devices"]),
        ([], broken_microphone, ["Device unavailable", "--list-devices"]),
    ],
)
def test_devices_that_do_not_work_are_named(
    fake: FakeSounddevice,
    options: list[str],
    damage: Callable[[FakeSounddevice], None] | None,
    messages: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    if damage is not None:
        damage(fake)
    assert cli.main([*CHAT, *options]) == 4
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    for message in messages:
        assert message in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("fake")
def test_a_wrong_device_does_not_cost_the_loading_of_a_model(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["chat", "--model", "no/such/model", "--input-device", "piano"]) == 4
    assert "piano" in capfd.readouterr().err


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chat", "--model", "no/such/model"], 3, "no/such/model"),
        ([*CHAT, "--record", "no/such/folder/a.wav"], 5, "--record no/such/folder/a.wav"),
        ([*CHAT, "--temperature=-1"], 5, "temperature"),
        ([*CHAT, "--device", "cuda"], 4, "cuda"),
        (["chat", "--revision", "main"], 2, "no model is named"),
        (["chat", "--list-devices", "--seed", "1"], 2, "--list-devices"),
    ],
    ids=str,
)
def test_other_failures_have_their_codes(
    arguments: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    captured = capfd.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("fake")
def test_a_model_at_another_rate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moshi_rs.chat._SAMPLE_RATE_HZ", 16_000)
    monkeypatch.setattr(sys.modules["sounddevice"], "rates", {16_000})
    folder = copy_case("dialogue_repo", tmp_path / "model")
    assert cli.main(["chat", "--model", str(folder)]) == 2
    assert "24000 Hz" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'sounddevice'"), r"pip install .moshi-rs\[audio\]"),
        (OSError("PortAudio library not found"), "libportaudio2"),
    ],
    ids=["package", "library"],
)
@pytest.mark.parametrize("arguments", [CHAT, ["chat", "--list-devices"]], ids=["talk", "list"])
def test_what_is_not_installed_is_named(
    error: Exception,
    message: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    found = importlib.import_module

    def import_module(name: str) -> object:
        if name == "sounddevice":
            raise error
        return found(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert cli.main(arguments) == 4
    captured = capfd.readouterr()
    assert re.search(message, captured.err)
    assert captured.out == ""


def test_a_bug_in_the_devices_is_not_hidden(
    fake: FakeSounddevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise builtins.ZeroDivisionError

    monkeypatch.setattr(fake, "query_devices", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(CHAT)


def test_a_closed_pipe_ends_the_conversation_quietly(frames: Array, tmp_path: Path) -> None:
    np.save(tmp_path / "recording.npy", frames.reshape(-1).astype(np.float32))
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from fake_sounddevice import FakeSounddevice
recording = np.load({str(tmp_path / "recording.npy")!r})
sys.modules["sounddevice"] = FakeSounddevice(np.tile(recording, 20))
from moshi_rs import cli
sys.exit(cli.main({[*CHAT, "--seed", "5"]!r}))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    errors = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(timeout=120) == 1, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


class Parrot:
    """A session that repeats what it hears and says which frame that was."""

    def __init__(self) -> None:
        self.go_on = threading.Semaphore(0)
        self.busy = threading.Semaphore(0)

    def step(self, frame: Array) -> tuple[Array, str]:
        self.busy.release()
        assert self.go_on.acquire(timeout=60)
        if frame[0] < 0:
            raise moshi_rs.InternalError
        return frame.copy(), f"{frame[0] * 100:.0f} "


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def duplex(parrot: Parrot) -> Duplex:
    made = Duplex(parrot, FRAME)  # type: ignore[arg-type]
    made.start()
    return made


def frame_of(number: int) -> Array:
    return np.full(FRAME, number / 100, np.float32)


def block(duplex: Duplex, samples: int) -> Array:
    out = np.full(samples, np.nan, np.float32)
    duplex.play(out)
    return out


def test_a_model_that_lags_loses_the_oldest_frames(parrot: Parrot, duplex: Duplex) -> None:
    duplex.hear(frame_of(1))
    assert parrot.busy.acquire(timeout=60)
    # It is at the first one; of what comes meanwhile, the last three stay.
    for number in range(2, 8):
        duplex.hear(frame_of(number))
    assert duplex.report().dropped_input == 3
    parrot.go_on.release(10)
    duplex.end()
    duplex.join()
    assert duplex.take_text() == "1 5 6 7 "
    assert duplex.take_text() == ""
    report = duplex.report()
    assert (report.frames, report.dropped_input, report.dropped_output) == (4, 3, 1)
    # So do the last three of what it says.
    assert block(duplex, 3 * FRAME).reshape(3, FRAME)[:, 0].tolist() == [
        frame_of(number)[0] for number in (5, 6, 7)
    ]


def test_frames_are_cut_from_any_blocks(parrot: Parrot, duplex: Duplex) -> None:
    parrot.go_on.release(10)
    recording = np.concatenate([frame_of(1), frame_of(2), frame_of(3)])
    buffer = np.empty(700, np.float32)
    for begin in range(0, len(recording), 700):
        piece = recording[begin : begin + 700]
        buffer[: len(piece)] = piece
        duplex.hear(buffer[: len(piece)])
        buffer[:] = np.nan
    duplex.hear(np.zeros(100, np.float32))
    duplex.end()
    duplex.join()
    assert duplex.take_text() == "1 2 3 "


def test_a_loudspeaker_without_sound_plays_silence_and_gaps_are_counted(
    parrot: Parrot, duplex: Duplex
) -> None:
    assert not block(duplex, 480).any()
    assert duplex.report().gaps == 0, "nothing was to be heard yet"
    parrot.go_on.release(10)
    for number in (1, 2):
        duplex.hear(frame_of(number))
    duplex.end()
    duplex.join()
    expected = np.concatenate([frame_of(1), frame_of(2), np.zeros(FRAME, np.float32)])
    got = np.concatenate([block(duplex, 1000) for _ in range(5)])
    np.testing.assert_array_equal(got, expected[:5000])
    assert duplex.report().gaps == 1, "a gap of any length is one"


def test_frames_that_wait_are_not_stepped_after_an_abort(parrot: Parrot, duplex: Duplex) -> None:
    for number in (1, 2, 3):
        duplex.hear(frame_of(number))
    assert parrot.busy.acquire(timeout=60)
    assert not duplex.wait(0.0)
    duplex.abort()
    parrot.go_on.release(10)
    duplex.join()
    assert duplex.wait(0.0)
    assert duplex.take_text() == "1 "


def test_a_step_that_fails_ends_the_conversation(parrot: Parrot, duplex: Duplex) -> None:
    parrot.go_on.release(10)
    duplex.hear(frame_of(-1))
    assert duplex.wait(60)
    with pytest.raises(moshi_rs.InternalError):
        duplex.join()


def test_levels_are_below_full_scale() -> None:
    square = np.tile(np.array([1, -1], np.float32), 100)
    assert level_dbfs(square) == pytest.approx(0.0)
    assert level_dbfs(square * np.float32(0.1)) == pytest.approx(-20.0, abs=1e-4)
    assert level_dbfs(np.zeros(10, np.float32)) == -96.0
    assert level_dbfs(np.full(10, 1e-9, np.float32)) == -96.0


def test_the_meters_show_levels_times_and_losses() -> None:
    line = _terminal.status_line(Report(9, -30.0, -96.0, 41.6, 2, 3, 4), 80.0)
    assert line == (
        "you [####    ] -30 dB  model [        ] -96 dB   42/80 ms  dropped 2+3  gaps 4"
    )
    assert len(line) < 80


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("text_on_screen", "meters_on_screen"), [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_meters_are_for_terminals_and_leave_the_text_alone(
    text_on_screen: int, meters_on_screen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out: io.StringIO = Screen() if text_on_screen else io.StringIO()
    err: io.StringIO = Screen() if meters_on_screen else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "1")
    terminal = _terminal.Terminal(80.0)
    for text in ("Hel", "", "lo"):
        terminal.show(text, Report(9, -30.0, -96.0, 41.6, 2, 3, 4))
    terminal.close()
    assert out.getvalue() == "Hello\n"
    shown = err.getvalue()
    assert shown.count("dropped 2+3") == (3 if meters_on_screen else 0)
    # Where both share a screen, the meters go to the line below and come back.
    assert shown.count("\x1b7") == shown.count("\x1b8") == (3 if shown and text_on_screen else 0)
