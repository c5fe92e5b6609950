"""The loop: each trigger gets exactly one verdict, in order, on its own picture; doubt is FAULT.

The reject path here is a script: it triggers what a test says and settles parts when a test says.
"""

from __future__ import annotations

import gc
import math
import queue
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.bundle import read_bundle
from edge.frame import Frame
from edge.journal import Journal
from edge.judge import Judge
from edge.scorer import Scorer, ScorerError
from edge.sources import CaptureError
from edge.station import IDLE_S, Station, StationError
from edge.watchdog import Watchdog
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict
from firmware_bridge.reject_path import PathHealth

EPOCH = 42


class ScriptedPath:
    """Says what it is told to say and notes what it hears."""

    def __init__(self) -> None:
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_lost: Callable[[PartId], None] = lambda _: None
        self.on_trigger: Callable[[Trigger], None] = lambda _: None
        self.verdicts: queue.Queue[Verdict] = queue.Queue()
        self.steps: list[float] = []
        self.epoch: int | None = EPOCH
        self.settle = True

    def open(self) -> None: ...

    def close(self) -> None: ...

    def decide(self, verdict: Verdict) -> None:
        self.verdicts.put(verdict)
        if self.settle:
            self.on_outcome(Outcome(verdict.part_id, verdict.decision, verdict.reason, 0))

    def step_done(self) -> None:
        self.steps.append(time.monotonic())

    def health(self) -> PathHealth:
        return PathHealth(True, True, True, None, self.epoch, False)

    def ack(self) -> None: ...

    def jog_gate(self) -> None: ...

    def part(self, part: int, epoch: int = EPOCH) -> None:
        self.on_trigger(Trigger(PartId(epoch, part), part, part, 0, time.monotonic_ns()))

    def verdict(self) -> Verdict:
        return self.verdicts.get(timeout=10)


class ScriptedSource:
    """Answers with a picture, an error, or after some `None`s, part by part."""

    def __init__(self) -> None:
        self.answers: dict[int, Any] = {}
        self.problem = ""
        self.expected: list[PartId] = []

    def open(self) -> None: ...

    def close(self) -> None: ...

    def expect(self, trigger: Trigger) -> None:
        self.expected.append(trigger.part_id)

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:
        answer = self.answers[trigger.part_id.part]
        if isinstance(answer, list):
            if answer:
                time.sleep(answer.pop())
                return None
            answer = np.zeros((64, 64, 3), np.uint8)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Frame):
            return answer
        return Frame(trigger.part_id, trigger.at_ns, answer)

    def counters(self) -> dict[str, int]:
        return {}


class Line:
    def __init__(self, bundle: Path, journal: Path) -> None:
        self.path, self.source = ScriptedPath(), ScriptedSource()
        self.file = journal
        self.journal = Journal(journal)
        self.scorer = Scorer(read_bundle(bundle), "float")
        self.station = Station(
            Judge(self.scorer, "recipe"), self.source, self.path, self.journal, watchdog=Watchdog({})
        )

    def judge(self, part: int, answer: Any) -> Verdict:
        self.source.answers[part] = answer
        self.path.part(part)
        return self.path.verdict()

    def rows(self) -> list[tuple[Any, ...]]:
        assert self.journal.flush(10)
        with closing(sqlite3.connect(self.file)) as database:
            return database.execute("SELECT epoch, part, decision, reason, verdict_reason FROM outcome").fetchall()


@contextmanager
def running(line: Line) -> Iterator[Line]:
    line.journal.open()
    thread = threading.Thread(target=line.station.run)
    thread.start()
    try:
        yield line
    finally:
        line.station.stop()
        thread.join(10)
        line.journal.close()
        assert not thread.is_alive()


@pytest.fixture
def line(make_bundle: Callable[..., Path], tmp_path: Path) -> Iterator[Line]:
    with running(Line(make_bundle(), tmp_path / "journal.db")) as line:
        yield line


def test_good_is_accepted_and_bad_is_rejected(line: Line, tiny: SimpleNamespace) -> None:
    good, bad = line.judge(1, tiny.picture(128)), line.judge(2, tiny.picture(250))
    assert (good.decision, good.reason) == (Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD)
    assert (bad.decision, bad.reason) == (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)
    assert good.part_id == PartId(EPOCH, 1)
    assert good.score is not None
    assert good.score < good.threshold == 0.5
    assert {"frame", "front_end", "graph", "total"} <= set(good.times_ms)
    assert line.rows() == [
        (EPOCH, 1, "ACCEPT", "score_below_threshold", "score_below_threshold"),
        (EPOCH, 2, "REJECT", "score_above_threshold", "score_above_threshold"),
    ]


def test_a_score_at_the_threshold_is_accepted_and_just_above_is_not(line: Line, tiny: SimpleNamespace) -> None:
    picture = tiny.picture(160)
    line.station.judge.threshold = line.scorer.score(picture).value
    assert line.judge(1, picture).decision is Decision.ACCEPT
    line.station.judge.threshold = float(np.nextafter(line.station.judge.threshold, -1))
    assert line.judge(2, picture).decision is Decision.REJECT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (CaptureError(Reason.NO_FRAME, "none"), Reason.NO_FRAME),
        (CaptureError(Reason.AMBIGUOUS_FRAME, "two"), Reason.AMBIGUOUS_FRAME),
        (np.zeros((64, 64, 3), np.uint8), Reason.BAD_FRAME),
        (np.zeros((64, 64), np.uint8), Reason.BAD_FRAME),
        (np.zeros((64, 64, 3), np.uint16), Reason.BAD_FRAME),
        (np.zeros((900, 64, 3), np.uint8), Reason.BAD_FRAME),
    ],
)
def test_doubt_is_a_fault(line: Line, tiny: SimpleNamespace, answer: Any, reason: Reason) -> None:
    verdict = line.judge(1, answer)
    assert (verdict.decision, verdict.reason, verdict.score) == (Decision.FAULT, reason, None)
    assert line.judge(2, tiny.picture(128)).decision is Decision.ACCEPT, "the station goes on"
    assert line.station.counters()[f"verdict FAULT {reason.value}"] == 1


def test_the_picture_of_another_part_is_a_fault(line: Line, tiny: SimpleNamespace) -> None:
    stranger = Frame(PartId(EPOCH, 9), time.monotonic_ns(), tiny.picture(128))
    assert line.judge(1, stranger).reason is Reason.AMBIGUOUS_FRAME


def test_each_of_many_triggers_gets_one_verdict_in_order(line: Line, tiny: SimpleNamespace) -> None:
    for part in range(1, 101):
        line.source.answers[part] = tiny.picture(128 if part % 3 else 250, part)
        line.path.part(part)
    verdicts = [line.path.verdict() for _ in range(100)]
    assert [verdict.part_id.part for verdict in verdicts] == list(range(1, 101))
    assert [verdict.decision is Decision.ACCEPT for verdict in verdicts] == [bool(part % 3) for part in range(1, 101)]
    assert line.source.expected == [verdict.part_id for verdict in verdicts]
    assert len(line.rows()) == 100


def test_a_repeated_trigger_gets_no_second_verdict(line: Line, tiny: SimpleNamespace) -> None:
    line.judge(1, tiny.picture(128))
    line.path.part(1)
    line.judge(2, tiny.picture(128))
    assert line.path.verdicts.empty()
    assert line.station.counters()["repeated trigger"] == 1


def test_a_part_that_was_settled_meanwhile_is_counted_and_not_scored(line: Line, tiny: SimpleNamespace) -> None:
    line.path.settle = False
    line.source.answers[1] = [0.05, 0.05]  # slow, then a picture
    line.source.answers[2] = CaptureError(Reason.NO_FRAME, "must not be asked for")
    line.path.part(1)
    line.path.part(2)
    time.sleep(0.03)
    for part in (1, 2):
        line.path.on_outcome(Outcome(PartId(EPOCH, part), Decision.FAULT, Reason.NO_VERDICT, 0))
    assert line.path.verdict().part_id.part == 1
    second = line.path.verdict()
    assert (second.part_id.part, second.decision, second.reason) == (2, Decision.FAULT, Reason.NO_VERDICT)
    line.judge(3, tiny.picture(128))
    assert line.station.counters()["late verdict"] == 2
    assert [row[3] for row in line.rows()] == ["no_verdict", "no_verdict"]


def test_the_heartbeat_goes_on_while_the_belt_pauses_and_while_a_picture_is_awaited(line: Line) -> None:
    time.sleep(1)
    line.judge(1, [0.04] * 20)
    steps = np.array(line.path.steps)
    assert steps[-1] - steps[0] > 1.5
    assert np.diff(steps).max() < 0.2  # the heartbeat's step limit


def test_a_failing_self_test_stops_the_heartbeat_until_it_passes_again(
    line: Line, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ScorerError("self-test: this box computes otherwise")

    monkeypatch.setattr(line.scorer, "self_test", fail)
    deadline = time.monotonic() + 10
    while line.station.state() != "Error":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    steps = len(line.path.steps)
    verdict = line.judge(1, tiny.picture(128))
    assert (verdict.decision, verdict.reason) == (Decision.FAULT, Reason.SCORER_FAILED)
    time.sleep(0.3)
    assert len(line.path.steps) == steps
    assert "computes otherwise" in line.station.status()["fault"]
    monkeypatch.undo()
    time.sleep(0.5)
    assert line.judge(2, tiny.picture(128)).decision is Decision.ACCEPT
    assert len(line.path.steps) > steps


def test_a_new_life_of_the_controller_settles_the_parts_of_the_old_one(line: Line, tiny: SimpleNamespace) -> None:
    line.path.settle = False
    line.judge(1, tiny.picture(128))
    line.path.epoch = EPOCH + 1
    deadline = time.monotonic() + 10
    while not line.rows():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert line.rows() == [(EPOCH, 1, "FAULT", "outcome_unknown", "score_below_threshold")]


def test_what_the_controller_remembers_and_what_it_lost_is_journalled(line: Line) -> None:
    line.path.on_outcome(Outcome(PartId(EPOCH, 1), Decision.REJECT, Reason.LATE, 5, recovered=True))
    line.path.on_outcome(Outcome(PartId(EPOCH, 1), Decision.REJECT, Reason.LATE, 5, recovered=True))
    line.path.on_lost(PartId(EPOCH, 2))
    assert [row[1:4] for row in line.rows()] == [(1, "REJECT", "late"), (2, "FAULT", "outcome_unknown")]
    counters = line.station.counters()
    assert (counters["outcome REJECT late"], counters["recovered"]) == (1, 1)
    assert counters["outcome FAULT outcome_unknown"] == 1


def test_the_states_are_those_of_opc_40100(
    make_bundle: Callable[..., Path], tmp_path: Path, tiny: SimpleNamespace
) -> None:
    line = Line(make_bundle(), tmp_path / "j.db")
    assert line.station.state() == "Preoperational"
    with running(line):
        line.judge(1, tiny.picture(128))
        assert line.station.state() == "Operational/ContinuousExecution"
        status = line.station.status()
        assert status["counters"]["verdict ACCEPT score_below_threshold"] == 1
        assert status["total_ms"]["p50"] > 0
    assert line.station.state() == "Halted"
    assert gc.isenabled()


def test_no_garbage_is_collected_while_parts_run(line: Line, tiny: SimpleNamespace) -> None:
    line.judge(1, tiny.picture(128))
    assert not gc.isenabled()


def test_garbage_is_collected_on_a_belt_that_never_pauses(
    line: Line, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.station.COLLECT_S", math.inf)
    line.judge(1, tiny.picture(128))
    before = gc.get_stats()[2]["collections"]
    monkeypatch.setattr("edge.station.COLLECT_LATEST_S", 0)
    for part in (2, 3, 4):
        line.judge(part, tiny.picture(128))
    assert gc.get_stats()[2]["collections"] > before


def test_a_station_that_hears_no_more_triggers_ends_with_an_error(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    line = Line(make_bundle(), tmp_path / "j.db")
    line.journal.open()
    with pytest.raises(AttributeError):
        line.path.on_trigger("no trigger")  # type: ignore[arg-type]
    with pytest.raises(StationError, match="could not be taken in"):
        line.station.run()
    line.journal.close()


def test_a_signal_that_outlasts_the_wait_for_a_trigger_still_ends_the_loop(line: Line) -> None:
    signals = 0

    def interrupt(*_: object) -> None:
        nonlocal signals
        signals += 1
        time.sleep(2 * IDLE_S)
        if signals == 5:
            line.station.stop()

    def rescue_a_hung_loop() -> None:
        line.station.stop()
        line.station._triggers.put(Trigger(PartId(EPOCH, 1), 1, 1, 0, 0))

    before = signal.signal(signal.SIGALRM, interrupt)
    rescue = threading.Timer(10, rescue_a_hung_loop)
    rescue.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, IDLE_S, 3 * IDLE_S)
        start_s = time.monotonic()
        line.station.run()
        assert time.monotonic() - start_s < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        rescue.cancel()
        signal.signal(signal.SIGALRM, before)
