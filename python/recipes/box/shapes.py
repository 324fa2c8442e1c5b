"""The sizes of the box: configurations of its codec and language model in the official dialect."""

from __future__ import annotations

from typing import Any

SAMPLE_RATE = 24_000
FRAME_RATE = 12.5
FRAME_SIZE = 1920
CODEBOOKS = 8
CODEBOOK_SIZE = 256
CODEC_DIM = 128

CODEC: dict[str, Any] = {
    "sample_rate": SAMPLE_RATE,
    "channels": 1,
    "frame_rate": FRAME_RATE,
    "seanet": {
        "channels": 1,
        "dimension": CODEC_DIM,
        "causal": True,
        "n_filters": 16,
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
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "quantizer": {
        "dimension": 64,
        "n_q": CODEBOOKS,
        "bins": CODEBOOK_SIZE,
        "input_dimension": CODEC_DIM,
        "output_dimension": CODEC_DIM,
    },
    "transformer": {
        "d_model": CODEC_DIM,
        "num_heads": 4,
        "num_layers": 2,
        "causal": True,
        "layer_scale": 0.01,
        "context": 64,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 512,
        "input_dimension": CODEC_DIM,
        "output_dimensions": [CODEC_DIM],
    },
}

DELAYS = [0] + 2 * ([0] + [1] * (CODEBOOKS - 1))


def language_model(text_card: int) -> dict[str, Any]:
    """The language model's sizes for a vocabulary of `text_card` pieces."""
    return {
        "dim": 192,
        "text_card": text_card,
        "existing_text_padding_id": 3,
        "n_q": 2 * CODEBOOKS,
        "dep_q": CODEBOOKS,
        "card": CODEBOOK_SIZE,
        "num_heads": 6,
        "num_layers": 5,
        "hidden_scale": 4,
        "causal": True,
        "layer_scale": None,
        "context": 250,
        "max_period": 10000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": 128,
        "depformer_dim_feedforward": 256,
        "depformer_num_heads": 4,
        "depformer_num_layers": 2,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": CODEBOOKS,
        "depformer_max_period": 10000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "depformer_weights_per_step_schedule": [0, 1, 2, 2, 3, 3, 3, 3],
        "delays": DELAYS,
    }
