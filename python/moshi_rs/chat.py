"""``moshi-rs chat``: talk with a model through microphone and loudspeaker.

The command line is parsed in Rust; here are the devices, reached through the package sounddevice
(``pip install "moshi-rs[audio]"``).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import wave
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from moshi_rs._duplex import Duplex, Report
from moshi_rs._terminal import Terminal
from moshi_rs.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    DeviceError,
    InputError,
    MoshiError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from moshi_rs._core import Session, StreamingModel
    from moshi_rs._duplex import _Pcm

    _OpenSession: TypeAlias = Callable[[], tuple[StreamingModel, Session]]

__all__ = ["choose", "hold", "run", "with_devices"]

# What every public model of the family hears and speaks. The devices are tried at this rate before
# minutes are spent on loading.
_SAMPLE_RATE_HZ = 24_000
# A quarter of a frame: how often a device hands over samples.
_BLOCK_SAMPLES = 480
_REFRESH_S = 0.1
_FULL_SCALE = 32_767

# Exit codes as everywhere on the command line; the first class that fits counts.
_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (ConfigError, 2),
    (CheckpointError, 3),
    (DeviceError, 4),
    (CapacityError, 4),
    (MoshiError, 5),
)
_EXIT_OUTPUT_GONE = 1
_EXIT_INTERRUPTED = 130

_NO_PACKAGE = (
    'chat needs the package sounddevice: pip install "moshi-rs[audio]" '
    '(in a working copy: pip install ".[audio]")'
)
_NO_PORTAUDIO = (
    "chat needs the library PortAudio, which is not installed: apt install libportaudio2, "
    "dnf install portaudio, or brew install portaudio"
)
_LISTING = "see moshi-rs chat --list-devices"
_HEADPHONES = "Use headphones: through a loudspeaker, the model hears itself. Ctrl-C ends."


def run(options: dict[str, Any], open_session: _OpenSession | None) -> int:
    """Holds a conversation until Ctrl-C, or lists the devices.

    Args:
        options: ``input_device`` and ``output_device``: number or part of a name as str, or None
            for the system's default; ``record``: Path of a wav file, or None.
        open_session: Loads the model and opens a session; None lists the devices instead.

    Returns:
        The exit code: 0 after Ctrl-C too, 1 when stdout is gone, 2 config, 3 checkpoint, 4 no
        device or a device that failed, 5 input, 130 after a second Ctrl-C.
    """

    def talk(sounddevice: Any) -> None:  # noqa: ANN401
        assert open_session is not None
        _converse(sounddevice, options, open_session)

    return with_devices(talk if open_session is not None else None)


def with_devices(talk: Callable[[Any], None] | None) -> int:
    """Runs a command that needs sound devices and gives its exit code, as ``run`` does.

    Args:
        talk: Gets the module ``sounddevice``; None lists the devices instead.
    """
    try:
        sounddevice = _sounddevice()
        if talk is None:
            print(_device_list(sounddevice))
        else:
            talk(sounddevice)
    except BrokenPipeError:
        # The interpreter would fail at its end, when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_OUTPUT_GONE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except MoshiError as error:
        print(f"error: {error}", file=sys.stderr)
        return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))
    return 0


def _sounddevice() -> Any:  # noqa: ANN401 -- it comes without types
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise DeviceError(_NO_PACKAGE) from error
    except OSError as error:
        raise DeviceError(_NO_PORTAUDIO) from error


def _device_list(sounddevice: Any) -> str:  # noqa: ANN401
    if not sounddevice.query_devices():
        reason = "there is no sound device; is a microphone or headset connected?"
        raise DeviceError(reason)
    # Its representation is a table with numbers, names, channels and marks at the defaults.
    return str(sounddevice.query_devices())


def _converse(sounddevice: Any, options: dict[str, Any], open_session: _OpenSession) -> None:  # noqa: ANN401
    chosen = choose(sounddevice, options)
    record: Path | None = options["record"]
    model, session = open_session()
    if model.sample_rate != _SAMPLE_RATE_HZ:
        reason = f"the model runs at {model.sample_rate} Hz; chat takes {_SAMPLE_RATE_HZ}"
        raise ConfigError(reason)
    # The first step reads the weights from the disk; nobody should wait for that in speech.
    session.step(np.zeros(model.frame_size, np.float32))
    session.reset()
    frame_ms = 1e3 / model.frame_rate

    def duplex(tap: Callable[[_Pcm, _Pcm], None] | None) -> Duplex:
        return Duplex(session, model.frame_size, tap)

    def summary(report: Report) -> str:
        return _summary(report, frame_ms, session.seed, record)

    hold(sounddevice, chosen, duplex, frame_ms, record, summary)


def hold(
    sounddevice: Any,  # noqa: ANN401
    chosen: dict[str, dict[str, Any]],
    make_duplex: Callable[[Callable[[_Pcm, _Pcm], None] | None], Duplex],
    frame_ms: float,
    record: Path | None,
    summary: Callable[[Report], str],
) -> None:
    """Holds a conversation through chosen devices until Ctrl-C or its end.

    Args:
        sounddevice: The module.
        chosen: Facts of the devices, under ``input`` and ``output``.
        make_duplex: Gives the conversation, not started; its argument is the tap of a ``Duplex``.
        frame_ms: Time of a frame.
        record: Path of a wav file, or None.
        summary: What to tell at the end.

    Raises:
        DeviceError: A device failed or stopped.
        MoshiError: What the conversation raised.
    """
    for kind, device in chosen.items():
        print(f"{kind}: {device['name']}", file=sys.stderr)
    print(_HEADPHONES, file=sys.stderr, flush=True)

    lost: list[str] = []
    with contextlib.ExitStack() as stack:
        tap = None
        if record is not None:
            tap = stack.enter_context(contextlib.closing(_Recording(record))).write
        duplex = make_duplex(tap)
        stack.enter_context(_python_interrupt())
        show = stack.enter_context(_stepping(duplex, Terminal(frame_ms)))
        try:
            with _streams(sounddevice, chosen, duplex) as stopped:
                while not duplex.wait(_REFRESH_S):
                    show()
                lost = stopped[:1]
        except KeyboardInterrupt:
            # The way to say goodbye, not a failure.
            pass
        except sounddevice.PortAudioError as error:
            reason = f"a sound device failed: {error}; {_LISTING}"
            raise DeviceError(reason) from error
    print(summary(duplex.report()), file=sys.stderr)
    if lost:
        reason = f"the {lost[0]} device stopped; is it still connected?"
        raise DeviceError(reason)


def choose(
    sounddevice: Any,  # noqa: ANN401
    options: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Facts of the devices that ``input_device`` and ``output_device`` name, for ``hold``.

    Raises:
        DeviceError: There is none, or it does not work at our rate.
    """
    return {
        kind: _device(sounddevice, kind, options[f"{kind}_device"]) for kind in ("input", "output")
    }


def _device(sounddevice: Any, kind: str, wanted: str | None) -> dict[str, Any]:  # noqa: ANN401
    """Facts of a device that takes one channel of floats at our rate."""
    device = int(wanted) if wanted is not None and wanted.isdecimal() else wanted
    try:
        facts: dict[str, Any] = sounddevice.query_devices(device, kind)
    except (ValueError, sounddevice.PortAudioError) as error:
        if wanted is None:
            reason = f"there is no {kind} device ({error}); {_LISTING}"
        else:
            reason = f"--{kind}-device {wanted}: {error}; {_LISTING}"
        raise DeviceError(reason) from error
    check = getattr(sounddevice, f"check_{kind}_settings")
    try:
        check(device=facts["index"], channels=1, dtype="float32", samplerate=_SAMPLE_RATE_HZ)
    except sounddevice.PortAudioError as error:
        reason = (
            f"{kind} device {facts['name']} does not take {_SAMPLE_RATE_HZ} Hz mono ({error}); "
            f'choose one that converts, on Linux "pulse", "pipewire" or "default", with '
            f"--{kind}-device; {_LISTING}"
        )
        raise DeviceError(reason) from error
    return facts


@contextlib.contextmanager
def _streams(
    sounddevice: Any,  # noqa: ANN401
    chosen: dict[str, dict[str, Any]],
    duplex: Duplex,
) -> Iterator[list[str]]:
    """Microphone and loudspeaker, at work; gives the list of those that have stopped."""
    stopped: list[str] = []

    def stop(kind: str) -> None:
        stopped.append(kind)
        duplex.end()

    # Two streams and not one for both: the devices may differ, and with them their clocks.
    common: dict[str, Any] = {
        "samplerate": _SAMPLE_RATE_HZ,
        "blocksize": _BLOCK_SAMPLES,
        "channels": 1,
        "dtype": "float32",
        "latency": "low",
    }
    loudspeaker = sounddevice.OutputStream(
        device=chosen["output"]["index"],
        callback=lambda out, *_: duplex.play(out[:, 0]),
        finished_callback=lambda: stop("output"),
        **common,
    )
    with loudspeaker:
        microphone = sounddevice.InputStream(
            device=chosen["input"]["index"],
            callback=lambda samples, *_: duplex.hear(samples[:, 0]),
            finished_callback=lambda: stop("input"),
            **common,
        )
        with microphone:
            yield stopped


@contextlib.contextmanager
def _stepping(duplex: Duplex, terminal: Terminal) -> Iterator[Callable[[], None]]:
    """Steps what is heard and gives what shows the news; whatever happens, it stops at the end."""

    def show() -> None:
        terminal.show(duplex.take_text(), duplex.report())

    try:
        duplex.start()
        yield show
    finally:
        duplex.abort()
        try:
            duplex.join()
        finally:
            show()
            terminal.close()


class _Recording:
    """A stereo wav file: what is heard on the left, what is spoken on the right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            self._file = path.open("wb")
            self._wave = wave.Wave_write(self._file)
        self._wave.setnchannels(2)
        self._wave.setsampwidth(2)
        self._wave.setframerate(_SAMPLE_RATE_HZ)

    def write(self, heard: _Pcm, spoken: _Pcm) -> None:
        both = np.clip(np.stack([heard, spoken], axis=1), -1, 1)
        with self._errors():
            self._wave.writeframesraw(np.rint(both * _FULL_SCALE).astype("<i2").tobytes())

    def close(self) -> None:
        with self._errors(), self._file:
            self._wave.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"--record {self._path}: {error}"
            raise InputError(reason) from error


@contextlib.contextmanager
def _python_interrupt() -> Iterator[None]:
    """Makes Ctrl-C a KeyboardInterrupt here, whatever it is around this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        # None: the handler was not installed by Python and cannot be put back.
        if previous is not None:
            signal.signal(signal.SIGINT, previous)


def _summary(report: Report, frame_ms: float, seed: int, record: Path | None) -> str:
    lines = [
        f"{report.frames} frames of {frame_ms:.0f} ms, the last ones in {report.step_ms:.1f} ms "
        f"each; dropped {report.dropped_input} in {report.dropped_output} out; "
        f"gaps {report.gaps}",
        f"seed {seed}",
    ]
    if report.step_ms > frame_ms:
        lines.append("This machine is too slow for this model: it loses what you say.")
    if record is not None:
        lines.append(f"conversation written to {record}")
    return "\n".join(lines)
