"""One quiet run: the speed that is promised, and what this machine reaches, as Markdown.

Usage: ``make speed-report``. Everything is measured in one go, the most important first; what does
not fit into ``--minutes`` is left out and named. The rate at which memory is read is part of every
measurement: where it changed by more than a tenth while something was measured, the row is
rejected. A target that is not reached is called missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
NATIVE = Path("target/native")
# Marks of a page: what lies between the first and the last is replaced by the whole report, between
# the second and the last by the table of targets.
BEGIN, BEGIN_TARGETS, END = (f"<!-- speed: {name} -->" for name in ("begin", "targets", "end"))
FRAME_MS = 80.0
# Stages of the language model; the others are the codec.
LM_STAGES = ("temporal", "depth")
# The share of two builds' times that noise explains.
NOISE = 0.05
NOT_MEASURED = "not measured"

Result = dict[str, Any]


# Nothing reads faster than memory is read: a larger share says that the machine was disturbed.
MOST_SHARE = 1.2


@dataclasses.dataclass(frozen=True)
class Value:
    """What was reached, and whether the run counts."""

    number: float
    text: str
    valid: bool = True


@dataclasses.dataclass(frozen=True)
class Target:
    """A promise: a limit that is required, and one that is hoped for."""

    what: str
    unit: str
    required: float
    goal: float | None
    at_least: bool
    value: Callable[[Result], Value | None]

    def row(self, results: Result) -> list[str]:
        """Cells of the table."""
        value = self.value(results)
        cells = [self.what, self._limit(self.required), self._limit(self.goal)]
        if value is None:
            return [*cells, "", NOT_MEASURED]
        return [*cells, value.text, self._verdict(value)]

    def _verdict(self, value: Value) -> str:
        if not value.valid:
            return "rejected: memory's rate changed"
        if self.goal is not None and self._reaches(value.number, self.goal):
            return "goal reached"
        return "reached" if self._reaches(value.number, self.required) else "**missed**"

    def _reaches(self, number: float, limit: float) -> bool:
        return number >= limit if self.at_least else number <= limit

    def _limit(self, limit: float | None) -> str:
        if limit is None:
            return ""
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {limit:g}{self.unit}"


def steady(result: Result) -> bool:
    """True when memory was read at the same rate before and after."""
    return bool(result["read_bytes_per_second"]["agree"])


def gemv(case: str) -> Callable[[Result], Value | None]:
    """The share of memory's rate that products of one row reach, in percent."""

    def value(results: Result) -> Value | None:
        found = _case(results, case)
        if found is None:
            return None
        share = found["share_of_read_rate"]
        text = " ({:.1f} to {:.1f})".format(*(100 * share[end] for end in ("least", "most")))
        number = 100 * share["median"]
        valid = steady(results["peers"]) and share["most"] <= MOST_SHARE
        return Value(number, f"{number:.1f} %{text}", valid)

    return value


def batch(case: str, rows: int) -> Callable[[Result], Value | None]:
    """How much longer products of some rows take than those of one."""

    def value(results: Result) -> Value | None:
        found = _case(results, case)
        if found is None:
            return None
        [times] = [many["against_one_row"] for many in found["batches"] if many["rows"] == rows]
        text = f"{times['median']:.2f} ({times['least']:.2f} to {times['most']:.2f})"
        return Value(times["median"], text, steady(results["peers"]))

    return value


def step(run: str, percentile: str) -> Callable[[Result], Value | None]:
    """Milliseconds of a step."""

    def value(results: Result) -> Value | None:
        found = results.get(run)
        if found is None:
            return None
        ms = found["ms"]
        text = f"{percentile} {ms[percentile]:.1f} ms"
        if found["paced"]:
            text += f", {found['late_frames']} of {found['steps']} late"
        tuned = results.get(f"{run} tuned")
        if tuned is not None:
            text += f"; with {tuned['threads']} threads {tuned['ms'][percentile]:.1f} ms"
        return Value(ms[percentile], text, steady(found))

    return value


def codec(mode: str) -> Callable[[Result], Value | None]:
    """How many times as long rustymimi takes."""

    def value(results: Result) -> Value | None:
        found = results.get("codec")
        wanted = (f"moshi-rs {mode}", "rustymimi")
        pairs = found["ratios"] if found is not None else []
        for pair in pairs:
            if (pair["ours"], pair["peer"]) == wanted and found is not None:
                times = pair["times_as_long"]["both"]
                own = found["ms"][pair["ours"]]["both"]["median"]
                text = (
                    f"{times['median']:.2f} ({times['least']:.2f} to {times['most']:.2f});"
                    f" {own:.1f} ms"
                )
                return Value(times["median"], text, steady(found))
        return None

    return value


def against_bytes(run: str) -> Callable[[Result], Value | None]:
    """Time of the language model, in units of the time that reading its bytes takes."""

    def value(results: Result) -> Value | None:
        found = results.get(run)
        if found is None:
            return None
        stages = [stage for stage in found["stages"] if stage["name"] in LM_STAGES]
        rates = found["read_bytes_per_second"]
        bound = sum(stage["bytes"] for stage in stages) / ((rates["before"] + rates["after"]) / 2)
        number = sum(stage["ms"]["p50"] for stage in stages) / 1e3 / bound
        return Value(number, f"{number:.2f}; p50 {found['ms']['p50']:.0f} ms", steady(found))

    return value


def builds(results: Result) -> Value | None:
    """Time of the portable program in units of one compiled for this processor."""
    turns = results.get("builds")
    if not turns:
        return None
    ratios = sorted(portable["ms"]["p50"] / native["ms"]["p50"] for portable, native in turns)
    number = ratios[len(ratios) // 2]
    text = f"{number:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    return Value(number, text, all(steady(run) for pair in turns for run in pair))


def _case(results: Result, name: str) -> Result | None:
    peers = results.get("peers")
    cases = peers["cases"] if peers is not None else []
    return next((case for case in cases if case["name"] == name), None)


def _paced(what: str, run: str, *, required: bool = True) -> Target:
    label = f"{what}, paced, 95th percentile" + ("" if required else " (goal)")
    return Target(label, " ms", FRAME_MS, None, False, step(run, "p95"))


SHARE = "products of one row, share of memory's rate:"
TARGETS = (
    Target(f"{SHARE} q8", " %", 85, 90, True, gemv("q8")),
    Target(f"{SHARE} q4 (affine)", " %", 80, 85, True, gemv("q4-affine")),
    Target(f"{SHARE} bf16", " %", 85, 90, True, gemv("bf16")),
    Target("products of four rows against one, q8", "", 1.35, 1.15, False, batch("q8", 4)),
    Target("products of eight rows against one, q8", "", 2.2, 1.9, False, batch("q8", 8)),
    Target("STT-1B q8, whole frame, one session", " ms", 50, 40, False, step("stt", "p50")),
    Target("STT-1B q8, four sessions", " ms", 75, 60, False, step("stt four", "p50")),
    Target("Mimi exact, times as fast as rustymimi", "", 3.5, 5, True, codec("exact")),
    Target("Mimi fast, times as fast as rustymimi", "", 5, 8, True, codec("fast")),
    _paced("STT-1B q8", "stt paced"),
    _paced("TTS-1.6B q4", "tts paced"),
    _paced("Hibiki-1B q4", "hibiki-1b paced"),
    _paced("Hibiki-2B q4", "hibiki-2b paced", required=False),
    Target("Moshi 7B q4, time against bytes / rate", "", 1.15, 1.08, False, against_bytes("7b")),
    Target("portable program against one of this processor", "", 1 + NOISE, None, False, builds),
)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def render_targets(results: Result) -> str:
    """Where it was measured, and the table of targets."""
    machine = results["machine"]
    where = (
        f"Measured on {machine['processor']}, {machine['processors']} processors,"
        f" {machine['instructions']}, {machine['date']}, version {machine['version']}."
    )
    head = ["what", "required", "goal", "reached", ""]
    rows = [target.row(results) for target in TARGETS]
    return f"{where}\n\n{markdown_table(head, rows)}\n"


def render(results: Result) -> str:
    """The whole report."""
    parts = [
        render_targets(results).strip(),
        "What was read and computed, from the same run:",
        markdown_table(
            ["run", "stage", "MB", "GFLOP", "p50 ms", "of memory's rate"],
            [row for name, run in _steps(results) for row in stage_rows(name, run)],
        ),
    ]
    peers = results.get("peers")
    if peers is not None:
        rows = [case_row(case) for case in peers["cases"]]
        parts += [
            f"Products of the matrices of STT-1B, {peers['threads']} thread(s),"
            f" {peers['rounds']} rounds:",
            markdown_table(
                ["weights", "MB", "ms", "GB/s", "of memory's rate", "4 rows", "8 rows"], rows
            ),
        ]
    ratios = [ratio_row(pair) for pair in (peers["ratios"] if peers is not None else [])]
    found = results.get("codec")
    for pair in found["ratios"] if found is not None else []:
        times = pair["times_as_long"]["both"]
        ratios.append([pair["peer"], pair["ours"], f"{times['median']:.2f}", "", ""])
    if ratios:
        parts += [
            "How many times as long peers take, in turns within the run:",
            markdown_table(["peer", "against", "1 row", "4 rows", "8 rows"], ratios),
        ]
    notes = [f"- {name}: {why}" for name, why in results["left_out"].items()]
    if found is not None:
        notes += [f"- {name}: {why}" for name, why in found["missing"].items()]
    if notes:
        parts += ["Left out:", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def _steps(results: Result) -> Iterator[tuple[str, Result]]:
    for name, run in results.items():
        if isinstance(run, dict) and "stages" in run:
            yield name, run


def stage_rows(name: str, run: Result) -> list[list[str]]:
    """One row for every stage of a run of ``moshi-rs bench``."""
    sessions = f", {run['sessions']} sessions" if run["sessions"] > 1 else ""
    label = f"{name}: {run['model']} {run['dtype']}{sessions}, {run['threads']} thread(s)"
    return [
        [
            label,
            stage["name"],
            f"{stage['bytes'] / 1e6:.0f}",
            f"{2 * stage['multiplications'] / 1e9:.2f}",
            f"{stage['ms']['p50']:.2f}",
            f"{100 * stage['share_of_read_rate']:.0f} %",
        ]
        for stage in run["stages"]
    ]


def case_row(case: Result) -> list[str]:
    """One row for a format of weights."""
    one, four, eight = (many["ms"]["median"] for many in case["batches"])
    return [
        case["name"],
        f"{case['bytes'] / 1e6:.0f}",
        f"{one:.2f}",
        f"{case['bytes'] / one / 1e6:.1f}",
        f"{100 * case['share_of_read_rate']['median']:.1f} %",
        f"{four / one:.2f}",
        f"{eight / one:.2f}",
    ]


def ratio_row(pair: Result) -> list[str]:
    """One row for a peer's products."""
    return [pair["peer"], pair["ours"], *(f"{t['median']:.2f}" for t in pair["times_as_long"])]


def written(page: str, results: Result) -> str:
    """A page with the results between its marks.

    Raises:
        ValueError: There are no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    block = render(results)
    if not begin:
        before, begin, rest = page.partition(BEGIN_TARGETS)
        block = render_targets(results)
    _, end, after = rest.partition(END)
    if not begin or not end:
        message = f"the page has no {BEGIN} or {BEGIN_TARGETS}, and {END}"
        raise ValueError(message)
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


class Session:
    """Runs programs until the time is up."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._end = time.monotonic() + 60 * options.minutes
        self.results: Result = {"left_out": {}}

    def bench(self, name: str, *arguments: str, frames: int, program: Path | None = None) -> None:
        """Measures steps, once more where the first run does not count."""
        for _ in range(2):
            found = self.run_bench(name, *arguments, frames=frames, program=program)
            if found is None:
                return
            self.results[name] = found
            if steady(found):
                return

    def run_bench(
        self, name: str, *arguments: str, frames: int, program: Path | None = None
    ) -> Result | None:
        """What one call of ``moshi-rs bench`` prints."""
        command = [
            str(program or self._options.program),
            "bench",
            "--json",
            "--executor=cpu",
            f"--frames={max(1, round(frames * self._options.scale))}",
            *arguments,
        ]
        text = self._run(name, command)
        return None if text is None else json.loads(text)

    def file(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Runs a program that writes its result to a file, its last argument."""
        path = Path(command[-1])
        if self._run(name, command, environment) is not None:
            self.results[name] = json.loads(path.read_text(encoding="utf-8"))

    def leave_out(self, name: str, why: str) -> None:
        """Notes why something is missing."""
        self.results["left_out"][name] = why

    def _run(
        self, name: str, command: list[str], environment: dict[str, str] | None = None
    ) -> str | None:
        left = self._end - time.monotonic()
        if left <= 0:
            self.leave_out(name, "the time was up")
            return None
        print(f"{left / 60:5.1f} min left: {name}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(
                command,
                check=True,
                cwd=REPOSITORY,
                encoding="utf-8",
                env=os.environ | (environment or {}),
                stdout=subprocess.PIPE,
                timeout=max(60.0, left),
            )
        except (OSError, subprocess.SubprocessError) as error:
            self.leave_out(name, str(error))
            return None
        return done.stdout


def measure(options: argparse.Namespace) -> Result:
    """Runs everything."""
    session = Session(options)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rounds = max(1, round(9 * options.scale))
    peers = [str(options.peers), "--rounds", str(rounds), "--json", str(folder / "peers.json")]
    session.file("peers", peers, {"RAYON_NUM_THREADS": "1"})
    turns = max(2, round(15 * options.scale))
    codec_command = [sys.executable, "benches/python/codec_peers.py", f"--turns={turns}", "--json"]
    session.file("codec", [*codec_command, str(folder / "codec.json")], {})

    stt = ("--model=stt-1b", "--dtype=q8")
    session.bench("stt", *stt, "--threads=1", frames=750)
    session.bench("stt four", *stt, "--threads=1", "--sessions=4", frames=375)
    session.bench("stt tuned", *stt, frames=375)
    session.bench("stt paced", *stt, "--paced", frames=375)
    session.bench("tts paced", "--model=tts-1.6b", "--dtype=q4", "--paced", frames=375)
    session.bench("hibiki-1b paced", "--model=hibiki-1b", "--dtype=q4", "--paced", frames=375)
    session.bench("hibiki-2b paced", "--model=hibiki-2b", "--dtype=q4", "--paced", frames=375)
    session.bench("7b", "--model=moshi-7b", "--dtype=q4", "--threads=1", frames=60)
    session.bench("stt four tuned", *stt, "--sessions=4", frames=250)
    compare_builds(session, options, stt)
    session.results["machine"] = machine(options.program)
    return session.results


def compare_builds(session: Session, options: argparse.Namespace, stt: tuple[str, ...]) -> None:
    """Both builds in turns."""
    if not options.native_program.exists():
        session.leave_out("portable and native builds", f"no {options.native_program}")
        return
    pairs = []
    for turn in range(3):
        pair = [
            session.run_bench(f"builds {turn}", *stt, "--threads=1", frames=150, program=program)
            for program in (options.program, options.native_program)
        ]
        if None not in pair:
            pairs.append(pair)
    session.results["builds"] = pairs


def machine(program: Path) -> Result:
    """What was measured on."""
    command = [str(program), "doctor", "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    version = subprocess.run(
        [str(program), "--version"], capture_output=True, check=True, encoding="utf-8"
    ).stdout.split()[-1]
    return {
        "processor": processor(),
        "processors": facts["processors"],
        "instructions": facts["instructions_used"],
        "date": time.strftime("%Y-%m-%d"),
        "version": version,
    }


def processor() -> str:
    """The name of the processor, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def main() -> int:
    """Measures or takes an earlier measurement, and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("target/speed"), help="folder of results")
    parser.add_argument("--minutes", type=float, default=14, help="time for everything")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the frames and rounds")
    parser.add_argument("--program", type=Path, default=Path("target/release/moshi-rs"))
    parser.add_argument("--native-program", type=Path, default=NATIVE / "release" / "moshi-rs")
    parser.add_argument("--peers", type=Path, default=NATIVE / "release" / "peers")
    parser.add_argument("--from-results", action="store_true", help="measure nothing")
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], help="pages whose marked block is replaced"
    )
    options = parser.parse_args()
    path = options.out / "results.json"
    if options.from_results:
        results = json.loads(path.read_text(encoding="utf-8"))
    else:
        for name in ("program", "native_program", "peers"):
            setattr(options, name, getattr(options, name).resolve())
        results = measure(options)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report = render(results)
    (options.out / "report.md").write_text(report, encoding="utf-8")
    print(report)
    for page in options.write:
        text = page.read_text(encoding="utf-8")
        page.write_text(written(text, results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
