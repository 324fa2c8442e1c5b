"""The command line ``moshi-rs``; its commands and options are those of the native binary."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from moshi_rs._core import cli_main

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moshi_rs.chat import _OpenSession

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program name; None takes those of the process.

    Returns:
        The exit code: 0 fine, 1 a check fell short, 2 usage or config, 3 checkpoint, 4 device,
        5 input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and _may_need_devices(arguments):
        from moshi_rs import client  # As for chat: only where devices are used.

        if client.is_for_devices(arguments):
            return client.run(arguments[arguments.index("client") + 1 :])
    # Native code writes to the same files without Python's buffers.
    sys.stdout.flush()
    sys.stderr.flush()
    with _default_interrupt():
        return cli_main(["moshi-rs", *arguments], _chat)


def _may_need_devices(arguments: Sequence[str]) -> bool:
    return "client" in arguments


def _chat(options: dict[str, Any], open_session: _OpenSession | None) -> int:
    from moshi_rs import chat  # NumPy and the sound devices are for this command only.

    return chat.run(options, open_session)


@contextlib.contextmanager
def _default_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process: Python's handler would wait until the native code returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        # None: the handler was not installed by Python and cannot be put back.
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
