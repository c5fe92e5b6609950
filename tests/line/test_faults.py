"""Every member of the line dies during a run, in turn. Whatever happens: one outcome per trigger, no decision on the
wrong part, nothing unproven passes, and every journalled outcome reaches the subscriber."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from edge.rehearsal import Belt

pytestmark = pytest.mark.line


def check_promises(counts: Any, summary: dict[str, Any]) -> None:
    assert counts.broken == []
    assert counts.escapes == []
    assert summary["gate_error_max_counts"] is None or summary["gate_error_max_counts"] <= 1


def events(line: Any, name: str) -> list[int]:
    lines = (line.rehearsal.judgement / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["at_ns"] for event in map(json.loads, lines) if event["event"] == name]


def test_undisturbed_line_accepts_every_good_part(make_line: Callable[..., Any]) -> None:
    line = make_line(60)
    line.rehearsal.ack()
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.outcomes == {"ACCEPT score_below_threshold": 45, "REJECT score_above_threshold": 15}
    assert counts.overkill == []
    assert line.heard() == [f"{row['epoch']:08x}-{row['part']}" for row in line.rows()], "in order, each once"


def test_line_without_mosquitto_uses_the_embedded_broker(
    make_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.rehearsal.shutil.which", lambda *_, **__: None)
    line = make_line(20)
    assert line.rehearsal.broker_kind == "amqtt"
    line.rehearsal.ack()
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.parts == 20


def test_killed_station(make_line: Callable[..., Any]) -> None:
    """Its heart stops: the belt stops. The next station fetches what the first did not hear."""
    line = make_line(60)
    line.rehearsal.ack()
    line.wait_for_outcomes(15)
    line.rehearsal.kill("station")
    line.rehearsal.wait_for(lambda: bool(events(line, "stopped")), 2, "the belt did not stop", "belt")
    line.rehearsal.start("station")
    line.wait_ready()
    started = len(events(line, "started"))
    time.sleep(0.5)
    assert len(events(line, "started")) == started, "it may not start before the acknowledgement"
    line.rehearsal.ack()
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.parts == 60
    assert any(row["recovered"] for row in line.rows())


@pytest.mark.parametrize("phase_ms", [0, 35, 70])  # of the 100 ms from part to part
def test_killed_controller(make_line: Callable[..., Any], phase_ms: int) -> None:
    """The belt stops within 100 ms, and starts only after the acknowledgement; its lost outcomes are named so."""
    line = make_line(60)
    line.rehearsal.ack()
    line.wait_for_outcomes(15)
    time.sleep(phase_ms / 1000)
    killed_ns = time.monotonic_ns()
    line.rehearsal.kill("controller")
    line.rehearsal.wait_for(lambda: bool(events(line, "stopped")), 2, "the belt did not stop", "belt")
    assert (events(line, "stopped")[0] - killed_ns) / 1e6 < 150, "100 ms, the belt's step and the kill itself"
    line.rehearsal.start("controller")
    line.wait_ready()
    assert len(events(line, "started")) == 1
    line.rehearsal.ack()
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert len({row["epoch"] for row in line.rows()}) == 2
    lost = [row for row in line.rows() if row["reason"] == "outcome_unknown"]
    assert all(row["decision"] == "FAULT" for row in lost)


def test_stopped_controller(make_line: Callable[..., Any]) -> None:
    """Hung, not dead: its outputs freeze, its pulses stop, the belt stops."""
    line = make_line(60)
    line.rehearsal.ack()
    line.wait_for_outcomes(15)
    line.rehearsal.signal("controller", signal.SIGSTOP)
    line.rehearsal.wait_for(lambda: bool(events(line, "stopped")), 2, "the belt did not stop", "belt")
    time.sleep(0.5)
    line.rehearsal.signal("controller", signal.SIGCONT)
    line.wait_ready()
    line.rehearsal.ack()
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.parts == 60


def test_killed_broker(make_line: Callable[..., Any]) -> None:
    """The belt does not notice; what was journalled meanwhile arrives when the broker is back."""
    line = make_line(80)
    line.rehearsal.ack()
    line.wait_for_outcomes(15)
    line.rehearsal.kill("broker")
    line.wait_for_outcomes(40)
    line.rehearsal.start("broker")
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.faults == 0
    assert len(events(line, "stopped")) == 0


def test_killed_publisher(make_line: Callable[..., Any]) -> None:
    line = make_line(80)
    line.rehearsal.ack()
    for outcomes in (15, 30, 45):
        line.wait_for_outcomes(outcomes)
        line.rehearsal.kill("publisher")
        line.rehearsal.start("publisher")
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.faults == 0


def test_box_stalled_150_ms(make_line: Callable[..., Any]) -> None:
    """At 600 parts a minute two parts wait; the decision point is 250 ms behind the eye, so that none is lost."""
    line = make_line(60)
    line.rehearsal.ack()
    for outcomes in (15, 30):
        line.wait_for_outcomes(outcomes)
        line.rehearsal.signal("station", signal.SIGSTOP)
        time.sleep(0.15)
        line.rehearsal.signal("station", signal.SIGCONT)
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.parts == 60
    assert (counts.late, counts.faults, counts.overkill) == (0, 0, [])


def test_box_stalled_beyond_the_decision_point(make_line: Callable[..., Any]) -> None:
    """With a decision point 50 ms behind the eye, the same stall makes parts late: thrown, and no other part's."""
    line = make_line(60, belt=Belt(decision_mm=50))
    line.rehearsal.ack()
    for outcomes in (15, 30):
        line.wait_for_outcomes(outcomes)
        line.rehearsal.signal("station", signal.SIGSTOP)
        time.sleep(0.15)
        line.rehearsal.signal("station", signal.SIGCONT)
    counts, summary = line.finish()
    check_promises(counts, summary)
    assert counts.parts == 60
    assert counts.late > 0
    good_thrown = len(counts.overkill)
    assert good_thrown <= counts.late + counts.faults, "a good part is thrown only for its own lateness"
