"""A codec with the architecture of the public Mimi and random weights.

rustymimi knows no other architecture. Default initialisation would hide errors: layer scales would
be tiny and all codes equal, so that every part gets weights that matter here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Array

    _Tensor: TypeAlias = tuple[str, tuple[int, ...]]

# Strides of the encoder; the decoder has them in reverse.
RATIOS = (4, 5, 6, 8)
WIDTH = 64
DIMENSION = 512
FEED_FORWARD = 2048
LAYERS = 8
CODEBOOKS = 32
ENTRIES = 2048
CODE_DIMENSION = 256


def shapes() -> Iterator[_Tensor]:
    """Names and shapes of all tensors of the public file."""
    yield from _convolutions()
    d, f = DIMENSION, FEED_FORWARD
    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            prefix = f"{side}_transformer.transformer.layers.{layer}"
            for norm in ("norm1", "norm2"):
                yield f"{prefix}.{norm}.weight", (d,)
                yield f"{prefix}.{norm}.bias", (d,)
            yield f"{prefix}.self_attn.in_proj_weight", (3 * d, d)
            yield f"{prefix}.self_attn.out_proj.weight", (d, d)
            yield f"{prefix}.linear1.weight", (f, d)
            yield f"{prefix}.linear2.weight", (d, f)
            yield f"{prefix}.layer_scale_1.scale", (d,)
            yield f"{prefix}.layer_scale_2.scale", (d,)
    yield "downsample.conv.conv.conv.weight", (d, d, 4)
    yield "upsample.convtr.convtr.convtr.weight", (d, 1, 4)
    for branch, levels in (("rvq_first", 1), ("rvq_rest", CODEBOOKS - 1)):
        yield f"quantizer.{branch}.input_proj.weight", (CODE_DIMENSION, d, 1)
        yield f"quantizer.{branch}.output_proj.weight", (d, CODE_DIMENSION, 1)
        for level in range(levels):
            book = f"quantizer.{branch}.vq.layers.{level}._codebook"
            yield f"{book}.cluster_usage", (ENTRIES,)
            yield f"{book}.embedding_sum", (ENTRIES, CODE_DIMENSION)
            yield f"{book}._initialized", (1,)


def _convolutions() -> Iterator[_Tensor]:
    def pair(name: str, shape: tuple[int, ...], outputs: int) -> Iterator[_Tensor]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", (outputs,)

    def residual(name: str, width: int) -> Iterator[_Tensor]:
        half = width // 2
        yield from pair(f"{name}.block.1.conv.conv", (half, width, 3), half)
        yield from pair(f"{name}.block.3.conv.conv", (width, half, 1), width)

    width, top = WIDTH, WIDTH << len(RATIOS)
    yield from pair("encoder.model.0.conv.conv", (width, 1, 7), width)
    for stage, ratio in enumerate(RATIOS):
        double, name = 2 * width, f"encoder.model.{3 * stage + 3}.conv.conv"
        yield from residual(f"encoder.model.{3 * stage + 1}", width)
        yield from pair(name, (double, width, 2 * ratio), double)
        width = double
    yield from pair("encoder.model.14.conv.conv", (DIMENSION, top, 3), DIMENSION)
    yield from pair("decoder.model.0.conv.conv", (top, DIMENSION, 7), top)
    for stage, ratio in enumerate(reversed(RATIOS)):
        half, name = width // 2, f"decoder.model.{3 * stage + 2}.convtr.convtr"
        yield from pair(name, (width, half, 2 * ratio), half)
        yield from residual(f"decoder.model.{3 * stage + 3}", half)
        width = half
    yield from pair("decoder.model.14.conv.conv", (1, width, 3), 1)


def write(path: Path) -> None:
    """Writes the codec: 385 MB, the same bytes every time."""
    random = np.random.default_rng(20241003)

    def normal(shape: tuple[int, ...], scale: float) -> Array:
        values = random.standard_normal(shape, np.float32)
        values *= np.float32(scale)
        return values

    tensors: dict[str, Array] = {}
    for name, shape in shapes():
        if name.endswith("_initialized"):
            value = np.ones(shape, np.float32)
        elif name.endswith("cluster_usage"):
            value = random.uniform(0.2, 3.2, shape).astype(np.float32)
            usage = value
        elif name.endswith("embedding_sum"):
            value = normal(shape, 0.5) * usage[:, None]
        elif name.endswith(".scale"):
            value = random.uniform(0.05, 0.35, shape).astype(np.float32)
        elif "norm" in name:
            value = normal(shape, 0.1) + np.float32(name.endswith("weight"))
        elif name.endswith("bias"):
            value = normal(shape, 0.05)
        elif name.startswith("upsample"):
            value = normal(shape, 0.5) + np.float32(0.5)
        elif "convtr" in name:
            value = normal(shape, float(np.sqrt(0.6 / shape[0])))
        else:
            value = normal(shape, float(1 / np.sqrt(np.prod(shape[1:]))))
        tensors[name] = value
    tensors["decoder.model.14.conv.conv.weight"] *= np.float32(0.1)
    save_file(tensors, path)
