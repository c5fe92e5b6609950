"""The line with a scanner in place of a camera: real processes, scans from the belt simulator, the same promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.rehearsal import Belt
from edge.tally import judgements, tally
from firmware_bridge.belt.config import TruePart

pytestmark = pytest.mark.line
SLOW = Belt(speed_mm_s=500.0, step_limit_ms=400)


def test_scans_are_judged_from_the_belt(
    tmp_path: Path, make_scan_bundle: Callable[..., Path], blocks: Any, start_line: Callable[..., Any]
) -> None:
    parts = []
    for number in range(12):
        high, empty = number % 4 == 3, number == 5
        file = tmp_path / f"{number}.npy"
        np.save(file, blocks.scan(0 if empty else 30 if high else 10, seed=number))
        parts.append(TruePart(id=str(number), scan=str(file), defective=high or empty))
    line = start_line(make_scan_bundle(), parts, belt=SLOW)
    line.rehearsal.ack()
    counts, summary = line.finish()
    assert counts.broken == []
    assert (counts.escapes, counts.overkill) == ([], [])
    assert counts.outcomes == {
        "ACCEPT score_below_threshold": 8,
        "REJECT score_above_threshold": 3,
        "FAULT bad_frame": 1,
    }
    assert summary["gate_error_max_counts"] <= 1
    first, second = parts[:2]
    parts[:2] = first.model_copy(update={"scan": second.scan}), second.model_copy(update={"scan": first.scan})
    swapped = tally(line.rows(), judgements(line.rehearsal.judgement), parts, blocks.spec(), 0)
    assert swapped.wrong_picture == 2
