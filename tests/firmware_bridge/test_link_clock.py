from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.link.clock import ControllerClock
from firmware_bridge.link.outcomes import OutcomeLedger


@given(
    offset_us=st.integers(-(2**40), 2**40),
    delays_us=st.lists(st.integers(0, 20_000), min_size=1, max_size=50),
    start_us=st.integers(0, 2**32 - 1),
)
def test_offset_is_never_below_the_truth_and_off_by_at_most_the_smallest_delay(
    offset_us: int, delays_us: list[int], start_us: int
) -> None:
    clock = ControllerClock()
    for i, delay_us in enumerate(delays_us):
        true_us = start_us + 100_000 * i  # wraps at 2^32 on the wire
        clock.observe(true_us % 2**32, (true_us + offset_us + delay_us) * 1000)
    latch_us = start_us + 100_000 * (len(delays_us) - 1) - 5000
    error_us = clock.to_ns(latch_us % 2**32) / 1000 - (latch_us + offset_us)
    assert error_us % (2**32) <= min(delays_us)


def test_a_clock_that_drifts_is_followed() -> None:
    clock = ControllerClock()
    drift = 1 + 100e-6
    for second in range(120):
        clock.observe(second * 1_000_000, round(second * 1e9 * drift) + 1_000_000)
    assert clock.to_ns(119_000_000) - 119e9 * drift == pytest.approx(1e6, abs=2.1e6)  # 20 s of 100 ppm


@given(
    last=st.integers(0, 40),
    unresolved=st.sets(st.integers(1, 40)),
    order=st.permutations(range(1, 61)),
)
def test_ledger_delivers_what_is_open_once(last: int, unresolved: set[int], order: list[int]) -> None:
    unresolved = {part for part in unresolved if part <= last}
    ledger = OutcomeLedger.resumed(1, last, sorted(unresolved))
    delivered = [part for part in [*order, *order] if ledger.deliver(part)]
    assert sorted(delivered) == sorted(unresolved | set(range(last + 1, 61)))
    assert ledger.watermark == 60
    assert ledger.ahead == set()
