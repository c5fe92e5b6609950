"""Fixtures that several rooms share: a real broker, and a subscriber that knows nothing of beltline."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

pytest_plugins = ["tests.stand_in_gpu", "tests.tiny_bundle", "tests.tiny_scan_bundle"]

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class Mosquitto:
    """A mosquitto on a free loopback port; `start` and `kill` as often as wanted, on the same port."""

    def __init__(self, folder: Path, lines: tuple[str, ...]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._file = folder / f"mosquitto-{self.port}.conf"
        listener = f"user root\nlistener {self.port} 127.0.0.1\n"  # started by root it would else give up its rights
        own = lines or ("allow_anonymous true",)
        self._file.write_text(listener + "max_queued_messages 100000\n" + "\n".join(own) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO, "mosquitto is not installed: apt install mosquitto"
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"mosquitto ended: see {self._file}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("mosquitto does not listen")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


class Subscriber:
    """Notes every message under a pattern, in order of arrival; comes back by itself when the broker does."""

    def __init__(self, port: int, pattern: str, user: tuple[str, str] | None = None) -> None:
        self.messages: queue.Queue[tuple[str, bytes, bool]] = queue.Queue()
        self._subscribed = False
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"test{port}{id(self)}", clean_session=False)
        if user:
            self._client.username_pw_set(*user)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda *_: self._client.subscribe(pattern, qos=1)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _c, _d, m: self.messages.put((m.topic, bytes(m.payload), m.retain))
        self._client.connect_async("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        self.wait_subscribed()

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    def wait_subscribed(self) -> None:
        deadline = time.monotonic() + 10
        while not self._subscribed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._subscribed, "the subscriber could not subscribe"

    def forget(self) -> None:
        """A restart of the broker is coming: wait for a new subscription with `wait_subscribed`."""
        self._subscribed = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)

    def take(self, topic_end: str, timeout_s: float = 10) -> dict[str, Any]:
        """The next message whose topic ends so, as JSON."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                topic, payload, _ = self.messages.get(timeout=left)
            except queue.Empty:
                break
            if topic.endswith(topic_end):
                decoded: dict[str, Any] = json.loads(payload)
                return decoded
        raise AssertionError(f"no message on {topic_end} within {timeout_s} s")

    def until(self, found: Callable[[dict[str, Any]], bool], topic_end: str, timeout_s: float = 10) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not found(message := self.take(topic_end, max(0.01, deadline - time.monotonic()))):
            pass
        return message

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Makes running brokers: `broker = mosquitto("allow_anonymous true", ...)`."""
    brokers: list[Mosquitto] = []

    def make(*lines: str) -> Mosquitto:
        broker = Mosquitto(tmp_path, lines)
        brokers.append(broker)
        broker.start()
        return broker

    yield make
    for broker in brokers:
        broker.kill()


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    """Makes subscribers: `subscriber = subscribe(broker.port, "beltline/#")`."""
    subscribers: list[Subscriber] = []

    def make(port: int, pattern: str = "#", user: tuple[str, str] | None = None) -> Subscriber:
        subscriber = Subscriber(port, pattern, user)
        subscribers.append(subscriber)
        return subscriber

    yield make
    for subscriber in subscribers:
        subscriber.close()
