"""The line for a long time: memory, outcomes and latency of a station that never stops.

    python -m benchmarks.soak [--minutes 60]

The demo's parts pass again and again at 600 a minute. Memory is read every ten seconds; its growth is counted from the
end of the first fifth of the run, when everything has been used once, to the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from itertools import cycle, islice
from pathlib import Path

from benchmarks.record import Record, budgets
from compile.demo_parts import read_parts
from edge.bundle import read_bundle
from edge.rehearsal import Rehearsal
from edge.tally import journal_rows, judgements, open_triggers, tally
from firmware_bridge.belt.config import TruePart

DEMO = Path("out/demo")
PER_MINUTE = 600
SAMPLE_S = 10.0
GRACE_S = 120.0
WATCHED = ("station", "publisher", "controller")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    minutes: int = parser.parse_args().minutes
    record, budget = Record("soak"), budgets("soak")
    chosen = list(islice(cycle(read_parts(DEMO)), minutes * PER_MINUTE))
    parts = [
        TruePart(id=str(number), picture=str((DEMO / part.picture).absolute()), defective=part.defective)
        for number, part in enumerate(chosen)
    ]
    bundle = read_bundle(DEMO / "surface.bundle")
    memory_mb: dict[str, list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as folder,
        Rehearsal(Path(folder) / "line", bundle.path, parts, keys=DEMO / "keys") as line,
    ):
        line.start_all()
        line.ack()
        summary_file = line.judgement / "summary.json"

        def sample() -> bool:
            for name in WATCHED:
                memory_mb[name].append(_resident_mb(line.processes[name].pid))
            return summary_file.exists()

        line.wait_for(sample, minutes * 60 + GRACE_S, "the belt did not finish", "belt", every_s=SAMPLE_S)
        summary = line.wait_for_belt(10)
        line.wait_for(lambda: open_triggers(line.journal) == 0, 10, "outcomes are missing", "station")
        rows = journal_rows(line.journal)
        counts = tally(rows, judgements(line.judgement), parts, bundle.spec(), open_triggers(line.journal))
        disk_bytes = line.journal.stat().st_size
    for name, samples in memory_mb.items():
        fifth = max(1, len(samples) // 5)
        base = statistics.median(samples[fifth : 2 * fifth] or samples)
        allowed = max(budget["memory_growth_mb"], budget["memory_growth_share"] * base)
        record.figure(f"{name}: memory", base, "MB")
        record.figure(f"{name}: growth", statistics.median(samples[-fifth:]) - base, "MB", allowed)
    totals = sorted(row["times_ms"].get("total", 0.0) for row in rows)
    record.figure("parts", counts.parts, "")
    record.figure("promises broken", len(counts.broken), "", 0)
    record.figure("late parts", counts.late, "", budgets("station")["late_parts"])
    record.figure("parts FAULT", counts.faults, "", budgets("station")["fault_parts"])
    record.figure("gate error", summary["gate_error_max_counts"], "counts", budgets("station")["gate_error_counts"])
    record.figure("trigger to verdict p50", totals[len(totals) // 2], "ms")
    record.figure("trigger to verdict p99", totals[len(totals) * 99 // 100], "ms")
    record.figure("trigger to verdict max", totals[-1], "ms")
    record.figure("journal per part", disk_bytes / max(1, len(rows)), "bytes")
    return record.finish()


def _resident_mb(pid: int) -> float:
    words = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").split()
    return int(words[words.index("VmRSS:") + 1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
