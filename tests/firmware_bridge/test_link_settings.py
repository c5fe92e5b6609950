from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from firmware_bridge.link import LinkSettings

GOOD: dict[str, Any] = {
    "port": "/dev/ttyACM0",
    "decision_distance_counts": 1200,
    "gate_distance_counts": 1500,
    "gate_window_before_counts": 50,
    "gate_window_after_counts": 300,
    "min_part_spacing_counts": 400,
}


def test_every_field_tells_people_what_it_is() -> None:
    for name, field in LinkSettings.model_fields.items():
        assert field.title, name
        assert field.description, name
        if name.endswith(("_counts", "_ms")):
            assert isinstance(field.json_schema_extra, dict), name
            assert field.json_schema_extra["unit"] in ("counts", "ms"), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decision_distance_counts": 1451}, "must lie after debounce_counts"),
        ({"decision_distance_counts": 4}, "must lie after debounce_counts"),
        ({"min_part_spacing_counts": 349}, "smaller than the gate window of 350"),
        ({"gate_distance": 3}, "gate_distance"),
        ({"polarity": "up"}, "energise_to_pass"),
        ({"heartbeat_timeout_ms": 0}, "heartbeat_timeout_ms"),
        ({"heartbeat_timeout_ms": 299}, "greater than or equal to 300"),
        ({"step_limit_ms": 99}, "greater than or equal to 100"),
        ({"step_limit_ms": 10_001}, "less than or equal to 10000"),
        ({"baud": 99_999_999_999_999}, "less than or equal to 4000000"),
    ],
)
def test_senseless_settings_are_refused_with_values(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LinkSettings.model_validate({**GOOD, **change})


def test_each_parameter_changes_the_hash() -> None:
    settings = LinkSettings.model_validate(GOOD)
    hashes = {settings.parameter_hash(False), settings.parameter_hash(True)}
    pushed = set(LinkSettings.model_fields) - {"port", "baud", "step_limit_ms", "polarity"}
    for name in pushed:
        hashes.add(settings.model_copy(update={name: getattr(settings, name) + 1}).parameter_hash(False))
    hashes.add(settings.model_copy(update={"polarity": "energise_to_reject"}).parameter_hash(False))
    assert len(hashes) == len(pushed) + 3
