"""What the controller's answers mean in the simulated world: gate, permit, camera.

The controller answers a tick a moment after the belt has moved on, with each edge at its exact count; the edge is then
taken to have happened when the belt truly passed this count, so that the scheduling of two processes is not judged. An
answer later than the permit timeout is a controller that hung: its edges happen when they arrive.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from firmware_bridge.belt import pins
from firmware_bridge.belt.gate import Gate
from firmware_bridge.belt.motion import Motion
from firmware_bridge.belt.track import Track


@dataclass(frozen=True, slots=True)
class SentTick:
    sequence: int
    count: int
    sent_us: int


@dataclass(frozen=True, slots=True)
class Strobe:
    epoch: int
    part: int
    at_us: float


class Outputs:
    """The outputs of the controller as the belt's wiring sees them."""

    def __init__(self, motion: Motion, track: Track, gate: Gate, hung_us: float) -> None:
        self._motion = motion
        self._track = track
        self._gate = gate
        self._hung_us = hung_us
        self._sent: deque[SentTick] = deque()
        self._answered_count = 0
        self._release: int | None = None  # count at which the hardware lets the gate go by itself
        self.last_pulse_us: float | None = None
        self.late_answers = 0

    def sent(self, sequence: int, count: int, now_us: int) -> None:
        self._sent.append(SentTick(sequence, count, now_us))

    def connected(self, count: int) -> None:
        self._sent.clear()
        self._answered_count = count

    def power_off(self, now_us: float) -> None:
        """The controller's socket closed: every output falls."""
        self._gate.command(False, now_us)
        self._release = None
        self._sent.clear()

    def answered(self, answer: pins.Answer, now_us: int) -> list[Strobe]:
        tick = None
        while self._sent and tick is None:
            head = self._sent.popleft()
            tick = head if head.sequence == answer.sequence else None
        if tick is None:
            return []
        late = now_us - tick.sent_us > self._hung_us
        self.late_answers += late
        strobes = []
        for edge in answer.edges:
            at_us = float(now_us) if late else self._moment(edge.count, tick)
            if edge.kind == pins.GATE:
                self._let_go(edge.count, None if late else at_us)
                self._gate.command(edge.level, at_us)
                self._release = edge.a if edge.level and not edge.b else None
            elif edge.kind == pins.PERMIT:
                self.last_pulse_us = float(now_us)
            elif edge.kind == pins.STROBE:
                strobes.append(Strobe(edge.a, edge.b, at_us))
        self._answered_count = tick.count
        self._let_go(tick.count)
        return strobes

    def watch(self, now_us: int, count: int) -> None:
        """A controller that hangs leaves the gate to its release count."""
        if self._sent and now_us - self._sent[0].sent_us > self._hung_us:
            self._let_go(count)

    def known_us(self, now_us: int) -> float:
        """Up to when the outputs are known."""
        if not self._sent:
            return now_us
        return max(self._sent[0].sent_us - 1, now_us - self._hung_us)

    def _moment(self, count: int, tick: SentTick) -> float:
        if count > self._answered_count:
            return self._motion.reached_at(self._track.travel_mm(count))
        return tick.sent_us

    def _let_go(self, count: int, before_us: float | None = None) -> None:
        if self._release is not None and count >= self._release:
            at_us = self._motion.reached_at(self._track.travel_mm(self._release))
            if before_us is None or at_us < before_us:
                self._gate.command(False, at_us)
                self._release = None
