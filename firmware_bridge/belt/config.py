"""What a simulated belt is: its geometry, its parts, its faults. One JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EyeBounce(BaseModel):
    """The eye chatters as one part's leading edge arrives."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["eye_bounce"] = "eye_bounce"
    part: int = Field(title="Index of the true part", ge=0)
    bounces: int = Field(2, title="Extra pulses", ge=1)
    spacing_mm: float = Field(0.4, title="Between two edges", json_schema_extra={"unit": "mm"}, gt=0)


class EncoderDropout(BaseModel):
    """The belt moves and the encoder does not count."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["encoder_dropout"] = "encoder_dropout"
    at_mm: float = Field(title="Belt travel at which it begins", json_schema_extra={"unit": "mm"}, ge=0)
    length_mm: float = Field(title="For how long", json_schema_extra={"unit": "mm"}, gt=0)


class TruePart(BaseModel):
    """One line of the parts file. Only `picture` and `scan` ever leave the simulator, empty for none."""

    model_config = ConfigDict(extra="forbid")

    picture: str = ""
    scan: str = ""
    defective: bool
    id: str
    gap_mm: float = Field(0.0, title="Empty belt ahead of it, beyond the pitch", ge=0)

    @model_validator(mode="after")
    def _seen(self) -> TruePart:
        if not (self.picture or self.scan):
            raise ValueError("neither a picture nor a scan shows it")
        return self


class BeltConfig(BaseModel):
    """Distances run along the belt from the photo-eye; the gate distance is for a part's leading edge."""

    model_config = ConfigDict(extra="forbid")

    parts: Path = Field(
        title="Parts", description="JSON lines: picture or scan, defective, id; in the order of the belt"
    )
    output: Path = Field(title="Output folder", description="judgement.jsonl and summary.json are written here")
    pins_socket: Path = Field(title="Pins", description="Unix socket for the controller; at most 107 bytes")
    camera_socket: Path = Field(title="Camera", description="Unix socket for the station's camera source")
    speed_mm_s: float = Field(1000.0, title="Belt speed", json_schema_extra={"unit": "mm/s"}, gt=0)
    counts_per_mm: float = Field(5.0, title="Encoder", json_schema_extra={"unit": "counts/mm"}, gt=0)
    pitch_mm: float = Field(100.0, title="Between leading edges", json_schema_extra={"unit": "mm"}, gt=0)
    part_length_mm: float = Field(50.0, title="Part length", json_schema_extra={"unit": "mm"}, gt=0)
    first_part_mm: float = Field(100.0, title="Travel before the first part", json_schema_extra={"unit": "mm"}, ge=0)
    gate_distance_mm: float = Field(300.0, title="Eye to gate", json_schema_extra={"unit": "mm"}, gt=0)
    gate_window_before_mm: float = Field(
        10.0, title="Gate due ahead of the leading edge", json_schema_extra={"unit": "mm"}, ge=0
    )
    gate_window_after_mm: float = Field(
        60.0, title="Gate due until after the leading edge", json_schema_extra={"unit": "mm"}, gt=0
    )
    actuator_delay_ms: float = Field(15.0, title="True actuator delay", json_schema_extra={"unit": "ms"}, ge=0)
    polarity: Literal["energise_to_pass", "energise_to_reject"] = "energise_to_pass"
    permit_timeout_ms: float = Field(
        100.0, title="No pulse for this long stops the belt", json_schema_extra={"unit": "ms"}, gt=0
    )
    deceleration_mm_s2: float | None = Field(
        None, title="Braking", description="Nothing = stops at once", json_schema_extra={"unit": "mm/s2"}, gt=0
    )
    tick_ms: float = Field(2.0, title="Simulation step", json_schema_extra={"unit": "ms"}, gt=0)
    timeout_s: float = Field(600.0, title="Longest run", json_schema_extra={"unit": "s"}, gt=0)
    faults: list[EyeBounce | EncoderDropout] = Field(default_factory=list)

    def read_parts(self) -> list[TruePart]:
        """Raises ValueError naming file and line when a line is not a part."""
        lines = self.parts.read_text(encoding="utf-8").splitlines()
        if not lines:
            raise ValueError(f"{self.parts} lists no parts; write one JSON object a line")
        return [self._read_part(line, number) for number, line in enumerate(lines, 1)]

    def _read_part(self, line: str, number: int) -> TruePart:
        try:
            return TruePart.model_validate(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{self.parts}, line {number}: {error}") from error
