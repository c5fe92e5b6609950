"""The station: trigger -> its own frame -> score -> verdict -> act -> journal, once for every part.

Two threads meet here. On the reject path's own thread triggers are journalled, the source is told to expect a picture,
and outcomes come in. The loop, on the caller's thread, judges one part after the other. While the belt pauses it wakes
to repeat the bundle's self-test, so that the heartbeat to the controller always means 'this box still computes what was
proven'; when the test fails the heartbeat stops, and with it the belt's permit. An engine that fails the test is given
up first, and ONNX Runtime goes on where it stands by.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeVar

from edge.errors import BeltlineError
from edge.frame import Frame
from edge.journal import Journal
from edge.judge import Judge, Judged
from edge.reject import LONGEST_PAUSE_MS
from edge.scorer import ScorerError
from edge.sources import PictureSource
from edge.trial import Trial
from edge.watchdog import Watchdog
from firmware_bridge.parts import Outcome, PartId, Reason, Trigger
from firmware_bridge.reject_path import RejectPath

log = logging.getLogger(__name__)

Told = TypeVar("Told", Trigger, Outcome, PartId)

FIRST_IDLE_S = 0.025  # soon after a part, so that at a steady pace the self-test is over before the next one
IDLE_S = LONGEST_PAUSE_MS / 1000  # between self-tests; well inside the heartbeat's step limit of 200 ms
WAIT_S = 0.05  # longest wait for a frame before the loop shows that it lives
COLLECT_S = 10.0  # between garbage collections, while the belt pauses
COLLECT_LATEST_S = 600.0  # the same on a belt that never does
REMEMBERED_TIMES = 2000  # parts, for the percentiles
PERMIT_S = 0.8  # for an acknowledgement to bring the permit back
RUNNING_NS = 2_000_000_000  # a part within this time: the line is executing


class StationError(BeltlineError):
    """The station cannot go on."""


class Station:
    """One station. `on_judged` sees every part after the decision has left; it must be quick.

    Where the bundle is on `trial`, the station ends when that fails.
    """

    def __init__(
        self,
        judge: Judge,
        source: PictureSource,
        path: RejectPath,
        journal: Journal,
        *,
        watchdog: Watchdog,
        on_judged: Callable[[Judged], None] | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.judge, self.source, self.path, self.journal = judge, source, path, journal
        self._counters: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._watchdog, self._on_judged, self._trial = watchdog, on_judged, trial
        self._triggers: queue.Queue[Trigger] = queue.Queue()  # SimpleQueue.get hangs on a signal before Python 3.13
        self._stopping = False  # no Event: `stop` may interrupt whatever the main thread does
        self._sick = ""  # why the self-test failed
        self._last_part_ns = 0
        self._epoch: int | None = None
        self._noticing = threading.Lock()  # of epochs: an old one must not be noticed after a newer
        self._total_ms: deque[float] = deque(maxlen=REMEMBERED_TIMES)
        self._collected_s = 0.0
        self._operational = False
        self._deaf = False
        path.on_trigger = self._heard(self._on_trigger)
        path.on_outcome, path.on_lost = self._heard(self._on_outcome), self._heard(self._on_lost)

    def stop(self) -> None:
        """End the loop after the part in hand. From any thread, and from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Inspect until `stop`. The source, the path and the journal are open and are closed by the caller.

        Raises:
            StationError: what the reject path told could not be taken in.

        """
        gc.collect()
        self._collected_s = time.monotonic()
        gc.freeze()
        gc.disable()
        self._operational = True
        self._watchdog.ready()
        try:
            wait_s = FIRST_IDLE_S
            while not self._stopping:
                try:
                    trigger = self._triggers.get(timeout=wait_s)
                except queue.Empty:
                    self._idle()
                    wait_s = IDLE_S
                else:
                    self._inspect(trigger)
                    wait_s = FIRST_IDLE_S
                    self._collect(COLLECT_LATEST_S)
                self._step_done()
        finally:
            self._operational = False
            self._stopping = True
            gc.enable()
            gc.unfreeze()
            self._watchdog.stopping()
        if self._deaf:
            raise StationError(
                "what the reject path told could not be taken in: why stands above. Start the station again."
            )

    def _inspect(self, trigger: Trigger) -> None:
        if self._sick:
            judged = self.judge.refuse(trigger, Reason.SCORER_FAILED)
        elif self.journal.settled(trigger.part_id):  # its decision point has passed: catch up with the belt
            judged = self.judge.refuse(trigger, Reason.NO_VERDICT)
        else:
            judged = self.judge.judge(trigger, self._frame)
        verdict = judged.verdict
        in_time = self.journal.verdict(verdict, judged.score.input_crc32 if judged.score else None)  # memory only
        self.path.decide(verdict)
        self._last_part_ns = time.monotonic_ns()
        self._total_ms.append(verdict.times_ms["total"])
        self._count(f"verdict {verdict.decision.value} {verdict.reason.value}")
        if not in_time:
            self._count("late verdict")
        if verdict.reason is Reason.SCORER_FAILED and self.judge.fallback:
            self._self_test()
        if self._on_judged:
            self._on_judged(judged)
        if self._trial:
            self._trial.judged(verdict, in_time=in_time)
            if self._trial.failed:
                self.stop()

    def _frame(self, trigger: Trigger) -> Frame:
        while (frame := self.source.frame(trigger, WAIT_S)) is None:
            self._step_done()
        return frame

    def _step_done(self) -> None:
        if not self._sick:
            self.path.step_done()
            self._watchdog.alive()

    def _idle(self) -> None:
        with self._noticing:
            self._notice_epoch(self.path.health().epoch)
        self._self_test()
        self._collect(COLLECT_S)

    def _self_test(self) -> None:
        try:
            self.judge.scorer.self_test()
            self._sick = ""
        except ScorerError as error:
            if self.judge.fall_back(str(error)):
                self._count("engine given up")
                self._self_test()
                return
            if not self._sick:
                log.error("inspection stops: %s", error)  # noqa: TRY400 - the message says it all
            self._sick = str(error)
            self._count("self-test failed")
            if self._trial:
                self._trial.fault(str(error))
                self.stop()

    def _collect(self, every_s: float) -> None:
        if (now_s := time.monotonic()) >= self._collected_s + every_s:
            self._collected_s = now_s
            gc.collect()

    def _heard(self, take_in: Callable[[Told], None]) -> Callable[[Told], None]:
        """A box that hears no more must not look healthy: what goes wrong on the path's thread ends the station."""

        def guarded(told: Told) -> None:
            try:
                take_in(told)
            except BaseException:
                self._deaf = self._stopping = True
                raise

        return guarded

    def _on_trigger(self, trigger: Trigger) -> None:
        with self._noticing:
            self._notice_epoch(trigger.part_id.epoch)
        if not self.journal.trigger(trigger):
            self._count("repeated trigger")
            return
        self._count("trigger")
        self.source.expect(trigger)
        self._triggers.put(trigger)

    def _notice_epoch(self, epoch: int | None) -> None:
        if epoch is not None and epoch != self._epoch:
            self._epoch = epoch
            for _ in self.journal.settle_other_epochs(epoch):
                self._count("outcome FAULT outcome_unknown")

    def _on_outcome(self, outcome: Outcome) -> None:
        if self.journal.outcome(outcome):
            self._count(f"outcome {outcome.decision.value} {outcome.reason.value}")
            if outcome.recovered:
                self._count("recovered")

    def _on_lost(self, part_id: PartId) -> None:
        if self.journal.lost(part_id):
            self._count("outcome FAULT outcome_unknown")

    def _count(self, cause: str) -> None:
        with self._counting:
            self._counters[cause] += 1

    # What people do and see

    def acknowledge(self) -> None:
        """Acknowledge the latched fault. Raises RuntimeError when the permit does not return within a moment."""
        deadline_s = time.monotonic() + PERMIT_S
        while time.monotonic() < deadline_s:  # a controller that has just heard its first heartbeats refuses at first
            self.path.ack()
            time.sleep(0.1)
            if self.path.health().permit:
                return
        raise RuntimeError(f"the belt gets no permit: {self.path.health().fault or 'the controller gives no reason'}")

    def state(self) -> str:
        """In the words of OPC 40100-1."""
        if self._sick:
            return "Error"
        if not self._operational:
            return "Halted" if self._stopping else "Preoperational"
        if time.monotonic_ns() - self._last_part_ns < RUNNING_NS:
            return "Operational/ContinuousExecution"
        return "Operational/Ready" if self.path.health().ready else "Operational/Initialized"

    def counters(self) -> dict[str, int]:
        """Triggers, verdicts and outcomes by cause."""
        with self._counting:
            return dict(self._counters)

    def status(self) -> dict[str, Any]:
        """A snapshot for the control socket; plain JSON values."""
        health, scorer = self.path.health(), self.judge.scorer
        ordered = sorted(self._total_ms)
        return {
            "state": self.state(),
            "fault": self._sick or health.fault or self.source.problem or None,
            "bundle": scorer.bundle.id,
            "graph": scorer.graph,
            "runtime": {
                "name": scorer.runtime.name,
                "engine": scorer.runtime.engine or None,
                "instead_of_engine": self.judge.instead_of_engine or None,
            },
            "recipe": self.judge.recipe,
            "threshold": self.judge.threshold,
            "path": {
                "connected": health.connected,
                "ready": health.ready,
                "permit": health.permit,
                "fault": health.fault,
                "epoch": health.epoch,
                "inhibited": health.inhibited,
                "counters": dict(health.counters),
            },
            "journal": {"failing": self.journal.failing, **self.journal.counters()},
            "source": self.source.counters(),
            "counters": self.counters(),
            "total_ms": {
                "p50": ordered[len(ordered) // 2] if ordered else None,
                "p99": ordered[len(ordered) * 99 // 100] if ordered else None,
                "max": ordered[-1] if ordered else None,
            },
        }
