"""`make demo`: the whole product on one machine, from photographs, or from scans, to parts thrown off a belt.

Makes parts from a photograph, compiles a bundle from the good ones, runs 300 others at 600 a minute past the station,
and compares three witnesses: the journal, the belt's own judgement, and an independent MQTT subscriber. Exits non-zero
when a promise was broken. `make demo-scan` does the same with height scans: 150 parts at 300 a minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from calibration.threshold import overkill_interval, rank_for
from compile.bundle_writer import report_path
from compile.contact_sheet import write_contact_sheet
from compile.demo_parts import LinePart, make_demo
from compile.demo_scans import make_demo_scans
from edge.bundle import Bundle, GraphName, read_bundle
from edge.errors import BeltlineError
from edge.listener import Listener
from edge.rehearsal import Belt, Rehearsal
from edge.tally import Tally, journal_rows, judgements, open_triggers, tally

TARGET_FALSE_REJECT = 0.03
ESCAPE_SHARE = 0.05  # of painted defects above the stated smallest size
OVERKILL_LEVEL = 0.99
RUN_LIMIT_S = 180.0
STEPS = ("queue", "hand_over", "frame", "front_end", "graph", "total")


class Demo(NamedTuple):
    """What is shown."""

    name: str  # of the bundle
    title: str
    make: Callable[[Path], list[LinePart]]
    options: Sequence[str]  # of `beltline compile`
    belt: Belt
    goal: tuple[int, float]  # percentile of trigger to verdict, ms: told, not judged, as the machine decides


PICTURES = Demo("surface", "Parts cut from a photograph", make_demo, (), Belt(), (99, 30.0))
SLOW = Belt(speed_mm_s=500.0, step_limit_ms=400)  # a scan takes longer than a picture
SCANS = Demo(
    "buns", "Buns on a belt, scanned", make_demo_scans, ("--background", "belt", "--size", "192"), SLOW, (50, 150.0)
)


@dataclass(frozen=True)
class Run:
    """What the line left behind."""

    rows: list[dict[str, Any]]  # of the journal
    messages: list[dict[str, Any]]  # heard by the subscriber
    belt: dict[str, Any]  # its summary
    counts: Tally
    graph: GraphName
    broker: str
    cold_start_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="receives parts, bundle, logs, contact sheet and report")
    parser.add_argument("--scans", action="store_true", help="height scans in place of pictures")
    arguments = parser.parse_args()
    folder, demo = arguments.folder, SCANS if arguments.scans else PICTURES
    console = Console(highlight=False, soft_wrap=True)
    started_s = time.monotonic()
    try:
        console.rule(f"1. {demo.title}")
        parts = demo.make(folder)
        console.print(f"{len(parts)} parts for the line, {sum(p.defective for p in parts)} with an artificial defect")
        console.rule("2. beltline compile")
        bundle = compile_good_parts(folder, demo)
        console.rule("3. The line: broker, controller, belt, station, publisher")
        run = run_line(folder, bundle, parts, console, demo.belt)
        console.rule("4. What happened")
        console.print(outcome_table(run, parts, demo.belt))
        console.print(latency_table(run.rows, *demo.goal))
        sheet = write_contact_sheet(
            folder / "contact_sheet.png", bundle, run.graph, folder, parts=parts, rows=run.rows, counts=run.counts
        )
    except BeltlineError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    console.print(f"pictures  {sheet}\nreport    {report_path(bundle.path)}", markup=False)
    problems = promises_broken(run, bundle, parts)
    for problem in problems:
        console.print(f"BROKEN    {problem}", style="bold red", markup=False)
    verdict = "[bold red]promises were broken" if problems else "[bold green]every promise kept"
    console.print(f"{verdict}[/] ({(time.monotonic() - started_s) / 60:.1f} minutes)")
    return 1 if problems else 0


def compile_good_parts(folder: Path, demo: Demo) -> Bundle:
    """Make a key, compile and sign as a user does.

    Raises:
        BeltlineError: it failed; its own words are on the terminal.

    """
    path, key = folder / f"{demo.name}.bundle", folder / "keys" / "demo.key"
    beltline = [sys.executable, "-m", "edge"]
    key.parent.mkdir(exist_ok=True)
    if not key.exists():
        _succeed([*beltline, "keys", "new", str(key)])
    command = [*beltline, "compile", str(folder / "train"), "-o", str(path), "--sign", str(key), *demo.options]
    _succeed([*command, "--target-false-reject", str(TARGET_FALSE_REJECT)])
    return read_bundle(path)


def _succeed(command: Sequence[str]) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        raise BeltlineError(f"`beltline {command[3]}` failed; its message is above")


def run_line(folder: Path, bundle: Bundle, parts: Sequence[LinePart], console: Console, belt: Belt) -> Run:
    """Run every part past the station."""
    true_parts = [part.on_belt(folder) for part in parts]
    columns = (TextColumn("parts past the gate"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Rehearsal(folder / "line", bundle.path, true_parts, belt=belt, keys=folder / "keys") as line:
        line.clear()
        cold_start_s = line.start_all()
        console.print(
            f"station ready after {cold_start_s:.1f} s; broker {line.broker_kind}; `beltline ack` starts the belt"
        )
        with Listener(line.broker_port, "beltline/#") as listener, Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=len(parts))
            line.ack()

            def watch() -> bool:
                counters = line.status()["counters"]
                done = sum(count for cause, count in counters.items() if cause.startswith("outcome"))
                bar.update(task, completed=done)
                return (line.judgement / "summary.json").exists()

            line.wait_for(watch, RUN_LIMIT_S, "the belt did not finish", "belt", every_s=0.2)
            summary = line.wait_for_belt(10)
            graph: GraphName = line.status()["graph"]
            line.wait_for(lambda: open_triggers(line.journal) == 0, 10, "outcomes are missing", "station")
            rows = journal_rows(line.journal)
            heard = {f"{row['epoch']:08x}-{row['part']}" for row in rows}
            line.wait_for(
                lambda: heard <= {message["id"] for message in listener.verdicts()},
                20,
                "messages are missing",
                "publisher",
            )
            messages = listener.verdicts()
        broker = line.broker_kind
    counts = tally(rows, judgements(line.judgement), line.parts, bundle.spec(), open_triggers(line.journal))
    return Run(rows, messages, summary, counts, graph, broker, cold_start_s)


def outcome_table(run: Run, parts: Sequence[LinePart], belt: Belt) -> Table:
    """The one table."""
    counts = run.counts
    table = Table(title=f"{len(parts)} parts at {60 * belt.speed_mm_s / belt.pitch_mm:g} a minute", show_header=False)
    table.add_row("parts on the belt", f"{counts.parts} ({counts.good} good, {counts.defective} defective)")
    for name, count in sorted(counts.outcomes.items()):
        table.add_row(f"  {name}", str(count))
    sizes = [part.size_px for part in parts if part.defective]
    unit = "places" if parts[0].scan else "px"
    painted = f"artificial defects, {min(sizes)} to {max(sizes)} {unit}"
    table.add_row("escapes", f"{len(counts.escapes)} of {counts.defective} defective parts passed ({painted})")
    table.add_row("overkill", f"{len(counts.overkill)} of {counts.good} good parts thrown")
    table.add_row("FAULT", str(counts.faults))
    table.add_row("late", str(counts.late))
    table.add_row("decided from another part's picture", str(counts.wrong_picture))
    table.add_row("accepted without a picture's digest", str(counts.without_digest + counts.recovered_without_digest))
    table.add_row("passed without a proven ACCEPT", str(counts.unproven_passed))
    error = run.belt["gate_error_max_counts"]
    table.add_row(
        "gate error, largest", f"{error:.2f} encoder counts over {run.belt['gate_errors_measured']} movements"
    )
    table.add_row("messages heard by the subscriber", f"{len({m['id'] for m in run.messages})} of {len(run.rows)}")
    table.add_row("graph", run.graph)
    return table


def latency_table(rows: Sequence[dict[str, Any]], percentile: int, goal_ms: float) -> Table:
    """Where the time went; `total` is trigger to verdict."""
    times: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for step, ms in row["times_ms"].items():
            times[step].append(ms)
    table = Table("step", "p50 ms", "p99 ms", "max ms", title="latency")
    for step in (*STEPS, *sorted(set(times) - set(STEPS))):
        if values := sorted(times.get(step, [])):
            shown = (values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)], values[-1])
            table.add_row(step, *(f"{value:.2f}" for value in shown))
            if step == "total":
                met = values[min(len(values) - 1, len(values) * percentile // 100)] <= goal_ms
                verdict = "met" if met else "missed on this machine"
                table.caption = f"total is trigger to verdict; budget of {goal_ms:g} ms at p{percentile} {verdict}"
    return table


def promises_broken(run: Run, bundle: Bundle, parts: Sequence[LinePart]) -> list[str]:
    """In words; empty when every promise was kept."""
    counts, problems = run.counts, list(run.counts.broken)
    sizes = {str(part.id): part.size_px for part in parts}
    escaped = [f"{part} ({sizes[part]} px)" for part in counts.escapes]
    if len(escaped) > ESCAPE_SHARE * counts.defective:
        problems.append(f"{len(escaped)} of {counts.defective} defects escaped: {', '.join(escaped)}")
    threshold = bundle.thresholds[0][run.graph]
    rank = rank_for(threshold.parts, threshold.target_false_reject)
    low, high = overkill_interval(threshold.parts, rank, counts.good, OVERKILL_LEVEL)
    if not low <= len(counts.overkill) <= high:
        problems.append(f"overkill of {len(counts.overkill)} lies outside {low}..{high}, what the calibration promises")
    if counts.recovered_without_digest:
        problems.append(f"{counts.recovered_without_digest} ACCEPTs were recovered, where nothing had failed")
    if counts.parts != len(parts):
        problems.append(f"{counts.parts} of {len(parts)} parts reached the gate")
    if counts.faults or counts.late:
        problems.append(f"{counts.faults} parts were FAULT and {counts.late} late")
    if (error := run.belt["gate_error_max_counts"]) is None or error > 1:
        problems.append(f"gate error of {error} encoder counts")
    heard = {(message["id"], message["decision"], message["reason"]) for message in run.messages}
    if heard != {(f"{row['epoch']:08x}-{row['part']}", row["decision"], row["reason"]) for row in run.rows}:
        problems.append("the subscriber did not hear what the journal holds")
    return problems


if __name__ == "__main__":
    sys.exit(main())
