# Types of the native module; the documentation is in the docstrings of the objects themselves.
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Path: TypeAlias = str | PathLike[str]
_Samples: TypeAlias = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int16]
_Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
_Integers: TypeAlias = NDArray[np.integer[Any]]
_Flags: TypeAlias = NDArray[np.bool_] | _Integers
_Condition: TypeAlias = str | float | _Floats | tuple[_Floats, _Flags] | None
_Conditions: TypeAlias = dict[str, _Condition]
_OpenSession: TypeAlias = Callable[[], tuple[StreamingModel, Session]]
_Chat: TypeAlias = Callable[[dict[str, Any], _OpenSession | None], int]
_Output: TypeAlias = tuple[NDArray[np.float32], str]

__all__ = [
    "LanguageModel",
    "LmStep",
    "LmStream",
    "Mimi",
    "MimiStream",
    "Session",
    "StreamingModel",
    "__version__",
    "build_info",
    "cli_main",
    "step_batch",
]

__version__: str

@final
class StreamingModel:
    @staticmethod
    def load(
        path_or_repo: _Path | None = None,
        *,
        device: Literal["auto", "cpu", "cuda", "metal"] = "auto",
        dtype: Literal["auto", "f32", "bf16", "q8", "q4"] = "auto",
        kv_dtype: Literal["auto", "f32", "bf16", "q8"] = "auto",
        seed: int | None = None,
        threads: int | None = None,
        revision: str | None = None,
        codec: Literal["exact", "fast"] = "exact",
        packed_cache: _Path | None = None,
    ) -> StreamingModel: ...
    def step(self, frame: _Samples) -> _Output: ...
    def new_session(
        self,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        text_temperature: float | None = None,
        top_k: int | None = None,
        top_k_text: int | None = None,
        conditions: _Conditions | None = None,
        guidance: float | None = None,
    ) -> Session: ...
    def restore(self, blob: bytes) -> Session: ...
    @property
    def frame_size(self) -> int: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def latency_frames(self) -> int: ...
    @property
    def device(self) -> Literal["cpu", "cuda", "metal"]: ...
    def info(self) -> dict[str, Any]: ...

@final
class Session:
    def step(self, frame: _Samples) -> _Output: ...
    def push(self, samples: _Samples) -> int: ...
    def pull(self) -> _Output | None: ...
    def reset(self) -> None: ...
    def snapshot(self) -> bytes: ...
    def fork(self) -> Session: ...
    @property
    def seed(self) -> int: ...

def step_batch(sessions: Sequence[Session], frames: Iterable[_Samples]) -> list[_Output]: ...

@final
class Mimi:
    @staticmethod
    def load(
        path: _Path | None = None,
        *,
        num_codebooks: int = 8,
        mode: Literal["exact", "fast"] = "exact",
        window: Literal["moshi", "exact"] | int = "moshi",
        threads: int | None = None,
        parts: Literal["both", "encoder", "decoder"] = "both",
        device: Literal["auto", "cpu"] = "cpu",
    ) -> Mimi: ...
    def encode(self, pcm: _Samples) -> NDArray[np.uint32]: ...
    def decode(self, codes: _Integers) -> NDArray[np.float32]: ...
    def encode_to_latent(self, pcm: _Samples, *, quantize: bool = False) -> NDArray[np.float32]: ...
    def decode_latent(self, codes: _Integers) -> NDArray[np.float32]: ...
    def decode_from_latent(self, latent: _Floats) -> NDArray[np.float32]: ...
    def stream(self) -> MimiStream: ...
    def restore(self, blob: bytes) -> MimiStream: ...
    def encode_step_batch(
        self, streams: Sequence[MimiStream], frames: Iterable[_Samples]
    ) -> NDArray[np.uint32]: ...
    def decode_step_batch(
        self, streams: Sequence[MimiStream], codes: _Integers
    ) -> NDArray[np.float32]: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def frame_size(self) -> int: ...
    @property
    def num_codebooks(self) -> int: ...
    @property
    def total_codebooks(self) -> int: ...
    @property
    def cardinality(self) -> int: ...

@final
class MimiStream:
    def encode_step(self, frame: _Samples) -> NDArray[np.uint32]: ...
    def decode_step(self, codes: _Integers) -> NDArray[np.float32]: ...
    def reset(self) -> None: ...
    def fork(self) -> MimiStream: ...
    def snapshot(self) -> bytes: ...

@final
class LanguageModel:
    @staticmethod
    def load(
        path: _Path | None = None,
        *,
        device: Literal["auto", "cpu"] = "cpu",
        dtype: Literal["auto", "f32", "bf16", "q8", "q4"] = "auto",
        kv_dtype: Literal["auto", "f32", "bf16", "q8"] = "auto",
    ) -> LanguageModel: ...
    def stream(
        self,
        *,
        conditions: _Conditions | None = None,
        guidance: float | None = None,
        null_conditions: _Conditions | None = None,
        no_text: bool = False,
        masked_until: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        text_temperature: float | None = None,
        top_k: int | None = None,
        top_k_text: int | None = None,
    ) -> LmStream: ...
    def restore(self, blob: bytes) -> LmStream: ...
    @property
    def num_codebooks(self) -> int: ...
    @property
    def num_generated(self) -> int: ...
    @property
    def num_user_codebooks(self) -> int: ...
    @property
    def cardinality(self) -> int: ...
    @property
    def text_cardinality(self) -> int: ...
    @property
    def delays(self) -> list[int]: ...
    @property
    def dtype(self) -> Literal["f32", "bf16", "q8", "q4"]: ...
    @property
    def kv_dtype(self) -> Literal["f32", "bf16", "q8"]: ...

@final
class LmStream:
    def step(
        self,
        tokens: _Integers | Sequence[int],
        *,
        text: int | None = None,
        audio: _Integers | Sequence[int] | None = None,
    ) -> LmStep: ...
    def reset(self) -> None: ...
    def fork(self) -> LmStream: ...
    def snapshot(self) -> bytes: ...
    @property
    def seed(self) -> int: ...

@final
class LmStep:
    @property
    def tokens(self) -> NDArray[np.int64] | None: ...
    @property
    def logits(self) -> NDArray[np.float32]: ...
    @property
    def heads(self) -> NDArray[np.float32]: ...
    @property
    def text_token(self) -> int: ...
    @property
    def audio_tokens(self) -> NDArray[np.int64]: ...

def build_info() -> dict[str, Any]: ...
def cli_main(args: Sequence[str], chat: _Chat | None = None) -> int: ...
