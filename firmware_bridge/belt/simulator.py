"""The belt, in real time: moves while permit pulses arrive, tells the controller, exposes pictures, judges the gate."""

from __future__ import annotations

import json
import select
import time

from firmware_bridge.belt.camera import Camera
from firmware_bridge.belt.config import BeltConfig
from firmware_bridge.belt.gate import Gate
from firmware_bridge.belt.judge import Judge, write_summary
from firmware_bridge.belt.motion import Motion
from firmware_bridge.belt.outputs import Outputs, Strobe
from firmware_bridge.belt.pins import EyeEdge, Pins
from firmware_bridge.belt.track import Track

_SETTLE_US = 300_000  # the gate's story is surely complete this long after a part has left it


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class Simulator:
    """One run over one list of parts."""

    def __init__(self, config: BeltConfig) -> None:
        self._config = config
        self._parts = config.read_parts()
        config.output.mkdir(parents=True, exist_ok=True)
        self._start_us = monotonic_us()
        self._track = Track(config, self._parts)
        self._motion = Motion(self._start_us, config.speed_mm_s, config.deceleration_mm_s2)
        self._gate = Gate(config.actuator_delay_ms * 1000)
        self._outputs = Outputs(self._motion, self._track, self._gate, config.permit_timeout_ms * 1000)
        self._judge = Judge(config, self._parts, self._track, self._motion, self._gate)
        self._pins = Pins(config.pins_socket)
        self._camera = Camera(config.camera_socket)
        self._events = (config.output / "events.jsonl").open("w", encoding="utf-8")
        self._next_edge = 0
        self._eye = False
        self._running = False
        self._stopped_us: int | None = None
        self._stops: list[dict[str, float]] = []
        self._untaken = 0
        self._terminated = False

    def terminate(self) -> None:
        """End the run after this step (called from a signal handler)."""
        self._terminated = True

    def run(self) -> dict[str, object]:
        """Until every part is judged, the time is over, or `terminate`. Returns what summary.json says."""
        next_us = monotonic_us()
        while True:
            ended = self._ended()
            if ended is not None:
                return self._finish(ended)
            next_us = max(next_us + round(self._config.tick_ms * 1000), monotonic_us())
            self._listen(next_us)
            self._step()

    def _ended(self) -> str | None:
        if self._judge.finished:
            return "all_parts"
        if self._terminated:
            return "terminated"
        if monotonic_us() - self._start_us > self._config.timeout_s * 1e6:
            return "timeout"
        return None

    def _listen(self, until_us: int) -> None:
        """Take answers as they come, until the next step is due."""
        while (wait_us := until_us - monotonic_us()) > 0:
            readable, _, _ = select.select(self._pins.readers(), [], [], wait_us / 1e6)
            if readable:
                self._hear()

    def _hear(self) -> None:
        now_us = monotonic_us()
        powered = self._pins.connected
        for answer in self._pins.answers():
            for strobe in self._outputs.answered(answer, now_us):
                self._expose(strobe)
        if powered and not self._pins.connected:
            self._outputs.power_off(now_us)
            self._event("controller_gone", now_us)
        count = self._track.count(self._motion.travel_mm)
        if self._pins.accept(count, now_us, self._eye):
            self._outputs.power_off(now_us)
            self._outputs.connected(count)
            self._event("controller_came", now_us)

    def _step(self) -> None:
        now_us = monotonic_us()
        pulse_us = self._outputs.last_pulse_us
        permit = pulse_us is not None and now_us - pulse_us <= self._config.permit_timeout_ms * 1000
        self._motion.advance(now_us, permit)
        self._note_permit(permit, now_us)
        count = self._track.count(self._motion.travel_mm)
        reached_us = round(self._motion.reached_at(self._track.travel_mm(count)))
        sequence = self._pins.tick(count, reached_us, self._edges())
        if sequence is not None:
            self._outputs.sent(sequence, count, now_us)
        self._outputs.watch(now_us, count)
        self._judge.watch()
        self._judge.judge_until(self._outputs.known_us(now_us) - _SETTLE_US)

    def _edges(self) -> list[EyeEdge]:
        edges = []
        while self._next_edge < len(self._track.edges):
            place, level = self._track.edges[self._next_edge]
            if place > self._motion.travel_mm:
                break
            edges.append(EyeEdge(self._track.count(place), round(self._motion.reached_at(place)), level))
            self._eye = level
            self._next_edge += 1
        return edges

    def _expose(self, strobe: Strobe) -> None:
        part = self._track.under_camera(self._motion.travel_at(strobe.at_us))
        self._judge.strobed(part, strobe.epoch, strobe.part)
        if part is not None:
            seen = self._parts[part]
            captured_ns = round(strobe.at_us * 1000)
            self._untaken += not self._camera.expose(strobe.epoch, strobe.part, captured_ns, seen.picture, seen.scan)

    def _note_permit(self, permit: bool, now_us: int) -> None:
        if permit == self._running:
            return
        self._running = permit
        if permit:
            self._event("started", now_us)
            if self._stopped_us is not None:
                self._judge.stopped(self._stopped_us, now_us)
                self._stops.append({"stopped_ns": self._stopped_us * 1000, "restarted_ns": now_us * 1000})
                self._stopped_us = None
        else:
            self._event("stopped", now_us)
            self._stopped_us = now_us

    def _event(self, name: str, now_us: int) -> None:
        self._events.write(json.dumps({"event": name, "at_ns": now_us * 1000}) + "\n")
        self._events.flush()

    def _finish(self, ended: str) -> dict[str, object]:
        if self._stopped_us is not None:
            self._stops.append({"stopped_ns": self._stopped_us * 1000})
        self._judge.close()
        summary = {
            "ended": ended,
            **self._judge.summary(),
            "pictures_not_taken": self._untaken,
            "late_answers": self._outputs.late_answers,
            "stops": self._stops,
            "travel_mm": round(self._motion.travel_mm, 3),
            "run_s": round((monotonic_us() - self._start_us) / 1e6, 3),
        }
        write_summary(self._config.output / "summary.json", summary)
        self._event(ended, monotonic_us())
        self._events.close()
        self._pins.close()
        self._camera.close()
        return summary
