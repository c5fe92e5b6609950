"""What the three witnesses of a line add up to; every promise, broken once."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

from edge.bundle import Input, Source, Spec
from edge.tally import Tally, tally
from firmware_bridge.belt.config import TruePart

IMAGE = Input(height=64, width=64, source=Source(height=(32, 256), width=(32, 256), channels=3))
SPEC = Spec(IMAGE, None, (), (16, 16))
ACCEPT = ("ACCEPT", "score_below_threshold")
REJECT = ("REJECT", "score_above_threshold")


class Line:
    """Four parts, the last one defective, of which everything is in order; tests spoil one thing."""

    def __init__(self, folder: Path, tiny: SimpleNamespace) -> None:
        self.pictures = {}
        self.rows: list[dict[str, Any]] = []
        self.judged: list[dict[str, Any]] = []
        for number in range(4):
            picture, defective = tiny.picture(128, seed=number), number == 3
            self.pictures[str(number)] = path = folder / f"{number}.png"
            assert cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            decision, reason = REJECT if defective else ACCEPT
            row = {
                "epoch": 7,
                "part": number,
                "decision": decision,
                "reason": reason,
                "recovered": 0,
                "verdict_decision": decision,
            }
            self.rows.append(row | {"input_crc32": zlib.crc32(picture.tobytes())})
            gate = {"gate": "thrown" if defective else "passed", "belt_stopped": False}
            self.judged.append({"id": str(number), "strobes": [[7, number]], "defective": defective} | gate)

    def count(self, open_count: int = 0) -> Tally:
        parts = [TruePart(id=id_, picture=str(path), defective=False) for id_, path in self.pictures.items()]
        return tally(self.rows, self.judged, parts, SPEC, open_count)


@pytest.fixture
def line(tmp_path: Path, tiny: SimpleNamespace) -> Line:
    return Line(tmp_path, tiny)


def test_a_line_in_order(line: Line) -> None:
    found = line.count()
    assert found.broken == []
    assert (found.parts, found.good, found.defective) == (4, 3, 1)
    assert (found.escapes, found.overkill) == ([], [])
    assert found.outcomes == {"ACCEPT score_below_threshold": 3, "REJECT score_above_threshold": 1}


def test_an_accept_without_a_digest_is_not_proven(line: Line) -> None:
    line.rows[1]["input_crc32"] = None
    found = line.count()
    assert found.broken == ["1 parts accepted without a picture's digest"]
    assert found.wrong_picture == 0


def test_an_accept_whose_verdict_died_with_the_station_is_counted_apart(line: Line) -> None:
    line.rows[1] |= {"input_crc32": None, "recovered": 1}
    found = line.count()
    assert (found.without_digest, found.recovered_without_digest) == (0, 1)
    assert found.broken == []


def test_a_part_rejected_without_a_picture_needs_no_digest(line: Line) -> None:
    line.rows[3] |= {"decision": "FAULT", "reason": "no_frame", "input_crc32": None}
    found = line.count()
    assert found.broken == []
    assert (found.faults, found.without_digest, found.recovered_without_digest) == (1, 0, 0)


def test_a_decision_from_another_picture(line: Line) -> None:
    line.rows[0]["input_crc32"], line.rows[1]["input_crc32"] = (line.rows[i]["input_crc32"] for i in (1, 0))
    assert line.count().broken == ["2 decisions made from another part's picture"]


def test_a_part_without_an_outcome(line: Line) -> None:
    del line.rows[3]
    assert line.count(open_count=1).broken == ["2 parts without an outcome"]


def test_a_part_that_passed_without_an_accept_and_a_defect_that_escaped(line: Line) -> None:
    line.judged[3]["gate"] = "passed"
    found = line.count()
    assert found.broken == ["1 parts passed without a proven ACCEPT"]
    assert found.escapes == ["3"]


def test_an_accepted_part_that_was_thrown(line: Line) -> None:
    line.judged[0]["gate"] = "thrown"
    found = line.count()
    assert found.broken == ["1 accepted parts thrown by a moving belt"]
    assert found.overkill == ["0"]
    line.judged[0]["belt_stopped"] = True
    assert line.count().broken == []


def test_a_part_that_never_reached_the_gate_is_no_part(line: Line) -> None:
    line.judged[3]["gate"] = "not_reached"
    assert line.count().parts == 3


@pytest.mark.parametrize("reason", ["outcome_unknown", "controller_stalled"])
@pytest.mark.parametrize(("asked", "broken"), [("ACCEPT", 0), ("REJECT", 1), ("FAULT", 1), (None, 1)])
def test_a_part_whose_gate_the_controller_died_or_hung_with(
    line: Line, reason: str, asked: str | None, broken: int
) -> None:
    line.rows[1] |= {"decision": "FAULT", "reason": reason, "verdict_decision": asked}
    assert line.count().broken == ["1 parts passed without a proven ACCEPT"] * broken
    line.rows[1]["reason"] = "late"  # an outcome that the controller did report
    assert line.count().broken == ["1 parts passed without a proven ACCEPT"]


def test_a_trigger_that_died_with_its_controller(line: Line) -> None:
    """Nobody can know of it, and only there: at the end of an epoch that another one followed."""
    last = line.rows.pop()
    assert line.count().broken == ["1 parts without an outcome"], "the controller lives"
    line.rows.append(last | {"epoch": 8, "part": 1})
    found = line.count()
    assert (found.died_unheard, found.broken) == (1, [])
    line.judged[3]["gate"] = "passed"
    assert line.count().broken == ["1 parts passed without a proven ACCEPT"]
    line.judged[3]["gate"] = "thrown"
    del line.rows[1]
    assert line.count().without_outcome == 1, "a later part of that epoch was heard"
