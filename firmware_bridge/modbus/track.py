"""The parts of one epoch between photo-eye and outcome: read triggers, write decisions, hear outcomes.

What became of a part is the PLC's word alone. One header may be torn, so what would cost a part its inspection or its
outcome, or move its time, is believed when two headers agree.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.look import read_slot
from firmware_bridge.modbus.settings import ModbusSettings
from firmware_bridge.modbus.wire import Wire
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict

ECHO_LATE_NS = 2_000_000_000  # after its decision point a part without echo is given up
PARTS_PER_CYCLE = 100  # missed, or lost: the heartbeat goes on however many there are
CLOCK_MS = 1000  # between the clocks of PLC and box from one header to the next
CLOCK_HEADERS = 4  # in a row that all disagree: the clock runs wild, and is believed as it is

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Waiting:
    """A part without outcome."""

    deadline_count: int | None  # None: its trigger was never read
    held: bool  # the gate was held unasked: a reject may have thrown nothing off
    asked: Verdict | None = None
    passed_ns: int | None = None  # first of the headers up to now that all show the decision point passed


class Track:
    """Everything runs on the path's thread, but `decide`."""

    def __init__(self, wire: Wire, settings: ModbusSettings, counters: Counter[str], *, inhibit: bool) -> None:
        self.on_trigger: Callable[[Trigger], None] = lambda _: None
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_lost: Callable[[PartId], None] = lambda _: None
        self._wire, self._settings, self._order = wire, settings, settings.word_order
        self._counters, self._inhibit = counters, inhibit
        self._decided: deque[Verdict] = deque()
        self._unwritten: list[Verdict] = []  # in the order of deciding
        self.epoch: int | None = None
        self.last_part = 0
        self.unfilled = 0  # a part that was counted before its slot held it
        self.waiting: dict[int, Waiting] = {}
        self.until_ns = 0  # when to leave the wire to the heartbeat
        self.defied: str | None = None  # a part passed that was not to
        self.silent: str | None = None  # the PLC does not echo
        self._inherited = 0  # newest part that an earlier life of the box may have asked for
        self._settled = 0  # by the header before
        self._judged = 0  # by two headers
        self._given_up = 0
        self._held = False  # the gate was held unasked since all parts had been read
        self._offset_ms = 0  # from the PLC's clock to the box's, by the header before
        self._clock_doubts = 0  # headers in a row that disagreed with the one before

    def decide(self, verdict: Verdict) -> None:
        self._decided.append(verdict)

    def enter(self, epoch: int, last_part: int, unresolved: Iterable[int]) -> None:
        """Begin an epoch: what was on the belt in another one is lost, at once, for the belt of a new epoch stands."""
        for part in sorted(self.waiting):
            self._lose(part)
        self.epoch, self.last_part, self._inherited, self.unfilled = epoch, last_part, last_part, 0
        self._settled = self._judged = self._given_up = 0
        self.silent = None
        self.waiting = {part: Waiting(None, self._held) for part in unresolved}

    def note(self, header: r.Header, read_ns: int) -> None:
        """What counts in every header, be it trusted or not: its clock, and a gate held unasked."""
        offset_ms = read_ns // 1_000_000 - header.now_ms
        steady = abs(r.difference(offset_ms, self._offset_ms)) <= CLOCK_MS
        self._offset_ms = offset_ms
        self._clock_doubts = 0 if steady else (self._clock_doubts + 1) % CLOCK_HEADERS
        if self._holds(header):
            self._held = True
            for waiting in self.waiting.values():
                waiting.held = True

    async def read_triggers(self, header: r.Header, read_ns: int) -> None:
        """Learn of the parts up to the newest; what this header leaves open is looked at again in the next."""
        self._judged, self._settled = min(self._settled, header.settled), header.settled
        if self._clock_doubts:
            return
        for part in range(self.last_part + 1, min(header.newest, self.last_part + PARTS_PER_CYCLE) + 1):
            if self._out_of_time():
                return
            if part <= self._judged or header.newest - part >= r.SLOTS:
                self._miss(part)
                continue
            if part <= header.settled:
                return
            record = await read_slot(self._wire, self._settings, part)
            if record.part < part and not (part == self.unfilled and part < header.newest):
                self.unfilled = part  # the newest is waited for, and refused if it does not come
                return
            if record.part != part:
                self._miss(part)
                continue
            age_ms = max(0, r.difference(header.now_ms, record.at_ms))  # below 0: stamped after the header's time
            self.last_part = part
            self.waiting[part] = Waiting(record.deadline_count, self._held)
            self._counters["triggers"] += 1
            self.on_trigger(
                Trigger(
                    PartId(header.epoch, part),
                    record.count,
                    record.deadline_count,
                    record.at_ms * 1000 % 2**32,
                    read_ns - age_ms * 1_000_000,
                    source="modbus",
                )
            )
        self.unfilled = 0
        self._held = self._holds(header) or (self._held and self.last_part < header.newest)

    async def write_decisions(self) -> None:
        """Write what may be written; the first decision for a part stands."""
        while self._decided:
            self._unwritten.append(self._decided.popleft())
        for verdict in list(self._unwritten):
            epoch, part = verdict.part_id
            waiting = self.waiting.get(part) if epoch == self.epoch else None
            if waiting is None or (waiting.asked is not None and waiting.asked is not verdict):
                self._counters["decisions_stale"] += 1
                self._unwritten.remove(verdict)
                continue
            waiting.asked = verdict
            if self._slot_is_needed(part) or self._out_of_time():
                continue
            at = self._settings.box_base + r.DECISIONS_AT + r.DECISION_WORDS * r.slot(part)
            await self._wire.write(at, r.decision_words(verdict.part_id, verdict.decision, self._order))
            self._counters["decisions"] += 1
            self._unwritten.remove(verdict)

    async def settle(self, header: r.Header) -> None:
        """Hear the outcomes. A part without echo is given up, and with it those before it."""
        now_ns, most = time.monotonic_ns(), len(self.waiting)
        for part, waiting in sorted(self.waiting.items()):
            if most - len(self.waiting) >= PARTS_PER_CYCLE or self._out_of_time():
                return
            if part <= self._judged:
                await self._hear(part, waiting, header)
            elif part <= header.settled:
                continue  # heard when the next header agrees
            elif part < self._given_up:  # also where the count was reset and never reaches its decision point
                self._lose(part)
            elif waiting.deadline_count is None:
                continue
            elif not r.passed(header.count, waiting.deadline_count):
                waiting.passed_ns = None
            elif waiting.passed_ns is None:
                waiting.passed_ns = now_ns
            elif now_ns - waiting.passed_ns > ECHO_LATE_NS:
                if self.silent is None:
                    self.silent = f"the PLC does not echo outcomes (registers 11-12): nothing came of part {part}"
                    self.silent += "; its program must echo each part after its judgement, else most are rejected"
                    log.warning("%s", self.silent)
                self._given_up = part
                self._lose(part)

    def _out_of_time(self) -> bool:
        return time.monotonic_ns() >= self.until_ns

    def _holds(self, header: r.Header) -> bool:
        return header.status & r.INHIBITED != 0 and not self._inhibit

    def _miss(self, part: int) -> None:
        """A part that passed unseen: the PLC rejected it by default; its outcome may still be read."""
        self.last_part = part
        self.waiting[part] = Waiting(None, self._held)
        self._counters["triggers_missed"] += 1

    def _slot_is_needed(self, part: int) -> bool:
        """Whether an earlier part of this slot may still have to be judged: more parts on the belt than slots."""
        return any(
            earlier < part and r.slot(earlier) == r.slot(part) and waiting.deadline_count is not None
            for earlier, waiting in self.waiting.items()
        )

    async def _hear(self, part: int, waiting: Waiting, header: r.Header) -> None:
        if self._judged - part >= r.SLOTS:
            self._lose(part)
            return
        at = self._settings.plc_base + r.OUTCOMES_AT + r.OUTCOME_WORDS * r.slot(part)
        record = r.read_outcome(await self._wire.read(at, r.OUTCOME_WORDS), self._order)
        decision = r.DECISION_OF.get(record.decision)
        if record.part != part or decision is None or (waiting.held and decision is not Decision.ACCEPT):
            self._lose(part)
            return
        asked = waiting.asked
        as_asked = asked is not None and asked.decision is decision
        gate_free = not self._holds(header) and not waiting.held
        if decision is Decision.ACCEPT and not as_asked and gate_free and part > self._inherited:
            self._counters["passed_unasked"] += 1
            self.defied = f"the PLC let part {part} pass that was not to: its program must look at slot, part and check"
            log.error("%s", self.defied)
        reason = r.REASON_OF.get(record.reason, asked.reason if asked and as_asked else Reason.OUTCOME_UNKNOWN)
        if decision is Decision.ACCEPT and record.reason in r.REASON_OF:  # each a reason to reject
            self._counters["echoes_contradictory"] += 1
            reason = Reason.OUTCOME_UNKNOWN
        del self.waiting[part]
        self.silent = None
        self._counters["outcomes"] += 1
        recovered = waiting.deadline_count is None
        self.on_outcome(Outcome(PartId(header.epoch, part), decision, reason, record.count, recovered))

    def _lose(self, part: int) -> None:
        del self.waiting[part]
        self._counters["outcomes_unknown"] += 1
        self.on_lost(PartId(self.epoch or 0, part))
