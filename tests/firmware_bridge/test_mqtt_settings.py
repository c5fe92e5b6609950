"""The [mqtt] table: secure unless the broker is on this box, and wrong values are refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from firmware_bridge.mqtt import MqttSettings, TopicLevel
from firmware_bridge.mqtt.identity import client_id, machine_id


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_needs_neither_tls_nor_credentials(host: str) -> None:
    settings = MqttSettings(host=host)
    assert not settings.use_tls
    assert settings.use_port == 1883


@pytest.mark.parametrize("host", ["broker.plant", "192.168.1.4", "localhost.evil.example", "::2"])
def test_any_other_broker_has_tls_and_credentials(host: str) -> None:
    with pytest.raises(ValidationError, match="no credentials"):
        MqttSettings(host=host)
    settings = MqttSettings(host=host, username="box7", password_file=Path("password"))
    assert settings.use_tls
    assert settings.use_port == 8883


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cert_file": "c.pem", "tls": True}, "cert_file and key_file belong together"),
        ({"password_file": "p"}, "password_file without username"),
        ({"ca_file": "ca.pem"}, "set tls = true"),
        ({"protocol": "4"}, "3.1.1"),
        ({"in_flight": 0}, "greater than or equal to 1"),
        ({"passwort_file": "p"}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MqttSettings.model_validate(wrong)


@pytest.mark.parametrize("level", ["", "a/b", "+", "#", "$SYS", "a b", "ä", "x" * 65, "a\n", "a\0"])
def test_a_topic_level_is_never_a_wildcard_or_two_levels(level: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(TopicLevel).validate_python(level)


def test_client_ids_are_stable_distinct_and_legal_everywhere() -> None:
    names = [
        ("m1", "site", "line", "a"),
        ("m1", "site", "line", "b"),
        ("m2", "site", "line", "a"),
        ("m1", "s", "l", "a"),
    ]
    ids = [client_id(*name) for name in names]
    assert len(set(ids)) == len(names)
    assert ids == [client_id(*name) for name in names]
    assert all(len(i) == 23 and i.isalnum() and i.isascii() for i in ids)


def test_a_box_without_machine_id_keeps_one_of_its_own(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("uninitialized\n")
    first = machine_id(tmp_path, (tmp_path / "missing", empty))
    assert len(first) == 32
    assert machine_id(tmp_path, (tmp_path / "missing", empty)) == first
