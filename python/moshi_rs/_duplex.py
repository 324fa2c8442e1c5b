"""A conversation without its devices: sound in, sound out, and a session between them.

Two audio threads call ``Duplex.hear`` and ``Duplex.play`` and never wait for the model: a thread
of its own steps the session, which releases the GIL. Both queues between them are bounded, and
what does not fit is dropped, the oldest first, and counted. A gap in the output is silence.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from moshi_rs._core import Session

    _Pcm: TypeAlias = NDArray[np.float32]

__all__ = ["MAX_WAITING_FRAMES", "SILENCE_DBFS", "Duplex", "Report", "level_dbfs"]

# Frames that may wait in each direction: 240 ms. More would be an answer to what was said a while
# ago.
MAX_WAITING_FRAMES = 3
# Level of digital silence, and of everything below.
SILENCE_DBFS = -96.0
# Steps that the shown time per frame is the mean of: two seconds.
_RECENT_STEPS = 25


@dataclasses.dataclass(frozen=True)
class Report:
    """How a conversation goes.

    Attributes:
        frames: Frames stepped.
        input_dbfs: Level of the last frame heard, decibels below full scale.
        output_dbfs: Level of the last frame spoken.
        step_ms: Mean time of the last steps, milliseconds; 0 before the first.
        dropped_input: Frames heard that the model had no time for.
        dropped_output: Frames of the model that the loudspeaker had no time for.
        gaps: Times that the loudspeaker had nothing to play, after the first frame.
    """

    frames: int
    input_dbfs: float
    output_dbfs: float
    step_ms: float
    dropped_input: int
    dropped_output: int
    gaps: int


class Duplex:
    """A session that hears and speaks.

    Args:
        session: At its beginning; nobody else may step it until ``join`` has returned. None where
            a subclass does without.
        frame_size: Samples of a frame.
        tap: Called with every frame heard and the frame spoken to it, both float32
            ``[frame_size]``, in the thread that steps.
    """

    def __init__(
        self,
        session: Session | None,
        frame_size: int,
        tap: Callable[[_Pcm, _Pcm], None] | None = None,
    ) -> None:
        self._session = session
        self._frame_size = frame_size
        self._tap = tap
        self._changed = threading.Condition()
        # All below is guarded by it.
        self._partial = np.empty(0, np.float32)
        self._heard: deque[_Pcm] = deque()
        self._spoken: deque[_Pcm] = deque()
        self._text = ""
        self._recent_ms: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._report = Report(0, SILENCE_DBFS, SILENCE_DBFS, 0.0, 0, 0, 0)
        self._starved = False
        self._ended = False
        self._failure: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="moshi_rs session")

    def start(self) -> None:
        """Starts to step what is heard."""
        self._thread.start()

    def hear(self, samples: _Pcm) -> None:
        """Takes what the microphone has.

        Args:
            samples: float32 ``[any]``; copied.
        """
        with self._changed:
            self._partial = np.concatenate([self._partial, samples])
            while len(self._partial) >= self._frame_size:
                self._heard.append(self._partial[: self._frame_size])
                self._partial = self._partial[self._frame_size :]
            while len(self._heard) > MAX_WAITING_FRAMES:
                self._heard.popleft()
                self._count(dropped_input=1)
            self._changed.notify_all()

    def play(self, out: _Pcm) -> None:
        """Fills what the loudspeaker plays next; silence where the model has said nothing yet.

        Args:
            out: float32 ``[any]``, overwritten.
        """
        filled = 0
        with self._changed:
            while filled < len(out) and self._spoken:
                head = self._spoken.popleft()
                taken = min(len(head), len(out) - filled)
                out[filled : filled + taken] = head[:taken]
                filled += taken
                if taken < len(head):
                    self._spoken.appendleft(head[taken:])
            starved = filled < len(out) and self._report.frames > 0
            if starved and not self._starved:
                self._count(gaps=1)
            self._starved = starved
        out[filled:] = 0

    def end(self) -> None:
        """Ends the conversation once the frames that wait are stepped. May be called twice."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Ends the conversation; frames that wait are not stepped."""
        with self._changed:
            self._heard.clear()
            self._ended = True
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the end, at most one step after ``abort``; not at all before the start.

        Raises:
            MoshiError: What a step raised.
            OSError: What the tap raised.
        """
        if self._thread.ident is None:
            return
        self._done.wait()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def wait(self, timeout_s: float) -> bool:
        """Waits for the end of the stepping.

        Args:
            timeout_s: Seconds to wait at most.

        Returns:
            Whether it has ended.
        """
        # Not by a join: Ctrl-C within one makes some versions of Python take the thread for dead.
        return self._done.wait(timeout_s)

    def take_text(self) -> str:
        """New text since the last call."""
        with self._changed:
            text, self._text = self._text, ""
            return text

    def report(self) -> Report:
        """How it goes."""
        with self._changed:
            return self._report

    def _work(self) -> None:
        try:
            assert self._session is not None
            while (frame := self._next()) is not None:
                begin = time.perf_counter()
                pcm, text = self._session.step(frame)
                self._spoke(frame, pcm, text, 1e3 * (time.perf_counter() - begin))
                if self._tap is not None:
                    self._tap(frame, pcm)
        except BaseException as error:
            # Raised by join, in the thread that waits.
            self._failure = error
        finally:
            self._done.set()

    def _next(self) -> _Pcm | None:
        with self._changed:
            self._changed.wait_for(lambda: self._heard or self._ended)
            return self._heard.popleft() if self._heard else None

    def _spoke(self, frame: _Pcm, pcm: _Pcm, text: str, step_ms: float) -> None:
        levels = level_dbfs(frame), level_dbfs(pcm)
        with self._changed:
            self._text += text
            self._spoken.append(pcm)
            while len(self._spoken) > MAX_WAITING_FRAMES:
                self._spoken.popleft()
                self._count(dropped_output=1)
            self._recent_ms.append(step_ms)
            self._report = dataclasses.replace(
                self._report,
                frames=self._report.frames + 1,
                input_dbfs=levels[0],
                output_dbfs=levels[1],
                step_ms=sum(self._recent_ms) / len(self._recent_ms),
            )

    def _count(self, **events: int) -> None:
        counted = {name: getattr(self._report, name) + n for name, n in events.items()}
        self._report = dataclasses.replace(self._report, **counted)


def level_dbfs(samples: _Pcm) -> float:
    """Root mean square of samples, decibels below full scale; at least ``SILENCE_DBFS``.

    Args:
        samples: float32 ``[any]``, at least one.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return max(SILENCE_DBFS, 10 * math.log10(power)) if power > 0 else SILENCE_DBFS
