"""The Modbus path against pymodbus's own server, with a small tracking PLC behind it, over TCP and over RTU."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import socketserver
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from firmware_bridge.modbus import ModbusPath, ModbusSettings
from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.wire import Wire, WireError
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict

BOX, BOX_FAULT, FLAGS = 200, 1, 2
SILENCE_S = 0.5  # 0.3 in a plant; these tests share their processors
PATIENCE_S = 30.0  # of a PLC in tests that are not about silence
DISTANCE = 250  # counts from photo-eye to decision point
COUNTS_PER_SCAN = 4  # the belt moves with the PLC's scan: a machine that stalls stalls it too


class Plc:
    """A plant's tracking PLC: 400 holding registers and a scan of a few milliseconds. The server's loop owns it."""

    def __init__(self, epoch: int = 77, *, order: Any = "high_first", silence_s: float = PATIENCE_S) -> None:
        self.memory = [0] * 400
        self.order, self.silence_s = order, silence_s
        self.mute = False
        self.holds_gate: bool | None = None  # status bit 3; None: as the box asks
        self.count = 2**32 - 100  # of the encoder; it wraps soon
        self.before_write: Callable[[int], None] = lambda _: None
        self.gate: dict[int, bool] = {}  # part -> passed, judged by the PLC alone
        self.restart(epoch)

    def restart(self, epoch: int, first: int = 0) -> None:
        self.epoch, self.newest, self.settled = epoch, first, first
        self.memory[BOX:] = [0] * len(self.memory[BOX:])
        self.beat, self.beat_at = 0, time.monotonic()
        self.acks, self.fault, self.acknowledged = 0, True, 0
        self.on_belt: dict[int, int] = {}
        self.seen_ms: dict[int, int] = {}

    def move(self, counts: int) -> None:
        self.count = (self.count + counts) % 2**32

    def trigger(self) -> int:
        """A part at the photo-eye."""
        part, deadline = self.newest + 1, (self.count + DISTANCE) % 2**32
        self.on_belt[part], self.seen_ms[part] = deadline, now_ms()
        values = (part, self.count, deadline, self.seen_ms[part])
        words = [word for value in values for word in r.split(value, self.order)]
        at = 16 + 8 * (part % 8)
        self.memory[at : at + len(words)] = words
        self.newest = part
        return part

    def scan(self) -> None:
        if self.memory[BOX] != self.beat:
            self.beat, self.beat_at = self.memory[BOX], time.monotonic()
        if time.monotonic() - self.beat_at > self.silence_s:
            self.fault = True
        if self.memory[BOX + r.ACK_AT] != self.acks:
            self.acks, self.fault = self.memory[BOX + r.ACK_AT], False
            self.acknowledged += 1
        for part, deadline in list(self.on_belt.items()):
            if r.passed(self.count, deadline):
                self.decide(part, deadline)

    def pass_by(self) -> None:
        """All at once everything on the belt passes the gate."""
        self.move(2 * DISTANCE)
        self.scan()

    def decide(self, part: int, deadline: int) -> None:
        del self.on_belt[part]
        at = BOX + 4 + 6 * (part % 8)
        words = self.memory[at : at + 6]
        known = [*r.split(self.epoch, self.order), *r.split(part, self.order)]
        fits = words[:4] == known and words[5] == r.check(words[:5])
        self.gate[part] = fits and words[4] == 1 and not self.fault
        decision, reason = (words[4], 1) if fits else (3, 3)
        if fits and words[4] == 1 and self.fault:
            decision, reason = 3, 4
        if self.holds_gate and not self.gate[part]:
            decision = 0
        at = 80 + 6 * (part % 8)
        self.memory[at : at + 6] = [*r.split(part, self.order), decision, reason, *r.split(deadline, self.order)]
        self.settled = part

    def header(self) -> list[int]:
        status = r.READY | (0 if self.fault else r.PERMIT) | (r.FAULT if self.fault else 0)
        holds_gate = self.memory[BOX + FLAGS] & 1 if self.holds_gate is None else self.holds_gate
        status |= r.INHIBITED if holds_gate else 0
        longs = (self.epoch, self.count, now_ms(), self.newest, self.settled)
        return [0xB171, status, 5 if self.fault else 0, *(w for value in longs for w in r.split(value, self.order))]

    async def access(self, _f: int, _s: int, address: int, count: int, registers: list[int], values: Any) -> None:
        while self.mute:
            await asyncio.sleep(0.02)
        if values is not None:
            self.before_write(address)
            self.memory[address : address + count] = values
        self.memory[:13] = self.header()
        registers[:] = self.memory


def now_ms() -> int:
    return int(time.monotonic() * 1000) % 2**32


class Served:
    """A server in a thread of its own; `call` runs something on its loop and returns the result."""

    def __init__(self, plc: Plc, make: Callable[[SimDevice], Any]) -> None:
        self.plc, self._make = plc, make
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        self._scan = asyncio.run_coroutine_threadsafe(self._scans(), self._loop)

    async def _scans(self) -> None:
        while True:
            self.plc.move(COUNTS_PER_SCAN)
            self.plc.scan()
            await asyncio.sleep(0.004)

    def call(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(5)

    def start(self) -> None:
        async def start() -> None:
            block = SimData(0, count=400, values=0, datatype=DataType.REGISTERS)
            self._server = self._make(SimDevice(1, simdata=[block], action=self.plc.access))
            await self._server.serve_forever(background=True)

        asyncio.run_coroutine_threadsafe(start(), self._loop).result(5)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(5)

    def close(self) -> None:
        self.plc.mute = False
        self._scan.cancel()
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class Cable:
    """Two pseudo-terminals and a thread between them: a serial line that can be unplugged and shouted into."""

    def __init__(self, folder: Path) -> None:
        self.device = folder / "ttyBOX"
        self._plc, self._plc_slave = self._end()
        self.plc_device = os.ttyname(self._plc_slave)
        self._box = self._box_slave = -1
        self.noise: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._open = True
        self._lock = threading.Lock()
        self.plug()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    @staticmethod
    def _end() -> tuple[int, int]:
        master, slave = os.openpty()
        tty.setraw(slave)
        return master, slave

    def plug(self) -> None:
        with self._lock:
            self._box, self._box_slave = self._end()
            self.device.unlink(missing_ok=True)
            self.device.symlink_to(os.ttyname(self._box_slave))

    def unplug(self) -> None:
        with self._lock:
            os.close(self._box_slave)
            os.close(self._box)
            self._box = -1
            self.device.unlink()

    def _pump(self) -> None:
        while self._open:
            with self._lock:
                ends = [end for end in (self._plc, self._box) if end >= 0]
                ready, _, _ = select.select(ends, [], [], 0.002)
                for end in ready:
                    data = os.read(end, 4096)
                    other = self._plc if end == self._box else self._box
                    if other >= 0:
                        os.write(other, data)
                if not self.noise.empty() and self._box >= 0:
                    os.write(self._box, self.noise.get())

    def close(self) -> None:
        self._open = False
        self._thread.join(5)
        for end in (self._plc, self._plc_slave, self._box, self._box_slave):
            if end >= 0:
                os.close(end)


class Past:
    """A journal's memory."""

    def __init__(self, epoch: int = 0, last: int = 0, unresolved: tuple[int, ...] = ()) -> None:
        self._epoch, self._last, self._unresolved = epoch, last, list(unresolved)

    def knows_epoch(self, epoch: int) -> bool:
        return epoch == self._epoch

    def last_part(self, epoch: int) -> int:
        return self._last if epoch == self._epoch else 0

    def unresolved(self, epoch: int) -> list[int]:
        return self._unresolved if epoch == self._epoch else []


class Box:
    """A station around the path: accepts odd parts, rejects even ones, and steps like a scoring loop."""

    def __init__(self, path: ModbusPath) -> None:
        self.path = path
        self.outcomes: dict[int, Outcome] = {}
        self.lost: list[PartId] = []
        self.triggers: list[Trigger] = []
        self._heard: queue.Queue[Trigger] = queue.Queue()
        self.deciding = True
        self.stepping = True
        path.on_outcome = self._outcome
        path.on_lost = self.lost.append
        path.on_trigger = self._heard.put
        self._stop = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        path.open()
        self._thread.start()

    def _outcome(self, outcome: Outcome) -> None:
        assert outcome.part_id.part not in self.outcomes, "one outcome per part"
        self.outcomes[outcome.part_id.part] = outcome

    def _loop(self) -> None:
        while not self._stop:
            with suppress(queue.Empty):
                trigger = self._heard.get(timeout=0.02)
                self.triggers.append(trigger)
                if self.deciding:
                    self.path.decide(verdict(trigger.part_id))
            if self.stepping:
                self.path.step_done()

    def close(self) -> None:
        self._stop = True
        self._thread.join(5)
        self.path.close()


def verdict(part_id: PartId) -> Verdict:
    if part_id.part % 2:
        return Verdict(part_id, Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD, 0.1, 0.5, "r")
    return Verdict(part_id, Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD, 0.9, 0.5, "r")


def wait(found: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


@contextmanager
def tcp(plc: Plc, memory: Any = None, inhibit: bool = False, **more: Any) -> Iterator[tuple[Served, Box]]:
    port = 0

    def make(device: SimDevice) -> Any:
        return ModbusTcpServer(device, address=("127.0.0.1", port))

    served = Served(plc, make)
    port = served._server.transport.sockets[0].getsockname()[1]
    settings = ModbusSettings(**{"host": "127.0.0.1", "port": port, "word_order": plc.order, **more})
    box = Box(ModbusPath(settings, memory or Past(), inhibit))
    try:
        yield served, box
    finally:
        box.close()
        served.close()


@contextmanager
def rtu(plc: Plc, folder: Path) -> Iterator[tuple[Served, Box, Cable]]:
    cable = Cable(folder)
    served = Served(plc, lambda device: ModbusSerialServer(device, port=cable.plc_device, baudrate=115200))
    box = Box(ModbusPath(ModbusSettings(transport="rtu", device=str(cable.device), parity="N"), Past()))
    try:
        yield served, box, cable
    finally:
        box.close()
        served.close()
        cable.close()


def judge(box: Box, plc: Plc, parts: range) -> None:
    """Every part has one outcome, the gate did what it says, and it is what the box asked for."""
    wait(lambda: plc.gate.keys() >= set(parts))
    for part in parts:
        accepted = part % 2 == 1
        assert plc.gate[part] is accepted, part
        outcome = box.outcomes[part]
        asked = verdict(PartId(plc.epoch, part))
        assert (outcome.decision, outcome.reason) == (asked.decision, asked.reason)
        assert outcome.part_id == PartId(plc.epoch, part)


def start_belt(box: Box) -> None:
    """The PLC has latched its fault until a person acknowledges."""
    wait(lambda: box.path.health().ready)
    assert not box.path.health().permit
    box.path.ack()
    wait(lambda: box.path.health().permit)


@pytest.mark.parametrize("order", ["high_first", "low_first"])
def test_each_part_gets_its_own_decision_over_tcp(order: str) -> None:
    plc = Plc(epoch=0xDEADBEEF, order=order)
    with tcp(plc) as (served, box):
        start_belt(box)
        for _ in range(12):
            served.call(plc.trigger)
            time.sleep(0.03)
        wait(lambda: len(box.outcomes) == 12)
        judge(box, plc, range(1, 13))
        assert box.path.health().permit
        assert not plc.fault
        first = box.triggers[0]
        assert first.deadline_count == (first.count + DISTANCE) % 2**32
        assert abs(first.at_ns / 1e6 - plc.seen_ms[1]) < 100


def test_more_parts_than_slots_between_photo_eye_and_gate() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        start_belt(box)
        for _ in range(30):
            served.call(plc.trigger)
            wait(lambda: len(box.triggers) == plc.newest)
            wait(lambda: (plc.count - box.triggers[-1].count) % 2**32 > DISTANCE / 16)
        assert len(plc.on_belt) > r.SLOTS
        wait(lambda: len(box.outcomes) == 30)
        judge(box, plc, range(1, 31))


def test_each_part_gets_its_own_decision_over_rtu(tmp_path: Path) -> None:
    plc = Plc()
    with rtu(plc, tmp_path) as (served, box, _):
        start_belt(box)
        for _ in range(8):
            served.call(plc.trigger)
            time.sleep(0.06)
        wait(lambda: len(box.outcomes) == 8)
        judge(box, plc, range(1, 9))


def test_garbage_on_the_line_passes_nothing_and_is_overcome(tmp_path: Path) -> None:
    plc = Plc()
    with rtu(plc, tmp_path) as (served, box, cable):
        start_belt(box)
        box.deciding = False
        for blob in (b"\xff" * 30, b"\x01\x03\x20" + b"\x00" * 34, bytes(range(256)), b"\x01\x83\x02\xc0\xf1"):
            cable.noise.put(blob)
            served.call(plc.trigger)
            time.sleep(0.3)
        wait(lambda: plc.settled == 4)
        assert not any(plc.gate.values())
        box.deciding = True
        wait(lambda: box.path.health().connected and box.path.health().fault is None)
        served.call(plc.trigger)
        wait(lambda: 5 in box.outcomes and 5 in plc.gate)
        assert plc.gate[5]


def test_a_serial_port_that_returns_is_found_within_two_seconds(tmp_path: Path) -> None:
    plc = Plc(silence_s=SILENCE_S)
    with rtu(plc, tmp_path) as (served, box, cable):
        start_belt(box)
        cable.unplug()
        wait(lambda: not box.path.health().connected)
        wait(lambda: plc.fault)
        cable.plug()
        wait(lambda: box.path.health().connected, timeout_s=2)
        assert not box.path.health().permit
        box.path.ack()
        wait(lambda: box.path.health().permit)
        served.call(plc.trigger)
        wait(lambda: 1 in box.outcomes and 1 in plc.gate)
        assert plc.gate[1]


def test_no_decision_means_reject() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        start_belt(box)
        box.deciding = False
        served.call(plc.trigger)
        wait(lambda: 1 in box.outcomes and 1 in plc.gate)
        assert not plc.gate[1]
        assert (box.outcomes[1].decision, box.outcomes[1].reason) == (Decision.FAULT, Reason.NO_VERDICT)


def test_a_late_accept_and_one_without_permit_are_journalled_as_rejected() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        wait(lambda: box.path.health().ready)
        served.call(plc.trigger)
        wait(lambda: 1 in box.outcomes)
        assert (box.outcomes[1].decision, box.outcomes[1].reason) == (Decision.FAULT, Reason.HEARTBEAT_LOST)
        start_belt(box)
        box.deciding = False

        def belt_is_faster(address: int) -> None:
            if address >= BOX + r.DECISIONS_AT:
                plc.pass_by()

        served.call(plc.trigger)
        served.call(plc.trigger)
        wait(lambda: len(box.triggers) == 3)
        plc.before_write = belt_is_faster
        box.path.decide(verdict(PartId(plc.epoch, 3)))
        wait(lambda: 3 in box.outcomes)
        assert not any(plc.gate.values())
        assert plc.memory[BOX + r.DECISIONS_AT + 3 * r.DECISION_WORDS + 4] == 1, "the ACCEPT was written, but too late"
        assert (box.outcomes[3].decision, box.outcomes[3].reason) == (Decision.FAULT, Reason.NO_VERDICT)


def test_a_slot_that_was_overwritten_while_it_was_read_is_a_missed_trigger() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        start_belt(box)
        read, first = box.path._wire.read, [16 + 8]

        async def overtaken(address: int, count: int) -> list[int]:
            if address in first:
                first.clear()
                for _ in range(r.SLOTS):
                    plc.trigger()
            return await read(address, count)

        box.path._wire.read = overtaken  # type: ignore[method-assign]
        served.call(plc.trigger)
        wait(lambda: 9 in box.outcomes and (1 in box.outcomes or box.lost))
        assert [trigger.part_id.part for trigger in box.triggers] == list(range(2, 10))
        assert box.path.health().counters["triggers_missed"] == 1
        assert not plc.gate[1]


def test_a_confirmation_of_another_register_is_no_confirmation() -> None:
    class Elsewhere(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.read(7):
                transaction, _, length, unit = struct.unpack(">HHHB", header)
                request = self.rfile.read(length - 1)
                (address,) = struct.unpack(">H", request[1:3])
                answer = request[:1] + struct.pack(">H", address + 1) + request[3:5]
                self.wfile.write(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit) + answer)

    async def write(port: int) -> None:
        wire = Wire(ModbusSettings(host="127.0.0.1", port=port))
        await wire.connect()
        try:
            await wire.write(200, [1])
        finally:
            wire.close()

    with socketserver.TCPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(WireError, match="confirms register 201 instead of 200") as raised:
            asyncio.run(write(server.server_address[1]))
        thread.join()
    assert raised.value.cause == "wrong_answer"


@pytest.mark.parametrize("order", ["high_first", "low_first"])
def test_a_wrong_word_order_is_named_and_floods_nothing(order: str) -> None:
    plc = Plc(order=order)
    with tcp(plc, word_order="low_first" if order == "high_first" else "high_first") as (served, box):
        wait(lambda: box.path.health().connected)
        for _ in range(3):
            served.call(plc.trigger)
        wait(lambda: "word_order" in str(box.path.health().fault))
        wait(lambda: plc.memory[BOX + BOX_FAULT] == 3)
        assert not box.path.health().ready
        assert not box.lost
        assert not box.outcomes


def test_the_heartbeat_stops_with_the_scoring_loop_and_the_permit_returns_only_after_ack() -> None:
    plc = Plc(silence_s=SILENCE_S)
    with tcp(plc) as (_, box):
        start_belt(box)
        box.stepping = False
        wait(lambda: plc.fault, timeout_s=2)
        wait(lambda: plc.memory[BOX + BOX_FAULT] == 1)
        wait(lambda: "latched its fault 5" in str(box.path.health().fault))
        box.path.ack()
        wait(lambda: box.path.health().counters.get("acks_void"))
        box.stepping = True
        time.sleep(0.3)
        assert not box.path.health().permit
        assert plc.acknowledged == 1, "with nobody scoring, nobody starts the belt"
        box.path.ack()
        wait(lambda: box.path.health().permit)


def test_a_mute_plc_stalls_nothing_and_its_parts_are_rejected() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        start_belt(box)
        plc.mute = True
        served.call(plc.trigger)
        start = time.monotonic()
        for _ in range(100):
            box.path.decide(verdict(PartId(plc.epoch, 1)))
            box.path.step_done()
            box.path.health()
        assert time.monotonic() - start < 0.1
        wait(lambda: not box.path.health().connected)
        assert box.path.health().counters["no_answer"] >= 3
        wait(lambda: 1 in plc.gate)
        plc.mute = False
        wait(lambda: box.path.health().connected)
        wait(lambda: 1 in box.outcomes and 1 in plc.gate)
        assert box.outcomes[1].recovered
        assert not plc.gate[1]


def test_a_plc_that_goes_away_is_found_again() -> None:
    plc = Plc(silence_s=SILENCE_S)
    with tcp(plc) as (served, box):
        start_belt(box)
        served.stop()
        wait(lambda: not box.path.health().connected)
        served.start()
        wait(lambda: box.path.health().connected, timeout_s=2)
        box.path.ack()
        wait(lambda: not plc.fault)
        served.call(plc.trigger)
        wait(lambda: 1 in box.outcomes and 1 in plc.gate)
        assert plc.gate[1]


def test_decisions_of_another_epoch_or_a_settled_part_are_counted_and_dropped() -> None:
    plc = Plc()
    with tcp(plc) as (_, box):
        start_belt(box)
        box.path.decide(verdict(PartId(plc.epoch + 1, 1)))
        box.path.decide(verdict(PartId(plc.epoch, 99)))
        wait(lambda: box.path.health().counters.get("decisions_stale") == 2)
        assert not any(plc.memory[BOX + r.DECISIONS_AT :])


def test_the_first_decision_for_a_part_stands() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        start_belt(box)
        box.deciding = False
        served.call(plc.trigger)
        wait(lambda: box.triggers)
        part_id = PartId(plc.epoch, 1)
        box.path.decide(Verdict(part_id, Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD, 1, 0.5, "r"))
        box.path.decide(verdict(part_id))
        wait(lambda: 1 in box.outcomes and 1 in plc.gate)
        assert not plc.gate[1]
        assert box.outcomes[1].decision is Decision.REJECT


def test_a_restarted_plc_is_followed_into_its_new_epoch() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        start_belt(box)
        box.deciding = False
        served.call(plc.trigger)
        wait(lambda: box.triggers)
        served.call(lambda: plc.restart(78))
        wait(lambda: box.lost == [PartId(77, 1)])
        box.deciding = True
        wait(lambda: box.path.health().epoch == 78)
        beat = plc.memory[BOX]
        wait(lambda: plc.memory[BOX] > beat + 1)
        assert plc.fault, "only a person may start the belt"
        start_belt(box)
        served.call(plc.trigger)
        wait(lambda: 1 in box.outcomes and 1 in plc.gate)
        assert box.outcomes[1].part_id == PartId(78, 1)
        assert plc.gate[1]


def test_an_epoch_that_was_used_before_is_refused() -> None:
    plc = Plc(epoch=5)
    with tcp(plc, Past(epoch=5, last=40)) as (served, box):
        wait(lambda: box.path.health().fault and "draw a new epoch" in str(box.path.health().fault))
        assert not box.path.health().ready
        wait(lambda: plc.memory[BOX + BOX_FAULT] == 2)
        time.sleep(0.3)
        assert not plc.memory[BOX], "no heartbeat for such a PLC"
        served.call(lambda: plc.restart(6))
        start_belt(box)


def test_a_restarted_box_learns_what_it_missed_and_names_what_nobody_knows() -> None:
    plc = Plc(epoch=5)
    for _ in range(20):
        plc.trigger()
    plc.move(DISTANCE)
    for part, deadline in list(plc.on_belt.items()):
        plc.decide(part, deadline)
    with tcp(plc, Past(epoch=5, last=9, unresolved=(8, 9))) as (_, box):
        wait(lambda: len(box.outcomes) + len(box.lost) == 13)
        assert sorted(part_id.part for part_id in box.lost) == [8, 9, 10, 11, 12]
        assert sorted(box.outcomes) == list(range(13, 21))
        assert all(outcome.recovered for outcome in box.outcomes.values())
        assert not box.triggers


def test_a_restarted_box_acknowledges_nothing() -> None:
    plc = Plc()
    plc.memory[BOX + r.ACK_AT] = plc.acks = 7
    with tcp(plc) as (_, box):
        wait(lambda: plc.memory[BOX] > 2)
        assert plc.fault
        assert plc.memory[BOX + r.ACK_AT] == 7
        start_belt(box)
        assert plc.memory[BOX + r.ACK_AT] == 8


def test_an_acknowledgement_that_could_not_be_written_at_once_is_void() -> None:
    plc = Plc()
    with tcp(plc) as (served, box):
        wait(lambda: plc.memory[BOX] > 2)
        served.stop()
        wait(lambda: not box.path.health().connected)
        box.path.ack()
        time.sleep(1.1)
        served.start()
        wait(lambda: box.path.health().counters.get("acks_void"))
        beat = plc.memory[BOX]
        wait(lambda: plc.memory[BOX] > beat + 1)
        assert plc.fault
        start_belt(box)


@pytest.mark.parametrize(("more", "problem"), [({"plc_base": 390}, "exception 2"), ({"plc_base": 13}, "0xb171")])
def test_a_wrong_register_map_is_named(more: dict[str, Any], problem: str) -> None:
    plc = Plc()
    with tcp(plc, **more) as (_, box):
        wait(lambda: problem in str(box.path.health().fault))
        assert "plc_base" in str(box.path.health().fault)
        assert not box.path.health().ready
        box.path.ack()
        time.sleep(0.3)
        assert not plc.acknowledged, "what lies there may be another machine's"


def test_nobody_there_is_named_and_close_returns() -> None:
    path = ModbusPath(ModbusSettings(transport="rtu", device="/dev/nowhere"), Past())
    heard: list[Trigger] = []
    path.on_trigger = heard.append
    path.open()
    wait(lambda: "/dev/nowhere" in str(path.health().fault))
    assert not heard
    with pytest.raises(RuntimeError, match="PLC"):
        path.jog_gate()
    path.close()


def test_a_dry_run_asks_the_plc_to_hold_the_gate() -> None:
    with tcp(Plc(), inhibit=True) as (_, box):
        start_belt(box)
        assert box.path.health().inhibited
        assert box.path.health().fault is None
    with tcp(Plc()) as (_, box):
        start_belt(box)
        assert not box.path.health().inhibited


@pytest.mark.parametrize(
    ("inhibit", "fault"),
    [(True, "the PLC has not confirmed the dry run (status bit 3)"), (False, "the PLC holds its gate (status bit 3)")],
)
def test_a_gate_that_is_not_as_asked_is_not_ready(inhibit: bool, fault: str) -> None:
    plc = Plc()
    plc.holds_gate = not inhibit
    with tcp(plc, inhibit=inhibit) as (_, box):
        wait(lambda: plc.memory[BOX + BOX_FAULT] == (0 if inhibit else 4))
        wait(lambda: fault in str(box.path.health().fault))
        assert "latched its fault 5" in str(box.path.health().fault)
        assert not box.path.health().ready
        assert box.path.health().inhibited is not inhibit
        plc.holds_gate = None
        start_belt(box)
        wait(lambda: box.path.health().fault is None)


def test_a_gate_held_unasked_stops_the_belt() -> None:
    """Nothing would be rejected: it must not run on."""
    plc = Plc(silence_s=SILENCE_S)
    with tcp(plc) as (served, box):
        start_belt(box)
        box.deciding = False
        plc.holds_gate = True
        served.call(plc.trigger)
        wait(lambda: box.lost == [PartId(plc.epoch, 1)])
        wait(lambda: plc.fault, timeout_s=2)
        assert plc.memory[BOX + BOX_FAULT] == 4
        wait(lambda: not box.path.health().permit)
        plc.holds_gate = None
        wait(lambda: plc.memory[BOX + BOX_FAULT] == 0)
        assert plc.fault
        box.path.ack()
        wait(lambda: box.path.health().permit)


def test_a_dry_run_that_is_not_confirmed_leaves_the_belt_running() -> None:
    """The gate goes on rejecting: nobody is let down by it."""
    plc = Plc()
    plc.holds_gate = False
    with tcp(plc, inhibit=True) as (_, box):
        wait(lambda: plc.memory[BOX + FLAGS] == 1)
        box.path.ack()
        wait(lambda: not plc.fault)
        beat = plc.memory[BOX]
        wait(lambda: plc.memory[BOX] > beat + 5)
        assert plc.memory[BOX + BOX_FAULT] == 0
        assert not box.path.health().ready
        assert not plc.fault


@pytest.mark.parametrize(("plc_base", "box_base"), [(0, 50), (0, 127), (200, 149), (200, 251), (7, 7)])
def test_blocks_that_overlap_are_refused(plc_base: int, box_base: int) -> None:
    with pytest.raises(ValidationError, match=rf"plc_base = {plc_base} .* box_base = {box_base} .* overlap"):
        ModbusSettings(host="plc", plc_base=plc_base, box_base=box_base)


@pytest.mark.parametrize(("plc_base", "box_base"), [(0, 128), (200, 148), (52, 0)])
def test_blocks_may_touch(plc_base: int, box_base: int) -> None:
    ModbusSettings(host="plc", plc_base=plc_base, box_base=box_base)
