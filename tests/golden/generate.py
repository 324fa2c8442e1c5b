"""Makes reference cases with the PyTorch original, for `moshi-rs verify` and the tests.

Needs `pip install moshi==0.2.13` (which brings PyTorch) and writes one folder per case beside
this file or into the folder given as the argument:

    python tests/golden/generate.py [FOLDER]

Weights are random and seeded. The cases here are those that carry `"generator"` in `case.json`;
the others in this folder come from an equivalent script.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["NO_TORCH_COMPILE"] = "1"
os.environ["NO_CUDA_GRAPH"] = "1"

import torch
from moshi.models import LMGen, loaders
from safetensors.torch import save_file

torch.set_grad_enabled(mode=False)

LM_BASE: dict[str, Any] = {
    "card": 40,
    "text_card": 60,
    "existing_text_padding_id": 3,
    "dim": 64,
    "num_heads": 4,
    "num_layers": 3,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 12,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_dim_feedforward": 132,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "n_q": 16,
    "dep_q": 8,
    "delays": [0] + ([0] + [1] * 7) * 2,
}

# Config changes, generator settings.
LM_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hibiki_zero": (
        {
            "positional_embedding": "rope_concat",
            "kv_repeat": 2,
            "depformer_kv_repeat": 1,
            "hidden_scale": 6,
            "depformer_dim_feedforward": None,
            "depformer_norm": "layer_norm",
            "n_q": 12,
            "dep_q": 6,
            "delays": [0] + ([0] + [2] * 5) * 2,
            "depformer_weights_per_step_schedule": [0, 1, 2, 2, 2, 2],
            "max_period": 20000.0,
            "conditioners": {},
            "model_type": "hibiki",
        },
        {},
    ),
    "odd_shapes": (
        {
            "hidden_scale": 4,
            "depformer_dim_feedforward": None,
            "dim": 48,
            "num_heads": 6,
            "num_layers": 5,
            "context": 7,
            "max_period": 100000,
            "card": 33,
            "text_card": 47,
            "text_card_out": 21,
            "n_q": 6,
            "dep_q": 3,
            "delays": [1, 0, 1, 3, 0, 1, 2],
        },
        {"steps": 60},
    ),
    "guidance_no_text": (
        {
            "demux_second_stream": True,
            "depformer_low_rank_embeddings": 8,
            "n_q": 6,
            "dep_q": 6,
            "delays": [0, 0, 2, 2, 2, 2, 2],
            "depformer_weights_per_step_schedule": [0, 1, 2, 2, 2, 2],
            "text_card_out": 5,
            "conditioners": {},
            "model_type": "tts",
        },
        {"cfg_coef": 2.0, "cfg_is_no_text": True},
    ),
    "guidance_masked": (
        {"n_q": 8, "dep_q": 4, "delays": [0] + ([0] + [1] * 3) * 2},
        {"cfg_coef": 1.7, "cfg_is_masked_until": 5},
    ),
}

MIMI_CASE = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 200,
    "seanet": {
        "channels": 1,
        "dimension": 24,
        "causal": True,
        "n_filters": 6,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [5, 4, 2],
        "true_skip": True,
    },
    "quantizer": {
        "dimension": 12,
        "n_q": 5,
        "bins": 48,
        "input_dimension": 24,
        "output_dimension": 24,
    },
    "transformer": {
        "d_model": 24,
        "num_heads": 3,
        "num_layers": 1,
        "causal": True,
        "layer_scale": 0.01,
        "context": 9,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 40,
        "input_dimension": 24,
        "output_dimensions": [24],
    },
}


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def random_lm_weight(name: str, like: torch.Tensor) -> torch.Tensor:
    """A weight of the right scale for its role."""
    noise = torch.randn_like(like)
    if "learnt_padding" in name or name.endswith("bias"):
        return 0.1 * noise
    if like.dim() == 3 or "norm" in name:
        return 1 + 0.1 * noise
    if "emb" in name:
        return noise
    return 1.5 * noise / like.shape[-1] ** 0.5


def language_model_case(
    folder: Path, seed: int, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    """One greedy run from random user tokens."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = LM_BASE | changes
    write_json(folder / "config.json", config)
    kwargs = {key: copy.deepcopy(value) for key, value in config.items() if key != "model_type"}
    model = loaders.get_moshi_lm(None, kwargs, "cpu", torch.float32)
    weights = {
        name: random_lm_weight(name, value).contiguous()
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    save_file(weights, folder / "model.safetensors")
    settings = dict(settings)
    steps = settings.pop("steps", 40)
    user_streams = config["n_q"] - config["dep_q"]
    user = torch.randint(0, config["card"], (1, user_streams, steps))
    text_logits: list[torch.Tensor] = []
    masked_until = settings.get("cfg_is_masked_until")
    generator = LMGen(
        model,
        use_sampling=False,
        cfg_coef=settings.get("cfg_coef", 1.0),
        cfg_is_no_text=settings.get("cfg_is_no_text", False),
        cfg_is_masked_until=None if masked_until is None else [masked_until],
        on_text_logits_hook=lambda logits: text_logits.append(logits.float().reshape(-1).clone()),
    )
    with generator.streaming(1):
        rows = [generator.step(user[:, :, t : t + 1]) for t in range(steps)]
    tokens = torch.cat([row for row in rows if row is not None], dim=-1)
    save_file(
        {
            "user_tokens": user,
            "tokens": tokens.contiguous(),
            "text_logits": torch.stack(text_logits),
        },
        folder / "expected.safetensors",
    )
    case = {"kind": "language_model", "steps": steps, "greedy": True, "generator": "generate.py"}
    write_json(folder / "case.json", case | settings)


def random_mimi_weight(name: str, like: torch.Tensor) -> torch.Tensor:
    """A weight of the right scale for its role; codebooks and scales far from their start."""
    noise = torch.randn_like(like)
    if name.endswith("cluster_usage"):
        return 0.2 + 3 * torch.rand_like(like)
    if name.endswith("_initialized"):
        return torch.ones_like(like)
    if name.endswith("embedding_sum"):
        return 2 * noise
    if "layer_scale" in name:
        return 0.05 + 0.3 * torch.rand_like(like)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if name.endswith("bias"):
        return 0.05 * noise
    if "upsample" in name:
        return 0.5 + 0.5 * noise
    if "convtr" in name:
        return noise * (0.6 / like.shape[0]) ** 0.5
    return noise / like[0].numel() ** 0.5


def mimi_case(folder: Path, seed: int, config: dict[str, Any], frames: int) -> None:
    """A codec of another shape, offline and frame by frame."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "mimi_config.json", config)
    codebooks = config["quantizer"]["n_q"]
    codec = loaders.get_mimi(None, copy.deepcopy(config), "cpu", codebooks)
    weights = {
        name: random_mimi_weight(name, value).contiguous()
        for name, value in codec.state_dict().items()
    }
    codec.load_state_dict(weights)
    packed = {".in_projs.0.weight": ".in_proj_weight", ".out_projs.0.weight": ".out_proj.weight"}
    renamed = {}
    for name, value in weights.items():
        for split, joined in packed.items():
            name = name.replace(split, joined)
        renamed[name] = value
    save_file(renamed, folder / "mimi.safetensors")
    frame = codec.frame_size
    time = torch.arange(frames * frame) / config["sample_rate"]
    tone = 0.3 * torch.sin(2 * torch.pi * 220 * time * (1 + 0.1 * time))
    pcm = (tone + 0.05 * torch.randn(frames * frame))[None, None]
    codes = codec.encode(pcm)
    expected = {
        "pcm": pcm,
        "codes": codes,
        "decoded": codec.decode(codes),
        "latent": codec.encode_to_latent(pcm, quantize=False),
    }
    stream_codes, stream_decoded = [], []
    with codec.streaming(1):
        for t in range(frames):
            stream_codes.append(codec.encode(pcm[:, :, t * frame : (t + 1) * frame]))
            stream_decoded.append(codec.decode(stream_codes[-1]))
    expected["stream_codes"] = torch.cat(stream_codes, dim=-1)
    expected["stream_decoded"] = torch.cat(stream_decoded, dim=-1)
    save_file(
        {name: value.contiguous() for name, value in expected.items()},
        folder / "expected.safetensors",
    )
    case = {"kind": "mimi", "num_codebooks": codebooks, "frame_size": frame}
    write_json(folder / "case.json", case | {"generator": "generate.py"})


def main() -> None:
    """Writes every case."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for seed, (name, (changes, settings)) in enumerate(LM_CASES.items()):
        language_model_case(root / name, seed, changes, settings)
    mimi_case(root / "mimi_200hz", len(LM_CASES), MIMI_CASE, frames=40)


if __name__ == "__main__":
    main()
