from __future__ import annotations

import pytest

from edge.reject import LONGEST_PAUSE_MS, too_slow
from edge.settings import LinkReject, NoReject

LINK = LinkReject(
    kind="link",
    port="/dev/ttyS0",
    decision_distance_counts=1000,
    gate_distance_counts=1200,
    gate_window_before_counts=50,
    gate_window_after_counts=300,
    min_part_spacing_counts=350,
    step_limit_ms=200,
)


@pytest.mark.parametrize(("score_ms", "fits"), [(200 - LONGEST_PAUSE_MS, True), (200.1 - LONGEST_PAUSE_MS, False)])
def test_a_step_is_a_pause_and_a_score(score_ms: float, *, fits: bool) -> None:
    assert (too_slow(LINK, score_ms) is None) == fits


def test_a_bench_has_no_heartbeat_to_keep() -> None:
    assert too_slow(NoReject(), 1e6) is None
