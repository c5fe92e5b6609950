"""A reject path without hardware: every picture of a folder or video is a part, triggered softly one by one.

For trying a bundle: nothing is thrown off any belt, each verdict is its own outcome, the run ends with the pictures.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from firmware_bridge.parts import Outcome, PartId, Trigger, Verdict
from firmware_bridge.reject_path import PathHealth


class BenchPath:
    """Triggers `parts` parts, each when the one before is decided, then calls `on_end`."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._epoch = secrets.randbits(32)
        self._part = 0
        self.on_trigger: Callable[[Trigger], None] = lambda _: None
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_lost: Callable[[PartId], None] = lambda _: None
        self.on_end: Callable[[], None] = lambda: None

    def open(self) -> None:
        self._trigger()

    def close(self) -> None:
        pass

    def decide(self, verdict: Verdict) -> None:
        self.on_outcome(Outcome(verdict.part_id, verdict.decision, verdict.reason, verdict.part_id.part))
        self._trigger()

    def _trigger(self) -> None:
        if self._part == self._parts:
            self.on_end()
            return
        self._part += 1
        part_id = PartId(self._epoch, self._part)
        self.on_trigger(Trigger(part_id, self._part, self._part, 0, time.monotonic_ns(), "soft"))

    def step_done(self) -> None:
        pass

    def health(self) -> PathHealth:
        return PathHealth(True, True, False, None, self._epoch, True)

    def ack(self) -> None:
        pass

    def jog_gate(self) -> None:
        raise RuntimeError("a bench has no gate: add a [reject] table to the station file")
