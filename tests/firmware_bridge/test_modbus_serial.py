"""The Modbus path on slow serial lines: heartbeats keep their time, and no answer is taken for another one's."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import tty
from collections.abc import Coroutine

import pytest
from pydantic import ValidationError
from pymodbus.framer import FramerRTU

from firmware_bridge.modbus import ModbusPath, ModbusSettings
from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.wire import Wire, WireError
from firmware_bridge.parts import Decision, PartId, Reason, Verdict

BOX = 200
EPOCH = 7
TRAVEL_MS, SCORING_MS = 1000, 50  # from photo-eye to gate, from trigger to verdict


class Line:
    """A PLC at the end of a slow line, in a time of its own: 11 bits a byte, and the PLC's delay before each answer.

    The belt moves one count each millisecond.
    """

    def __init__(self, settings: ModbusSettings, answer_ms: float, rate: float, loss: float) -> None:
        self.settings, self.answer_ms, self.gap_ms, self.loss = settings, answer_ms, 1000 / rate, loss
        self.random = random.Random(5)
        self.now_ms = 5000.0
        self.memory = [0] * 400
        self.newest = self.settled = self.passed = self.beats = 0
        self.next_ms, self.beat_ms, self.silence_ms = 8000.0, 0.0, 0.0
        self.lost_ms = 0.0
        self.verdicts: list[tuple[float, int]] = []
        self.path = ModbusPath(settings, self)
        self.path._wire = self.path._track._wire = self  # type: ignore[assignment]
        self.path._track.on_trigger = lambda trigger: self.verdicts.append(
            (self.now_ms + SCORING_MS, trigger.part_id.part)
        )

    where = "the PLC"

    def knows_epoch(self, epoch: int) -> bool:
        return False

    def last_part(self, epoch: int) -> int:
        return 0

    def unresolved(self, epoch: int) -> list[int]:
        return []

    async def read(self, address: int, count: int) -> list[int]:
        lost = self.ask(8)
        self.turn()
        words = self.memory[address : address + count]
        self.answer(5 + 2 * count, lost)
        return words

    async def write(self, address: int, words: list[int]) -> None:
        if not (lost := self.ask(9 + 2 * len(words))) or self.random.random() < 0.5:  # the answer alone is lost
            if address == BOX and words[0] != self.memory[BOX]:
                if self.memory[BOX]:
                    self.silence_ms = max(self.silence_ms, self.now_ms - self.beat_ms)
                self.beat_ms = self.now_ms
                self.beats += 1
            self.memory[address : address + len(words)] = words
        self.answer(8, lost)

    def ask(self, count: int) -> bool:
        self.began_ms = self.now_ms
        self.now_ms += count * 11_000 / self.settings.baud
        lost = self.now_ms - self.lost_ms > 1000 and self.random.random() < self.loss  # one at a time
        if lost:
            self.lost_ms = self.now_ms
        return lost

    def answer(self, count: int, lost: bool) -> None:
        self.now_ms += self.answer_ms + count * 11_000 / self.settings.baud
        if lost:
            self.now_ms = self.began_ms + self.settings.answer_timeout_ms
            raise WireError("no_answer", "lost")

    def turn(self) -> None:
        while self.now_ms >= self.next_ms:
            self.newest += 1
            self.put(16 + 8 * r.slot(self.newest), self.newest, *[int(self.next_ms)] * 3)
            self.put(16 + 8 * r.slot(self.newest) + 4, int(self.next_ms) + TRAVEL_MS)
            self.next_ms += self.gap_ms
        while self.settled < self.newest and self.now_ms >= 8000 + self.settled * self.gap_ms + TRAVEL_MS:
            self.settled += 1
            at = BOX + r.DECISIONS_AT + r.DECISION_WORDS * r.slot(self.settled)
            wanted = r.decision_words(PartId(EPOCH, self.settled), Decision.ACCEPT, "high_first")
            passes = self.memory[at : at + r.DECISION_WORDS] == wanted
            self.passed += passes
            at = 80 + 6 * r.slot(self.settled)
            self.put(at, self.settled)
            self.memory[at + 2 : at + 4] = [1, 1] if passes else [3, 3]
        self.memory[:3] = [r.LAYOUT, r.READY | r.PERMIT, 0]
        self.put(3, EPOCH, int(self.now_ms), int(self.now_ms), self.newest, self.settled)

    def put(self, at: int, *longs: int) -> None:
        words = [word for value in longs for word in r.split(value, "high_first")]
        self.memory[at : at + len(words)] = words

    def run(self, seconds: float) -> None:
        end_ms = self.now_ms + 1000 * seconds
        while self.now_ms < end_ms:
            for due in [due for due in self.verdicts if due[0] <= self.now_ms]:
                self.verdicts.remove(due)
                part_id = PartId(EPOCH, due[1])
                self.path.decide(Verdict(part_id, Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD, 0.1, 0.5, "r"))
            self.path._stepped_ns = time.monotonic_ns()
            try:
                at_once(self.path._cycle())
            except WireError as error:
                self.path._note(error)
            self.now_ms += self.settings.poll_ms


def at_once(cycle: Coroutine[None, None, None]) -> None:
    with pytest.raises(StopIteration):
        cycle.send(None)


def run(
    monkeypatch: pytest.MonkeyPatch,
    baud: int,
    rate: float,
    *,
    loss: float = 0.0,
    answer_ms: float = 10.0,
    seconds: int = 120,
) -> Line:
    line = Line(ModbusSettings(transport="rtu", device="tty", baud=baud), answer_ms, rate, loss)
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(line.now_ms * 1e6))
    line.run(seconds)
    return line


# the table of docs/modbus.md
@pytest.mark.parametrize(
    ("baud", "slow", "fast"), [(19200, 3, 6), (38400, 6, 11), (57600, 6, 13), (115200, 8, 15)], ids=str
)
def test_a_line_carries_the_parts_it_is_said_to(
    monkeypatch: pytest.MonkeyPatch, baud: int, slow: float, fast: float
) -> None:
    """With one lost answer in each second."""
    for answer_ms, rate in ((20, slow), (10, fast)):
        line = run(monkeypatch, baud, rate, loss=0.1, answer_ms=answer_ms)
        assert line.passed == line.settled > 110 * rate
        assert line.path.health().counters["no_answer"] > 50
        assert line.silence_ms < 300, "no lost answer stops the belt"


def test_more_parts_than_the_line_carries_stop_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    line = run(monkeypatch, 19200, rate=30)
    assert line.passed < line.settled
    assert line.beats > 500
    assert line.silence_ms < 250


def test_an_answer_that_comes_late_is_taken_for_no_other_one() -> None:
    """The second header is answered only when the third is asked for. Register 0 holds the number of the request."""
    master, slave = os.openpty()
    tty.setraw(slave)
    settings = ModbusSettings(transport="rtu", device=os.ttyname(slave), parity="N", timeout_ms=150)
    path = ModbusPath(settings, Line(settings, 0, 1, 0))
    heard: list[int] = []
    done = threading.Event()

    async def trust(header: r.Header) -> bool:
        heard.append(header.layout)
        return False

    def answer() -> None:
        held = b""
        for number in range(6):
            count = os.read(master, 8)[5]
            frame = bytes([1, 3, 2 * count, 0, number]) + bytes(2 * count - 2)
            frame += FramerRTU.compute_CRC(frame).to_bytes(2, "big")
            if number == 1:
                held = frame
                continue
            os.write(master, held)
            if held:
                time.sleep(0.03)
            held = b""
            os.write(master, frame)
        done.set()

    path._trust = trust  # type: ignore[method-assign]
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    path.open()
    assert done.wait(10)
    path.close()
    thread.join(5)
    os.close(master)
    os.close(slave)
    assert heard
    assert 1 not in heard
    assert path.health().counters["wrong_answer"] >= 1


def test_a_lost_answer_costs_one_timeout() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)

    async def ask() -> float:
        wire = Wire(ModbusSettings(transport="rtu", device=os.ttyname(slave), parity="N", timeout_ms=120))
        await wire.connect()
        began_s = time.monotonic()
        with pytest.raises(WireError, match="does not answer in 120 ms"):
            await wire.read(0, 13)
        wire.close()
        return time.monotonic() - began_s

    assert 0.1 < min(asyncio.run(ask()) for _ in range(3)) < 0.2
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baud": 9600}, "greater than or equal to 19200"),
        ({"baud": 19200, "timeout_ms": 110}, "timeout_ms = 110 and baud = 19200 one lost answer costs"),
        ({"poll_ms": 100}, "poll_ms = 100, .* stops the belt after 300"),
    ],
)
def test_a_line_too_slow_for_the_heartbeat_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModbusSettings.model_validate({"transport": "rtu", "device": "tty", **wrong})


def test_the_timeout_follows_the_line_unless_it_is_given() -> None:
    assert [ModbusSettings(transport="rtu", device="tty", baud=baud).answer_timeout_ms for baud in (19200, 115200)] == [
        56,
        35,
    ]
    assert ModbusSettings(host="plc").answer_timeout_ms == 80
    assert ModbusSettings(transport="rtu", device="tty", timeout_ms=90).answer_timeout_ms == 90
