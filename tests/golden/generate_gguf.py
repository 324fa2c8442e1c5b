"""Writes gguf_blocks.gguf: tensors in every encoding that moshi-rs reads, with their values.

Encoded and decoded by the ggml project's own package: ``pip install gguf==0.19.0 numpy``.
Every tensor ``NAME`` has a companion ``NAME.values`` in F32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

ROWS = 3
OUT = Path(__file__).parent / "gguf_blocks.gguf"


def random_q4_k(rng: np.random.Generator, rows: int, blocks: int) -> np.ndarray:
    """Blocks with all bits random but for the two f16 scales; the package has no encoder."""
    data = rng.integers(0, 256, (rows, blocks, 144), dtype=np.uint8)
    scales = rng.uniform(0.001, 0.1, (rows, blocks, 2)).astype("<f2")
    data[..., :4] = scales.view(np.uint8)
    return data.reshape(rows, blocks * 144)


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(20260101)
    writer = GGUFWriter(OUT, "moshi")
    writer.add_string("general.license", "cc-by-4.0")
    writer.add_array("test.list", ["a", "bc"])
    for kind in ("Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "Q4_K"):
        encoding = GGMLQuantizationType[kind]
        if kind == "Q4_K":
            data = random_q4_k(rng, ROWS, 2)
        else:
            data = quantize(rng.standard_normal((ROWS, 96), dtype=np.float32), encoding)
        name = kind.lower()
        writer.add_tensor(name, data, raw_dtype=encoding)
        writer.add_tensor(f"{name}.values", dequantize(data, encoding).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
