"""The register map of firmware_bridge.modbus in both directions: words to records, records to words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from firmware_bridge.parts import Decision, PartId, Reason

LAYOUT = 0xB171
SLOTS = 8
HEADER_WORDS, TRIGGER_WORDS, OUTCOME_WORDS, DECISION_WORDS = 13, 8, 6, 6
HEADER_LENGTHS = 4  # 13 to 16 registers may be read
TRIGGERS_AT, OUTCOMES_AT, ACK_AT, DECISIONS_AT = 16, 80, 3, 4
PLC_WORDS = OUTCOMES_AT + SLOTS * OUTCOME_WORDS
BOX_WORDS = DECISIONS_AT + SLOTS * DECISION_WORDS
READY, PERMIT, FAULT, INHIBITED = (1 << bit for bit in range(4))

WordOrder = Literal["high_first", "low_first"]
Words = Sequence[int]

DECISIONS = {Decision.ACCEPT: 1, Decision.REJECT: 2, Decision.FAULT: 3}
DECISION_OF = {code: decision for decision, code in DECISIONS.items()}
REASON_OF = {
    2: Reason.LATE,
    3: Reason.NO_VERDICT,
    4: Reason.HEARTBEAT_LOST,
    5: Reason.NOT_PERMITTED,
    6: Reason.OVERRUN,
    7: Reason.ENCODER,
}


@dataclass(frozen=True, slots=True)
class Header:
    layout: int
    status: int
    fault_code: int
    epoch: int
    count: int
    now_ms: int
    newest: int
    settled: int


@dataclass(frozen=True, slots=True)
class TriggerRecord:
    part: int
    count: int
    deadline_count: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    part: int
    decision: int
    reason: int
    count: int


def slot(part: int) -> int:
    return part % SLOTS


def read_header(words: Words, order: WordOrder) -> Header:
    longs = [_long(words[at : at + 2], order) for at in range(3, 13, 2)]
    return Header(words[0], words[1], words[2], *longs)


def read_trigger(words: Words, order: WordOrder) -> TriggerRecord:
    return TriggerRecord(*(_long(words[at : at + 2], order) for at in range(0, TRIGGER_WORDS, 2)))


def read_outcome(words: Words, order: WordOrder) -> OutcomeRecord:
    return OutcomeRecord(_long(words[0:2], order), words[2], words[3], _long(words[4:6], order))


def decision_words(part_id: PartId, decision: Decision, order: WordOrder) -> list[int]:
    words = [*split(part_id.epoch, order), *split(part_id.part, order), DECISIONS[decision]]
    return [*words, check(words)]


def check(words: Words) -> int:
    value = 0xFFFF
    for word in words:
        value ^= word
    return value


def split(value: int, order: WordOrder) -> list[int]:
    """One 32-bit value as two registers."""
    words = [value >> 16 & 0xFFFF, value & 0xFFFF]
    return words if order == "high_first" else words[::-1]


def passed(count: int, deadline_count: int) -> bool:
    """Whether a wrapping 32-bit counter has reached the deadline."""
    return difference(count, deadline_count) >= 0


def difference(later: int, earlier: int) -> int:
    """From one wrapping 32-bit value to another, signed."""
    return (later - earlier + 2**31) % 2**32 - 2**31


def _long(words: Words, order: WordOrder) -> int:
    high, low = words if order == "high_first" else words[::-1]
    return high << 16 | low
