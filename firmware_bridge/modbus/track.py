"""The parts of one epoch between photo-eye and outcome: read their triggers, write their decisions, settle them.

An outcome comes from the PLC's echo, or is inferred where it echoes none. Then ACCEPT must be proven: its registers
were confirmed, a header read after that showed the decision point ahead, and belt and gate were as they must be then
and in both headers that show the decision point passed. Two, because one torn read of a count proves nothing; for the
same reason a part is doubted when a count goes back, and unknown where what was seen until then proves no ACCEPT.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.look import read_slot
from firmware_bridge.modbus.settings import ModbusSettings
from firmware_bridge.modbus.wire import Wire
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict

ECHO_LATE_NS = 2_000_000_000  # after its decision point a part without echo is given up

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Waiting:
    """A part without outcome."""

    deadline_count: int | None = None  # None: its trigger was never read
    asked: Verdict | None = None
    written: bool = False  # the PLC has confirmed the decision's registers
    in_time: bool = False  # and had not reached the decision point in a header read after that
    permitted: bool = False  # by every header since the last before the decision point
    held: bool = False  # the gate was held unasked in one of them
    passed_ns: int | None = None  # first header that shows the decision point passed
    doubted: bool = False  # a later header took that back
    looked: bool = False  # its outcome slot held an older part


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
        self._count: int | None = None  # of the header before
        self.waiting: dict[int, Waiting] = {}
        self.defied: str | None = None  # a part passed that was not to

    def decide(self, verdict: Verdict) -> None:
        self._decided.append(verdict)

    def enter(self, epoch: int, last_part: int, unresolved: list[int]) -> None:
        """Begin an epoch: what was on the belt in another one is lost."""
        for part in sorted(self.waiting):
            self._lose(part)
        self.epoch, self.last_part, self.unfilled, self._count = epoch, last_part, 0, None
        self.waiting = {part: Waiting() for part in unresolved}

    async def read_triggers(self, header: r.Header, read_ns: int) -> None:
        for part in range(self.last_part + 1, header.newest + 1):
            if header.newest - part >= r.SLOTS:
                self._miss(part)
                continue
            record = await read_slot(self._wire, self._settings, part)
            if record.part < part and not (part == self.unfilled and part < header.newest):
                self.unfilled = part  # look again; the newest is waited for, and refused if it does not come
                return
            if record.part != part or r.passed(header.count, record.deadline_count):
                self._miss(part)
                continue
            self.last_part = part
            self.waiting[part] = Waiting(record.deadline_count)
            self._counters["triggers"] += 1
            age_ms = (header.now_ms - record.at_ms) % 2**32
            age_ns = age_ms * 1_000_000 if age_ms < 2**31 else 0  # stamped after the header's time
            self.on_trigger(
                Trigger(
                    PartId(header.epoch, part),
                    record.count,
                    record.deadline_count,
                    record.at_ms * 1000 % 2**32,
                    read_ns - age_ns,
                    source="modbus",
                )
            )
        self.unfilled = 0

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
            if self._slot_is_needed(part):
                continue
            at = self._settings.box_base + r.DECISIONS_AT + r.DECISION_WORDS * r.slot(part)
            await self._wire.write(at, r.decision_words(verdict.part_id, verdict.decision, self._order))
            waiting.written = True
            self._counters["decisions"] += 1
            self._unwritten.remove(verdict)

    async def settle(self, header: r.Header) -> None:
        held = header.status & r.INHIBITED != 0 and not self._inhibit
        steady = self._count is None or r.passed(header.count, self._count)
        self._count = header.count
        for part, waiting in sorted(self.waiting.items()):
            passed = waiting.deadline_count is not None and r.passed(header.count, waiting.deadline_count)
            again = passed and waiting.passed_ns is not None
            if not passed:
                waiting.doubted |= waiting.passed_ns is not None or (not steady and not waiting.in_time)
                waiting.passed_ns = None
            waiting.held = held or ((passed or waiting.doubted) and waiting.held)
            if passed and not again:
                waiting.passed_ns = time.monotonic_ns()
            if not header.status & r.ECHOES:
                self._infer(part, waiting, header, passed=passed, again=again)
            elif part <= header.settled:
                await self._read_outcome(part, waiting, header)
            elif waiting.passed_ns is not None and time.monotonic_ns() - waiting.passed_ns > ECHO_LATE_NS:
                self._give_up(part)

    def _miss(self, part: int) -> None:
        """A part that passed unseen: the PLC rejected it by default; its outcome may still be read."""
        self.last_part = part
        self.waiting[part] = Waiting()
        self._counters["triggers_missed"] += 1

    def _slot_is_needed(self, part: int) -> bool:
        """Whether an earlier part of this slot may still have to be judged: more parts on the belt than slots."""
        return any(
            earlier < part and r.slot(earlier) == r.slot(part) and waiting.deadline_count is not None
            for earlier, waiting in self.waiting.items()
        )

    def _infer(self, part: int, waiting: Waiting, header: r.Header, *, passed: bool, again: bool) -> None:
        permitted = header.status & r.PERMIT != 0 and not header.status & r.FAULT
        if waiting.deadline_count is None:
            self._lose(part)
        elif not passed:
            waiting.permitted = permitted and (waiting.permitted or not waiting.doubted)
            waiting.in_time |= waiting.written and not waiting.doubted
        else:
            waiting.permitted &= permitted
            unproven = waiting.doubted and not (waiting.in_time and waiting.permitted)
            if again and (waiting.held or unproven):
                self._lose(part)
            elif again:
                self._settled(part, *_inferred(waiting), waiting.deadline_count)

    async def _read_outcome(self, part: int, waiting: Waiting, header: r.Header) -> None:
        if header.settled - part >= r.SLOTS:
            self._lose(part)
            return
        at = self._settings.plc_base + r.OUTCOMES_AT + r.OUTCOME_WORDS * r.slot(part)
        record = r.read_outcome(await self._wire.read(at, r.OUTCOME_WORDS), self._order)
        if record.part < part and not waiting.looked:
            waiting.looked = True
            return
        decision = r.DECISION_OF.get(record.decision)
        if record.part != part or decision is None or (waiting.held and decision is not Decision.ACCEPT):
            self._lose(part)
            return
        gate_free = not header.status & r.INHIBITED and not waiting.held
        asked, defied = waiting.asked, decision is Decision.ACCEPT and gate_free
        if defied and (asked is None or asked.decision is not Decision.ACCEPT):
            self._counters["passed_unasked"] += 1
            self.defied = f"the PLC let part {part} pass that was not to: its program must look at slot, part and check"
            log.error("%s", self.defied)
        reason = r.REASON_OF.get(record.reason)
        if reason is None:
            reason = asked.reason if asked else Reason.OUTCOME_UNKNOWN
        self._settled(part, decision, reason, record.count)

    def _give_up(self, part: int) -> None:
        log.warning("the PLC echoes outcomes, but none for part %d: its slot is free again", part)
        for earlier, waiting in sorted(self.waiting.items()):
            if earlier == part or (earlier < part and waiting.deadline_count is None):
                self._lose(earlier)

    def _settled(self, part: int, decision: Decision, reason: Reason, count: int) -> None:
        waiting = self.waiting.pop(part)
        self._counters["outcomes"] += 1
        self.on_outcome(
            Outcome(PartId(self.epoch or 0, part), decision, reason, count, recovered=waiting.deadline_count is None)
        )

    def _lose(self, part: int) -> None:
        self.waiting.pop(part, None)
        self._counters["outcomes_unknown"] += 1
        self.on_lost(PartId(self.epoch or 0, part))


def _inferred(waiting: Waiting) -> tuple[Decision, Reason]:
    asked = waiting.asked
    if asked is None:
        return Decision.FAULT, Reason.NO_VERDICT
    if asked.decision is Decision.ACCEPT and not waiting.permitted:
        return Decision.REJECT, Reason.NOT_PERMITTED
    if asked.decision is Decision.ACCEPT and not waiting.in_time:
        return Decision.REJECT, Reason.LATE
    return asked.decision, asked.reason
