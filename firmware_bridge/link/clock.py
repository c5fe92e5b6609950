"""The controller's clock seen from the box: an offset between two monotonic clocks.

Each message carries the controller's microseconds at its sending. What is measured on receipt is the true offset plus
a delay that is never negative, so the smallest of the recent ones is the best estimate; two windows make it forget,
because clocks drift.
"""

from __future__ import annotations

_WINDOW_NS = 10_000_000_000


class ControllerClock:
    """Turns controller microseconds (u32, wrapping) into nanoseconds of the box's monotonic clock."""

    def __init__(self) -> None:
        self._last_us: int | None = None  # unwrapped
        self._best: int | None = None
        self._previous: int | None = None
        self._window_ns = 0

    def observe(self, now_us: int, received_ns: int, wire_ns: int = 0) -> None:
        """A message sent at `now_us` arrived at `received_ns`; its bytes took `wire_ns` to cross."""
        unwrapped = self._unwrap(now_us)
        self._last_us = unwrapped
        offset = received_ns - wire_ns - unwrapped * 1000
        if self._best is None or received_ns - self._window_ns > _WINDOW_NS:
            self._previous, self._best, self._window_ns = self._best, offset, received_ns
        else:
            self._best = min(self._best, offset)

    def to_ns(self, controller_us: int) -> int:
        """The same instant on the box's clock. Raises RuntimeError before the first observation."""
        if self._best is None:
            raise RuntimeError("the controller's clock was never observed")
        best = self._best if self._previous is None else min(self._best, self._previous)
        return self._unwrap(controller_us) * 1000 + best

    def _unwrap(self, us: int) -> int:
        """The value nearest to the last one seen."""
        if self._last_us is None:
            return us
        return self._last_us + (us - self._last_us + (1 << 31)) % (1 << 32) - (1 << 31)
