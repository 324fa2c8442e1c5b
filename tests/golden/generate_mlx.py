"""Writes mlx_4_bits.safetensors and mlx_8_bits.safetensors: matrices quantised by MLX.

Encoded and decoded by MLX itself: ``pip install "mlx[cpu]==0.32.4" numpy safetensors``. Names are
those of a language model of width 64 in the MLX layout. Every matrix ``BASE.weight`` has a
companion ``BASE.values`` in F32.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

FOLDER = Path(__file__).parent
WIDTH = 64


def main() -> None:
    """Writes both files, with the bits and groups that the public files have."""
    mx.random.seed(20260101)
    for bits, group in ((4, 32), (8, 64)):
        tensors = {"out_norm.weight": mx.ones(WIDTH, dtype=mx.bfloat16)}
        for base, rows in (
            ("text_linear", 5),
            ("audio_embs.0", 4),
            ("depformer.slices.0.linear_in", 3),
            ("transformer.layers.0.self_attn.in_proj", 6),
        ):
            values = mx.random.normal((rows, WIDTH)).astype(mx.bfloat16)
            words, scales, offsets = mx.quantize(values, group_size=group, bits=bits)
            tensors[f"{base}.weight"] = words
            tensors[f"{base}.scales"] = scales
            tensors[f"{base}.biases"] = offsets
            wide = (part.astype(mx.float32) for part in (scales, offsets))
            decoded = mx.dequantize(words, *wide, group_size=group, bits=bits)
            tensors[f"{base}.values"] = decoded
        mx.save_safetensors(str(FOLDER / f"mlx_{bits}_bits.safetensors"), tensors)


if __name__ == "__main__":
    main()
