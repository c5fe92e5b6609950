"""The register map: what is written reads back, and no torn decision can pass a part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from firmware_bridge.modbus import ModbusSettings
from firmware_bridge.modbus import registers as r
from firmware_bridge.parts import Decision, PartId

longs = st.integers(0, 2**32 - 1)
orders: Any = st.sampled_from(["high_first", "low_first"])


@given(longs, longs, longs, longs, orders)
def test_a_trigger_reads_back(part: int, count: int, deadline: int, at_ms: int, order: Any) -> None:
    words = [word for value in (part, count, deadline, at_ms) for word in r.split(value, order)]
    assert r.read_trigger(words, order) == r.TriggerRecord(part, count, deadline, at_ms)


def test_the_word_order_is_what_the_document_says() -> None:
    assert r.split(0x12345678, "high_first") == [0x1234, 0x5678]
    assert r.split(0x12345678, "low_first") == [0x5678, 0x1234]
    assert r.decision_words(PartId(7, 9), Decision.ACCEPT, "high_first") == [0, 7, 0, 9, 1, 0xFFFF ^ 7 ^ 9 ^ 1]


@given(st.builds(PartId, longs, longs), st.sampled_from(list(Decision)), orders, st.integers(1, 5), st.booleans())
def test_a_decision_torn_over_its_slots_last_one_never_passes(
    part_id: PartId, old: Decision, order: Any, cut: int, from_the_end: bool
) -> None:
    epoch, part = part_id
    before = r.decision_words(PartId(epoch, (part - r.SLOTS) % 2**32), old, order)
    after = r.decision_words(PartId(epoch, part), Decision.REJECT, order)
    torn = before[:cut] + after[cut:] if from_the_end else after[:cut] + before[cut:]
    assert not passes(torn, epoch, part, order)


@given(longs, longs, orders)
def test_an_accept_passes_its_own_part_only(epoch: int, part: int, order: Any) -> None:
    words = r.decision_words(PartId(epoch, part), Decision.ACCEPT, order)
    assert passes(words, epoch, part, order)
    assert not passes(words, epoch, (part + 8) % 2**32, order)
    assert not passes(words, epoch ^ 1, part, order)


def passes(words: list[int], epoch: int, part: int, order: Any) -> bool:
    """As in a PLC: the rule of docs/modbus.md, written down once more."""
    wanted = [*r.split(epoch, order), *r.split(part, order), 1]
    xor = 0
    for word in words[:5]:
        xor ^= word
    return words[:5] == wanted and words[5] == 0xFFFF - xor


@given(longs, st.integers(0, 2**31 - 1))
def test_deadlines_survive_the_wrap_of_the_counter(deadline: int, past: int) -> None:
    assert r.passed((deadline + past) % 2**32, deadline)
    assert not r.passed((deadline - past - 1) % 2**32, deadline)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({}, "needs host"), ({"transport": "rtu"}, "needs device"), ({"host": "plc", "unit": 300}, "less than or equal")],
)
def test_incomplete_settings_say_what_is_missing(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModbusSettings.model_validate(wrong)
