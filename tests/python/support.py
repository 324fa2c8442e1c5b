"""Reference cases and comparisons that the tests share."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    import moshi_rs

Array = NDArray[Any]

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
DIALOGUE = GOLDEN / "dialogue_repo"

FRAME = 1920
GREEDY: dict[str, Any] = {"temperature": 0.0, "text_temperature": 0.0}

SNAPSHOT_HEADER = 8 + 4 + 32 + 8
SNAPSHOT_CHECKSUM = 32


def tensors(path: Path) -> dict[str, Array]:
    """Tensors of a file by name."""
    loaded: dict[str, Array] = load_file(path)
    assert loaded, f"{path} is empty"
    return loaded


def expected(case: str, name: str = "expected.safetensors") -> dict[str, Array]:
    """Inputs and outputs of a reference case."""
    return tensors(GOLDEN / case / name)


def notes(case: str) -> dict[str, Any]:
    """Notes of a reference case."""
    loaded: dict[str, Any] = json.loads((GOLDEN / case / "case.json").read_text())
    return loaded


def copy_case(case: str, target: Path) -> Path:
    """A writable copy of a case's folder."""
    shutil.copytree(GOLDEN / case, target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    return target


def edit_config(folder: Path, **fields: object) -> None:
    """Replaces fields of a folder's ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def codec_repository(folder: Path) -> Path:
    """Makes a folder that holds a small codec and no model, as ``transformers`` saves one."""
    config = {
        "model_type": "mimi",
        "sampling_rate": 24000,
        "frame_rate": 12.5,
        "hidden_size": 32,
        "num_filters": 8,
        "upsampling_ratios": [8, 6, 5, 4],
        "num_quantizers": 12,
        "codebook_size": 64,
        "codebook_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "sliding_window": 10,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    shutil.copyfile(GOLDEN / "mimi" / "mimi.safetensors", folder / "model.safetensors")
    return folder


def seal(blob: bytes) -> bytes:
    """Gives a forged snapshot a matching length and checksum."""
    payload = blob[SNAPSHOT_HEADER:-SNAPSHOT_CHECKSUM]
    header = blob[: SNAPSHOT_HEADER - 8] + struct.pack("<Q", len(payload))
    return header + payload + hashlib.sha256(header + payload).digest()


def snr_db(got: Array, want: Array) -> float:
    """Signal-to-noise ratio of an approximation in dB."""
    noise = np.sum((got.astype(np.float64) - want) ** 2)
    return float(10 * np.log10(np.sum(want.astype(np.float64) ** 2) / max(float(noise), 1e-300)))


def assert_close_logits(got: Array, want: Array) -> None:
    """Agreement to 1e-4 of the standard deviation."""
    assert got.shape == want.shape
    assert float(np.max(np.abs(got - want))) <= 1e-4 * float(np.std(want))


def run(session: moshi_rs.Session, frames: Iterable[Array]) -> tuple[Array, list[str]]:
    """Audio ``[frame, FRAME]`` and texts of a session fed some frames."""
    outputs = [session.step(frame) for frame in frames]
    pcm = np.array([pcm for pcm, _ in outputs], np.float32).reshape(-1, FRAME)
    return pcm, [text for _, text in outputs]
