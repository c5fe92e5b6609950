"""The station on the simulated belt: latency, overhead, cold start, what a pause does, gate errors.

    python -m benchmarks.station BUNDLE PARTS_FOLDER

BUNDLE and PARTS_FOLDER (with parts.jsonl) are what `make demo` left in out/demo.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Record, budgets, interleaved_ms, median
from compile.demo_parts import read_parts
from edge.bundle import Bundle, GraphName, read_bundle
from edge.front_end import rgb
from edge.rehearsal import Belt, Rehearsal
from edge.scorer import Scorer
from edge.tally import journal_rows, judgements, open_triggers, tally
from firmware_bridge.belt.config import TruePart

PAUSE_S = 10.0
PARTS = 300
PITCH_S, ALONE_RUNS = 0.1, 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("out/demo/surface.bundle"))
    parser.add_argument("parts", type=Path, nargs="?", default=Path("out/demo"))
    arguments = parser.parse_args()
    record, budget = Record("station"), budgets("station")
    _front_end(arguments.bundle, record, budget)
    with tempfile.TemporaryDirectory() as folder:
        _line(Path(folder), arguments, record, budget)
    return record.finish()


def _front_end(bundle: Path, record: Record, budget: dict[str, float]) -> None:
    bundle_input = read_bundle(bundle).manifest.pictures
    rng = np.random.default_rng(0)
    frames = {name: rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for name, side in _SIDES.items()}
    wide = bundle_input.source.model_copy(update={"height": (1, 4096), "width": (1, 4096), "channels": 3})
    spec = bundle_input.model_copy(update={"source": wide, "height": 256, "width": 256})
    times = interleaved_ms({name: partial(rgb, frame, spec) for name, frame in frames.items()}, 200)
    record.figure("front end, 1024 to 256", median(times["integer"]), "ms", budget["front_end_integer_ms"])
    record.figure("front end, 1000 to 256", median(times["other"]), "ms", budget["front_end_other_ms"])


_SIDES = {"integer": 1024, "other": 1000}


def _line(folder: Path, arguments: argparse.Namespace, record: Record, budget: dict[str, float]) -> None:
    bundle = read_bundle(arguments.bundle)
    graph: GraphName = "int8" if "int8" in bundle.manifest.graphs else "float"
    chosen = read_parts(arguments.parts)[:PARTS]
    pictures = {str(part.id): (arguments.parts / part.picture).absolute() for part in chosen}
    belt = Belt()
    gap_mm = {len(chosen) // 2: PAUSE_S * belt.speed_mm_s}
    parts = [
        TruePart(id=str(p.id), picture=str(pictures[str(p.id)]), defective=p.defective, gap_mm=gap_mm.get(i, 0))
        for i, p in enumerate(chosen)
    ]
    beside = arguments.bundle.parent / "keys"  # the demo signs
    keys = beside if beside.is_dir() else None
    with Rehearsal(folder / "line", arguments.bundle, parts, graph=graph, belt=belt, keys=keys) as line:
        record.figure("cold start to Ready", line.start_all(), "s", budget["cold_start_s"])
        line.ack()
        summary = line.wait_for_belt(180)
        line.wait_for(lambda: open_triggers(line.journal) == 0, 10, "outcomes are missing", "station")
        rows = journal_rows(line.journal)
        counts = tally(rows, judgements(line.judgement), parts, bundle.spec(), open_triggers(line.journal))
    paused = max(range(1, len(rows)), key=lambda i: rows[i]["trigger_ns"] - rows[i - 1]["trigger_ns"])
    totals = sorted(row["times_ms"]["total"] for row in rows)
    p50, p99 = totals[len(totals) // 2], totals[len(totals) * 99 // 100]
    record.figure(f"trigger to verdict p50 ({graph})", p50, "ms")
    record.figure(f"trigger to verdict p99 ({graph})", p99, "ms", budget["trigger_to_verdict_p99_ms"])
    record.figure("trigger to verdict max", totals[-1], "ms")
    record.figure("p99 minus p50", p99 - p50, "ms", budget["p99_minus_p50_ms"])
    record.figure("of this the machine: the graph alone at the same pace", _spread_alone_ms(bundle, graph), "ms")
    after = sorted(row["times_ms"]["total"] for row in rows[paused : paused + 10])
    record.figure(
        f"p50 of 10 parts after a {PAUSE_S:g} s pause, over p50", after[5] / p50, "x", budget["after_pause_ratio"]
    )
    overheads = sorted(_overhead_ms(row["times_ms"]) for row in rows)
    record.figure("overhead p50: heard to verdict, less frame, front end, graph", overheads[len(overheads) // 2], "ms")
    record.figure("overhead p99", overheads[len(overheads) * 99 // 100], "ms", budget["overhead_p99_ms"])
    wires = sorted(row["times_ms"]["queue"] - row["times_ms"]["hand_over"] for row in rows)
    record.figure("photo-eye to heard p50: debounce, controller, serial line", wires[len(wires) // 2], "ms")
    record.figure("gate error", summary["gate_error_max_counts"], "counts", budget["gate_error_counts"])
    record.figure("late parts", counts.late, "", budget["late_parts"])
    record.figure("parts FAULT", counts.faults, "", budget["fault_parts"])


def _spread_alone_ms(bundle: Bundle, graph: GraphName) -> float:
    """p99 minus p50 of the graph when nothing else runs: what caches, sleep states and neighbours make of it."""
    scorer = Scorer(bundle, graph)
    times_ms = []
    for _ in range(ALONE_RUNS):
        time.sleep(PITCH_S)
        start_ns = time.perf_counter_ns()
        scorer.self_test()
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    times_ms.sort()
    return times_ms[ALONE_RUNS * 99 // 100] - times_ms[ALONE_RUNS // 2]


def _overhead_ms(times_ms: dict[str, Any]) -> float:
    """From the box's hearing of the part to its verdict, without picture, front end and graph."""
    spent = sum(times_ms.get(step, 0.0) for step in ("queue", "frame", "front_end", "graph"))
    return float(times_ms["hand_over"] + times_ms["total"] - spent)


if __name__ == "__main__":
    sys.exit(main())
