"""The codec against its peers: milliseconds of a frame, in turns within one run.

Usage: ``make bench``, or ``python benches/python/codec_peers.py [--json FILE]`` where ``moshi_rs``
is installed. Peers that are not installed are left out, and named. All load the same random weights
in the shapes of the public Mimi, with 8 codebooks, and take one thread. A frame is 80 ms: encoding
it, and decoding the codes, are timed apart. Every peer first hears more frames than its attention
remembers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

# Read when the libraries are loaded.
os.environ |= {
    "MKL_NUM_THREADS": "1",
    "NO_CUDA_GRAPH": "1",
    "NO_TORCH_COMPILE": "1",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
}

import numpy as np
from numpy.typing import NDArray

import moshi_rs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "python"))
import public_codec

_Pcm: TypeAlias = NDArray[np.float32]
_Codes: TypeAlias = NDArray[np.uint32]

CODEBOOKS = 8
FRAME = 1920
# Attention remembers 250 positions, two a frame.
WARM_UP = 130
FRAMES_PER_TURN = 10
# Frames whose codes are compared: none of the peers has forgotten anything yet.
COMPARED = 40
DIRECTIONS = ("encode", "decode")


class Codec(Protocol):
    """One engine with one stream."""

    def encode(self, frame: _Pcm) -> _Codes:
        """Codes ``[codebook]`` of a frame."""

    def decode(self, codes: _Codes) -> _Pcm:
        """Samples ``[FRAME]`` of codes."""


class Ours:
    """This engine."""

    def __init__(self, weights: Path, mode: Literal["exact", "fast"]) -> None:
        self._stream = moshi_rs.Mimi.load(
            weights, num_codebooks=CODEBOOKS, mode=mode, threads=1
        ).stream()

    def encode(self, frame: _Pcm) -> _Codes:
        """As `Codec.encode`."""
        return self._stream.encode_step(frame)

    def decode(self, codes: _Codes) -> _Pcm:
        """As `Codec.decode`."""
        return self._stream.decode_step(codes)


class Rustymimi:
    """The package of that name, over the crate ``moshi`` and Candle."""

    def __init__(self, weights: Path) -> None:
        import rustymimi

        self._tokenizer = rustymimi.Tokenizer(str(weights), num_codebooks=CODEBOOKS)

    def encode(self, frame: _Pcm) -> _Codes:
        """As `Codec.encode`."""
        codes: _Codes = self._tokenizer.encode_step(frame[None, None])[0, :, 0]
        return codes

    def decode(self, codes: _Codes) -> _Pcm:
        """As `Codec.decode`."""
        pcm: _Pcm = self._tokenizer.decode_step(codes[None, :, None])[0, 0]
        return pcm


class PyTorch:
    """The package ``moshi``."""

    def __init__(self, weights: Path) -> None:
        import torch
        from moshi.models import loaders

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._mimi = loaders.get_mimi(weights, device="cpu", num_codebooks=CODEBOOKS)
        self._mimi.streaming_forever(1)

    def encode(self, frame: _Pcm) -> _Codes:
        """As `Codec.encode`."""
        codes = self._mimi.encode(self._torch.from_numpy(frame[None, None]))
        array: _Codes = codes[0, :, 0].numpy().astype(np.uint32)
        return array

    def decode(self, codes: _Codes) -> _Pcm:
        """As `Codec.decode`."""
        tensor = self._torch.from_numpy(codes.astype(np.int64)[None, :, None])
        pcm: _Pcm = self._mimi.decode(tensor)[0, 0].numpy()
        return pcm


class Turns:
    """An engine and the seconds of its frames."""

    def __init__(self, name: str, codec: Codec) -> None:
        self.name = name
        self.first_codes: list[list[int]] = []
        self.seconds: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
        self._codec = codec

    def take(self, frames: Iterable[_Pcm]) -> None:
        """Takes some frames and notes the time of every one of them."""
        for frame in frames:
            start = time.perf_counter()
            codes = self._codec.encode(frame)
            middle = time.perf_counter()
            pcm = self._codec.decode(codes)
            end = time.perf_counter()
            if pcm.shape != (FRAME,):
                message = f"{self.name} decoded {pcm.shape}"
                raise RuntimeError(message)
            self.seconds["encode"].append(middle - start)
            self.seconds["decode"].append(end - middle)
            if len(self.first_codes) < COMPARED:
                self.first_codes.append([int(code) for code in codes])

    def medians(self, turns: int) -> dict[str, list[float]]:
        """The median of every turn, in milliseconds, both directions and their sum."""
        found = {
            direction: [
                1e3 * statistics.median(seconds[turn * FRAMES_PER_TURN :][:FRAMES_PER_TURN])
                for turn in range(turns)
            ]
            for direction, seconds in self.seconds.items()
        }
        found["both"] = [sum(pair) for pair in zip(*found.values(), strict=True)]
        return found


def engines(weights: Path) -> tuple[list[Turns], dict[str, str]]:
    """The engines that are installed, ours first, and why others are not there."""
    makers: dict[str, Callable[[], Codec]] = {
        "moshi-rs exact": lambda: Ours(weights, "exact"),
        "moshi-rs fast": lambda: Ours(weights, "fast"),
        "rustymimi": lambda: Rustymimi(weights),
        "PyTorch moshi": lambda: PyTorch(weights),
    }
    made = {name: attempt(make) for name, make in makers.items()}
    found = [Turns(name, codec) for name, codec in made.items() if not isinstance(codec, str)]
    return found, {name: why for name, why in made.items() if isinstance(why, str)}


def attempt(make: Callable[[], Codec]) -> Codec | str:
    """An engine, or why there is none."""
    try:
        return make()
    except ImportError as error:
        return f"not installed ({error})"
    except moshi_rs.errors.ConfigError as error:
        return f"not there ({error})"


def read_rate() -> float:
    """Bytes per second that one thread reads."""
    command = [sys.executable, "-m", "moshi_rs", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    return float(json.loads(done.stdout)["read"][0]["bytes_per_second"])


def agree(before: float, after: float) -> bool:
    """True when two rates differ by a tenth at most."""
    return abs(before - after) <= 0.1 * max(before, after)


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def same_codes(ours: Turns, theirs: Turns) -> float:
    """Share of the first codes that are equal."""
    pairs = zip(ours.first_codes, theirs.first_codes, strict=True)
    equal = [a == b for one, other in pairs for a, b in zip(one, other, strict=True)]
    return sum(equal) / len(equal)


def measure(turns: int, warm_up: int) -> dict[str, Any]:
    """Everything about one run."""
    random = np.random.default_rng(1)
    frames = [
        (0.1 * random.standard_normal(FRAME)).astype(np.float32)
        for _ in range(max(warm_up, FRAMES_PER_TURN))
    ]
    before = read_rate()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "mimi.safetensors"
        public_codec.write(weights)
        taking, missing = engines(weights)
    for engine in taking:
        engine.take(frames)
        engine.seconds = {direction: [] for direction in DIRECTIONS}
    for _ in range(turns):
        for engine in taking:
            engine.take(frames[:FRAMES_PER_TURN])
    after = read_rate()
    ours = [engine for engine in taking if engine.name.startswith("moshi-rs")]
    others = [engine for engine in taking if engine not in ours]
    medians = {engine.name: engine.medians(turns) for engine in taking}

    def ratio(one: str, other: str, direction: str) -> dict[str, float]:
        pairs = zip(medians[one][direction], medians[other][direction], strict=True)
        return spread([theirs / own for own, theirs in pairs])

    return {
        "threads": 1,
        "codebooks": CODEBOOKS,
        "warm_up_frames": warm_up,
        "turns": turns,
        "frames_per_turn": FRAMES_PER_TURN,
        "read_bytes_per_second": {
            "before": before,
            "after": after,
            "agree": agree(before, after),
        },
        "versions": versions(),
        "missing": missing,
        "ms": {
            name: {direction: spread(values) for direction, values in directions.items()}
            for name, directions in medians.items()
        },
        "ratios": [
            {
                "ours": one.name,
                "peer": other.name,
                "times_as_long": {
                    direction: ratio(one.name, other.name, direction)
                    for direction in (*DIRECTIONS, "both")
                },
                "same_codes": same_codes(one, other),
            }
            for one in ours
            for other in others
        ],
    }


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {}
    for package in ("moshi-rs", "rustymimi", "moshi", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    rates = result["read_bytes_per_second"]
    before, after = rates["before"] / 1e9, rates["after"] / 1e9
    lines = [
        f"Mimi, {CODEBOOKS} codebooks, one thread: milliseconds of a frame of 80 ms, medians of"
        f" {result['turns']} turns (least, most)",
        f"memory is read at {before:.1f} GB/s before and {after:.1f} GB/s after",
    ]
    if not rates["agree"]:
        lines.append("REJECTED: the rates differ by more than a tenth; measure again")
    lines += [f"left out: {name}, {why}" for name, why in result["missing"].items()]
    for name, directions in result["ms"].items():
        times = (
            f"{direction} {ms['median']:7.2f} ({ms['least']:.2f}, {ms['most']:.2f})"
            for direction, ms in directions.items()
        )
        lines.append(f"{name:<16}{'   '.join(times)}")
    lines.append("how many times as long the peer takes for both directions")
    for pair in result["ratios"]:
        both = pair["times_as_long"]["both"]
        lines.append(
            f"{pair['peer']:<16}against {pair['ours']:<16}{both['median']:6.2f}"
            f" ({both['least']:.2f}, {both['most']:.2f});"
            f" {100 * pair['same_codes']:.1f} % of the first codes are equal"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, and writes what programs read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--turns", type=int, default=15, help="turns of every engine")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="frames that do not count")
    options = parser.parse_args()
    result = measure(max(1, options.turns), max(1, options.warm_up))
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
