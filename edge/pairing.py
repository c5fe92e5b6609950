"""Which picture belongs to which part, by the time at which its exposure started. Pure: no clock, no camera.

A part's window is [trigger + delay, trigger + delay + width). A triggered camera must have exactly one exposure inside
it; of a free-running camera the first one counts. A picture that two parts claim belongs to neither. An answer is given
once nothing that can still arrive may change it: pictures arrive in at most `transfer`, triggers in at most `latency`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from firmware_bridge.parts import PartId, Reason

KEPT_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Rules:
    triggered: bool
    delay_ns: int
    width_ns: int
    transfer_ns: int  # longest from an exposure's start to its picture's arrival
    latency_ns: int  # longest from a part at the photo-eye to its trigger's arrival

    @property
    def longest_ns(self) -> int:
        """From the trigger to the last moment at which a part can still get its picture."""
        return max(self.delay_ns + self.width_ns + self.transfer_ns, self.latency_ns)


def pair(triggers: Iterable[tuple[PartId, int]], exposures: Iterable[int], rules: Rules) -> dict[PartId, int | Reason]:
    """Each part's exposure, or why it has none: the whole rule, with everything known.

    Args:
        triggers: part id and trigger time, ns.
        exposures: start times, ns; distinct.
        rules: the windows.

    """
    ordered = sorted(exposures)
    claims: dict[PartId, list[int]] = {}
    for part_id, at_ns in triggers:
        start_ns = at_ns + rules.delay_ns
        inside = [e for e in ordered if start_ns <= e < start_ns + rules.width_ns]
        claims[part_id] = inside if rules.triggered else inside[:1]
    claimants = Counter(exposure for claimed in claims.values() for exposure in claimed)
    return {part_id: _judge(claimed, claimants) for part_id, claimed in claims.items()}


def _judge(claimed: list[int], claimants: Counter[int]) -> int | Reason:
    if not claimed:
        return Reason.NO_FRAME
    if len(claimed) > 1 or claimants[claimed[0]] > 1:
        return Reason.AMBIGUOUS_FRAME
    return claimed[0]


class Pairing:
    """The rule while triggers and pictures still arrive. Pictures arrive in the order of their exposures."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._triggers: deque[tuple[PartId, int]] = deque(maxlen=KEPT_WINDOWS)
        self._exposures: deque[int] = deque(maxlen=4 * KEPT_WINDOWS)

    def trigger(self, part_id: PartId, at_ns: int) -> None:
        self._triggers.append((part_id, at_ns))

    def exposure(self, captured_ns: int) -> None:
        self._exposures.append(captured_ns)

    def settle(self, part_id: PartId, at_ns: int, now_ns: int) -> int | Reason | None:
        """The part's exposure, the reason why it has none, or None while that is still open at `now_ns`."""
        rules, start_ns = self._rules, at_ns + self._rules.delay_ns
        end_ns = start_ns + rules.width_ns
        first = next((e for e in self._exposures if start_ns <= e < end_ns), None)
        complete = now_ns >= end_ns + rules.transfer_ns or any(e >= end_ns for e in self._exposures)
        if first is None or rules.triggered:
            if not complete:
                return None
            last = max((e for e in self._exposures if start_ns <= e < end_ns), default=start_ns)
        else:
            last = first
        # whoever may claim an exposure too was at the photo-eye `delay` before it or earlier
        if now_ns < last - rules.delay_ns + rules.latency_ns:
            return None
        return pair(self._triggers, self._exposures, rules).get(part_id, Reason.NO_FRAME)
