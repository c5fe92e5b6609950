"""The MQTT version is chosen on evidence only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.mqtt.session import Ended
from firmware_bridge.mqtt.version import RETRY_NS, VersionChoice


def test_a_refused_version_falls_back_at_once_and_tries_5_after_an_hour() -> None:
    choice = VersionChoice("auto")
    assert choice.version(0) == "5"
    choice.ended(Ended.WRONG_VERSION, "5", 10)
    assert choice.version(10) == "3.1.1"
    assert choice.fell_back
    choice.connected("3.1.1")
    assert not choice.wants_upgrade(10 + RETRY_NS - 1)
    assert choice.wants_upgrade(10 + RETRY_NS)
    assert choice.version(10 + RETRY_NS) == "5"
    choice.connected("5")
    assert not choice.fell_back


def test_the_third_early_close_in_a_row_falls_back() -> None:
    choice = VersionChoice("auto")
    for _ in range(2):
        choice.ended(Ended.CLOSED_EARLY, "5", 0)
        assert choice.version(0) == "5"
    choice.ended(Ended.CLOSED_EARLY, "5", 0)
    assert choice.version(0) == "3.1.1"


def test_the_hourly_try_of_5_ends_at_the_first_early_close() -> None:
    choice = VersionChoice("auto")
    choice.ended(Ended.WRONG_VERSION, "5", 0)
    choice.ended(Ended.CLOSED_EARLY, "5", RETRY_NS)
    assert choice.version(RETRY_NS) == "3.1.1"
    assert choice.version(2 * RETRY_NS) == "5"


@given(st.lists(st.sampled_from([Ended.UNREACHABLE, Ended.REFUSED, Ended.LOST])))
def test_a_broker_that_is_away_or_unwilling_says_nothing_about_its_version(ends: list[Ended]) -> None:
    choice = VersionChoice("auto")
    choice.ended(Ended.CLOSED_EARLY, "5", 0)
    choice.ended(Ended.CLOSED_EARLY, "5", 0)
    for how in ends:
        choice.ended(how, "5", 0)
    assert choice.version(0) == "5"
    assert not choice.fell_back


@given(st.sampled_from(["5", "3.1.1"]), st.lists(st.sampled_from(list(Ended))))
def test_a_fixed_version_stays(setting: str, ends: list[Ended]) -> None:
    choice = VersionChoice(setting)  # type: ignore[arg-type]
    for how in ends:
        choice.ended(how, setting, 0)  # type: ignore[arg-type]
    assert choice.version(0) == setting
