"""The real line in real time: belt process, controller process, link. The belt judges."""

from __future__ import annotations

from typing import Any

import pytest

from firmware_bridge.parts import Decision, Reason, Trigger

ACCEPT = (Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD)
REJECT = (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)

pytestmark = pytest.mark.line


def test_every_part_goes_where_its_own_verdict_says(line: Any, eventually: Any) -> None:
    defects = [i % 3 == 1 or i in (12, 13) for i in range(40)]

    def judge(trigger: Trigger) -> tuple[Decision, Reason]:
        return REJECT if defects[trigger.part_id.part - 1] else ACCEPT

    line.start_belt(defects)
    line.controller.start()
    station = line.station(judge)
    station.ready_and_acknowledged()
    summary = line.finish()
    eventually(lambda: len(line.journal.outcomes) == 40, 2)
    assert summary["escapes"] == summary["overkill"] == summary["split"] == 0
    assert summary["passed"] == 40 - sum(defects)
    assert summary["thrown"] == sum(defects)
    assert summary["gate_error_max_counts"] <= 1.0
    assert summary["stops"] == [] or "restarted_ns" not in summary["stops"][0]
    assert all(len(heard) == 1 for heard in line.journal.outcomes.values())
    health = station.link.health()
    assert health.counters["controller_late_decisions"] == 0
    assert health.counters["crc_errors"] == 0
