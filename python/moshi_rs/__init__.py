"""Streaming inference of Kyutai's Moshi family of speech models.

``StreamingModel`` listens and speaks at once, 80 ms at a time::

    model = moshi_rs.StreamingModel.load("path/to/model")  # or "owner/name" on the hub
    pcm, text = model.step(frame)  # float32[1920] -> (float32[1920], str)

``Mimi`` is the audio codec and ``LanguageModel`` the language model on their own. Exceptions are
in ``moshi_rs.errors``. Log records go to the logger ``moshi_rs``.
"""

from __future__ import annotations

from moshi_rs import errors
from moshi_rs._core import (
    LanguageModel,
    LmStep,
    LmStream,
    Mimi,
    MimiStream,
    Session,
    StreamingModel,
    __version__,
    build_info,
    step_batch,
)
from moshi_rs.errors import (
    CapacityError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    DeviceError,
    InputError,
    InternalError,
    MoshiError,
    ProtocolError,
    SessionError,
)

__all__ = [
    "CapacityError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigError",
    "DeviceError",
    "InputError",
    "InternalError",
    "LanguageModel",
    "LmStep",
    "LmStream",
    "Mimi",
    "MimiStream",
    "MoshiError",
    "ProtocolError",
    "Session",
    "SessionError",
    "StreamingModel",
    "__version__",
    "build_info",
    "errors",
    "step_batch",
]
