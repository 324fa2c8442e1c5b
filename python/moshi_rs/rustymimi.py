"""Drop-in for the package ``rustymimi``: ``import moshi_rs.rustymimi as rustymimi``.

Same signatures, dtypes, shapes and exceptions as rustymimi 0.4.1, over ``moshi_rs.Mimi``. What
differs is in ``docs/guide/rustymimi.md``; new programs are better off with ``Mimi`` itself.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import queue
import struct
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np

from moshi_rs._core import Mimi
from moshi_rs.errors import (
    CapacityError,
    CheckpointError,
    InputError,
    MoshiError,
    SessionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from moshi_rs._core import MimiStream

    _Pcm: TypeAlias = NDArray[np.float32]
    _Codes: TypeAlias = NDArray[np.uint32]
    _Path: TypeAlias = str | os.PathLike[str]

__all__ = ["StreamTokenizer", "Tokenizer", "write_wav"]

_Array = TypeVar("_Array", bound="NDArray[Any]")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LOGGER = logging.getLogger("moshi_rs")

# Past positions that rustymimi attends to, everywhere.
_WINDOW = 251
_DTYPES = ("f32", "f16", "bf16")
# Chunks and results of one direction that may wait in a StreamTokenizer: 87 minutes of frames. A
# program that forgets to fetch results hits this before it runs out of memory.
_MAX_WAITING = 65_536
# How soon an idle thread notices that it is no longer needed.
_POLL_SECONDS = 0.2
_FULL_SCALE = np.float32(32_767)


class Tokenizer:
    """The codec: whole recordings, and one stream in each direction.

    Args:
        path: A safetensors file of weights, or anything else that ``Mimi.load`` takes.
        num_codebooks: Codebooks to use, at least 1.
        dtype: "f32"; "f16" and "bf16" are accepted and computed in f32 all the same.
        max_seq_len: Accepted for compatibility: streams have no greatest length here.

    Raises:
        InputError: No such file, weights that do not fit, an unknown dtype, or more codebooks
            than are stored; a ``ValueError``.
        OverflowError: A negative number.
        TypeError: An argument of the wrong type.
    """

    def __init__(
        self,
        path: _Path,
        *,
        num_codebooks: int = 8,
        dtype: str = "f32",
        max_seq_len: int | None = None,
    ) -> None:
        self._mimi = _load(path, num_codebooks, dtype, max_seq_len)
        self._encoder = _EncoderStream(self._mimi)
        self._decoder = _DecoderStream(self._mimi)

    def encode(self, pcm_data: _Pcm) -> _Codes:
        """Encodes whole recordings. Unlike rustymimi, this leaves the running stream alone.

        Args:
            pcm_data: Samples at 24 kHz, float32 ``[batch, 1, samples]``, C-contiguous. A last
                frame that is not full is padded with silence; there is at least one frame.

        Returns:
            Codes, uint32 ``[batch, num_codebooks, frames]``.

        Raises:
            InputError: Not contiguous, more than one channel, an empty batch, or samples that are
                not finite; a ``ValueError``.
            TypeError: Not an array of float32 with three dimensions.
        """
        pcm = _check_pcm(pcm_data)
        if pcm.size == 0:
            pcm = np.zeros((len(pcm), 1, self._mimi.frame_size), np.float32)
        return self._mimi.encode(pcm)

    def encode_step(self, pcm_data: _Pcm) -> _Codes | None:
        """Encodes the next samples of the stream.

        Args:
            pcm_data: Samples at 24 kHz, float32 ``[batch, 1, samples]``, C-contiguous, any number
                of them; those of an incomplete frame wait for the next call. The first call after
                a reset sets the batch.

        Returns:
            Codes, uint32 ``[batch, num_codebooks, frames]``, or None when no frame is complete.

        Raises:
            InputError: As for ``encode``, or another batch than before; a ``ValueError``. The
                stream is unchanged then.
            TypeError: As for ``encode``.
            SessionError: Another thread is in this method; a ``RuntimeError``.
        """
        return self._encoder.step(_check_pcm(pcm_data)[:, 0])

    def decode(self, codes: _Codes) -> _Pcm:
        """Decodes whole recordings. Unlike rustymimi, this leaves the running stream alone.

        Args:
            codes: uint32 ``[batch, num_codebooks, frames]``, C-contiguous.

        Returns:
            Samples, float32 ``[batch, 1, frames * 1920]``.

        Raises:
            InputError: Not contiguous, another shape, or a code out of range; a ``ValueError``.
            TypeError: Not an array of uint32 with three dimensions.
        """
        return self._mimi.decode(_check_codes(self._mimi, codes))

    def decode_step(self, codes: _Codes) -> _Pcm | None:
        """Decodes the next frames of the stream.

        Args:
            codes: uint32 ``[batch, num_codebooks, frames]``, C-contiguous, any number of frames.
                The first call after a reset sets the batch.

        Returns:
            Samples, float32 ``[batch, 1, frames * 1920]``, or None when there are no frames.

        Raises:
            InputError: As for ``decode``, or another batch than before; a ``ValueError``. The
                stream is unchanged then.
            TypeError: As for ``decode``.
            SessionError: Another thread is in this method; a ``RuntimeError``.
        """
        return self._decoder.step(_check_codes(self._mimi, codes))

    def reset(self) -> None:
        """Forgets the past of both directions. Unlike rustymimi's, also an incomplete frame.

        Raises:
            SessionError: Another thread is stepping; a ``RuntimeError``.
        """
        self._encoder.reset()
        self._decoder.reset()


class StreamTokenizer:
    """One stream in each direction, each worked on by a thread of its own.

    ``encode`` and ``decode`` put work into a queue and return at once; ``get_encoded`` and
    ``get_decoded`` fetch results without waiting, in order. Work that fails is reported to the
    logger ``moshi_rs`` and has no result; the thread goes on. At most 65,536 chunks and results
    wait in each direction.

    Args:
        path: As for ``Tokenizer``.
        num_codebooks: As for ``Tokenizer``.
        dtype: As for ``Tokenizer``.
        max_seq_len: As for ``Tokenizer``.

    Raises:
        InputError: As for ``Tokenizer``.
        OverflowError: As for ``Tokenizer``.
        TypeError: As for ``Tokenizer``.
    """

    def __init__(
        self,
        path: _Path,
        *,
        num_codebooks: int = 8,
        dtype: str = "f32",
        max_seq_len: int | None = None,
    ) -> None:
        mimi = _load(path, num_codebooks, dtype, max_seq_len)
        encoder, decoder = _EncoderStream(mimi), _DecoderStream(mimi)

        def encode(pcm: _Pcm) -> _Codes | None:
            codes = encoder.step(pcm[np.newaxis])
            return None if codes is None else codes[0]

        def decode(row: _Codes) -> _Pcm | None:
            if len(row) != 1:
                reason = f"codes: {len(row)} rows; decode takes one frame, [1, num_codebooks]"
                raise InputError(reason)
            pcm = decoder.step(_check_codes(mimi, row[:, :, np.newaxis]))
            return None if pcm is None else pcm[0, 0]

        self._encoding = _Worker("encoder", encode)
        self._decoding = _Worker("decoder", decode)

    def encode(self, pcm_data: _Pcm) -> None:
        """Queues samples for encoding.

        Args:
            pcm_data: Samples at 24 kHz, float32 ``[samples]``, any number of them.

        Raises:
            TypeError: Not an array of float32 with one dimension.
            CapacityError: Too many chunks and results wait; a ``RuntimeError``.
        """
        self._encoding.put(_array("pcm_data", pcm_data, np.float32, 1).copy())

    def get_encoded(self) -> _Codes | None:
        """Fetches the oldest codes.

        Returns:
            Codes of the frames that one chunk completed, uint32 ``[num_codebooks, frames]``; None
            when there are none yet.
        """
        return self._encoding.get()

    def decode(self, codes: _Codes) -> None:
        """Queues one frame of codes for decoding.

        Args:
            codes: uint32 ``[1, num_codebooks]``, C-contiguous.

        Raises:
            InputError: Not contiguous; a ``ValueError``.
            TypeError: Not an array of uint32 with two dimensions.
            CapacityError: Too many frames and results wait; a ``RuntimeError``.
        """
        rows = _contiguous("codes", _array("codes", codes, np.uint32, 2))
        self._decoding.put(rows.copy())

    def get_decoded(self) -> _Pcm | None:
        """Fetches the oldest samples.

        Returns:
            Samples of one frame, float32 ``[1920]``; None when there are none yet.
        """
        return self._decoding.get()


def write_wav(filename: _Path, data: _Pcm, sample_rate: int) -> None:
    """Writes 16-bit mono PCM.

    Args:
        filename: File to write.
        data: Samples, float32 ``[samples]``; values outside [-1, 1] are clipped.
        sample_rate: Samples per second, below 2**32.

    Raises:
        InputError: The file cannot be written; a ``ValueError``.
        OverflowError: ``sample_rate`` out of range.
        TypeError: An argument of the wrong type.
    """
    path = _path("filename", filename)
    pcm = _array("data", data, np.float32, 1)
    rate = _unsigned("sample_rate", sample_rate, bits=32)
    # Not a number becomes silence; the conversion cuts towards zero.
    scaled = np.nan_to_num(np.clip(pcm, -1, 1) * _FULL_SCALE, nan=0.0)
    samples = scaled.astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate % 2**32, 2, 16)
    chunks = b"WAVE" + _chunk(b"fmt ", form) + _chunk(b"data", samples)
    try:
        path.write_bytes(_chunk(b"RIFF", chunks))
    except OSError as error:
        raise InputError(str(error)) from error


class _Stream:
    """One direction: a batch that the first call sets, and one caller at a time."""

    def __init__(self, mimi: Mimi) -> None:
        self._mimi = mimi
        self._lock = threading.Lock()
        self._streams: list[MimiStream] = []

    def reset(self) -> None:
        with self._alone():
            self._streams = []

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # Who comes second is refused, as everywhere in moshi_rs: waiting would hide a mistake.
        if not self._lock.acquire(blocking=False):
            reason = "this tokenizer is busy: another thread is using it"
            raise SessionError(reason)
        try:
            yield
        finally:
            self._lock.release()

    def _batch(self, size: int) -> list[MimiStream]:
        if not self._streams:
            self._streams = [self._mimi.stream() for _ in range(size)]
        if len(self._streams) != size:
            reason = f"a batch of {size} in a stream of {len(self._streams)}; reset it first"
            raise InputError(reason)
        return self._streams


class _EncoderStream(_Stream):
    """Chunks of any length to codes."""

    def __init__(self, mimi: Mimi) -> None:
        super().__init__(mimi)
        self._pending = np.empty((0, 0), np.float32)

    def step(self, pcm: _Pcm) -> _Codes | None:
        """Samples ``[batch, any]`` to codes ``[batch, num_codebooks, frames]``."""
        if not np.isfinite(pcm).all():
            reason = "pcm_data: samples must be finite"
            raise InputError(reason)
        width = self._mimi.frame_size
        with self._alone():
            fresh = not self._streams
            streams = self._batch(len(pcm))
            samples = pcm.copy() if fresh else np.concatenate([self._pending, pcm], axis=1)
            whole = samples.shape[1] - samples.shape[1] % width
            codes = [
                self._mimi.encode_step_batch(streams, samples[:, begin : begin + width])
                for begin in range(0, whole, width)
            ]
            self._pending = samples[:, whole:]
        return np.stack(codes, axis=2) if codes else None


class _DecoderStream(_Stream):
    """Frames of codes to samples."""

    def step(self, codes: _Codes) -> _Pcm | None:
        """Codes ``[batch, num_codebooks, frames]`` to samples ``[batch, 1, samples]``."""
        batch, _, frames = codes.shape
        if frames == 0:
            return None
        with self._alone():
            streams = self._batch(batch)
            pcm = [
                self._mimi.decode_step_batch(streams, codes[:, :, frame]) for frame in range(frames)
            ]
        return np.concatenate(pcm, axis=1)[:, np.newaxis]


class _Worker(Generic[_Item, _Result]):
    """A thread that works through a queue in order; results wait until they are fetched."""

    def __init__(self, name: str, work: Callable[[_Item], _Result | None]) -> None:
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._results: deque[_Result] = deque()
        stop = threading.Event()
        # The thread must not keep this object alive, whose end is the thread's end.
        weakref.finalize(self, stop.set).atexit = False
        threading.Thread(
            target=_work_through,
            args=(name, work, self._items, self._results, stop),
            name=f"moshi_rs {name}",
        ).start()

    def put(self, item: _Item) -> None:
        if self._items.qsize() + len(self._results) >= _MAX_WAITING:
            reason = f"{_MAX_WAITING} chunks and results wait; fetch results"
            raise CapacityError(reason)
        self._items.put(item)

    def get(self) -> _Result | None:
        try:
            return self._results.popleft()
        except IndexError:
            return None


def _work_through(
    name: str,
    work: Callable[[_Item], _Result | None],
    items: queue.SimpleQueue[_Item],
    results: deque[_Result],
    stop: threading.Event,
) -> None:
    # No daemon: the interpreter would pull the rug from under a step. It waits for this thread
    # instead, which therefore has to notice that the main thread is through.
    while not stop.is_set() and threading.main_thread().is_alive():
        try:
            item = items.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        try:
            result = work(item)
        except MoshiError as error:
            _LOGGER.error("error in %s thread: %s", name, error)  # noqa: TRY400
            continue
        if result is not None:
            results.append(result)


def _load(path: _Path, num_codebooks: int, dtype: str, max_seq_len: int | None) -> Mimi:
    file = _path("path", path)
    codebooks = _unsigned("num_codebooks", num_codebooks, bits=64)
    if max_seq_len is not None:
        _unsigned("max_seq_len", max_seq_len, bits=64)
    if not isinstance(dtype, str):
        reason = f"dtype: expected str, got {type(dtype).__name__}"
        raise TypeError(reason)
    if dtype not in _DTYPES:
        reason = f"dtype: unsupported {dtype!r}, one of {', '.join(_DTYPES)}"
        raise InputError(reason)
    try:
        return Mimi.load(file, num_codebooks=codebooks, window=_WINDOW)
    except CheckpointError as error:
        raise InputError(str(error)) from error


def _path(name: str, value: _Path) -> Path:
    path = os.fspath(value)
    if not isinstance(path, str):
        reason = f"{name}: expected str or os.PathLike[str], got {type(path).__name__}"
        raise TypeError(reason)
    return Path(path)


def _unsigned(name: str, value: int, *, bits: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        reason = f"{name}: expected int, got {type(value).__name__}"
        raise TypeError(reason) from None
    if not 0 <= number < 2**bits:
        reason = f"{name}: {number} is not between 0 and 2**{bits} - 1"
        raise OverflowError(reason)
    return number


def _array(name: str, value: _Array, dtype: type[np.generic], dims: int) -> _Array:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != dims:
        kind = f"{value.dtype}[{value.ndim}d]" if isinstance(value, np.ndarray) else type(value)
        reason = f"{name}: expected a {dims}d array of {dtype.__name__}, got {kind}"
        raise TypeError(reason)
    return value


def _contiguous(name: str, value: _Array) -> _Array:
    if not value.flags.c_contiguous:
        reason = f"{name}: not contiguous; pass numpy.ascontiguousarray({name})"
        raise InputError(reason)
    return value


def _check_pcm(pcm_data: _Pcm) -> _Pcm:
    pcm = _contiguous("pcm_data", _array("pcm_data", pcm_data, np.float32, 3))
    batch, channels, _ = pcm.shape
    if batch == 0 or channels != 1:
        reason = f"pcm_data: shape {pcm.shape} is not [batch, 1, samples]"
        raise InputError(reason)
    return pcm


def _check_codes(mimi: Mimi, codes: _Codes) -> _Codes:
    """Refuses at the start what the codec would refuse half-way, and what rustymimi refuses."""
    codes = _contiguous("codes", _array("codes", codes, np.uint32, 3))
    batch, codebooks, _ = codes.shape
    if batch == 0 or codebooks != mimi.num_codebooks:
        reason = f"codes: shape {codes.shape} is not [batch, {mimi.num_codebooks}, frames]"
        raise InputError(reason)
    if codes.size > 0 and codes.max() >= mimi.cardinality:
        reason = f"codes: {codes.max()} is not below {mimi.cardinality}"
        raise InputError(reason)
    return codes


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
