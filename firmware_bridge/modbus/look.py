"""One look at the PLC of a [reject] table, for people: who answers there, and how it is. Reads, and writes nothing."""

from __future__ import annotations

import asyncio
import time

from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.settings import ModbusSettings
from firmware_bridge.modbus.wire import Wire, WireError

PATIENCE_MS = 1000  # for a connection and for each answer


def probe(settings: ModbusSettings) -> str:
    """What the PLC says of itself.

    Raises:
        WireError: nobody answers, or it is no beltline PLC. The message has the next step.

    """
    return asyncio.run(_probe(settings))


async def _probe(settings: ModbusSettings) -> str:
    wire = Wire(settings.model_copy(update={"timeout_ms": max(PATIENCE_MS, settings.answer_timeout_ms)}))
    try:
        await wire.connect()
        asked_ns = time.perf_counter_ns()
        header = r.read_header(await wire.read(settings.plc_base, r.HEADER_WORDS), settings.word_order)
        answer_ms = (time.perf_counter_ns() - asked_ns) / 1e6
        if problem := await wrong_map(wire, settings, header):
            raise WireError("wrong_map", problem)
    finally:
        wire.close()
    status = "ready" if header.status & r.READY else "not ready"
    status += ", belt permitted" if header.status & r.PERMIT else ", no belt permit"
    if header.status & r.FAULT:
        status += f", its fault {header.fault_code} latched"
    if header.status & r.INHIBITED:
        status += ", its gate held"
    return (
        f"a beltline PLC, epoch {header.epoch}, newest part {header.newest}: {status}; "
        f"it answers in {answer_ms:.0f} ms, timeout_ms = {settings.answer_timeout_ms}"
    )


async def wrong_map(wire: Wire, settings: ModbusSettings, header: r.Header) -> str | None:
    """Why these cannot be the registers of a beltline PLC, if so. Raises WireError."""
    if header.layout != r.LAYOUT:
        return (
            f"register {settings.plc_base} of {wire.where} holds 0x{header.layout:04x}, not 0x{r.LAYOUT:04x}: correct "
            "plc_base or unit in [reject], or the PLC program"
        )
    found = (await read_slot(wire, settings, header.newest)).part if header.newest else 0
    if found >= header.newest and found % r.SLOTS == header.newest % r.SLOTS:
        return None
    return (
        f"the newest part of {wire.where} is {header.newest}, but its slot holds part {found}: correct word_order in "
        "[reject], or let the PLC program fill the slot before it counts the part"
    )


async def read_slot(wire: Wire, settings: ModbusSettings, part: int) -> r.TriggerRecord:
    at = settings.plc_base + r.TRIGGERS_AT + r.TRIGGER_WORDS * r.slot(part)
    return r.read_trigger(await wire.read(at, r.TRIGGER_WORDS), settings.word_order)
