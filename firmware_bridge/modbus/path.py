"""The reject path through a plant's own PLC. The register map and its failure modes are in the package's docstring."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.look import read_slot, wrong_map
from firmware_bridge.modbus.settings import ModbusSettings
from firmware_bridge.modbus.wire import Wire, WireError
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict
from firmware_bridge.reject_path import Memory, PathHealth

HEARTBEAT_NS = 100_000_000
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 1.0
ACK_VOID_NS = 1_000_000_000  # a person's word for the belt as it is now, not for whenever the wire is back
FAILURES_TO_RECONNECT = 3
OK, STANDING_STILL, EPOCH_REFUSED, WRONG_MAP, GATE_HELD = range(5)  # box fault codes

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """A part without outcome."""

    deadline_count: int | None = None  # None: its trigger was never read
    asked: Verdict | None = None
    written: bool = False  # the PLC has confirmed the decision's registers
    in_time: bool = False  # and had not reached the decision point in a header read after that
    permitted: bool = False  # by the last header before the decision point


class ModbusPath:
    """Implements firmware_bridge.reject_path.RejectPath. Everything with an underscore runs on the path's thread."""

    def __init__(self, settings: ModbusSettings, memory: Memory, inhibit: bool = False) -> None:
        self.on_trigger: Callable[[Trigger], None] = lambda _: None  # replaced by the station, as the next two
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_lost: Callable[[PartId], None] = lambda _: None
        self._settings, self._memory, self._inhibit = settings, memory, inhibit
        self._order = settings.word_order
        self._wire = Wire(settings)
        self._decisions: deque[Verdict] = deque()
        self._counters: Counter[str] = Counter()
        self._ack_asked_ns: int | None = None  # by a person, not yet written
        self._problem: str | None = "not connected yet"
        self._header: r.Header | None = None  # of the last poll; None while not connected
        self._epoch: int | None = None  # accepted
        self._refused: tuple[int, str] | None = None  # box fault code and words: epoch or map is not accepted
        self._refused_epoch: int | None = None
        self._last_part = self._last_settled = 0
        self._waiting: dict[int, _Waiting] = {}
        self._stepped_ns: int | None = None
        self._heartbeat = 0
        self._next_heartbeat_ns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="modbus", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def decide(self, verdict: Verdict) -> None:
        self._decisions.append(verdict)

    def step_done(self) -> None:
        self._stepped_ns = time.monotonic_ns()

    def ack(self) -> None:
        self._ack_asked_ns = time.monotonic_ns()

    def jog_gate(self) -> None:
        raise RuntimeError("the gate belongs to the plant's PLC: cycle it there")

    def health(self) -> PathHealth:
        header = self._header
        status = header.status if header else 0
        inhibited = bool(status & r.INHIBITED)
        as_asked = inhibited == self._inhibit
        faults = [self._refused[1]] if self._refused else []
        if header and not self._refused and not as_asked:
            faults.append(_NOT_CONFIRMED if self._inhibit else _HELD)
        if header and status & r.FAULT:
            faults.append(f"the PLC has latched its fault {header.fault_code}")
        return PathHealth(
            connected=header is not None and self._thread.is_alive(),
            ready=bool(status & r.READY) and self._epoch is not None and self._refused is None and as_asked,
            permit=bool(status & r.PERMIT),
            fault="; ".join(faults) or self._problem,
            epoch=self._epoch,
            inhibited=inhibited,
            counters=dict(self._counters),
        )

    async def _run(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._stopping.is_set():
            try:
                await self._wire.connect()
                self._counters["connects"] += 1
                await self._serve()
            except WireError as error:
                self._note(error)
                await asyncio.sleep(delay_s)
                delay_s = FIRST_DELAY_S if self._header else min(2 * delay_s, LONGEST_DELAY_S)
            self._header = None
        self._wire.close()

    async def _serve(self) -> None:
        """Poll until the wire has failed several times in a row."""
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._cycle()
                failures = 0
                self._problem = None
            except WireError as error:
                self._note(error)
                failures += 1
                if failures >= FAILURES_TO_RECONNECT:
                    raise
            await asyncio.sleep(self._settings.poll_ms / 1000)

    async def _cycle(self) -> None:
        await self._write_decisions()
        header = r.read_header(await self._wire.read(self._settings.plc_base, r.HEADER_WORDS), self._order)
        read_ns = time.monotonic_ns()
        wrong = await self._wrong_map(header)
        self._header = header
        if wrong:
            self._refused = (WRONG_MAP, wrong)
        else:
            self._follow_epoch(header)
        if self._refused is None:
            await self._read_triggers(header, read_ns)
            await self._settle(header)  # before new decisions: the header was read before they were written
            await self._write_decisions()
        fault = self._box_fault(header)
        await self._acknowledge(fault)
        await self._beat(fault)

    async def _wrong_map(self, header: r.Header) -> str | None:
        """Many new parts at once are looked at again: true after an outage, and what a wrong word order looks like."""
        if header.layout == r.LAYOUT and header.epoch == self._epoch and header.newest - self._last_part <= r.SLOTS:
            return None
        return await wrong_map(self._wire, self._settings, header)

    def _follow_epoch(self, header: r.Header) -> None:
        if header.epoch == self._refused_epoch:
            return
        last = self._last_part if header.epoch == self._epoch else self._memory.last_part(header.epoch)
        if header.newest < last:
            self._counters["epochs_refused"] += 1
            self._refused_epoch = header.epoch
            self._refused = (
                EPOCH_REFUSED,
                (
                    f"the PLC counts part {header.newest} after part {last} of the same epoch {header.epoch}: "
                    "its program must draw a new epoch at each start"
                ),
            )
            return
        self._refused = self._refused_epoch = None
        if header.epoch != self._epoch:
            self._enter_epoch(header, last)

    def _enter_epoch(self, header: r.Header, last: int) -> None:
        for part in sorted(self._waiting):
            self._lose(part)
        self._epoch = header.epoch
        self._last_part = last if self._memory.knows_epoch(header.epoch) else header.newest
        self._waiting = {part: _Waiting() for part in self._memory.unresolved(header.epoch)}
        self._last_settled = min(self._waiting, default=self._last_part + 1) - 1

    async def _read_triggers(self, header: r.Header, read_ns: int) -> None:
        for part in range(self._last_part + 1, header.newest + 1):
            if header.newest - part >= r.SLOTS:
                self._miss(part)
                continue
            record = await read_slot(self._wire, self._settings, part)
            if record.part != part or r.passed(header.count, record.deadline_count):
                self._miss(part)
                continue
            self._last_part = part
            self._waiting[part] = _Waiting(record.deadline_count)
            self._counters["triggers"] += 1
            age_ns = (header.now_ms - record.at_ms) % 2**32 * 1_000_000
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

    def _miss(self, part: int) -> None:
        """A part that passed unseen: the PLC rejected it by default; its outcome may still be read."""
        self._last_part = part
        self._waiting[part] = _Waiting()
        self._counters["triggers_missed"] += 1

    async def _write_decisions(self) -> None:
        while self._decisions:
            verdict = self._decisions[0]
            epoch, part = verdict.part_id
            waiting = self._waiting.get(part) if epoch == self._epoch else None
            if waiting is None or (waiting.asked is not None and waiting.asked is not verdict):
                self._counters["decisions_stale"] += 1
                self._decisions.popleft()
                continue
            if self._slot_is_needed(part):
                return
            waiting.asked = verdict
            at = self._settings.box_base + r.DECISIONS_AT + r.DECISION_WORDS * r.slot(part)
            await self._wire.write(at, r.decision_words(verdict.part_id, verdict.decision, self._order))
            waiting.written = True
            self._counters["decisions"] += 1
            self._decisions.popleft()

    def _slot_is_needed(self, part: int) -> bool:
        """Whether the part before in this slot may still have to be judged: more parts on the belt than slots."""
        before = self._waiting.get(part - r.SLOTS)
        return before is not None and before.deadline_count is not None

    async def _settle(self, header: r.Header) -> None:
        if header.status & r.ECHOES:
            await self._read_outcomes(header)
            return
        permitted = header.status & r.PERMIT != 0 and not header.status & r.FAULT
        for part, waiting in sorted(self._waiting.items()):
            if waiting.deadline_count is None:
                self._lose(part)
            elif not r.passed(header.count, waiting.deadline_count):
                waiting.in_time, waiting.permitted = waiting.written, permitted
            else:
                decision, reason = _inferred(waiting, permitted=permitted and waiting.permitted)
                self._settled(part, decision, reason, waiting.deadline_count)

    async def _read_outcomes(self, header: r.Header) -> None:
        for part in range(self._last_settled + 1, header.settled + 1):
            waiting = self._waiting.get(part)
            if waiting is not None:
                if header.settled - part >= r.SLOTS:
                    self._lose(part)
                else:
                    await self._read_outcome(part, waiting)
            self._last_settled = part

    async def _read_outcome(self, part: int, waiting: _Waiting) -> None:
        words = await self._wire.read(
            self._settings.plc_base + r.OUTCOMES_AT + r.OUTCOME_WORDS * r.slot(part), r.OUTCOME_WORDS
        )
        record = r.read_outcome(words, self._order)
        decision = r.DECISION_OF.get(record.decision)
        if record.part != part or decision is None:
            self._lose(part)
            return
        reason = r.REASON_OF.get(record.reason)
        if reason is None:
            as_asked = waiting.asked if waiting.asked and waiting.asked.decision is decision else None
            reason = as_asked.reason if as_asked else _PLAIN[decision]
        self._settled(part, decision, reason, record.count)

    def _settled(self, part: int, decision: Decision, reason: Reason, count: int) -> None:
        waiting = self._waiting.pop(part)
        self._counters["outcomes"] += 1
        self.on_outcome(
            Outcome(PartId(self._epoch or 0, part), decision, reason, count, recovered=waiting.deadline_count is None)
        )

    def _lose(self, part: int) -> None:
        self._waiting.pop(part, None)
        self._counters["outcomes_unknown"] += 1
        self.on_lost(PartId(self._epoch or 0, part))

    def _box_fault(self, header: r.Header) -> int:
        if self._refused:
            return self._refused[0]
        if header.status & r.INHIBITED and not self._inhibit:
            return GATE_HELD
        limit_ns = self._settings.step_limit_ms * 1_000_000
        fresh = self._stepped_ns is not None and time.monotonic_ns() - self._stepped_ns < limit_ns
        return OK if fresh else STANDING_STILL

    async def _beat(self, fault: int) -> None:
        now_ns = time.monotonic_ns()
        if now_ns < self._next_heartbeat_ns:
            return
        self._next_heartbeat_ns = now_ns + HEARTBEAT_NS
        if fault == OK:
            self._heartbeat = (self._heartbeat + 1) % 2**16
        await self._wire.write(self._settings.box_base, [self._heartbeat, fault, int(self._inhibit)])

    async def _acknowledge(self, fault: int) -> None:
        """Change the register once, from whatever the PLC holds: no restart of either side looks like a person.

        A box with a fault of its own acknowledges nothing: the belt would start with nobody to inspect it.
        """
        asked_ns = self._ack_asked_ns
        if asked_ns is None:
            return
        if time.monotonic_ns() - asked_ns > ACK_VOID_NS:
            self._counters["acks_void"] += 1
        elif fault != OK:
            return
        else:
            at = self._settings.box_base + r.ACK_AT
            (value,) = await self._wire.read(at, 1)
            await self._wire.write(at, [(value + 1) % 2**16])
            self._counters["acks"] += 1
        if self._ack_asked_ns == asked_ns:
            self._ack_asked_ns = None

    def _note(self, error: WireError) -> None:
        self._counters[error.cause] += 1
        if self._problem != str(error):
            log.warning("%s", error)
        self._problem = str(error)


def _inferred(waiting: _Waiting, *, permitted: bool) -> tuple[Decision, Reason]:
    """What a PLC that echoes nothing did with a part that has passed its decision point: ACCEPT must be proven."""
    asked = waiting.asked
    if asked is None:
        return Decision.FAULT, Reason.NO_VERDICT
    if asked.decision is Decision.ACCEPT and not permitted:
        return Decision.REJECT, Reason.NOT_PERMITTED
    if asked.decision is Decision.ACCEPT and not waiting.in_time:
        return Decision.REJECT, Reason.LATE
    return asked.decision, asked.reason


_NOT_CONFIRMED = (
    "the PLC has not confirmed the dry run (status bit 3): its gate may reject; its program must hold the gate in its "
    "passing state while bit 0 of the box's flags is set, and say so"
)
_HELD = (
    "the PLC holds its gate (status bit 3) although no dry run was asked for: nothing is rejected, so the belt is "
    "stopped; release the gate at the PLC and acknowledge, or run with --dry-run"
)
_PLAIN = {
    Decision.ACCEPT: Reason.SCORE_BELOW_THRESHOLD,
    Decision.REJECT: Reason.SCORE_ABOVE_THRESHOLD,
    Decision.FAULT: Reason.OUTCOME_UNKNOWN,
}
