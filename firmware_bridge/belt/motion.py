"""Where the belt truly is, and when it was where."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque

_HISTORY_STEPS = 5000


class Motion:
    """Belt travel in millimetres over monotonic microseconds, straight lines between the steps."""

    def __init__(self, now_us: int, speed_mm_s: float, deceleration_mm_s2: float | None) -> None:
        self._full_mm_us = speed_mm_s / 1e6
        self._braking_mm_us2 = None if deceleration_mm_s2 is None else deceleration_mm_s2 / 1e12
        self._speed = 0.0
        self._times: deque[int] = deque([now_us], _HISTORY_STEPS)
        self._places: deque[float] = deque([0.0], _HISTORY_STEPS)

    @property
    def travel_mm(self) -> float:
        return self._places[-1]

    @property
    def moving(self) -> bool:
        return self._speed > 0

    def advance(self, now_us: int, run: bool) -> None:
        """Move on to `now_us`, running or braking."""
        span = now_us - self._times[-1]
        if span <= 0:
            return
        before = self._speed
        if run:
            before = self._speed = self._full_mm_us
        elif self._braking_mm_us2 is None:
            before = self._speed = 0.0
        else:
            self._speed = max(0.0, before - self._braking_mm_us2 * span)
        if before == 0 and len(self._places) > 1 and self._places[-1] == self._places[-2]:
            self._times[-1] = now_us  # a standing belt makes no history
            return
        self._times.append(now_us)
        self._places.append(self._places[-1] + (before + self._speed) / 2 * span)

    def travel_at(self, at_us: float) -> float:
        """Travel in mm at a moment; beyond the known ends, the end."""
        i = bisect_right(self._times, at_us)
        if i == 0:
            return self._places[0]
        if i == len(self._times):
            return self._places[-1]
        t0, t1, p0, p1 = self._times[i - 1], self._times[i], self._places[i - 1], self._places[i]
        return p0 + (p1 - p0) * (at_us - t0) / (t1 - t0)

    def reached_at(self, travel_mm: float) -> float:
        """The moment in us at which the belt first had this travel; beyond the known ends, the end."""
        i = bisect_left(self._places, travel_mm)
        if i == 0:
            return float(self._times[0])
        if i == len(self._places):
            return float(self._times[-1])
        t0, t1, p0, p1 = self._times[i - 1], self._times[i], self._places[i - 1], self._places[i]
        return t0 + (t1 - t0) * (travel_mm - p0) / (p1 - p0)
