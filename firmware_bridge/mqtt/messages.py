"""What travels over MQTT: one model per topic under `beltline/<site>/<line>/<station>/`.

Every payload is one JSON object with its `schema` version. A reader takes fields it does not know as additions of a
later version with the same `schema`; a change that breaks readers raises the number. Times of day are ISO 8601 in UTC
and for people: nothing is decided by them. The JSON Schema of all messages is docs/mqtt.schema.json, written by
`python -m firmware_bridge.mqtt.messages docs/mqtt.schema.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from firmware_bridge.parts import Decision, Reason

SCHEMA: Literal[1] = 1


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, serialize_by_alias=True, allow_inf_nan=False, ser_json_inf_nan="null")

    schema_version: Literal[1] = Field(SCHEMA, alias="schema", description="version of this message's format")

    def payload(self) -> bytes:
        return self.model_dump_json().encode()


class VerdictMessage(Message):
    """Topic `verdict`, QoS 1, not retained: the outcome of one part, at least once and in order."""

    id: str = Field(description="identity of the part (epoch in hex, '-', number): the same part has the same id again")
    epoch: int = Field(ge=0, lt=2**32, description="life of the reject controller in which the part was counted")
    part: int = Field(ge=0, lt=2**32, description="number of the part within its epoch")
    decision: Decision = Field(description="what was done: only ACCEPT stays on the belt")
    reason: Reason = Field(description="why")
    asked: Decision | None = Field(description="what the station asked for; null when it asked for nothing")
    asked_reason: Reason | None = Field(description="why it asked for that")
    score: float | None = Field(description="anomaly score; null when there is none")
    threshold: float | None = Field(description="the part is bad when score > threshold")
    recipe: str | None = Field(description="recipe in force")
    trigger_count: int | None = Field(description="encoder count at the photo-eye")
    outcome_count: int | None = Field(description="encoder count at which the outcome was settled")
    time: str = Field(description="time of day of the trigger")
    boot_id: str = Field(description="boot of the box")
    recovered: bool = Field(description="learned from the controller after a break, not live")
    dry_run: bool = Field(description="the gate was inhibited: nothing was thrown off the belt")
    input_crc32: int | None = Field(description="CRC-32 of the scored picture")
    times_ms: dict[str, float] = Field(description="duration of each step, milliseconds")


class StateMessage(Message):
    """Topic `state`, QoS 1, retained: birth, changes, and as the will `online: false`."""

    online: bool = Field(description="beltline publish is connected; false when it stopped or its connection broke")
    station: str | None = Field(description="state of the station (OPC 40100-1 words); null while it does not answer")
    fault: str | None = Field(description="the latched fault, in words")
    recipe: str | None = Field(description="recipe in force")
    version: str = Field(description="version of beltline")
    time: str | None = Field(description="time of day of this message; null in the will")


class FaultMessage(Message):
    """Topic `fault`, QoS 1, retained: the latched fault, or null once it is acknowledged."""

    fault: str | None = Field(description="the latched fault, in words")
    time: str = Field(description="time of day at which it was seen")


class HealthMessage(Message):
    """Topic `health`, QoS 0, every few seconds and as the reply to the command `health`."""

    protocol: Literal["5", "3.1.1"] = Field(description="MQTT version in use")
    fell_back: bool = Field(description="3.1.1 in use because the broker refused 5")
    last_problem: str = Field(description="the last problem with broker, journal or cursor, in words; may be over")
    backlog: int = Field(description="outcomes in the journal that the broker has not acknowledged")
    dropped: int = Field(description="outcomes that fell off the backlog's bound, since the cursor began")
    counters: dict[str, int] = Field(description="events by cause since the publisher started")
    station: dict[str, int | float | str | bool | None] = Field(
        description="the station's own figures, when it answers; `runtime.name` and `runtime.engine` are what runs the "
        "graph, `runtime.instead_of_engine` is why the engine that was chosen at the install does not"
    )
    time: str = Field(description="time of day of this message")


class Command(Message):
    """Topic `cmd/<name>`, never retained. The one command is `health`; its reply is a `health` message."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    id: str = Field(max_length=64, description="chosen by the sender, returned in the reply")


class Reply(Message):
    """Topic `reply`, QoS 0: the answer to a command that could be read."""

    id: str = Field(description="of the command")
    ok: bool = Field(description="the command was carried out")
    error: str = Field(description="why not; empty when it was")


MESSAGES = (VerdictMessage, StateMessage, FaultMessage, HealthMessage, Command, Reply)


def json_schema() -> str:
    """JSON Schema of all messages, as the text of docs/mqtt.schema.json."""
    _, schema = models_json_schema(
        [(model, "validation" if model is Command else "serialization") for model in MESSAGES],
        title="beltline over MQTT",
    )
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json_schema(), encoding="utf-8")
