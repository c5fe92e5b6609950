"""The one small interface between the station and whatever throws parts off the belt.

`link` (the beltline reject controller) and `modbus` (a plant's own PLC) implement it. No method blocks the scoring
loop for longer than its stated timeout: wires are read and written by the implementation's own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from firmware_bridge.parts import Outcome, PartId, Trigger, Verdict


@dataclass(frozen=True, slots=True)
class PathHealth:
    """A snapshot for `beltline status`; never decides anything."""

    connected: bool
    ready: bool  # connected, epoch agreed, parameters echoed with the right hash
    permit: bool  # the belt may run
    fault: str | None  # the controller's latched fault, in words
    epoch: int | None
    inhibited: bool  # dry run: the gate stays in its passing state
    counters: dict[str, int] = field(default_factory=dict)  # by cause: crc_errors, retries, reconnects, ...


class Memory(Protocol):
    """What a path must know of the past, answered by the station's journal (thread-safe, quick)."""

    def knows_epoch(self, epoch: int) -> bool: ...

    def last_part(self, epoch: int) -> int:
        """Highest part number journalled for this epoch; 0 when there is none."""
        ...

    def unresolved(self, epoch: int) -> list[int]:
        """Part numbers of this epoch that have a trigger but no outcome yet."""
        ...


class RejectPath(Protocol):
    """Implemented by `firmware_bridge.link.Link` and `firmware_bridge.modbus.ModbusPath`."""

    # Called on the path's own thread, in the order of what happened; they must not block.
    on_trigger: Callable[[Trigger], None]
    on_outcome: Callable[[Outcome], None]
    on_lost: Callable[[PartId], None]  # a part whose outcome can never be learned

    def open(self) -> None:
        """Start the thread; returns at once. A missing or busy port is retried and shown in health()."""
        ...

    def close(self) -> None: ...

    def decide(self, verdict: Verdict) -> None:
        """Queue a decision for the wire. Never blocks, never raises for a dead wire."""
        ...

    def step_done(self) -> None:
        """The scoring loop finished a step: the heartbeat may go on for the stated limit."""
        ...

    def health(self) -> PathHealth: ...

    def ack(self) -> None:
        """Acknowledge the latched fault: permit returns if all is well again."""
        ...

    def jog_gate(self) -> None:
        """Cycle the gate once, belt stopped or not. Raises RuntimeError with the reason when it is refused."""
        ...
