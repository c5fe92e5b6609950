"""The real line in real time: belt process, controller process, link. The belt judges."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from firmware_bridge.host_controller import HostController, build
from firmware_bridge.parts import Decision, PartId, Reason, Trigger

ACCEPT = (Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD)
REJECT = (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)

pytestmark = pytest.mark.line


def test_every_part_goes_where_its_own_verdict_says(line: Any, eventually: Any) -> None:
    defects = [i % 3 == 1 or i in (12, 13) for i in range(40)]

    def judge(trigger: Trigger) -> tuple[Decision, Reason]:
        return REJECT if defects[trigger.part_id.part - 1] else ACCEPT

    line.start_belt(defects)
    line.controller.start()
    station = line.station(judge)
    station.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 40, 2)
    assert summary["escapes"] == summary["overkill"] == summary["split"] == 0
    assert summary["passed"] == 40 - sum(defects)
    assert summary["thrown"] == sum(defects)
    assert summary["gate_error_max_counts"] <= 1.0
    assert all(len(heard) == 1 for heard in line.journal.outcomes.values())
    health = station.link.health()
    assert health.counters["controller_late_decisions"] == 0
    assert health.counters["crc_errors"] == 0


def test_dead_controller_stops_the_belt_within_100_ms(line: Any, eventually: Any) -> None:
    line.start_belt([False] * 200)
    line.controller.start()
    station = line.station(lambda _: ACCEPT)
    station.ready_and_acknowledged()
    eventually(lambda: len(line.journal.outcomes) >= 5, 5)
    killed_ns = time.monotonic_ns()
    line.controller.kill()
    eventually(lambda: line.events("stopped"), 1)
    assert (line.events("stopped")[0] - killed_ns) / 1e6 <= 110, "100 ms and the belt's own step"
    line.controller.start()
    eventually(lambda: station.link.health().ready, 2)
    time.sleep(0.3)
    assert len(line.events("started")) == 1, "it may not start before the acknowledgement"
    station.ready_and_acknowledged()
    eventually(lambda: len(line.events("started")) == 2, 1)
    seen = len(line.journal.outcomes)
    eventually(lambda: len(line.journal.outcomes) >= seen + 5, 5)
    assert set(line.journal.triggers) - set(line.journal.outcomes) - set(line.journal.lost) <= _in_flight(line)
    _end(line)
    check_nothing_unproven_passed(line)


@pytest.mark.parametrize("pause_s", [0.3, 0.005])
def test_stopped_controller_lets_nothing_unproven_pass(line: Any, eventually: Any, pause_s: float) -> None:
    """SIGSTOP: the outputs freeze. Only even parts are accepted, so that each open gate is followed by a bad part."""
    line.start_belt([i % 2 == 0 for i in range(200)], pitch_mm=80.07)
    line.controller.start()
    station = line.station(lambda t: ACCEPT if t.part_id.part % 2 == 0 else REJECT, min_part_spacing_counts=380)
    station.ready_and_acknowledged()
    phases_s = [0.02, 0.035, 0.05, 0.1, 0.115, 0.13]  # after a part has left the gate; in half of them it stands open
    for phase_s in phases_s:
        seen = len(line.journal.outcomes)
        eventually(lambda seen=seen: len(line.journal.outcomes) >= seen + 4, 5)
        time.sleep(phase_s)
        os.kill(line.controller.pid, signal.SIGSTOP)
        time.sleep(pause_s)
        os.kill(line.controller.pid, signal.SIGCONT)
        if pause_s > 0.1:
            eventually(lambda: "stalled" in (station.link.health().fault or ""), 2)
            station.ready_and_acknowledged()
    if pause_s > 0.1:
        assert len(line.events("stopped")) >= len(phases_s)
    _end(line)
    check_nothing_unproven_passed(line)
    judged = [judgement for judgement in line.judgements() if judgement["gate"] != "not_reached"]
    odd = [j for j in judged if [part for _, part in j["strobes"]] != [j["index"] + 1]]
    assert line.summary()["escapes"] == 0, f"first parts whose number is not their place on the belt: {odd[:3]}"


def test_killed_station_loses_no_outcome(line: Any, eventually: Any) -> None:
    line.start_belt([i % 3 == 0 for i in range(60)])
    line.controller.start()

    def judge(trigger: Trigger) -> tuple[Decision, Reason]:
        return REJECT if trigger.part_id.part % 3 == 1 else ACCEPT

    first = line.station(judge)
    first.ready_and_acknowledged()
    eventually(lambda: len(line.journal.outcomes) >= 10, 5)
    first.stop()
    eventually(lambda: line.events("stopped"), 2)
    second = line.station(judge)
    second.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 60, 3)
    assert all(len(heard) == 1 for heard in line.journal.outcomes.values())
    assert line.journal.lost == []
    assert summary["escapes"] == 0
    assert len(summary["stops"]) == 1
    check_nothing_unproven_passed(line)


def test_box_stalled_150_ms_makes_late_parts_and_no_other_harm(line: Any, eventually: Any) -> None:
    """The decision point is 240 mm = 240 ms behind the eye: a stall of 150 ms is survived without any loss."""
    line.start_belt([i % 2 == 1 for i in range(60)])
    line.controller.start()
    stalls = {20, 40}

    def judge(trigger: Trigger) -> tuple[Decision, Reason]:
        if trigger.part_id.part in stalls:
            time.sleep(0.15)
        return REJECT if trigger.part_id.part % 2 == 0 else ACCEPT

    station = line.station(judge)
    station.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 60, 2)
    assert summary["escapes"] == summary["overkill"] == summary["split"] == 0


def test_slow_box_has_its_parts_thrown_late_and_never_the_wrong_one(line: Any, eventually: Any) -> None:
    line.start_belt([i % 2 == 1 for i in range(40)])
    line.controller.start()

    def judge(trigger: Trigger) -> tuple[Decision, Reason]:
        if trigger.part_id.part in (10, 11, 25):
            time.sleep(0.28)
        return REJECT if trigger.part_id.part % 2 == 0 else ACCEPT

    station = line.station(judge, heartbeat_timeout_ms=2000, step_limit_ms=1000)
    station.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 40, 2)
    assert summary["escapes"] == 0
    late = [p.part for p, o in line.journal.outcomes.items() if o[0].reason is Reason.LATE]
    assert late
    assert {10, 11, 25} & set(late)
    check_nothing_unproven_passed(line)


def test_bouncing_eye_makes_no_second_part(line: Any, eventually: Any) -> None:
    faults = [{"kind": "eye_bounce", "part": part, "bounces": 1, "spacing_mm": 0.3} for part in (3, 7, 11)]
    line.start_belt([False] * 15, faults=faults)
    line.controller.start()
    station = line.station(lambda _: ACCEPT)
    station.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 15, 2)
    assert summary["passed"] == 15
    assert summary["strobed_more_than_once"] == 0


def test_wild_bounce_throws_the_part(line: Any, eventually: Any) -> None:
    faults = [{"kind": "eye_bounce", "part": 4, "bounces": 1, "spacing_mm": 10}]
    line.start_belt([False] * 10, faults=faults)
    line.controller.start()
    station = line.station(lambda _: ACCEPT)
    station.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 11, 2)
    assert summary["strobed_more_than_once"] == 1
    assert summary["passed"] == 9
    assert line.judgements()[4]["gate"] == "thrown"
    reasons = [o[0].reason for p, o in line.journal.outcomes.items() if p.part in (5, 6)]
    assert reasons == [Reason.OVERRUN, Reason.OVERRUN]


def test_dead_encoder_stops_the_belt_and_opens_the_gate_to_nobody(line: Any, eventually: Any) -> None:
    faults = [{"kind": "encoder_dropout", "at_mm": 1535.0, "length_mm": 2000}]
    line.start_belt([i % 2 == 0 for i in range(40)], faults=faults)
    line.controller.start()
    station = line.station(lambda t: ACCEPT if t.part_id.part % 2 == 0 else REJECT)
    station.ready_and_acknowledged()
    eventually(lambda: line.events("stopped"), 10)
    eventually(lambda: "encoder" in (station.link.health().fault or ""), 1)
    _end(line)
    assert line.summary()["escapes"] == 0


@pytest.mark.parametrize("delay_ms", [0.0, 30.0])
def test_energise_to_reject_line(line: Any, eventually: Any, delay_ms: float) -> None:
    defects = [i % 3 == 1 for i in range(20)]
    line.start_belt(defects, polarity="energise_to_reject", actuator_delay_ms=delay_ms)
    line.controller.start()
    station = line.station(
        lambda t: REJECT if defects[t.part_id.part - 1] else ACCEPT,
        polarity="energise_to_reject",
        actuator_delay_ms=delay_ms,
    )
    station.ready_and_acknowledged()
    summary = line.finish()
    assert summary["escapes"] == summary["overkill"] == summary["split"] == 0
    assert summary["gate_error_max_counts"] <= 1.0


def test_wrong_actuator_delay_is_seen_by_the_belt(line: Any) -> None:
    """The belt judges by its own truth: 10 ms unknown to the controller are 50 counts."""
    line.start_belt([False] * 10, actuator_delay_ms=25.0)
    line.controller.start()
    station = line.station(lambda _: ACCEPT)
    station.ready_and_acknowledged()
    assert line.finish()["gate_error_max_counts"] == pytest.approx(50, abs=1)


def test_camera_knows_the_part_and_tells_no_truth(line: Any) -> None:
    line.start_belt([True] * 5)
    line.controller.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as camera:
        camera.connect(str(line.folder / "camera"))
        camera.settimeout(10)
        station = line.station(lambda _: REJECT)
        station.ready_and_acknowledged()
        packets = [json.loads(camera.recv(4096)) for _ in range(5)]
        line.finish()
    assert [packet["picture"] for packet in packets] == [f"{i}.png" for i in range(5)]
    assert [packet["part"] for packet in packets] == [1, 2, 3, 4, 5]
    assert {tuple(packet) for packet in packets} == {("epoch", "part", "captured_ns", "picture")}
    for packet in packets:
        trigger = line.journal.triggers[PartId(packet["epoch"], packet["part"])]
        assert abs(packet["captured_ns"] - trigger.at_ns) <= 8e6


def test_sanitized_controller_runs_a_line_and_survives_noise(line: Any, tmp_path: Path) -> None:
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    line.controller = HostController(build(tmp_path, flags), line.folder / "link", line.folder / "pins")
    line.start_belt([i % 3 == 1 for i in range(30)])
    line.controller.start(timeout_s=20)
    noise = Random(1)
    with line.controller.link.open("wb", buffering=0) as port:
        for _ in range(200):
            port.write(noise.randbytes(40) + b"\0")
            time.sleep(0.004)
    station = line.station(lambda t: REJECT if t.part_id.part % 3 == 2 else ACCEPT)
    station.ready_and_acknowledged(timeout_s=20)
    summary = line.finish()
    assert summary["escapes"] == summary["overkill"] == 0
    station.stop()
    process = line.controller._process
    process.terminate()
    assert process.wait(10) == 0, "a sanitizer ends the process with another code"


def check_nothing_unproven_passed(line: Any) -> None:
    """A part that passed, even in part, has an ACCEPT of its own, or was in the gate when all stopped."""
    accepted = {p for p, o in line.journal.outcomes.items() if o[0].decision is Decision.ACCEPT}
    asked = {p for p in line.journal.triggers if p in accepted or line.journal.asked.get(p) is Decision.ACCEPT}
    for judgement in line.judgements():
        if judgement["gate"] in ("passed", "split"):
            strobed = {PartId(*strobe) for strobe in judgement["strobes"]}
            assert strobed & asked, judgement


def _in_flight(line: Any) -> set[PartId]:
    newest = max(line.journal.triggers)
    return {part_id for part_id in line.journal.triggers if part_id.part > newest.part - 6}


def _end(line: Any) -> None:
    line.belt.terminate()
    assert line.belt.wait(10) == 0
