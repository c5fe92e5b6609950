"""The judge must be right before it may judge: the pieces of the belt, each against arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.belt.config import BeltConfig, TruePart
from firmware_bridge.belt.gate import Gate
from firmware_bridge.belt.judge import Judge
from firmware_bridge.belt.motion import Motion
from firmware_bridge.belt.pins import Answer, EyeEdge, OutputEdge, decode_answer, encode_tick
from firmware_bridge.belt.track import Track


def config(folder: Path, **changes: object) -> BeltConfig:
    paths = {name: folder / name for name in ("parts", "output", "pins_socket", "camera_socket")}
    return BeltConfig.model_validate({**paths, **changes})


def parts(*gaps_mm: float) -> list[TruePart]:
    return [TruePart(picture="a", defective=False, id="x", gap_mm=gap) for gap in gaps_mm]


@given(
    steps=st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=60),
    braking=st.sampled_from([None, 5000.0]),
)
def test_motion_goes_forward_and_its_inverse_fits(steps: list[tuple[int, bool]], braking: float | None) -> None:
    motion = Motion(0, 1000.0, braking)
    now_us = 0
    for span_us, run in steps:
        before = motion.travel_mm
        now_us += span_us
        motion.advance(now_us, run)
        assert before <= motion.travel_mm <= before + span_us / 1000 + 1e-9
        middle = (before + motion.travel_mm) / 2
        assert motion.travel_at(motion.reached_at(middle)) == pytest.approx(middle, abs=1e-6)


def test_motion_brakes_at_the_stated_rate() -> None:
    motion = Motion(0, 1000.0, 2000.0)
    for now_us in range(1000, 1_000_001, 1000):
        motion.advance(now_us, run=now_us <= 100_000)
    assert motion.travel_mm == pytest.approx(100 + 1000**2 / (2 * 2000), rel=0.01)
    assert not motion.moving


@given(count=st.integers(0, 20_000), at_mm=st.floats(0, 2000), length_mm=st.floats(0.1, 500))
def test_track_finds_the_place_of_each_count_across_a_dropout(count: int, at_mm: float, length_mm: float) -> None:
    dropout = {"kind": "encoder_dropout", "at_mm": at_mm, "length_mm": length_mm}
    track = Track(config(Path(), faults=[dropout]), parts(0, 0, 0))
    place = track.travel_mm(count)
    assert track.count(place + 1e-6) == count
    assert place == 0 or track.count(place - 1e-3) < count


def test_camera_sees_only_a_part_that_covers_it(tmp_path: Path) -> None:
    track = Track(config(tmp_path, part_length_mm=50, pitch_mm=100, first_part_mm=100), parts(0, 0))
    seen = [track.under_camera(travel) for travel in (74, 76, 124, 126, 176, 276)]
    assert seen == [None, 0, 0, None, 1, None]


def test_gap_moves_its_part_and_all_behind_it(tmp_path: Path) -> None:
    track = Track(config(tmp_path, part_length_mm=50, pitch_mm=100, first_part_mm=100), parts(0, 1000, 0))
    assert [track.lead_mm(part) for part in range(3)] == [100, 1200, 1300]
    assert [track.under_camera(travel) for travel in (100, 200, 1200, 1250, 1300)] == [0, None, 1, None, 2]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), max_size=30), st.integers(0, 10_000))
def test_gate_follows_its_commands_by_its_delay(commands: list[tuple[int, bool]], at_us: int) -> None:
    gate = Gate(500.0)
    commands = sorted(commands, key=lambda command: command[0])
    for command_us, energised in commands:
        gate.command(energised, command_us)
    expected = [energised for command_us, energised in commands if command_us + 500 <= at_us]
    assert gate.states(at_us, at_us) == {expected[-1] if expected else False}


def judged(tmp_path: Path, open_mm: float, close_mm: float, polarity: str = "energise_to_pass") -> dict[str, object]:
    """One part, 1 mm per ms; leading edge at the gate at 400 mm, trailing edge at 450 mm."""
    (tmp_path / "parts").write_text(json.dumps({"picture": "a", "defective": True, "id": "x"}))
    belt = config(tmp_path, actuator_delay_ms=0, polarity=polarity)
    belt.output.mkdir()
    track, motion, gate = Track(belt, parts(0)), Motion(0, 1000.0, None), Gate(0)
    judge = Judge(belt, belt.read_parts(), track, motion, gate)
    for now_us in range(2000, 800_001, 2000):
        motion.advance(now_us, run=True)
        judge.watch()
    gate.command(True, open_mm * 1000)
    gate.command(False, close_mm * 1000)
    judge.judge_until(700_000)
    judge.close()
    assert judge.finished
    return {**judge.summary(), **json.loads((belt.output / "judgement.jsonl").read_text())}


def test_judge_measures_an_open_gate(tmp_path: Path) -> None:
    found = judged(tmp_path, 390.4, 460)
    assert found["gate"] == "passed"
    assert found["escapes"] == 1
    assert found["gate_open_error_counts"] == pytest.approx(2.0)  # 0.4 mm late, 5 counts a mm
    assert found["gate_close_error_counts"] == pytest.approx(0.0)


@pytest.mark.parametrize(("open_mm", "close_mm"), [(401, 460), (390, 449), (410, 420), (300, 400.5), (449, 500)])
def test_judge_calls_a_gate_that_moves_in_the_part_split_and_an_escape(
    tmp_path: Path, open_mm: float, close_mm: float
) -> None:
    found = judged(tmp_path, open_mm, close_mm)
    assert (found["gate"], found["escapes"]) == ("split", 1)


@pytest.mark.parametrize(("open_mm", "close_mm"), [(300, 399), (451, 500)])
def test_judge_knows_a_thrown_part(tmp_path: Path, open_mm: float, close_mm: float) -> None:
    found = judged(tmp_path, open_mm, close_mm)
    assert (found["gate"], found["escapes"]) == ("thrown", 0)


def test_judge_knows_polarity(tmp_path: Path) -> None:
    assert judged(tmp_path, 390, 460, "energise_to_reject")["gate"] == "thrown"


def test_pins_packets_are_pinned() -> None:
    """The C side reads these bytes."""
    tick = bytes.fromhex("01000000 02000000 0300000000000000 0100 04000000 0500000000000000 01")
    assert encode_tick(1, 2, 3, [EyeEdge(4, 5, True)]) == tick
    packet = bytes.fromhex("07000000 0100 03 01 0a000000 0b000000 0c000000")
    assert decode_answer(packet) == Answer(7, (OutputEdge(3, True, 10, 11, 12),))


def test_a_bad_parts_file_is_named_with_its_line(tmp_path: Path) -> None:
    belt = config(tmp_path)
    belt.parts.write_text('{"picture": "a", "defective": false, "id": "1"}\n{"picture": "b"}\n')
    with pytest.raises(ValueError, match=r"parts, line 2"):
        belt.read_parts()
    belt.parts.write_text("")
    with pytest.raises(ValueError, match="lists no parts"):
        belt.read_parts()
