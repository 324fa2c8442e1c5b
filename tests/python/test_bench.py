"""What ``moshi-rs bench`` and ``moshi-rs doctor`` print for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

STAGES = ["encode", "temporal", "depth", "decode"]
TIMES = {"mean", "min", "p50", "p95", "p99", "max"}


def printed(*arguments: str) -> dict[str, Any]:
    """The one object that a command prints."""
    command = [sys.executable, "-m", "moshi_rs", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_measurement_has_every_stage_and_what_it_reads() -> None:
    one = printed("bench", "--frames", "3", "--dtype", "q8")
    assert (one["sessions"], one["steps"], one["dtype"]) == (1, 3, "q8")
    assert not one["random_weights"]
    assert set(one["ms"]) == TIMES
    assert [stage["name"] for stage in one["stages"]] == STAGES
    for stage in one["stages"]:
        assert set(stage["ms"]) == TIMES
        assert 0 < stage["weight_bytes"] < stage["bytes"]
        assert stage["multiplications"] > 0
        assert stage["share_of_read_rate"] > 0
    assert one["ms"]["min"] <= one["ms"]["p50"] <= one["ms"]["p99"] <= one["ms"]["max"]
    rates = one["read_bytes_per_second"]
    assert rates["before"] > 0
    assert rates["after"] > 0
    assert isinstance(rates["agree"], bool)
    assert len(one["output_hash"]) == 16

    four = printed("bench", "--frames", "3", "--dtype", "q8", "--sessions", "4")
    for alone, together in zip(one["stages"], four["stages"], strict=True):
        assert together["weight_bytes"] == alone["weight_bytes"]
        assert alone["bytes"] < together["bytes"] < 4 * alone["bytes"]


def test_keys_of_fewer_bits_are_fewer_bytes() -> None:
    runs = [printed("bench", "--frames", "2", "--kv-dtype", name) for name in ("f32", "q8")]
    assert [run["kv_dtype"] for run in runs] == ["f32", "q8"]
    past = [run["stages"][STAGES.index("temporal")]["bytes"] for run in runs]
    weights = [run["stages"][STAGES.index("temporal")]["weight_bytes"] for run in runs]
    assert weights[0] == weights[1]
    assert past[1] - weights[1] < (past[0] - weights[0]) / 2


def test_equal_runs_give_equal_outputs() -> None:
    hashes = [printed("bench", "--frames", "3")["output_hash"] for _ in range(2)]
    assert hashes[0] == hashes[1]


def test_the_doctor_knows_the_machine_and_the_models() -> None:
    facts = printed("doctor")
    assert facts["processors"] >= 1
    assert facts["instructions"][0] == "scalar"
    assert facts["instructions_used"] in facts["instructions"]
    assert facts["flops_per_second"] > 0
    assert facts["read"][0]["threads"] == 1
    models = {(model["model"], model["dtype"]): model for model in facts["models"]}
    for name in ("moshi-7b", "stt-1b", "tts-1.6b"):
        sizes = [models[name, dtype]["bytes"] for dtype in ("bf16", "q8", "q4")]
        assert sizes == sorted(sizes, reverse=True)
    assert models["moshi-7b", "bf16"]["bytes"] > 14e9
    assert models["moshi-7b", "q4"]["kv_dtype"] == "bf16"
