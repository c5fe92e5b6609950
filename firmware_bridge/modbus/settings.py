"""What station.toml says about a plant's own PLC: the table `[reject]` of kind "modbus"."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from firmware_bridge.modbus import registers as r

HEARTBEAT_MS, SILENCE_MS = 100, 300  # between two heartbeats; the PLC's patience
BITS_PER_BYTE = 11  # start, eight, parity or a second stop bit, stop
LONGEST_BYTES = 45  # of a request and its answer on a serial line: the header
BYTES_BETWEEN_BEATS = 29 + 2 * LONGEST_BYTES + 23  # a part's slot, a header, the beat that is lost, both again


class ModbusSettings(BaseModel):
    """The PLC, how to reach it, and where its registers are. The map itself is in docs/modbus.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    transport: Literal["tcp", "rtu"] = Field(
        "tcp", title="Transport", description="Modbus TCP, or RTU on a serial port"
    )
    host: str = Field("", title="PLC", description="host name or address (tcp)")
    port: int = Field(502, ge=1, le=65535, title="TCP port", description="TCP port of the PLC (tcp)")
    device: str = Field("", title="Serial port", description="for example /dev/ttyUSB0 (rtu)")
    baud: int = Field(115200, ge=19200, le=1_000_000, title="Baud rate", description="bits per second (rtu)")
    parity: Literal["N", "E", "O"] = Field(
        "E", title="Parity", description="none, even or odd (rtu); N has two stop bits"
    )
    unit: int = Field(1, ge=0, le=247, title="Unit", description="Modbus unit (slave) address of the PLC")
    plc_base: int = Field(0, ge=0, le=65000, title="PLC block", description="first holding register the PLC writes")
    box_base: int = Field(200, ge=0, le=65000, title="Box block", description="first holding register the box writes")
    word_order: Literal["high_first", "low_first"] = Field(
        "high_first", title="Word order", description="which half of a 32-bit value has the lower register address"
    )
    poll_ms: int = Field(10, ge=1, le=200, title="Poll period", description="pause between two looks at the PLC, ms")
    timeout_ms: int | None = Field(
        None,
        ge=20,
        le=5000,
        title="Timeout",
        description="longest wait for one answer, ms; else 80 (tcp), or 30 and the time on the line (rtu)",
    )
    step_limit_ms: int = Field(
        200,
        ge=100,
        le=10_000,
        title="Step limit",
        description="heartbeat stops when scoring has not stepped for so long, ms",
    )

    @property
    def answer_timeout_ms(self) -> int:
        if self.timeout_ms is not None:
            return self.timeout_ms
        return 80 if self.transport == "tcp" else 30 + self._line_ms(LONGEST_BYTES)

    def _line_ms(self, count: int) -> int:
        return math.ceil(count * BITS_PER_BYTE * 1000 / self.baud)

    def model_post_init(self, _: object, /) -> None:
        if self.transport == "tcp" and not self.host:
            raise ValueError("transport tcp needs host, the PLC's name or address")
        if self.transport == "rtu" and not self.device:
            raise ValueError("transport rtu needs device, for example /dev/ttyUSB0")
        if self.transport == "rtu" and self.unit == 0:
            raise ValueError("unit = 0 is everybody on a serial line, and nobody answers: give the PLC's own address")
        gap_ms = HEARTBEAT_MS + 2 * self.poll_ms + self.answer_timeout_ms + self._line_ms(BYTES_BETWEEN_BEATS)
        if self.transport == "rtu" and gap_ms > SILENCE_MS:
            raise ValueError(
                f"with poll_ms = {self.poll_ms}, timeout_ms = {self.answer_timeout_ms} and baud = {self.baud} one lost "
                f"answer costs up to {gap_ms} ms without a heartbeat, and the PLC stops the belt after {SILENCE_MS}: "
                "lower the first two, or raise baud"
            )
        plc_end, box_end = self.plc_base + r.PLC_WORDS, self.box_base + r.BOX_WORDS
        if self.plc_base < box_end and self.box_base < plc_end:
            raise ValueError(
                f"plc_base = {self.plc_base} (registers {self.plc_base} to {plc_end - 1}) and box_base = "
                f"{self.box_base} (registers {self.box_base} to {box_end - 1}) overlap: each would write over the "
                "other's registers; move one of them"
            )
