"""From the [reject] table to the path that throws parts off the belt."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edge.settings import LinkReject, ModbusReject, NoReject, Reject
from firmware_bridge.link import Link
from firmware_bridge.modbus import ModbusPath
from firmware_bridge.reject_path import Memory, RejectPath

MEMORY_MAJOR = 1  # /dev/null and its like
LONGEST_PAUSE_MS = 80.0  # of the loop between two self-tests


def make_path(settings: Reject, memory: Memory, *, inhibit: bool) -> RejectPath:
    """The reject path that the settings describe, not yet open. `inhibit`: the gate stays in its passing state."""
    if isinstance(settings, LinkReject):
        return Link(settings, memory, inhibit)
    if isinstance(settings, ModbusReject):
        return ModbusPath(settings, memory, inhibit)
    raise ValueError(f"no reject path of kind {settings.kind!r}: a bench makes its own")


def describe(settings: Reject) -> tuple[str, bool]:
    """One line for people, and whether a look at this box alone, without opening anything, finds nothing against it."""
    if isinstance(settings, LinkReject):
        return _port(settings.port, f"reject controller at {settings.port}, {settings.baud} baud")
    if isinstance(settings, ModbusReject):
        if settings.transport == "tcp":
            return f"PLC at {settings.host}, Modbus TCP port {settings.port}, unit {settings.unit}", True
        return _port(
            settings.device, f"PLC at {settings.device}, Modbus RTU {settings.baud} baud, unit {settings.unit}"
        )
    return "none: a bench with soft triggers, nothing is thrown off any belt", True


def too_slow(settings: Reject, score_ms: float) -> str | None:
    """Why the heartbeat would stop while all is well: a step is a pause between parts and the scoring of one."""
    if isinstance(settings, NoReject):
        return None
    step_ms = LONGEST_PAUSE_MS + score_ms
    if step_ms <= settings.step_limit_ms:
        return None
    together = " and heartbeat_timeout_ms with it" if isinstance(settings, LinkReject) else ""
    return (
        f"[reject] step_limit_ms = {settings.step_limit_ms} is less than the {step_ms:.0f} ms that a step of this "
        f"recipe takes here (scoring {score_ms:.0f} ms), so the belt would not run. Raise it{together}, or take a "
        "faster graph in [bundle]."
    )


def _is_serial(path: Path) -> bool:
    """Whether a path leads to a character device that is not one of memory's, as /dev/null."""
    status = path.stat()
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) != MEMORY_MAJOR


def _port(device: str, text: str) -> tuple[str, bool]:
    if not Path(device).exists():
        return f"{text}: not there. Plug it in, or correct [reject] in the station file.", False
    if not _is_serial(Path(device)):
        return f"{text}: no serial port. Correct [reject] in the station file.", False
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{text}: not permitted. Add the user to the group `dialout`.", False
    return text, True
