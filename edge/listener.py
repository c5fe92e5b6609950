"""An independent subscriber: what really arrived at the broker, heard by a client apart from the publisher.

MQTT 3.1.1 with a persistent session, so that every broker serves it and nothing is missed while it reconnects.
"""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class Listener:
    """Collects every message below one topic; a context manager."""

    def __init__(self, port: int, topic: str, host: str = "127.0.0.1") -> None:
        self._topic = topic
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, "beltline-listener", clean_session=False, protocol=mqtt.MQTTv311
        )
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._hear
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(host, port, keepalive=10)
        self._client.loop_start()
        if not self._subscribed.wait(10):
            raise RuntimeError(f"no subscription to {topic} at {host}:{port} within 10 s")

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict message, in the order of arrival; repeated ones too."""
        return [message for topic, message in list(self._messages) if topic.endswith("/verdict")]

    def _hear(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self._messages.append((message.topic, json.loads(message.payload)))
