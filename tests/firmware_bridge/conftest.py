"""A real line without pictures: the compiled controller, the belt process, the link, and a station that knows truth."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from firmware_bridge.belt.config import BeltConfig
from firmware_bridge.belt.pins import PERMIT, STROBE, EyeEdge, OutputEdge, Pins
from firmware_bridge.host_controller import HostController, build
from firmware_bridge.link import Link, LinkSettings
from firmware_bridge.parts import Decision, Outcome, PartId, Reason, Trigger, Verdict


class Journal:
    """The smallest memory a path can have."""

    def __init__(self) -> None:
        self.triggers: dict[PartId, Trigger] = {}
        self.outcomes: dict[PartId, list[Outcome]] = {}
        self.lost: list[PartId] = []
        self.asked: dict[PartId, Decision] = {}
        self.epochs: set[int] = set()

    def knows_epoch(self, epoch: int) -> bool:
        return epoch in self.epochs

    def last_part(self, epoch: int) -> int:
        return max((p.part for p in [*self.triggers, *self.outcomes] if p.epoch == epoch), default=0)

    def unresolved(self, epoch: int) -> list[int]:
        settled = {*self.outcomes, *self.lost}
        return sorted(p.part for p in self.triggers if p.epoch == epoch and p not in settled)


class Station:
    """Takes triggers from the link and answers with `judge`; keeps the heartbeat alive."""

    def __init__(
        self, link: Link, journal: Journal, judge: Callable[[Trigger], tuple[Decision, Reason] | None]
    ) -> None:
        self.link = link
        self.journal = journal
        self.judge = judge
        self.stall = threading.Event()  # set: the scoring loop hangs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._triggers: queue.Queue[Trigger] = queue.Queue()
        link.on_trigger = self._on_trigger
        link.on_outcome = self._on_outcome
        link.on_lost = journal.lost.append

    def _on_trigger(self, trigger: Trigger) -> None:
        self.journal.triggers[trigger.part_id] = trigger
        self.journal.epochs.add(trigger.part_id.epoch)
        self._triggers.put(trigger)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.journal.epochs.add(outcome.part_id.epoch)
        self.journal.outcomes.setdefault(outcome.part_id, []).append(outcome)

    def start(self) -> None:
        self.link.open()
        self._thread.start()

    def stop(self) -> None:
        """Twice does no harm."""
        self._stop.set()
        self._thread.join()
        self.link.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self.stall.is_set():
                time.sleep(0.01)
                continue
            with suppress(queue.Empty):
                trigger = self._triggers.get(timeout=0.02)
                answer = self.judge(trigger)
                if answer is not None:
                    self.journal.asked[trigger.part_id] = answer[0]
                    self.link.decide(Verdict(trigger.part_id, *answer, score=None, threshold=0.5, recipe="test"))
            self.link.step_done()

    def ready_and_acknowledged(self, timeout_s: float = 5.0) -> None:
        wait_for(lambda: self.link.health().ready, timeout_s, lambda: str(self.link.health()))

        def permitted() -> bool:
            self.link.ack()
            return self.link.health().permit

        wait_for(permitted, timeout_s, lambda: str(self.link.health()))


def wait_for(condition: Callable[[], bool], timeout_s: float, describe: Callable[[], str] = lambda: "") -> float:
    """Seconds it took; fails the test when it never came true."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            pytest.fail(f"not within {timeout_s} s: {describe()}")
        time.sleep(0.005)
    return time.monotonic() - start


class HandBelt:
    """The controller's pins, moved by the test: counts and parts on command, at 5 counts a millisecond."""

    def __init__(self, path: Path) -> None:
        self._pins = Pins(path)
        self._lock = threading.Lock()
        self._count = 0
        self._target = 0
        self._edges: list[EyeEdge] = []
        self._stop = threading.Event()
        self.outputs: list[OutputEdge] = []
        self.pulses_ns: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            now_us = time.monotonic_ns() // 1000
            with self._lock:
                self._pins.accept(self._count, now_us, False)
                for answer in self._pins.answers():
                    self.outputs += answer.edges
                    self.pulses_ns += [now_us * 1000 for edge in answer.edges if edge.kind == PERMIT and edge.level]
                self._count = min(self._target, self._count + 10)
                due = [edge for edge in self._edges if edge.count <= self._count]
                self._edges = self._edges[len(due) :]
                self._pins.tick(self._count, now_us, [EyeEdge(e.count, now_us, e.level) for e in due])

    def move(self, counts: int, parts: int = 0, pitch: int = 500) -> None:
        """Move on; the leading edges of `parts` come a pitch apart, from 60 counts on.

        The gate window begins 50 counts ahead of a part: what is nearer to the place of the start was not seen clear.
        """
        with self._lock:
            for i in range(parts):
                lead = self._count + 60 + i * pitch
                self._edges += [EyeEdge(lead, 0, True), EyeEdge(lead + 250, 0, False)]
            self._target = self._count + counts
        wait_for(lambda: self._count == self._target, 60)

    def strobes(self) -> list[PartId]:
        return [PartId(edge.a, edge.b) for edge in self.outputs if edge.kind == STROBE]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pins.close()


class Line:
    """Everything around the link of one test, in one folder."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder = folder
        self.controller = HostController(program, folder / "link", folder / "pins")
        self.belt: subprocess.Popen[bytes] | None = None
        self.hand_belt: HandBelt | None = None
        self.journal = Journal()
        self.stations: list[Station] = []
        self._stack = ExitStack()

    def settings(self, **changes: object) -> LinkSettings:
        """Fits the default belt: 1000 mm/s, 5 counts/mm, 100 mm pitch, gate at 300 mm."""
        values: dict[str, object] = {
            "port": str(self.folder / "link"),
            "decision_distance_counts": 1200,
            "gate_distance_counts": 1500,
            "gate_window_before_counts": 50,
            "gate_window_after_counts": 300,
            "min_part_spacing_counts": 400,
            "actuator_delay_ms": 15.0,
        }
        return LinkSettings.model_validate({**values, **changes})

    def start_belt(self, defects: list[bool], **changes: object) -> None:
        lines = [json.dumps({"picture": f"{i}.png", "defective": d, "id": f"part-{i}"}) for i, d in enumerate(defects)]
        (self.folder / "parts.jsonl").write_text("\n".join(lines))
        values: dict[str, object] = {
            "parts": self.folder / "parts.jsonl",
            "output": self.folder / "out",
            "pins_socket": self.folder / "pins",
            "camera_socket": self.folder / "camera",
            "pitch_mm": 100.13,
        }
        config = BeltConfig.model_validate({**values, **changes})
        (self.folder / "belt.json").write_text(config.model_dump_json())
        self.belt = subprocess.Popen([sys.executable, "-m", "firmware_bridge.belt", str(self.folder / "belt.json")])
        wait_for((self.folder / "camera").is_socket, 10)

    def start_hand_belt(self) -> HandBelt:
        self.hand_belt = HandBelt(self.folder / "pins")
        return self.hand_belt

    def station(
        self,
        judge: Callable[[Trigger], tuple[Decision, Reason] | None],
        inhibit: bool = False,
        **changes: object,
    ) -> Station:
        station = Station(Link(self.settings(**changes), self.journal, inhibit), self.journal, judge)
        station.start()
        self.stations.append(station)
        self._stack.callback(station.stop)
        return station

    def finish(self, timeout_s: float = 60.0) -> dict[str, object]:
        """Wait for the belt's own end; its summary."""
        assert self.belt is not None
        try:
            assert self.belt.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            events = (self.folder / "out" / "events.jsonl").read_text()
            pytest.fail(f"the belt did not end: {[station.link.health() for station in self.stations]}\n{events}")
        return self.summary()

    def summary(self) -> dict[str, object]:
        return dict(json.loads((self.folder / "out" / "summary.json").read_text()))

    def judgements(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "out" / "judgement.jsonl").read_text().splitlines()]

    def events(self, name: str) -> list[int]:
        """Nanoseconds of each event of this name so far."""
        lines = (self.folder / "out" / "events.jsonl").read_text().splitlines()
        return [event["at_ns"] for event in map(json.loads, lines) if event["event"] == name]

    def close(self) -> None:
        self._stack.close()
        self.controller.stop()
        if self.hand_belt is not None:
            self.hand_belt.close()
        if self.belt is not None and self.belt.poll() is None:
            self.belt.terminate()
            self.belt.wait(10)


@pytest.fixture(scope="session")
def controller_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("controller"))


@contextmanager
def open_line(program: Path) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(prefix="line") as folder:  # short: a socket's path holds 107 bytes
        line = Line(Path(folder), program)
        try:
            yield line
        finally:
            line.close()


@pytest.fixture
def line(controller_program: Path) -> Iterator[Line]:
    with open_line(controller_program) as line:
        yield line


@pytest.fixture(scope="session")
def eventually() -> Callable[..., float]:
    return wait_for
