"""A stand-in for the module ``sounddevice``, without devices or time.

The input stream hands over a recording as fast as it can, in blocks, and then ends as a device
does that is unplugged; the output stream asks for a block after each of them.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from support import Array

Facts = dict[str, Any]


class PortAudioError(Exception):
    """What the real module raises where PortAudio fails."""


class DeviceList(list[Facts]):
    """As the real one, with a table for people."""

    def __repr__(self) -> str:
        return "\n".join(f"{facts['index']} {facts['name']}" for facts in self)


class FakeSounddevice(ModuleType):
    """The module's calls that chat makes.

    Args:
        recording: What the microphone hears, float32 ``[samples]``.
        at_end: Called when all of it is handed over, in the thread of the microphone; returns
            whether the device goes on, silent.
    """

    PortAudioError = PortAudioError

    def __init__(self, recording: Array, at_end: Callable[[], bool] = lambda: False) -> None:
        super().__init__("sounddevice")
        self.recording = recording
        self.at_end = at_end
        self.devices = DeviceList()
        self.add("Desk Microphone", inputs=1, outputs=0)
        self.add("Loud Speaker", inputs=0, outputs=2)
        self.add("USB Headset", inputs=1, outputs=2)
        self.defaults: dict[str, int] = {"input": 0, "output": 1}
        self.rates = {24_000}
        self.broken: str | None = None
        self.opened: dict[str, dict[str, Any]] = {}
        self.played: list[Array] = []
        self.output: _Stream | None = None

    def add(self, name: str, *, inputs: int, outputs: int) -> None:
        channels = {"max_input_channels": inputs, "max_output_channels": outputs}
        self.devices.append({"name": name, "index": len(self.devices), **channels})

    def query_devices(
        self, device: int | str | None = None, kind: str | None = None
    ) -> DeviceList | Facts:
        if kind is None:
            return self.devices
        if device is None:
            device = self.defaults.get(kind, -1)
        if isinstance(device, str):
            found = [facts for facts in self._of(kind) if device.lower() in facts["name"].lower()]
            if len(found) != 1:
                reason = f"{'Multiple' if found else 'No'} {kind} devices matching {device!r}"
                raise ValueError(reason)
            return found[0]
        if not 0 <= device < len(self.devices):
            reason = f"Error querying device {device}"
            raise PortAudioError(reason)
        if self.devices[device] not in self._of(kind):
            reason = f"Not an {kind} device: {self.devices[device]['name']!r}"
            raise ValueError(reason)
        return self.devices[device]

    def _of(self, kind: str) -> list[Facts]:
        return [facts for facts in self.devices if facts[f"max_{kind}_channels"] > 0]

    def check_input_settings(self, **settings: object) -> None:
        self._check(settings)

    def check_output_settings(self, **settings: object) -> None:
        self._check(settings)

    def _check(self, settings: dict[str, Any]) -> None:
        assert (settings["channels"], settings["dtype"]) == (1, "float32")
        if settings["samplerate"] not in self.rates:
            reason = "Invalid sample rate [PaErrorCode -9997]"
            raise PortAudioError(reason)

    def InputStream(self, **settings: object) -> _Stream:
        return _InputStream(self, "input", settings)

    def OutputStream(self, **settings: object) -> _Stream:
        self.output = _Stream(self, "output", settings)
        return self.output


class _Stream:
    def __init__(self, module: FakeSounddevice, kind: str, settings: dict[str, Any]) -> None:
        if module.broken == kind:
            reason = "Device unavailable [PaErrorCode -9985]"
            raise PortAudioError(reason)
        module._check(settings)
        module.opened[kind] = settings
        self.module = module
        self.settings = settings

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.settings["finished_callback"]()

    def block(self) -> None:
        """Asks for what is to be played next."""
        out = np.full((self.settings["blocksize"], 1), np.nan, np.float32)
        self.settings["callback"](out, len(out), None, None)
        self.module.played.append(out[:, 0])


class _InputStream(_Stream):
    def __enter__(self) -> _Stream:
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._hand_over)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.thread.join()
        super().__exit__()

    def _hand_over(self) -> None:
        size = self.settings["blocksize"]
        # One buffer for all, as the real module has it: who keeps samples must copy them.
        buffer = np.empty((size, 1), np.float32)
        for begin in range(0, len(self.module.recording) - size + 1, size):
            buffer[:, 0] = self.module.recording[begin : begin + size]
            self.settings["callback"](buffer, size, None, None)
            assert self.module.output is not None
            self.module.output.block()
            if self.closed.is_set():
                return
        if self.module.at_end():
            self.closed.wait()
        else:
            self.settings["finished_callback"]()
