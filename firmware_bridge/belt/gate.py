"""The physical gate: it follows the commanded output by the true actuator delay."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Gate:
    """Changes of the physical state, in order of time (us). Starts de-energised."""

    def __init__(self, delay_us: float) -> None:
        self._delay_us = delay_us
        self._times: list[float] = []
        self._states: list[bool] = []

    def command(self, energised: bool, at_us: float) -> None:
        """The output changed at `at_us`. A command that comes in after a later one cannot undo the past."""
        moved_us = at_us + self._delay_us
        if self._times and moved_us < self._times[-1]:
            moved_us = self._times[-1]
        if (self._states[-1] if self._states else False) != energised:
            self._times.append(moved_us)
            self._states.append(energised)

    def states(self, start_us: float, end_us: float) -> set[bool]:
        """Every state the gate had between two moments."""
        first = bisect_right(self._times, start_us)
        last = bisect_left(self._times, end_us)
        initial = self._states[first - 1] if first else False
        return {initial, *self._states[first:last]}

    def energised_around(self, at_us: float) -> tuple[float, float | None] | None:
        """When the energised stretch around a moment began and ended (None: not yet); None when it was not."""
        i = bisect_right(self._times, at_us)
        if i == 0 or not self._states[i - 1]:
            return None
        return self._times[i - 1], self._times[i] if i < len(self._times) else None
