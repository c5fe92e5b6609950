"""What crosses the wires: the identity of a part, its trigger, the station's verdict, the controller's outcome.

These frozen records are the currency between the rooms of the box. Times are nanoseconds of the box's
CLOCK_MONOTONIC unless a name says otherwise; encoder counts are the controller's unsigned 32-bit counter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class PartId(NamedTuple):
    """The identity of one part on the wire, in the journal and in MQTT.

    `epoch` (u32) names one life of the controller; `part` (u32) counts its triggers from 1.
    """

    epoch: int
    part: int

    def __str__(self) -> str:
        return f"{self.epoch:08x}-{self.part}"


class Decision(str, Enum):
    """What happens to a part. FAULT is thrown off the belt like REJECT; ACCEPT alone must be proven."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    FAULT = "FAULT"


class Reason(str, Enum):
    """Why. The values are words of the MQTT schema and of the journal: never rename one."""

    SCORE_BELOW_THRESHOLD = "score_below_threshold"  # ACCEPT
    SCORE_ABOVE_THRESHOLD = "score_above_threshold"  # REJECT
    LATE = "late"  # REJECT: the ACCEPT came after the decision point
    NO_VERDICT = "no_verdict"  # FAULT: nothing came before the decision point
    NO_FRAME = "no_frame"  # FAULT: no picture in the trigger's window
    AMBIGUOUS_FRAME = "ambiguous_frame"  # FAULT: two pictures for one trigger, or one for two
    BAD_FRAME = "bad_frame"  # FAULT: blank, wrong size or channel count, unreadable
    BAD_SCORE = "bad_score"  # FAULT: not finite
    SCORER_FAILED = "scorer_failed"  # FAULT: the graph raised
    HEARTBEAT_LOST = "heartbeat_lost"  # FAULT by the controller: the box was silent
    NOT_PERMITTED = "not_permitted"  # FAULT by the controller: fault latched, not acknowledged
    OVERRUN = "overrun"  # FAULT by the controller: more parts than its register holds, or two too close
    ENCODER = "encoder"  # FAULT by the controller: encoder lost or jumped
    CONTROLLER_STALLED = "controller_stalled"  # FAULT by the controller: it hung, its outputs stood still
    OUTCOME_UNKNOWN = "outcome_unknown"  # FAULT: a restart or an overrun destroyed the outcome


@dataclass(frozen=True, slots=True)
class Trigger:
    """A part at the photo-eye, latched by the controller."""

    part_id: PartId
    count: int  # encoder count at the photo-eye
    deadline_count: int  # decision point: an ACCEPT must have arrived before this count
    controller_us: int  # controller's microseconds (u32, wraps) at the latch
    at_ns: int  # the same instant on the box's monotonic clock, by the estimated offset
    source: str = "link"
    heard_ns: int | None = None  # when the box had heard of it


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the station asks for. It alone decides nothing: the controller's Outcome does."""

    part_id: PartId
    decision: Decision
    reason: Reason
    score: float | None
    threshold: float
    recipe: str
    times_ms: dict[str, float] = field(default_factory=dict)  # step -> duration; `total` = trigger to verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the controller did with a part, and why."""

    part_id: PartId
    decision: Decision
    reason: Reason
    count: int  # encoder count at which it was settled
    recovered: bool = False  # fetched after a reconnection instead of heard live
