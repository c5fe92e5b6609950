"""The reject path through a plant's own PLC. The register map and its failure modes are in the package's docstring."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.look import wrong_map
from firmware_bridge.modbus.settings import HEARTBEAT_MS, ModbusSettings
from firmware_bridge.modbus.track import PARTS_PER_CYCLE, Track
from firmware_bridge.modbus.wire import Wire, WireError
from firmware_bridge.parts import Outcome, PartId, Trigger, Verdict
from firmware_bridge.reject_path import Memory, PathHealth

HEARTBEAT_NS = HEARTBEAT_MS * 1_000_000
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 1.0
ACK_VOID_NS = 1_000_000_000  # a person's word for the belt as it is now, not for whenever the wire is back
FAILURES_TO_RECONNECT = 3
OK, STANDING_STILL, EPOCH_REFUSED, WRONG_MAP, GATE_HELD = range(5)  # box fault codes

log = logging.getLogger(__name__)


class ModbusPath:
    """Implements firmware_bridge.reject_path.RejectPath. Everything with an underscore runs on the path's thread."""

    def __init__(self, settings: ModbusSettings, memory: Memory, inhibit: bool = False) -> None:
        self._settings, self._memory, self._inhibit = settings, memory, inhibit
        self._wire = Wire(settings)
        self._counters: Counter[str] = Counter()
        self._track = Track(self._wire, settings, self._counters, inhibit=inhibit)
        self.on_trigger: Callable[[Trigger], None] = lambda _: None  # replaced by the station, as the next two
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_lost: Callable[[PartId], None] = lambda _: None
        self._ack_asked_ns: int | None = None  # by a person, not yet written
        self._problem: str | None = "not connected yet"
        self._header: r.Header | None = None  # of the last poll; None while not connected
        self._doubted: int | None = None  # box fault code that the last header gave reason for
        self._refused: tuple[int, str] | None = None  # box fault code and words: epoch or map is not accepted
        self._refused_epoch: tuple[int, str] | None = None
        self._stepped_ns: int | None = None
        self._heartbeat = 0
        self._next_heartbeat_ns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="modbus", daemon=True)

    def open(self) -> None:
        track = self._track
        track.on_trigger, track.on_outcome, track.on_lost = self.on_trigger, self.on_outcome, self.on_lost
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def decide(self, verdict: Verdict) -> None:
        self._track.decide(verdict)

    def step_done(self) -> None:
        self._stepped_ns = time.monotonic_ns()

    def ack(self) -> None:
        self._track.defied = None
        self._ack_asked_ns = time.monotonic_ns()

    def jog_gate(self) -> None:
        raise RuntimeError("the gate belongs to the plant's PLC: cycle it there")

    def health(self) -> PathHealth:
        header = self._header if self._thread.is_alive() else None
        status = header.status if header else 0
        inhibited = bool(status & r.INHIBITED)
        as_asked = inhibited == self._inhibit
        refused = self._refused
        faults = [refused[1]] if refused else []
        if header and not refused and not as_asked:
            faults.append(_NOT_CONFIRMED if self._inhibit else _HELD)
        if header and status & r.FAULT:
            faults.append(f"the PLC has latched its fault {header.fault_code}")
        faults += [words for words in (self._track.silent, self._track.defied) if words]
        known = header is not None and header.epoch == self._track.epoch
        return PathHealth(
            connected=header is not None,
            ready=bool(status & r.READY) and known and refused is None and as_asked,
            permit=bool(status & r.PERMIT),
            fault="; ".join(faults) or self._problem,
            epoch=self._track.epoch,
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
            self._header = self._refused = self._doubted = None
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
                failures += 1
                if failures >= FAILURES_TO_RECONNECT:
                    raise
                self._note(error)
            await asyncio.sleep(self._settings.poll_ms / 1000)

    async def _cycle(self) -> None:
        track = self._track
        length = r.HEADER_WORDS + self._counters["no_answer"] % r.HEADER_LENGTHS  # a late answer has another one
        header = r.read_header(await self._wire.read(self._settings.plc_base, length), self._settings.word_order)
        read_ns = time.monotonic_ns()
        if header.layout == r.LAYOUT:
            track.note(header, read_ns)
        trusted = await self._trust(header)
        first, self._header = self._header is None, header
        if header.layout == r.LAYOUT and (trusted or not first):  # else these registers may be another machine's
            fault = self._box_fault(header)
            await self._beat(fault)
            if trusted or not header.status & r.FAULT:
                await self._acknowledge(header, fault)
        if trusted:
            track.until_ns = self._next_heartbeat_ns  # what is left is done after another header
            await track.write_decisions()  # first: nothing else is as urgent
            await track.read_triggers(header, read_ns)
            await track.settle(header)

    async def _trust(self, header: r.Header) -> bool:
        """Whether to act on this header. What is wrong in one may be torn or half-way, in two it is refused."""
        doubt = await self._doubt(header)
        if doubt is None:
            self._refused = self._doubted = None
            return self._follow_epoch(header)
        code, words = doubt
        if self._doubted is not None and (self._refused is None or self._refused[0] != code):
            self._refused = doubt
            log.warning("%s", words)
        known = self._refused_epoch is not None and self._refused_epoch[0] == header.epoch
        if code == self._doubted == EPOCH_REFUSED and not known:
            self._counters["epochs_refused"] += 1
            self._refused_epoch = (header.epoch, words)  # for good: its numbers have been used
        self._doubted = code
        return False

    async def _doubt(self, header: r.Header) -> tuple[int, str] | None:
        track = self._track
        known = header.layout == r.LAYOUT and header.epoch == track.epoch
        if not known or header.newest - track.last_part > r.SLOTS or track.unfilled:
            wrong = await wrong_map(self._wire, self._settings, header)
            if wrong:
                return WRONG_MAP, wrong
        if header.settled > header.newest:
            return WRONG_MAP, f"the PLC has settled part {header.settled}, but its newest part is {header.newest}"
        if self._refused_epoch and self._refused_epoch[0] == header.epoch:
            return EPOCH_REFUSED, self._refused_epoch[1]
        last = track.last_part if known else self._memory.last_part(header.epoch)
        if header.newest < last:
            return EPOCH_REFUSED, (
                f"the PLC counts part {header.newest} after part {last} of the same epoch {header.epoch}: "
                "its program must draw a new epoch at each start"
            )
        return None

    def _follow_epoch(self, header: r.Header) -> bool:
        """Whether the header's epoch is the accepted one; a new one is entered once a second header agrees."""
        if header.epoch == self._track.epoch:
            return True
        before = self._header
        if before is None or before.epoch != header.epoch or before.newest > header.newest:
            return False
        known = self._memory.knows_epoch(header.epoch)
        last = self._memory.last_part(header.epoch) if known else header.newest
        unresolved = self._memory.unresolved(header.epoch)
        oldest = max(min(unresolved, default=last + 1), last + 1 - PARTS_PER_CYCLE)
        self._track.enter(header.epoch, last, {*unresolved, *range(oldest, last + 1)})  # missed triggers among them
        return True

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
        if fault == OK:
            self._heartbeat = (self._heartbeat + 1) % 2**16
        await self._wire.write(self._settings.box_base, [self._heartbeat, fault, int(self._inhibit)])
        self._next_heartbeat_ns = now_ns + HEARTBEAT_NS

    async def _acknowledge(self, header: r.Header, fault: int) -> None:
        """Change the register once, from whatever the PLC holds: no restart of either side looks like a person.

        A latched fault is acknowledged, not one that is still to come; and only by a box without a fault of its own:
        the belt would start with nobody to inspect it.
        """
        asked_ns = self._ack_asked_ns
        if asked_ns is None:
            return
        if fault == OK and header.status & r.FAULT:
            at = self._settings.box_base + r.ACK_AT
            (value,) = await self._wire.read(at, 1)
            if time.monotonic_ns() - asked_ns <= ACK_VOID_NS:
                await self._wire.write(at, [(value + 1) % 2**16])
                self._counters["acks"] += 1
                self._forget_ack(asked_ns)
                return
        if not header.status & r.FAULT or time.monotonic_ns() - asked_ns > ACK_VOID_NS:
            self._counters["acks_void"] += 1
            self._forget_ack(asked_ns)

    def _forget_ack(self, asked_ns: int) -> None:
        if self._ack_asked_ns == asked_ns:  # else somebody has asked again
            self._ack_asked_ns = None

    def _note(self, error: WireError) -> None:
        self._counters[error.cause] += 1
        if self._problem != str(error):
            log.warning("%s", error)
        self._problem = str(error)


_NOT_CONFIRMED = (
    "the PLC has not confirmed the dry run (status bit 3): its gate may reject; its program must hold the gate in its "
    "passing state while bit 0 of the box's flags is set, and say so"
)
_HELD = (
    "the PLC holds its gate (status bit 3) although no dry run was asked for: nothing is rejected, so the belt is "
    "stopped; release the gate at the PLC and acknowledge, or run with --dry-run"
)
