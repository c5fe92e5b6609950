"""A new bundle that cannot take this camera's pictures, on a running belt: the former one comes back by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import Source
from edge.install import install
from edge.installed import read_state
from edge.settings import load_settings

pytestmark = pytest.mark.line


def test_a_bundle_that_faults_on_the_belt_is_replaced(
    make_line: Callable[..., Any], make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.speed.MEASURE_NS", 0)
    line = make_line(40)
    belt = line.rehearsal
    belt.stop("station")
    text = belt.station_file.read_text(encoding="utf-8")
    without_path = "".join(row for row in text.splitlines(keepends=True) if not row.startswith("path ="))
    belt.station_file.write_text(without_path + 'bundles = "bundles"\nengines = "engines"\n', encoding="utf-8")
    settings = load_settings(belt.station_file)
    good = install(settings, belt.bundle).bundle.id
    wide = install(settings, make_bundle("wide.bundle", source=Source(height=(900, 901), width=(900, 901), channels=3)))
    belt.start("station")
    line.wait_ready()
    assert belt.status()["bundle"] == wide.bundle.id
    belt.ack()
    assert belt.processes.pop("station").wait(20) == 1
    state = read_state(settings.paths.bundles)
    assert state
    assert state.last
    assert (state.current, state.last.bundle, state.last.result) == (good, wide.bundle.id, "failed")
    assert "the last: bad_frame" in state.last.why
    belt.start("station")  # as systemd does
    line.wait_ready()
    assert (belt.status()["bundle"], belt.status()["trial"]) == (good, None)
    belt.ack()
    counts, summary = line.finish()
    assert counts.broken == []
    assert counts.escapes == []
    assert summary["gate_error_max_counts"] is None or summary["gate_error_max_counts"] <= 1
    assert counts.outcomes["ACCEPT score_below_threshold"] > 15
