"""What a measurement of speed is turned into: verdicts, tables, and the page that shows them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from support import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benches" / "python"))
import speed_report


def rates(agree: bool = True) -> dict[str, Any]:
    return {"before": 20e9, "after": 20e9 if agree else 15e9, "agree": agree}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "least": 0.9 * median, "most": 1.1 * median}


def peers(share: float, *, agree: bool = True) -> dict[str, Any]:
    batches = [
        {"rows": rows, "ms": spread(10 * times), "against_one_row": spread(times)}
        for rows, times in ((1, 1.0), (4, 1.2), (8, 2.5))
    ]
    case = {
        "name": "q8",
        "bytes": 200_000_000,
        "share_of_read_rate": spread(share),
        "batches": batches,
    }
    ratio = {"ours": "q8", "peer": "candle q8_0", "times_as_long": [spread(2.0)] * 3}
    return {
        "threads": 1,
        "rounds": 9,
        "read_bytes_per_second": rates(agree),
        "cases": [case],
        "ratios": [ratio],
    }


def bench(
    p50: float, *, paced: bool = False, agree: bool = True, threads: int = 1
) -> dict[str, Any]:
    stages = [
        {
            "name": name,
            "bytes": 400_000_000,
            "multiplications": 400_000_000,
            "ms": {"p50": p50 / 2},
            "share_of_read_rate": 0.5,
        }
        for name in ("encode", "temporal")
    ]
    return {
        "model": "stt-1b",
        "dtype": "q8",
        "sessions": 1,
        "threads": threads,
        "steps": 375,
        "paced": paced,
        "late_frames": 2,
        "ms": {"p50": p50, "p95": 2 * p50},
        "stages": stages,
        "read_bytes_per_second": rates(agree),
    }


def report(**runs: object) -> dict[str, list[str]]:
    """Cells of the table of targets by what they are about."""
    results = {"left_out": {}, "machine": machine(), **runs}
    lines = speed_report.render(results).splitlines()
    start = lines.index("| --- | --- | --- | --- | --- |") + 1
    rows = [line.strip("| ").split(" | ") for line in lines[start:][: len(speed_report.TARGETS)]]
    return {row[0]: row[1:] for row in rows}


def machine() -> dict[str, Any]:
    return {
        "processor": "a processor",
        "processors": 2,
        "instructions": "avx2",
        "date": "2026-01-01",
        "version": "0.1.0",
    }


def verdict(rows: dict[str, list[str]], start: str) -> str:
    [row] = [cells for name, cells in rows.items() if name.startswith(start)]
    return row[-1].removesuffix(" |")


PRODUCTS = "products of one row, share of memory's rate: q8"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.95, "goal reached"), (0.86, "reached"), (0.84, "**missed**")]
)
def test_a_share_is_compared_with_the_limits(share: float, expected: str) -> None:
    assert verdict(report(peers=peers(share)), PRODUCTS) == expected


def test_what_was_not_measured_is_not_called_reached() -> None:
    rows = report()
    assert len(rows) == len(speed_report.TARGETS)
    assert {cells[-1] for cells in rows.values()} == {"not measured"}


def test_a_run_on_a_changing_machine_is_rejected() -> None:
    rows = report(peers=peers(0.95, agree=False), stt=bench(30, agree=False))
    assert verdict(rows, PRODUCTS).startswith("rejected")
    assert verdict(rows, "STT-1B q8, whole frame").startswith("rejected")
    # Rounds in between, in which memory gave less than the product read.
    assert verdict(report(peers=peers(1.12)), PRODUCTS).startswith("rejected")


def test_times_are_missed_when_they_are_longer() -> None:
    rows = report(
        **{
            "peers": peers(0.9),
            "stt": bench(39),
            "stt tuned": bench(25, threads=2),
            "stt four": bench(76),
            "stt paced": bench(30, paced=True),
            "tts paced": bench(41, paced=True),
        }
    )
    assert verdict(rows, "products of four rows") == "reached"
    assert verdict(rows, "products of eight rows") == "**missed**"
    assert verdict(rows, "STT-1B q8, whole frame") == "goal reached"
    assert verdict(rows, "STT-1B q8, four sessions") == "**missed**"
    assert verdict(rows, "STT-1B q8, paced") == "reached"
    assert verdict(rows, "TTS-1.6B q4, paced") == "**missed**"
    [tuned] = [cells for name, cells in rows.items() if name.startswith("STT-1B q8, whole")]
    assert "with 2 threads 25.0 ms" in tuned[2]
    [paced] = [cells for name, cells in rows.items() if name.startswith("STT-1B q8, paced")]
    assert "2 of 375 late" in paced[2]


def test_a_large_model_is_compared_with_the_bytes_of_its_language_model() -> None:
    # 400 MB at 20 GB/s are 20 ms; the codec does not count.
    rows = report(**{"7b": bench(44)})
    [cells] = [cells for name, cells in rows.items() if name.startswith("Moshi 7B")]
    assert cells[2].startswith("1.10;")
    assert verdict(rows, "Moshi 7B") == "reached"


def test_the_codec_is_compared_with_rustymimi() -> None:
    ratio = {
        "ours": "moshi-rs exact",
        "peer": "rustymimi",
        "times_as_long": {"both": spread(4.0)},
        "same_codes": 1.0,
    }
    codec = {
        "read_bytes_per_second": rates(),
        "ms": {"moshi-rs exact": {"both": spread(25.0)}},
        "ratios": [ratio],
        "missing": {"PyTorch moshi": "not installed"},
    }
    results = {"left_out": {}, "machine": machine(), "codec": codec}
    assert "PyTorch moshi: not installed" in speed_report.render(results)
    rows = report(codec=codec)
    assert verdict(rows, "Mimi exact") == "reached"
    assert verdict(rows, "Mimi fast") == "not measured"


def test_builds_are_compared_in_turns() -> None:
    pairs = [[bench(10.2), bench(10)], [bench(30.3), bench(30)], [bench(20), bench(20)]]
    assert verdict(report(builds=pairs), "portable program") == "reached"
    slow = [[bench(12), bench(10)]] * 3
    assert verdict(report(builds=slow), "portable program") == "**missed**"


def test_the_block_of_a_page_is_replaced_and_nothing_else() -> None:
    results = {"left_out": {"7b": "the time was up"}, "machine": machine(), "stt": bench(39)}
    for begin, whole in ((speed_report.BEGIN, True), (speed_report.BEGIN_TARGETS, False)):
        page = f"# Speed\n\n{begin}\nold\n{speed_report.END}\n\nmore\n"
        new = speed_report.written(page, results)
        assert new.startswith(f"# Speed\n\n{begin}\n\nMeasured on a processor")
        assert new.endswith(f"\n\n{speed_report.END}\n\nmore\n")
        assert "old" not in new
        assert ("the time was up" in new) == whole
        assert "goal reached" in new
        assert speed_report.written(new, results) == new
    with pytest.raises(ValueError, match="no <!-- speed: begin -->"):
        speed_report.written("# Speed", results)


@pytest.mark.parametrize("name", ["README.md", "docs/guide/speed.md"])
def test_pages_have_a_block_for_the_report(name: str) -> None:
    page = (REPOSITORY / name).read_text(encoding="utf-8")
    results = {"left_out": {}, "machine": machine()}
    assert "Measured on a processor" in speed_report.written(page, results)
