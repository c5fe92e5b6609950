"""The link against the compiled controller on a pseudo-terminal; the test moves the belt by hand."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import serial

from firmware_bridge.host_controller import HostController
from firmware_bridge.link import Link, wire
from firmware_bridge.parts import Decision, PartId, Reason, Trigger, Verdict

ACCEPT = (Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD)
ALL_GONE = 2000  # counts after which a part has left the gate


def accept(_trigger: Trigger) -> tuple[Decision, Reason]:
    return ACCEPT


def test_a_part_makes_the_whole_way(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    sent_ns = time.monotonic_ns()
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: len(line.journal.outcomes) == 1, 1)
    [(part_id, [outcome])] = line.journal.outcomes.items()
    assert (outcome.decision, outcome.reason, outcome.recovered) == (*ACCEPT, False)
    trigger = line.journal.triggers[part_id]
    assert trigger.deadline_count - trigger.count == 1200
    assert sent_ns - 5e6 <= trigger.at_ns <= sent_ns + 30e6, "both clocks are the same one here"
    assert trigger.heard_ns is not None
    assert trigger.at_ns - 1e5 <= trigger.heard_ns <= time.monotonic_ns()
    assert belt.strobes() == [part_id]


def test_clock_offset_is_small_on_one_machine(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    belt.move(6000, parts=10)
    errors_ms = []
    for trigger in line.journal.triggers.values():
        now_us = time.monotonic_ns() // 1000
        latch_us = now_us - (now_us - trigger.controller_us) % 2**32
        errors_ms.append(trigger.at_ns / 1e6 - latch_us / 1e3)
    assert len(errors_ms) == 10
    assert min(errors_ms) >= -0.1, "what is measured is late, never early"
    assert max(errors_ms) <= 5


def test_missing_port_is_named_and_found_when_it_appears(line: Any, eventually: Any) -> None:
    line.start_hand_belt()
    station = line.station(accept)
    eventually(lambda: "does not exist" in (station.link.health().fault or ""), 2)
    assert str(line.folder / "link") in station.link.health().fault
    line.controller.start()
    assert eventually(lambda: station.link.health().ready, 2) < 2


def test_busy_port_is_named_and_used_when_it_is_free(line: Any, eventually: Any) -> None:
    line.start_hand_belt()
    line.controller.start()
    holder = serial.Serial(str(line.folder / "link"), exclusive=True)
    station = line.station(accept)
    eventually(lambda: "is busy" in (station.link.health().fault or ""), 2)
    holder.close()
    assert eventually(lambda: station.link.health().ready, 2) < 2


def test_each_problem_and_its_end_is_logged_once(line: Any, eventually: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "firmware_bridge.link")
    line.start_hand_belt()
    station = line.station(accept)
    eventually(lambda: "does not exist" in caplog.text, 2)
    time.sleep(0.5)  # two more attempts
    line.controller.start()
    station.ready_and_acknowledged()
    eventually(lambda: "all is well" in caplog.text, 2)
    other = line.settings(gate_distance_counts=2000)
    frame = wire.Frame(wire.PARAMETERS, station.link.health().epoch, 60000, other.parameters(False))
    with Path(line.folder / "link").open("wb", buffering=0) as port:
        port.write(b"\0" + wire.encode(frame))
    eventually(lambda: "parameters have hash" in caplog.text, 2)
    time.sleep(0.3)  # three more statuses
    levels = [record.levelname for record in caplog.records]
    assert levels[0] == "WARNING"
    assert levels.count("INFO") == 1
    assert caplog.text.count("does not exist") == 1
    assert caplog.text.count("parameters have hash") == 1
    assert caplog.text.count("not acknowledged (the controller's latched fault") == 1


def test_a_silent_port_is_logged(line: Any, eventually: Any, caplog: pytest.LogCaptureFixture) -> None:
    master, slave = os.openpty()
    link = Link(line.settings(port=os.ttyname(slave)), line.journal)
    link.open()
    eventually(lambda: "no controller answers" in caplog.text, 2)
    time.sleep(0.3)
    link.close()
    os.close(master)
    os.close(slave)
    assert caplog.text.count("no controller answers") == 1


@pytest.mark.parametrize("baud", [99_999_999_999_999, -1, 1 << 31])
def test_a_baud_rate_that_no_port_has_is_a_problem_not_an_end(
    line: Any, eventually: Any, caplog: pytest.LogCaptureFixture, baud: int
) -> None:
    master, slave = os.openpty()
    settings = line.settings(port=os.ttyname(slave)).model_copy(update={"baud": baud})
    link = Link(settings, line.journal)
    link.open()
    eventually(lambda: "cannot be opened" in (link.health().fault or ""), 2)
    link.close()
    os.close(master)
    os.close(slave)
    assert "cannot be opened" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_link_that_died_says_so(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()

    def fail(_outcome: object) -> None:
        raise RuntimeError("out of order")

    station.link.on_outcome = fail
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: "the link died" in (station.link.health().fault or ""), 2)
    assert not station.link.health().connected


def test_dead_controller_returns_within_two_seconds_and_its_parts_are_lost(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    belt.move(600, parts=1)
    eventually(lambda: len(line.journal.triggers) == 1, 1)
    [lost] = line.journal.triggers
    line.controller.kill()
    eventually(lambda: not station.link.health().connected, 2)
    line.controller.start()
    assert eventually(lambda: station.link.health().ready, 2) < 2
    eventually(lambda: line.journal.lost == [lost], 1)
    assert station.link.health().epoch != lost.epoch
    assert not station.link.health().permit
    assert "not acknowledged" in station.link.health().fault
    station.ready_and_acknowledged()
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: len(line.journal.outcomes) == 1, 1)


@pytest.mark.parametrize("repeat", range(3))
def test_unplugged_cable_loses_nothing(line: Any, eventually: Any, repeat: int) -> None:
    """The link's name goes to a dead end; the controller lives on and settles its parts without the box."""
    belt = line.start_hand_belt()
    line.controller.start()
    target = line.controller.link.readlink()
    station = line.station(accept)
    station.ready_and_acknowledged()
    belt.move(900, parts=1)
    eventually(lambda: len(line.journal.triggers) == 1, 1)
    epoch = station.link.health().epoch
    station.stop()
    line.controller.link.unlink()
    belt.move(ALL_GONE, parts=2)  # the first settles unheard, the next two are never heard of
    line.controller.link.symlink_to(target)
    again = line.station(accept)
    assert eventually(lambda: again.link.health().ready, 2) < 2
    eventually(lambda: len(line.journal.outcomes) >= 1, 1)
    belt.move(ALL_GONE)
    eventually(lambda: len(line.journal.outcomes) == 3, 2, lambda: str(line.journal.outcomes))
    outcomes = {part_id.part: heard[0] for part_id, heard in line.journal.outcomes.items()}
    assert again.link.health().epoch == epoch
    assert outcomes[1].decision is Decision.ACCEPT
    assert outcomes[1].recovered
    assert {outcomes[n].decision for n in (2, 3)} == {Decision.FAULT}
    assert {outcomes[n].reason for n in (2, 3)} <= {Reason.NO_VERDICT, Reason.HEARTBEAT_LOST, Reason.NOT_PERMITTED}
    assert all(len(heard) == 1 for heard in line.journal.outcomes.values())
    assert line.journal.lost == []


def test_more_than_256_outcomes_behind_the_oldest_are_lost_and_named(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    quick = {"min_part_spacing_counts": 350}
    station = line.station(accept, **quick)
    station.ready_and_acknowledged()
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: len(line.journal.outcomes) == 1, 1)
    station.stop()
    belt.move(ALL_GONE + 299 * 355, parts=299, pitch=355)
    again = line.station(accept, **quick)
    eventually(lambda: len(line.journal.outcomes) == 257, 3, lambda: str(len(line.journal.outcomes)))
    eventually(lambda: len(line.journal.lost) == 43, 1)
    assert sorted(part_id.part for part_id in line.journal.lost) == list(range(2, 45))
    assert sorted(part_id.part for part_id in line.journal.outcomes) == [1, *range(45, 301)]
    assert again.link.health().counters["outcomes_recovered"] == 256


def test_used_epoch_is_refused(line: Any, eventually: Any) -> None:
    """A controller whose boot counter does not count."""
    belt = line.start_hand_belt()
    program = line.controller._command[0]
    line.controller = HostController(Path(program), line.folder / "link", line.folder / "pins", epoch=5)
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    assert station.link.health().epoch == 5
    belt.move(ALL_GONE + 500, parts=2)
    eventually(lambda: len(line.journal.outcomes) == 2, 1)
    station.stop()
    line.controller.kill()
    line.controller.start()
    again = line.station(accept)
    again.ready_and_acknowledged()
    assert again.link.health().epoch != 5
    assert again.link.health().counters["epochs_refused"] >= 1
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: len(line.journal.outcomes) == 3, 1)
    assert sorted(part_id.part for part_id in line.journal.outcomes) == [1, 1, 2]


def test_refused_epoch_within_one_life_of_the_box(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    program = line.controller._command[0]
    line.controller = HostController(Path(program), line.folder / "link", line.folder / "pins", epoch=5)
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    belt.move(ALL_GONE, parts=1)
    line.controller.kill()
    line.controller.start()
    station.ready_and_acknowledged()
    assert station.link.health().epoch != 5


def test_verdict_of_another_epoch_goes_nowhere(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(lambda _trigger: None)
    station.ready_and_acknowledged()
    belt.move(300, parts=1)
    eventually(lambda: len(line.journal.triggers) == 1, 1)
    [part_id] = line.journal.triggers
    verdict = _verdict(PartId(part_id.epoch ^ 1, part_id.part))
    station.link.decide(verdict)
    belt.move(ALL_GONE)
    eventually(lambda: len(line.journal.outcomes) == 1, 1)
    assert line.journal.outcomes[part_id][0].reason is Reason.NO_VERDICT
    assert station.link.health().counters["decisions_of_another_epoch"] == 1


def test_late_accept_throws_its_part_and_spares_the_next(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(lambda t: None if t.part_id.part == 1 else ACCEPT)
    station.ready_and_acknowledged()
    belt.move(1300, parts=2)
    [first] = [part_id for part_id in line.journal.triggers if part_id.part == 1]
    station.link.decide(_verdict(first))
    eventually(lambda: station.link.health().counters["controller_late_decisions"] == 1, 1)
    belt.move(ALL_GONE)
    eventually(lambda: len(line.journal.outcomes) == 2, 1)
    outcomes = {p.part: (o[0].decision, o[0].reason) for p, o in line.journal.outcomes.items()}
    assert outcomes == {1: (Decision.REJECT, Reason.LATE), 2: ACCEPT}


def test_stalled_loop_drops_the_permit_and_only_ack_returns_it(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    station.stall.set()
    stalled_ns = time.monotonic_ns()
    eventually(lambda: not station.link.health().permit, 2)
    station.stall.clear()
    time.sleep(0.5)
    assert not station.link.health().permit
    assert "heartbeat" in station.link.health().fault
    assert (belt.pulses_ns[-1] - stalled_ns) / 1e6 <= 200 + 100 + 300 + 60  # step limit, one beat, timeout, slack
    station.link.ack()
    eventually(lambda: station.link.health().permit, 1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_pulses_end_with_the_controller(line: Any, eventually: Any, how: signal.Signals) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    eventually(lambda: len(belt.pulses_ns) > 3, 1)
    os.kill(line.controller.pid, how)
    ended_ns = time.monotonic_ns()
    time.sleep(0.3)
    assert (belt.pulses_ns[-1] - ended_ns) / 1e6 <= 20
    if how is signal.SIGSTOP:
        os.kill(line.controller.pid, signal.SIGCONT)
        eventually(lambda: "stalled" in (station.link.health().fault or ""), 2)
        eventually(lambda: station.link.health().counters["controller_stalls"] == 1, 1)


def test_jog_is_answered_or_says_why_not(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    station = line.station(accept)
    with pytest.raises(RuntimeError, match="no answer"):
        station.link.jog_gate()
    line.controller.start()
    station.ready_and_acknowledged()
    with pytest.raises(RuntimeError, match="between the eye and the gate"):
        station.link.jog_gate()
    belt.move(ALL_GONE)
    station.link.jog_gate()
    belt.move(300, parts=1)
    eventually(lambda: len(line.journal.triggers) == 1, 1)
    with pytest.raises(RuntimeError, match="between the eye and the gate"):
        station.link.jog_gate()


def test_foreign_parameters_are_not_ready(line: Any, eventually: Any) -> None:
    """Another box pushes other parameters behind our back."""
    line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    other = line.settings(gate_distance_counts=2000)
    frame = wire.Frame(wire.PARAMETERS, station.link.health().epoch, 60000, other.parameters(False))
    with Path(line.folder / "link").open("wb", buffering=0) as port:
        port.write(b"\0" + wire.encode(frame))
    eventually(lambda: not station.link.health().ready, 2)
    assert "parameters" in station.link.health().fault
    eventually(lambda: not station.link.health().permit, 1)


def test_noise_on_the_line_is_counted_and_survived(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(accept)
    station.ready_and_acknowledged()
    with Path(line.folder / "link").open("wb", buffering=0) as port:
        port.write(b"\0" + os.urandom(300).replace(b"\0", b"\1") + b"\0\x05abcd\0")
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: len(line.journal.outcomes) == 1, 1)
    assert next(iter(line.journal.outcomes.values()))[0].decision is Decision.ACCEPT
    assert eventually(lambda: station.link.health().counters["controller_bad_frames"] >= 1, 1) < 1


def test_dry_run_is_visible(line: Any, eventually: Any) -> None:
    belt = line.start_hand_belt()
    line.controller.start()
    station = line.station(lambda _: (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD), inhibit=True)
    station.ready_and_acknowledged()
    assert station.link.health().inhibited
    belt.move(ALL_GONE, parts=1)
    eventually(lambda: len(line.journal.outcomes) == 1, 1)
    [outcome] = next(iter(line.journal.outcomes.values()))
    assert (outcome.decision, outcome.reason) == (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)


def test_other_program_on_the_port_is_no_controller(tmp_path: Path, line: Any, eventually: Any) -> None:
    """A modem, say: it echoes what it hears."""
    master, slave = os.openpty()
    serial.Serial(os.ttyname(slave)).close()  # raw mode
    link = Link(line.settings(port=os.ttyname(slave)), line.journal)
    link.open()
    end = time.monotonic() + 0.6
    os.set_blocking(master, False)
    while time.monotonic() < end:
        time.sleep(0.01)
        try:
            os.write(master, os.read(master, 1000))
        except BlockingIOError:
            continue
    health = link.health()
    link.close()
    os.close(master)
    os.close(slave)
    assert not health.connected
    assert "no controller answers" in (health.fault or "")


def _verdict(part_id: PartId) -> Verdict:
    return Verdict(part_id, *ACCEPT, score=0.1, threshold=0.5, recipe="test")
