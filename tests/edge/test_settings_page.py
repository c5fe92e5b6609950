from __future__ import annotations

from pathlib import Path

from edge.settings import Settings
from edge.settings_page import page

PAGE = Path(__file__).parents[2] / "docs" / "station.md"


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m edge.settings_page docs/station.md"


def test_every_table_is_on_it() -> None:
    assert all(f"## [{name}]" in page() for name in Settings.model_fields)
    assert "`decision_distance_counts`" in page()
    assert "`device`" in page()
