"""Writing the checkpoint in the official layout, in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import shapes

CODEC_FILE, MODEL_FILE, TOKENIZER_FILE = "mimi.safetensors", "model.safetensors", "tokenizer.model"
CONFIG_FILE, CODEC_CONFIG_FILE = "config.json", "mimi_config.json"
FILE_LIMIT_BYTES, TOTAL_LIMIT_BYTES = 10_000_000, 16_000_000


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}, partial
    )
    size = partial.stat().st_size
    if size > FILE_LIMIT_BYTES:
        raise ValueError(f"{path.name} would have {size:,} bytes, more than {FILE_LIMIT_BYTES:,}")
    partial.rename(path)


def write_codec(codec: nn.Module, folder: Path) -> None:
    """Writes the codec and its configuration.

    Its codebooks are written as the vectors that they are, since a quotient of two rounded sums is
    not exact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(codec.state_dict())
    for name in list(tensors):
        if name.endswith("embedding_sum"):
            usage = name.replace("embedding_sum", "cluster_usage")
            tensors[name] = tensors[name] / tensors[usage].clamp(min=1e-5)[:, None]
            tensors[usage] = torch.ones_like(tensors[usage])
    _write(tensors, folder / CODEC_FILE)
    (folder / CODEC_CONFIG_FILE).write_text(json.dumps(shapes.CODEC, indent=2) + "\n")


def write_model(model: nn.Module, text_card: int, folder: Path) -> None:
    """Writes the language model and the configuration that names all files."""
    _write(dict(model.state_dict()), folder / MODEL_FILE)
    config = shapes.language_model(text_card) | {
        "model_type": "moshi",
        "moshi_name": MODEL_FILE,
        "mimi_name": CODEC_FILE,
        "mimi_config_name": CODEC_CONFIG_FILE,
        "tokenizer_name": TOKENIZER_FILE,
        "lm_gen_config": {"temp": 0.2, "temp_text": 0.1, "top_k": 50, "top_k_text": 10},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if total > TOTAL_LIMIT_BYTES:
        raise ValueError(f"{folder} has {total:,} bytes, more than {TOTAL_LIMIT_BYTES:,}")
