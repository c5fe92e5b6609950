"""The journal: one SQLite file that remembers every trigger and, when it is known, its one outcome.

Format. `trigger` holds parts that wait for their outcome, with the verdict that the station asked for; the row goes
when the outcome comes. `outcome` has one row per part, is appended to and at its far end forgotten, and its ascending
`id` is what `publish` remembers as its cursor: the table is the outbox. `boot` ties the monotonic times of one boot to
the wall clock. `journal` names this file, so that a reader notices when it was replaced. The part id is unique: hearing
an outcome twice changes nothing, and the first one wins.

Failure modes. The callers' threads only append to a list in memory; the journal's own thread commits what has gathered
(WAL, synchronous=FULL: what is committed survives a power cut). When the disk is full, read-only, damaged or gone, the
list grows to a bound, then loses its oldest entries; failures and losses are counted, the file is tried again every
second, and what waited is written in its order. Every write is idempotent, so a batch whose fate is unknown is
written again. A damaged file is moved aside, never overwritten. What a killed process had not yet committed shows
as a gap of part numbers, which the reject path asks the controller about: this is its `Memory`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.journal_file import (
    INSERT_OUTCOME,
    INSERT_TRIGGER,
    OUTCOME_COLUMNS,
    REMEMBERED,
    SET_VERDICT,
    JournalFile,
    Past,
    Write,
)
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict

log = logging.getLogger(__name__)

GROUP_S = 0.05  # one commit gathers what comes within this time
RETRY_S = 1.0  # after a disk failure
KEEP = 2_000_000  # outcomes on disk, 0.5 kB each
BOUND = 200_000  # writes held in memory; a part makes three: trigger, verdict, outcome


@dataclass(slots=True)
class _Waiting:
    """A trigger without outcome, and what the station asked for."""

    count: int | None
    at_ns: int | None
    boot_id: str
    verdict: dict[str, Any]


class Journal:
    """See the module. Thread-safe; no method but `open`, `flush` and `close` waits for the disk."""

    def __init__(self, path: Path, *, dry_run: bool = False, bound: int = BOUND, keep: int = KEEP) -> None:
        self.path = path
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._dry_run = dry_run
        self._bound = bound
        self._changed = threading.Condition()
        self._writes: deque[Write] = deque()
        self._unwritten = 0  # taken by the thread, not yet committed
        self._waiting: dict[PartId, _Waiting] = {}
        self._settled: OrderedDict[PartId, None] = OrderedDict()
        self._last_part: dict[int, int] = {}
        self._counters: Counter[str] = Counter()
        self._closing = False
        self._file = JournalFile(path, self.boot_id, self._remember, keep)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def open(self) -> None:
        """Read what is unresolved and start the thread. A failing disk is counted and tried again, never raised."""
        self._file.open()
        self._thread.start()

    def close(self) -> None:
        """Write what waits, as far as the disk allows, and stop. What it did not take is counted as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything journalled so far is committed; False when the time runs out first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writes and not self._unwritten, timeout_s)

    # What the station tells

    def trigger(self, trigger: Trigger) -> bool:
        """A part is on its way: from now on it is unresolved. False for a repetition, which changes nothing."""
        part_id = trigger.part_id
        with self._changed:
            if part_id in self._settled or part_id in self._waiting:
                return False
            self._waiting[part_id] = _Waiting(trigger.count, trigger.at_ns, self.boot_id, {})
            self._see(part_id)
            self._write(INSERT_TRIGGER, (*part_id, trigger.count, trigger.at_ns, self.boot_id))
            return True

    def verdict(self, verdict: Verdict, input_crc32: int | None = None) -> bool:
        """Remember what the station asks for, until the outcome comes. False when that has come already."""
        record = {
            "verdict_decision": verdict.decision.value,
            "verdict_reason": verdict.reason.value,
            "score": verdict.score,
            "threshold": verdict.threshold,
            "recipe": verdict.recipe,
            "input_crc32": input_crc32,
            "times_ms": verdict.times_ms,
        }
        text = json.dumps(record)
        with self._changed:
            waiting = self._waiting.get(verdict.part_id)
            if waiting is None:
                return False
            waiting.verdict = record
            self._write(SET_VERDICT, (text, *verdict.part_id))
            return True

    def outcome(self, outcome: Outcome) -> bool:
        """Settle a part, also one whose trigger was never heard. False when it was settled before."""
        with self._changed:
            part_id = outcome.part_id
            if part_id in self._settled:
                return False
            waiting = self._waiting.pop(part_id, None) or _Waiting(None, None, self.boot_id, {})
            self._settled[part_id] = None
            if len(self._settled) > REMEMBERED:
                self._settled.popitem(last=False)
            self._see(part_id)
            values = {
                "epoch": part_id.epoch,
                "part": part_id.part,
                "decision": outcome.decision.value,
                "reason": outcome.reason.value,
                "trigger_count": waiting.count,
                "outcome_count": None if outcome.reason is Reason.OUTCOME_UNKNOWN else outcome.count,
                "trigger_ns": waiting.at_ns,
                "wall_ns": self._wall_ns(waiting),
                "boot_id": waiting.boot_id,
                "recovered": int(outcome.recovered),
                "dry_run": int(self._dry_run),
                **waiting.verdict,
                "times_ms": json.dumps(waiting.verdict.get("times_ms", {})),
            }
            self._write(INSERT_OUTCOME, tuple(values.get(column) for column in OUTCOME_COLUMNS))
            return True

    def lost(self, part_id: PartId) -> bool:
        """The outcome can never be learned: FAULT, outcome unknown. False when the part was settled before."""
        return self.outcome(Outcome(part_id, Decision.FAULT, Reason.OUTCOME_UNKNOWN, 0, recovered=True))

    def settle_other_epochs(self, epoch: int) -> list[PartId]:
        """The controller lives in `epoch`: what waits from its earlier lives can never be learned. Returns those."""
        with self._changed:
            others = sorted(part_id for part_id in self._waiting if part_id.epoch != epoch)
        return [part_id for part_id in others if self.lost(part_id)]

    # What the reject path asks (firmware_bridge.reject_path.Memory)

    def knows_epoch(self, epoch: int) -> bool:
        with self._changed:
            return epoch in self._last_part

    def last_part(self, epoch: int) -> int:
        with self._changed:
            return self._last_part.get(epoch, 0)

    def unresolved(self, epoch: int) -> list[int]:
        with self._changed:
            return sorted(part_id.part for part_id in self._waiting if part_id.epoch == epoch)

    # What people see

    def settled(self, part_id: PartId) -> bool:
        """Whether the part's outcome came within the last few thousand parts."""
        with self._changed:
            return part_id in self._settled

    def counters(self) -> dict[str, int]:
        """Numbers by cause; `waiting_writes` and `unresolved` are levels, the others only grow."""
        with self._changed:
            levels = {"waiting_writes": len(self._writes) + self._unwritten, "unresolved": len(self._waiting)}
            return {**self._counters, "disk_failures": self._file.failures, **levels}

    @property
    def dropped_writes(self) -> int:
        """Triggers, verdicts and outcomes that never reached the disk, and never will."""
        with self._changed:
            return self._counters["dropped_writes"]

    @property
    def failing(self) -> bool:
        """The disk refuses: everything is held in memory."""
        return self._file.failing

    # Inside; the first three are called with the lock held

    def _see(self, part_id: PartId) -> None:
        self._last_part[part_id.epoch] = max(part_id.part, self._last_part.get(part_id.epoch, 0))

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        if len(self._writes) + self._unwritten >= self._bound:
            if not self._writes:
                self._counters["dropped_writes"] += 1
                return
            self._writes.popleft()
            self._counters["dropped_writes"] += 1
        self._writes.append((statement, values))
        if len(self._writes) == 1:
            self._changed.notify_all()

    def _wall_ns(self, waiting: _Waiting) -> int:
        """Wall clock of the trigger; of now when the trigger was never heard or belongs to another boot."""
        age_ns = 0
        if waiting.at_ns is not None and waiting.boot_id == self.boot_id:
            age_ns = time.monotonic_ns() - waiting.at_ns
        return time.time_ns() - age_ns

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._writes or self._closing)
                if not self._closing:
                    self._changed.wait_for(lambda: self._closing, GROUP_S)
                batch = list(self._writes)
                self._writes.clear()
                self._unwritten = len(batch)
            written = self._file.commit(batch)
            with self._changed:
                self._unwritten = 0
                if not written:
                    self._writes.extendleft(reversed(batch))
                    while len(self._writes) > self._bound:
                        self._writes.popleft()
                        self._counters["dropped_writes"] += 1
                elif not self._writes:
                    self._changed.notify_all()
                if self._closing and (not written or not self._writes):
                    if self._writes:
                        log.error("journal %s: %d writes lost at the end: the disk fails", self.path, len(self._writes))
                        self._counters["dropped_writes"] += len(self._writes)
                        self._writes.clear()
                    break
                if not written:
                    self._changed.wait_for(lambda: self._closing, RETRY_S)
        self._file.close()

    def _remember(self, past: Past) -> None:
        with self._changed:
            for epoch, part in past.last_parts:
                self._see(PartId(epoch, part))
            for epoch, part in past.settled:
                self._settled[PartId(epoch, part)] = None
            for epoch, part, count, at_ns, boot_id, verdict in past.waiting:
                if PartId(epoch, part) not in self._settled:
                    known = _Waiting(count, at_ns, boot_id, json.loads(verdict) if verdict else {})
                    self._waiting.setdefault(PartId(epoch, part), known)
