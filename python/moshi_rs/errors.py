"""The exceptions of moshi_rs. All of them are also a ``MoshiError``."""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigError",
    "DeviceError",
    "InputError",
    "InternalError",
    "MoshiError",
    "ProtocolError",
    "SessionError",
]


class MoshiError(Exception):
    """Base of everything that moshi_rs raises, apart from ``TypeError`` for wrong types."""


class ConfigError(MoshiError, ValueError):
    """An option, or a field of a config file, has a value that this version does not accept.

    The message names file, field, value and what would be accepted.
    """


class CheckpointError(MoshiError):
    """A file of a checkpoint is damaged, or its tensors are not those that its config asks for.

    The message lists every disagreement at once. Also: a hub that cannot be reached or refuses
    access, a download that arrived damaged, a full disk; the message says what to do.
    """


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A folder, a file, or a repository or revision on a hub does not exist."""


class InputError(MoshiError, ValueError):
    """A value passed by the caller is unusable.

    For example: a frame of the wrong length, samples that are not finite, a token out of range,
    a snapshot of another model.
    """


class DeviceError(MoshiError, RuntimeError):
    """The device is not in this build or not in this machine, or it failed.

    The message says what to do.
    """


class CapacityError(MoshiError, RuntimeError):
    """A bounded resource is used up, for example the results that wait for ``Session.pull``."""


class SessionError(MoshiError, RuntimeError):
    """A call that the state of a session or stream does not allow.

    For example: a second call while one is running, a session given twice in one batch.
    """


class ProtocolError(MoshiError, ValueError):
    """A message of a network protocol is malformed. Reserved for the client and the server."""


class InternalError(MoshiError, RuntimeError):
    """A broken invariant: a bug in moshi_rs.

    Please report it with the message and the output of ``moshi_rs.build_info()``.
    """
