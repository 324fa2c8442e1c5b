"""What a conversation shows: its text on stdout, and below it a line of meters on stderr."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from moshi_rs._duplex import Report

__all__ = ["Terminal", "status_line"]

_METER_CELLS = 8
# Level at the left end of a meter; the right end is full scale.
_METER_FLOOR_DBFS = -60.0

_ERASE_BELOW = "\x1b[J"
_ERASE_LINE = "\r\x1b[K"
# Makes room for a line below, saves the place, and goes there; then back again.
_TO_LINE_BELOW = "\x1bD\x1b[A\x1b7\x1b[E"
_BACK = "\x1b[K\x1b8"


class Terminal:
    """Text as it comes, and meters where stderr is a terminal.

    Args:
        frame_ms: Time of a frame, which a step must not exceed.
    """

    def __init__(self, frame_ms: float) -> None:
        self._frame_ms = frame_ms
        self._meters = _is_screen(sys.stderr.isatty())
        # Where text and meters share a screen, the meters are on the line below the text.
        self._shared = self._meters and sys.stdout.isatty()
        self._said = False

    def show(self, text: str, report: Report) -> None:
        """Appends text and refreshes the meters."""
        if text and self._shared:
            _write(sys.stderr, _ERASE_BELOW)
        if text:
            self._said = True
            _write(sys.stdout, text)
        if self._meters:
            columns = shutil.get_terminal_size().columns
            line = status_line(report, self._frame_ms)[: columns - 1]
            shown = f"{_TO_LINE_BELOW}{line}{_BACK}" if self._shared else f"{_ERASE_LINE}{line}"
            _write(sys.stderr, shown)

    def close(self) -> None:
        """Ends the line of text, if there is one, and removes the meters."""
        if self._meters:
            _write(sys.stderr, _ERASE_BELOW if self._shared else _ERASE_LINE)
        if self._said:
            _write(sys.stdout, "\n")


def status_line(report: Report, frame_ms: float) -> str:
    """Levels, time per frame and losses, in the 80 columns that every terminal has."""
    return (
        f"you {_meter(report.input_dbfs)}  model {_meter(report.output_dbfs)}"
        f"  {report.step_ms:3.0f}/{frame_ms:.0f} ms"
        f"  dropped {report.dropped_input}+{report.dropped_output}  gaps {report.gaps}"
    )


def _meter(dbfs: float) -> str:
    share = (dbfs - _METER_FLOOR_DBFS) / -_METER_FLOOR_DBFS
    cells = round(_METER_CELLS * min(max(share, 0.0), 1.0))
    return f"[{'#' * cells:<{_METER_CELLS}}]{dbfs:4.0f} dB"


def _is_screen(terminal: bool) -> bool:
    # The old Windows console prints the codes instead of following them.
    follows_codes = sys.platform != "win32" or "WT_SESSION" in os.environ
    return terminal and follows_codes and os.environ.get("TERM") != "dumb"


def _write(file: TextIO, text: str) -> None:
    # A terminal that lacks a letter must not end the conversation.
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", file=file, flush=True)
