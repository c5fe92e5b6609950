"""The settings of `link`: the serial port and the parameters that are pushed into the reject controller."""

from __future__ import annotations

import struct
import zlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PARAMETERS = struct.Struct("<4B9I")


class LinkSettings(BaseModel):
    """Counts are encoder counts; distances run from the photo-eye along the belt, for a part's leading edge."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    port: str = Field(
        pattern=r"^[^\p{Cc}]+$", title="Serial port", description="Device of the reject controller, e.g. /dev/ttyACM0"
    )
    baud: int = Field(
        115200, title="Baud rate", description="8N1", json_schema_extra={"unit": "baud"}, ge=9600, le=4_000_000
    )
    decision_distance_counts: int = Field(
        title="Decision distance",
        description="A part that has come this far without its ACCEPT is thrown",
        json_schema_extra={"unit": "counts"},
        gt=0,
        lt=1 << 28,
    )
    gate_distance_counts: int = Field(
        title="Gate distance",
        description="From the eye to the gate, for the leading edge",
        json_schema_extra={"unit": "counts"},
        gt=0,
        lt=1 << 28,
    )
    gate_window_before_counts: int = Field(
        title="Gate window before",
        description="The gate is set this far ahead of the leading edge",
        json_schema_extra={"unit": "counts"},
        ge=0,
    )
    gate_window_after_counts: int = Field(
        title="Gate window after",
        description="The gate is released this far after the leading edge: part length and margin; longer is FAULT",
        json_schema_extra={"unit": "counts"},
        gt=0,
        lt=1 << 28,
    )
    debounce_counts: int = Field(
        5,
        title="Debounce",
        description="The eye must still be blocked after this many counts",
        json_schema_extra={"unit": "counts"},
        ge=0,
    )
    min_part_spacing_counts: int = Field(
        title="Smallest part spacing",
        description="Two leading edges closer than this are a FAULT for both parts",
        json_schema_extra={"unit": "counts"},
        gt=0,
        lt=1 << 28,
    )
    actuator_delay_ms: float = Field(
        0.0,
        title="Actuator delay",
        description="From the output to the gate having moved",
        json_schema_extra={"unit": "ms"},
        ge=0,
        le=1000,
    )
    polarity: Literal["energise_to_pass", "energise_to_reject"] = Field(
        "energise_to_pass",
        title="Gate polarity",
        description="energise_to_pass throws every part when power or controller fail; "
        "energise_to_reject needs an actuator for continuous duty: it stays energised while the belt pauses",
    )
    heartbeat_timeout_ms: int = Field(
        300,
        title="Heartbeat timeout",
        description="Silence of the station, which speaks every 100 ms, after which the permit drops",
        json_schema_extra={"unit": "ms"},
        ge=300,
        le=10000,
    )
    encoder_timeout_ms: int = Field(
        100,
        title="Encoder timeout",
        description="Silence of the encoder after which an open gate is set to reject",
        json_schema_extra={"unit": "ms"},
        ge=10,
        le=10000,
    )
    step_limit_ms: int = Field(
        200,
        title="Step limit",
        description="The heartbeat stops when the scoring loop has finished no step for this long",
        json_schema_extra={"unit": "ms"},
        ge=100,
        le=10_000,
    )

    @model_validator(mode="after")
    def _geometry(self) -> LinkSettings:
        before, gate = self.gate_window_before_counts, self.gate_distance_counts
        if not self.debounce_counts < self.decision_distance_counts <= gate - before:
            raise ValueError(
                f"decision_distance_counts = {self.decision_distance_counts} must lie after debounce_counts = "
                f"{self.debounce_counts} and at or before the start of the gate window, {gate - before} counts "
                "(gate_distance_counts - gate_window_before_counts)"
            )
        window = before + self.gate_window_after_counts
        if self.min_part_spacing_counts < window:
            raise ValueError(
                f"min_part_spacing_counts = {self.min_part_spacing_counts} is smaller than the gate window of {window} "
                "counts: the gate could not tell two such parts apart; raise it or narrow the window"
            )
        return self

    def parameters(self, inhibit: bool) -> bytes:
        """The canonical bytes pushed into the controller (`struct rc_parameters`)."""
        return _PARAMETERS.pack(
            1,
            self.polarity == "energise_to_reject",
            inhibit,
            0,
            self.decision_distance_counts,
            self.gate_distance_counts,
            self.gate_window_before_counts,
            self.gate_window_after_counts,
            self.debounce_counts,
            self.min_part_spacing_counts,
            round(self.actuator_delay_ms * 1000),
            self.heartbeat_timeout_ms,
            self.encoder_timeout_ms,
        )

    def parameter_hash(self, inhibit: bool) -> int:
        return zlib.crc32(self.parameters(inhibit))
