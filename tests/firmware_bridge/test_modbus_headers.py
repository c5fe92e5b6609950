"""The Modbus path cycle by cycle over a register block that the test writes: torn reads, half-way starts, broken PLCs.

pymodbus's server is in test_modbus.py; here every header is chosen.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from firmware_bridge.modbus import ModbusPath, ModbusSettings, track
from firmware_bridge.modbus import registers as r
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict

BOX, BOX_FAULT = 200, 201
EPOCH = 70_000
SCORED = {Decision.ACCEPT: Reason.SCORE_BELOW_THRESHOLD, Decision.REJECT: Reason.SCORE_ABOVE_THRESHOLD}


class Nothing:
    """A journal without a past."""

    def knows_epoch(self, epoch: int) -> bool:
        return False

    def last_part(self, epoch: int) -> int:
        return 0

    def unresolved(self, epoch: int) -> list[int]:
        return []


class Registers:
    """A wire that is the PLC's memory."""

    where = "the PLC"

    def __init__(self) -> None:
        self.memory = [0] * 400
        self.writes: list[int] = []

    async def read(self, address: int, count: int) -> list[int]:
        return self.memory[address : address + count]

    async def write(self, address: int, words: list[int]) -> None:
        self.memory[address : address + len(words)] = words
        self.writes.append(address)


class Bench:
    """A path whose cycles are called, and the registers before it."""

    def __init__(self, *, echoes: bool = False) -> None:
        self.path = ModbusPath(ModbusSettings(host="plc"), Nothing())
        self.wire = self.path._wire = self.path._track._wire = Registers()  # type: ignore[assignment]
        self.outcomes: dict[int, Outcome] = {}
        self.lost: list[int] = []
        self.triggers: list[Trigger] = []
        self.path._track.on_trigger = self.triggers.append
        self.path._track.on_outcome = lambda outcome: self.outcomes.update({outcome.part_id.part: outcome})
        self.path._track.on_lost = lambda part_id: self.lost.append(part_id.part)
        self.layout, self.epoch, self.count, self.newest, self.settled = r.LAYOUT, EPOCH, 1000, 0, 0
        self.status = r.READY | r.PERMIT | (r.ECHOES if echoes else 0)
        self.cycle(2)

    def cycle(self, times: int = 1, **torn: int) -> None:
        for _ in range(times):
            self.wire.memory[:3] = [self.layout, self.status, 0]
            for i, name in enumerate(("epoch", "count", "now_ms", "newest", "settled")):
                value = torn.get(name, getattr(self, name, 0))
                self.wire.memory[3 + 2 * i : 5 + 2 * i] = r.split(value, "high_first")
            self.path._stepped_ns = time.monotonic_ns()
            self.path._next_heartbeat_ns = 0
            asyncio.run(self.path._cycle())

    def fill(self, part: int, deadline: int) -> None:
        words = [word for value in (part, self.count, deadline, 0) for word in r.split(value, "high_first")]
        at = 16 + 8 * r.slot(part)
        self.wire.memory[at : at + len(words)] = words

    def trigger(self, distance: int = 100) -> int:
        self.newest += 1
        self.fill(self.newest, self.count + distance)
        return self.newest

    def see(self, distance: int = 100) -> int:
        """A part at the photo-eye, whose trigger the box reads."""
        part = self.trigger(distance)
        self.cycle()
        return part

    def decide(self, part: int, decision: Decision = Decision.ACCEPT) -> None:
        self.path.decide(Verdict(PartId(self.epoch, part), decision, SCORED[decision], 0.1, 0.5, "r"))

    def prove(self, part: int, decision: Decision = Decision.ACCEPT) -> None:
        """A decision that is written, and confirmed by a header before the decision point."""
        self.decide(part, decision)
        self.cycle(2)

    def slot(self, part: int) -> tuple[int, int]:
        """Part and decision that the box has written into the slot of a part."""
        at = BOX + r.DECISIONS_AT + r.DECISION_WORDS * r.slot(part)
        words = self.wire.memory[at : at + r.DECISION_WORDS]
        return words[2] << 16 | words[3], words[4]

    def echo(self, part: int, decision: int) -> None:
        at = 80 + 6 * r.slot(part)
        self.wire.memory[at : at + 6] = [*r.split(part, "high_first"), decision, 1, 0, 0]
        self.settled = part

    def words(self) -> str:
        return str(self.path.health().fault)


def test_a_missed_part_frees_no_slot_that_an_earlier_one_needs() -> None:
    bench = Bench()
    for part in range(1, 19):
        bench.count += 1
        bench.trigger(1000)
        if part == 10:
            bench.fill(10, bench.count - 5)  # seen too late: a missed trigger
        bench.cycle()
        bench.decide(part)
        bench.cycle()
    assert 10 in bench.lost
    assert bench.slot(2) == (2, 1), "part 18 waits until part 2 is judged"
    bench.count += 984  # past part 1 and 2
    bench.cycle(2)
    assert bench.outcomes[2].decision is Decision.ACCEPT
    bench.cycle()
    assert bench.slot(18) == (18, 1)


def test_a_verdict_that_must_wait_holds_no_other_back_and_is_late_not_missing() -> None:
    bench = Bench()
    for _ in range(9):
        bench.see()
    for part in (9, 1, 2):
        bench.decide(part)
    bench.cycle()
    assert bench.slot(1) == (1, 1)
    assert bench.slot(2) == (2, 1)
    bench.count += 200
    bench.cycle(2)
    assert bench.outcomes[1].decision is Decision.ACCEPT
    assert bench.outcomes[9].reason is Reason.LATE


def test_one_torn_count_settles_nothing() -> None:
    bench = Bench()
    bench.see()
    bench.prove(1)
    bench.cycle(count=bench.count + 0x10000)
    assert not bench.outcomes
    bench.status |= r.FAULT
    bench.count += 200
    bench.cycle(2)
    assert bench.outcomes[1].reason is Reason.NOT_PERMITTED


# 0 and 0x1FFFF are what 65535 on its way to 65536 looks like to a reader between the two words
@pytest.mark.parametrize("torn", [{"newest": 0}, {"newest": 0x1FFFF}, {"settled": 0x1FFFF}, {"epoch": 5}])
def test_one_torn_header_changes_nothing(torn: dict[str, int]) -> None:
    bench = Bench(echoes=True)
    bench.see()
    bench.cycle(**torn)
    bench.decide(1)
    bench.cycle()
    assert bench.path.health().ready
    assert bench.slot(1) == (1, 1)
    bench.echo(1, 1)
    bench.cycle()
    assert bench.outcomes[1].decision is Decision.ACCEPT
    assert not bench.lost


def test_more_settled_than_seen_is_refused_until_it_is_right() -> None:
    bench = Bench(echoes=True)
    bench.settled = 0xFFFFFFFF
    bench.cycle(2)
    assert "settled part 4294967295, but its newest part is 0" in bench.words()
    assert bench.wire.memory[BOX_FAULT] == 3
    bench.settled = 0
    bench.cycle()
    assert bench.path.health().ready


def test_a_part_counted_before_its_slot_is_filled_is_read_when_it_is() -> None:
    bench = Bench()
    bench.newest = 1
    bench.cycle()
    assert not bench.triggers
    bench.fill(1, bench.count + 100)
    bench.cycle()
    assert [trigger.part_id.part for trigger in bench.triggers] == [1]
    assert not bench.lost


def test_a_slot_that_stays_unfilled_is_refused_in_words() -> None:
    bench = Bench()
    bench.newest = 1
    bench.cycle(3)
    assert "its slot holds part 0" in bench.words()
    assert bench.wire.memory[BOX_FAULT] == 3
    assert not bench.lost


def test_a_plc_half_way_through_its_start_is_not_refused() -> None:
    bench = Bench()
    for _ in range(3):
        bench.see()
    bench.epoch += 1
    bench.cycle()
    assert not bench.path.health().ready
    bench.newest = 0
    bench.cycle(2)
    assert bench.path.health().ready
    assert bench.path.health().epoch == EPOCH + 1
    bench.see()
    assert bench.triggers[-1].part_id == PartId(EPOCH + 1, 1)


def test_an_epoch_that_counts_back_stays_refused_until_a_new_one() -> None:
    bench = Bench()
    for _ in range(3):
        bench.see()
    bench.newest = 1
    bench.cycle(2)
    assert "must draw a new epoch" in bench.words()
    bench.newest = 4
    bench.fill(4, bench.count + 100)
    bench.cycle(2)
    assert bench.wire.memory[BOX_FAULT] == 2
    bench.epoch, bench.newest = EPOCH + 1, 0
    bench.cycle(2)
    assert bench.path.health().ready


def test_a_plc_that_stops_to_echo_blocks_no_slot_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(echoes=True)
    bench.see()
    bench.count += 200
    bench.cycle(2)
    assert not bench.lost
    monkeypatch.setattr(track, "ECHO_LATE_NS", 0)
    bench.cycle()
    assert bench.lost == [1]


@pytest.mark.parametrize("asked", [Decision.REJECT, None])
def test_a_part_that_passed_unasked_is_no_normal_part(asked: Decision | None) -> None:
    bench = Bench(echoes=True)
    bench.see()
    if asked:
        bench.decide(1, asked)
    bench.cycle()
    bench.echo(1, 1)
    bench.cycle()
    assert bench.outcomes[1].decision is Decision.ACCEPT
    assert bench.outcomes[1].reason is (Reason.SCORE_ABOVE_THRESHOLD if asked else Reason.OUTCOME_UNKNOWN)
    assert bench.path.health().counters["passed_unasked"] == 1
    assert "let part 1 pass that was not to" in bench.words()


def test_a_part_that_passes_a_gate_held_unasked_has_no_known_outcome() -> None:
    bench = Bench()
    bench.see()
    bench.prove(1, Decision.REJECT)
    bench.status |= r.INHIBITED
    bench.count += 200
    bench.cycle(2)
    assert bench.lost == [1]


def test_a_latched_fault_is_acknowledged_not_one_that_is_still_to_come() -> None:
    bench = Bench()
    bench.path.ack()
    bench.cycle()
    bench.status |= r.FAULT
    bench.cycle(3)
    assert bench.wire.memory[BOX + r.ACK_AT] == 0
    bench.path.ack()
    bench.cycle(3)
    assert bench.wire.memory[BOX + r.ACK_AT] == 1


@pytest.mark.parametrize("torn", [{"newest": 0}, {"epoch": 5}])
def test_nothing_is_acknowledged_on_a_doubtful_header(torn: dict[str, int]) -> None:
    bench = Bench()
    bench.trigger()
    bench.status |= r.FAULT
    bench.cycle()
    bench.path.ack()
    bench.cycle(**torn)
    assert bench.wire.memory[BOX + r.ACK_AT] == 0
    bench.cycle()
    assert bench.wire.memory[BOX + r.ACK_AT] == 1


@pytest.mark.parametrize("behind", [1, 65536])
def test_a_count_that_goes_back_proves_nothing(behind: int) -> None:
    """The part is past its decision point without a decision; the belt rolls back a little, or a count is torn."""
    bench = Bench()
    bench.count = 200_000
    bench.see()
    bench.count += 100
    bench.cycle()
    bench.decide(1)
    bench.cycle(count=bench.count - behind)
    bench.cycle(count=bench.count - behind)
    bench.count += 1
    bench.cycle(3)
    assert 1 not in bench.outcomes
    assert bench.lost == [1]


def test_a_torn_count_does_not_unprove_a_decision_that_was_in_time() -> None:
    bench = Bench()
    bench.see()
    bench.prove(1)
    bench.cycle(count=bench.count + 0x10000)
    bench.cycle()
    bench.count += 200
    bench.cycle(2)
    assert bench.outcomes[1].decision is Decision.ACCEPT


def test_a_low_count_before_the_first_that_shows_the_point_passed_proves_nothing() -> None:
    bench = Bench()
    bench.count = 200_000
    bench.see()
    bench.decide(1)
    bench.count += 200  # passed while the decision was written
    bench.cycle(count=200_000 - 65536)
    bench.cycle(2)
    assert bench.lost == [1]


@pytest.mark.parametrize(("asked", "seen"), [(Decision.ACCEPT, r.FAULT), (Decision.REJECT, r.INHIBITED)])
def test_what_was_seen_beside_the_decision_point_is_not_forgotten_when_the_count_goes_back(
    asked: Decision, seen: int
) -> None:
    """A latched fault beside an ACCEPT, a gate held unasked beside a REJECT."""
    bench = Bench()
    bench.see()
    bench.prove(1, asked)
    bench.count += 100
    bench.status |= seen
    bench.cycle()
    bench.status &= ~seen
    bench.cycle(count=bench.count - 1)
    bench.cycle(3)
    assert 1 not in bench.outcomes
    assert bench.lost == [1]


def test_a_decision_written_while_the_count_goes_back_is_never_proven() -> None:
    bench = Bench()
    bench.see()
    bench.count += 99
    bench.cycle()
    bench.decide(1)
    bench.cycle(count=bench.count - 1)
    bench.cycle()
    bench.count += 1
    bench.cycle(3)
    assert bench.lost == [1]


def test_two_different_doubts_refuse_nobody_for_good() -> None:
    bench = Bench()
    bench.see()
    bench.cycle(settled=0x1FFFF)
    bench.cycle(newest=0)
    assert not bench.path.health().ready
    bench.cycle(2)
    assert bench.path.health().ready
    assert "epochs_refused" not in bench.path.health().counters


def test_an_acknowledgement_on_a_doubtful_header_without_a_fault_is_void() -> None:
    bench = Bench()
    bench.see()
    bench.path.ack()
    bench.cycle(newest=0)
    bench.status |= r.FAULT
    bench.cycle(3)
    assert bench.wire.memory[BOX + r.ACK_AT] == 0


def test_an_echo_from_a_gate_held_unasked_is_no_reject() -> None:
    bench = Bench(echoes=True)
    bench.see()
    bench.decide(1, Decision.REJECT)
    bench.cycle()
    bench.status |= r.INHIBITED
    bench.echo(1, 2)
    bench.cycle()
    assert bench.lost == [1]


def test_an_unfilled_slot_hides_no_later_part() -> None:
    bench = Bench()
    bench.newest = 1
    for _ in range(3):
        bench.trigger()
    bench.cycle(2)
    assert [trigger.part_id.part for trigger in bench.triggers] == [2, 3, 4]
    assert bench.lost == [1]


def test_a_trigger_stamped_after_the_headers_time_is_of_now() -> None:
    bench = Bench()
    bench.newest = 1
    at = 16 + 8 * r.slot(1)
    words = [word for value in (1, bench.count, bench.count + 100, 3) for word in r.split(value, "high_first")]
    bench.wire.memory[at : at + 8] = words
    bench.cycle()
    assert abs(bench.triggers[0].at_ns - time.monotonic_ns()) < 1_000_000_000


def test_a_torn_count_does_not_start_the_wait_for_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "ECHO_LATE_NS", 50_000_000)
    bench = Bench(echoes=True)
    bench.see()
    bench.cycle(count=bench.count + 0x10000)
    bench.cycle()
    time.sleep(0.06)
    bench.count += 200
    bench.cycle()
    assert not bench.lost


def test_an_outcome_slot_that_is_behind_is_read_again() -> None:
    bench = Bench(echoes=True)
    bench.see()
    bench.decide(1)
    bench.settled = 1
    bench.cycle()
    assert not bench.lost
    bench.echo(1, 1)
    bench.cycle()
    assert bench.outcomes[1].decision is Decision.ACCEPT


def test_nothing_is_written_into_registers_that_may_be_another_machines() -> None:
    bench = Bench()
    bench.see()
    bench.layout = 0x1234
    bench.wire.writes.clear()
    bench.cycle()
    bench.decide(1)
    bench.path.ack()
    bench.cycle(3)
    assert "0x1234" in bench.words()
    assert not bench.wire.writes


def test_decisions_wait_while_the_plc_is_refused() -> None:
    bench = Bench()
    bench.see()
    bench.newest = 0
    bench.cycle(2)
    bench.prove(1)
    assert bench.slot(1) == (0, 0)
