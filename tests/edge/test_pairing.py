"""Pairing by window, against the rule written down naively and with everything known beforehand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.pairing import Pairing, Rules, pair
from firmware_bridge.parts import PartId, Reason

MS = 1_000_000

times = st.integers(0, 150)
rules = st.builds(
    Rules,
    triggered=st.booleans(),
    delay_ns=st.integers(-20, 60),
    width_ns=st.integers(1, 40),
    transfer_ns=st.integers(1, 50),
    latency_ns=st.integers(0, 30),
)


def reference(triggers: list[int], exposures: list[int], rule: Rules) -> list[int | Reason]:
    """Everyone's claim, one by one, compared with everyone else's."""
    claims = []
    for at in triggers:
        inside = [e for e in exposures if at + rule.delay_ns <= e < at + rule.delay_ns + rule.width_ns]
        claims.append(set(inside) if rule.triggered else {min(inside)} if inside else set())
    answers: list[int | Reason] = []
    for number, mine in enumerate(claims):
        shared = any(mine & theirs for other, theirs in enumerate(claims) if other != number)
        if not mine:
            answers.append(Reason.NO_FRAME)
        elif shared or len(mine) > 1:
            answers.append(Reason.AMBIGUOUS_FRAME)
        else:
            answers.append(min(mine))
    return answers


@settings(max_examples=300, deadline=None)
@given(st.lists(times, max_size=8), st.sets(times, max_size=10), rules)
def test_the_rule(triggers: list[int], exposures: set[int], rule: Rules) -> None:
    parts = [(PartId(1, number), at) for number, at in enumerate(triggers)]
    found = pair(parts, exposures, rule)
    assert [found[part_id] for part_id, _ in parts] == reference(triggers, sorted(exposures), rule)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(times, max_size=8), st.sets(times, max_size=10), rules)
def test_what_arrives_late_changes_no_answer(
    data: st.DataObject, triggers: list[int], exposures: set[int], rule: Rules
) -> None:
    """Events arrive within the stated bounds, in any order of the two streams; each answer is final when given."""
    arrivals: list[tuple[int, int, int]] = []  # when, 0 trigger / 1 exposure, which
    for number, at in enumerate(sorted(triggers)):
        arrivals.append((at + data.draw(st.integers(0, rule.latency_ns)), 0, number))
    last = 0
    for exposure in sorted(exposures):
        last = max(last, exposure + data.draw(st.integers(0, rule.transfer_ns)))
        arrivals.append((min(last, exposure + rule.transfer_ns), 1, exposure))
    arrivals.sort()
    expected = reference(sorted(triggers), sorted(exposures), rule)
    pairing, answers, known = Pairing(rule), dict[int, int | Reason](), dict[int, int]()
    for now in range(400):
        while arrivals and arrivals[0][0] <= now:
            _, kind, which = arrivals.pop(0)
            if kind == 0:
                known[which] = sorted(triggers)[which]
                pairing.trigger(PartId(1, which), known[which])
            else:
                pairing.exposure(which)
        for which, at in known.items():
            answer = pairing.settle(PartId(1, which), at, now)
            if which in answers:
                assert answer == answers[which], "an answer was taken back"
            elif answer is not None:
                answers[which] = answer
                assert now <= at + max(rule.longest_ns, rule.latency_ns + rule.width_ns), "waited too long"
    assert [answers[which] for which in range(len(triggers))] == expected


def settle_at(rule: Rules, exposures: list[int], at: int = 0) -> int:
    pairing = Pairing(rule)
    pairing.trigger(PartId(1, 1), at)
    for exposure in exposures:
        pairing.exposure(exposure)
    return next(now for now in range(10_000) if pairing.settle(PartId(1, 1), at, now) is not None)


def test_a_free_running_camera_costs_no_wait_beyond_the_trigger_latency() -> None:
    rule = Rules(triggered=False, delay_ns=10, width_ns=40, transfer_ns=100, latency_ns=5)
    assert settle_at(rule, [12]) == 7  # 12 - 10 + 5: before the picture itself arrives


def test_a_triggered_camera_waits_until_no_second_picture_can_come() -> None:
    rule = Rules(triggered=True, delay_ns=0, width_ns=40, transfer_ns=100, latency_ns=5)
    assert settle_at(rule, [12]) == 140
    assert settle_at(rule, [12, 41]) == 17, "a later picture shows that the window is complete"


@pytest.mark.parametrize("triggered", [True, False])
def test_one_picture_for_two_parts_is_for_neither(triggered: bool) -> None:
    rule = Rules(triggered=triggered, delay_ns=0, width_ns=20 * MS, transfer_ns=1, latency_ns=1)
    found = pair([(PartId(1, 1), 0), (PartId(1, 2), 10 * MS)], [15 * MS], rule)
    assert set(found.values()) == {Reason.AMBIGUOUS_FRAME}
