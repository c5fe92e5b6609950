"""The wires: codec, recovery of the serial link and of the broker, and how fast a backlog reaches a subscriber.

    python -m benchmarks.bridge

Uses the bundle and the parts that `make demo` left in out/demo.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import Record, budgets, interleaved_ms, median
from compile.demo_parts import read_parts
from edge.listener import Listener
from edge.rehearsal import Rehearsal
from edge.tally import journal_rows
from firmware_bridge.belt.config import TruePart
from firmware_bridge.link import wire
from firmware_bridge.parts import PartId

DEMO = Path("out/demo")
FRAMES = 200
ATTEMPTS = 3


def main() -> int:
    record, budget = Record("bridge"), budgets("recovery")
    _codec(record)
    with tempfile.TemporaryDirectory() as folder:
        _recovery(Path(folder), record, budget)
    return record.finish()


def _codec(record: Record) -> None:
    frame = wire.Frame(wire.DECISION, 0x12345678, 7, bytes(range(16)))
    coded = wire.encode(frame)
    decoder = wire.Decoder()
    times = interleaved_ms(
        {
            "encode": lambda: [wire.encode(frame) for _ in range(FRAMES)],
            "decode": lambda: [decoder.feed(coded) for _ in range(FRAMES)],
        }
    )
    record.figure("encode a DECISION", median(times["encode"]) / FRAMES * 1000, "us")
    record.figure("decode a DECISION", median(times["decode"]) / FRAMES * 1000, "us")


def _recovery(folder: Path, record: Record, budget: dict[str, float]) -> None:
    parts = [
        TruePart(id=str(part.id), picture=str((DEMO / part.picture).absolute()), defective=part.defective)
        for part in read_parts(DEMO)
    ]
    with Rehearsal(folder / "line", DEMO / "surface.bundle", parts, keys=DEMO / "keys") as line:
        line.start_all()
        with Listener(line.broker_port, "beltline/#") as listener:
            serial_s = []
            for _ in range(ATTEMPTS):
                line.kill("controller")
                line.wait_for(lambda: not line.status()["path"]["ready"], 5, "the loss was not seen", "station")
                line.start("controller")
                started_s = time.monotonic()
                line.wait_for(lambda: bool(line.status()["path"]["ready"]), 10, "no recovery", "station")
                serial_s.append(time.monotonic() - started_s)
            record.figure(f"serial link ready again, worst of {ATTEMPTS}", max(serial_s), "s", budget["serial_s"])
            line.ack()
            line.wait_for(lambda: len(journal_rows(line.journal)) >= 50, 60, "no outcomes", "station")
            line.kill("broker")
            line.wait_for_belt(120)
            line.start("broker")
            started_s, before = time.monotonic(), len(listener.verdicts())
            line.wait_for(lambda: len(listener.verdicts()) > before, 20, "no recovery", "publisher")
            record.figure(
                "first message after the broker's return", time.monotonic() - started_s, "s", budget["broker_s"]
            )
            wanted = {str(PartId(row["epoch"], row["part"])) for row in journal_rows(line.journal)}
            line.wait_for(
                lambda: wanted <= {m["id"] for m in listener.verdicts()}, 20, "messages are missing", "publisher"
            )
            record.figure("all messages after the broker's return", time.monotonic() - started_s, "s")


if __name__ == "__main__":
    sys.exit(main())
