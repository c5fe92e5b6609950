"""One connection to real brokers, and to peers that are none."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.mqtt.broker import Broker
from firmware_bridge.mqtt.session import Session, Will
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.mqtt.version import VersionChoice

WILL = Will("beltline/s/l/a/state", b'{"online": false}')
AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def main():
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listener = {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}}
    await Broker({"listeners": listener, "plugins": anonymous}).start()
    print("up", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def make(port: int, name: str = "beltlinetest", retry_ns: int = 3600 * 10**9, **more: Any) -> Broker:
    table = MqttSettings(host="127.0.0.1", port=port, **more)
    return Broker(table, name, WILL, VersionChoice(table.protocol, retry_ns))


def step_until(broker: Broker, found: Callable[[], object], timeout_s: float = 6) -> float:
    start = time.monotonic()
    while not found():
        broker.step(0.01)
        assert time.monotonic() - start < timeout_s, f"{broker.problem} {broker.counters}"
    return time.monotonic() - start


@contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that is no broker: `serve` gets each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    serve(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_connects_and_the_will_is_delivered(mosquitto: Any, subscribe: Any, protocol: str) -> None:
    port = mosquitto().port
    watcher = subscribe(port, "beltline/#")
    broker = make(port, protocol=protocol)
    step_until(broker, lambda: broker.session)
    assert broker.session is not None
    assert broker.session.version == ("3.1.1" if protocol == "3.1.1" else "5")
    broker.session.give_up("test")
    assert watcher.take("/state") == {"online": False}


def test_a_broker_that_returns_is_found_within_five_seconds(mosquitto: Any) -> None:
    real = mosquitto()
    broker = make(real.port)
    step_until(broker, lambda: broker.session)
    real.kill()
    step_until(broker, lambda: not broker.session)
    assert "is gone" in broker.problem
    for _ in range(60):
        broker.step(0.05)
    real.start()
    assert step_until(broker, lambda: broker.session) < 5
    assert broker.problem == ""
    broker.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_refused_credentials_are_a_clear_problem_and_never_a_connection(
    mosquitto: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    users = tmp_path / "users"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(users), "box7", "right"], check=True)
    users.chmod(0o644)
    port = mosquitto("allow_anonymous false", f"password_file {users}").port
    password = tmp_path / "password"
    password.write_text("wr0ng-secret\n")
    broker = make(port, protocol=protocol, username="box7", password_file=password)
    with caplog.at_level(logging.DEBUG):
        step_until(broker, lambda: broker.counters["refused"] >= 2)
    assert broker.session is None
    assert broker.counters["connects"] == 0
    assert "refuses the connection" in broker.problem
    assert "password_file" in broker.problem
    assert len([record for record in caplog.records if "refuses" in record.message]) == 1
    assert "wr0ng-secret" not in caplog.text
    password.write_text("right\n")
    step_until(broker, lambda: broker.session)
    broker.close()


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    broker = make(1, username="box7", password_file=tmp_path / "nowhere")
    broker.step(0)
    assert str(tmp_path / "nowhere") in broker.problem
    assert "Create the file" in broker.problem


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        broker = make(free.getsockname()[1])
        broker.step(0)
    assert "refused" in broker.problem.lower()
    assert not broker.fell_back


def test_auto_falls_back_to_311_where_the_broker_speaks_nothing_else() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", AMQTT, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        broker = make(port, retry_ns=300_000_000)
        step_until(broker, lambda: broker.session)
        assert broker.session is not None
        assert broker.session.version == "3.1.1"
        assert broker.fell_back
        step_until(broker, lambda: broker.counters["wrong_version"] == 2)  # the next try of 5
        step_until(broker, lambda: broker.session)
        broker.close()
        fixed = make(port, protocol="5")
        fixed.step(0.05)
        assert fixed.session is None
        fixed.close()
    finally:
        process.kill()
        process.communicate()


def test_three_closes_before_connack_fall_back() -> None:
    versions: list[int] = []

    def close(connection: socket.socket) -> None:
        versions.append(connection.recv(100)[8])  # fixed header, length, "MQTT" with its length, then the level

    with peer(close) as port:
        broker = make(port)
        step_until(broker, lambda: len(versions) >= 5)
        assert versions[:5] == [5, 5, 5, 4, 4]
        assert broker.fell_back
        assert "closed the connection before answering" in broker.problem


def test_silence_and_garbage_are_no_evidence_against_version_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_bridge.mqtt.session.CONNACK_TIMEOUT_NS", 50_000_000)
    with peer(lambda connection: time.sleep(0.2)) as port:
        broker = make(port)
        step_until(broker, lambda: broker.counters["unreachable"] >= 4)
        assert not broker.fell_back
        assert "does not answer" in broker.problem


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.booleans())
def test_hostile_bytes_never_raise(tail: bytes, accepted: bool) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(200)
        connection.sendall((b"\x20\x03\x00\x00\x00" if accepted else b"") + tail)

    with peer(serve) as port:
        session = Session(MqttSettings(host="127.0.0.1", port=port), "beltlinetest", "5", WILL)
        deadline = time.monotonic() + 3
        while not session.ended and time.monotonic() < deadline:
            session.step(0.01)
        assert session.ended
        assert session.cause


def test_two_stations_on_one_broker_do_not_flap(mosquitto: Any) -> None:
    port = mosquitto().port
    one, two = make(port, "beltlineone"), make(port, "beltlinetwo")
    for _ in range(100):
        one.step(0.005)
        two.step(0.005)
    assert (one.counters["connects"], two.counters["connects"]) == (1, 1)
    assert one.session
    assert two.session
    one.close()
    two.close()


def certificate(folder: Path, name: str, *issuer: str) -> None:
    key, subject = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"], ["-subj", f"/CN={name}"]
    files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2"]
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"] if issuer else []
    subprocess.run(
        ["openssl", "req", "-x509", *key, *subject, *files, *extension, *issuer],
        cwd=folder,
        check=True,
        capture_output=True,
    )


# paho drops the socket of a failed handshake without closing it
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_tls_accepts_only_a_broker_that_its_authority_signed(mosquitto: Any, tmp_path: Path) -> None:
    certificate(tmp_path, "authority")
    certificate(tmp_path, "other")
    certificate(tmp_path, "broker", "-CA", "authority.pem", "-CAkey", "authority.key")
    (tmp_path / "broker.key").chmod(0o644)
    port = mosquitto(
        "allow_anonymous true", f"certfile {tmp_path / 'broker.pem'}", f"keyfile {tmp_path / 'broker.key'}"
    ).port
    stranger = make(port, tls=True, ca_file=tmp_path / "other.pem")
    step_until(stranger, lambda: stranger.counters["unreachable"])
    assert "certificate verify failed" in stranger.problem
    assert "ca_file" in stranger.problem
    friend = make(port, tls=True, ca_file=tmp_path / "authority.pem")
    step_until(friend, lambda: friend.session)
    friend.close()
    plain = make(port, tls=False)
    plain.step(0.2)
    plain.step(0.2)
    assert plain.session is None
