"""The messages' schema is what the documents say."""

from __future__ import annotations

import json
from pathlib import Path

from firmware_bridge.mqtt.messages import StateMessage, json_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "mqtt.schema.json"


def test_the_documented_schema_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == json_schema(), (
        "run: python -m firmware_bridge.mqtt.messages docs/mqtt.schema.json"
    )


def test_a_payload_states_its_schema_version() -> None:
    message = StateMessage(online=False, station=None, fault=None, recipe=None, version="1", time=None)
    assert json.loads(message.payload())["schema"] == 1
