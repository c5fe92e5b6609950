"""One connection to the broker, used once: paho without its queue, its thread and its reconnection.

What can go wrong on the way: the name does not resolve, nothing listens, TLS fails, the broker closes without a word
(an old broker met by version 5), refuses with a code (version, credentials, rights), goes silent with the socket open,
acknowledges with a failure code, closes later with a reason. Each ends this session with `cause` in words; the owner
makes a new one. A new paho client per connection means that nothing is sent twice behind the owner's back: paho
queues QoS 1 messages while disconnected and sends them again on its own, and the journal is queue enough.

The owner's thread calls `step`, and paho calls back inside of it. The call-backs only note what happened.
"""

from __future__ import annotations

import ssl
import struct
import time
from collections import deque
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple

from paho.mqtt.client import MQTT_ERR_SUCCESS, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.client import error_string as paho_error
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from firmware_bridge.mqtt.settings import MqttSettings

CONNECT_TIMEOUT_S = 3.0
CONNACK_TIMEOUT_NS = 5_000_000_000
RESERVED = 4  # of what a broker allows in flight, kept for state and fault
INBOX_MESSAGES = 16  # commands beyond these are dropped and counted: nobody needs more at once
INBOX_BYTES = 4096  # a longer command is dropped and counted
PROTOCOL_ERRORS = (
    OSError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    MQTTException,
)  # of hostile bytes

Version = Literal["5", "3.1.1"]


class Ended(Enum):
    """How a session ended, as far as the owner must tell the cases apart."""

    UNREACHABLE = "unreachable"  # no connection, TLS or file error, or silence
    CLOSED_EARLY = "closed_early"  # connected, and closed before CONNACK
    WRONG_VERSION = "wrong_version"
    REFUSED = "refused"  # credentials or rights
    LOST = "lost"  # after it worked


class Will(NamedTuple):
    topic: str
    payload: bytes


class Session:
    """Connects at once (blocks for CONNECT_TIMEOUT_S at most, and for TLS), then lives until `ended` is set."""

    def __init__(self, settings: MqttSettings, client_id: str, version: Version, will: Will | None) -> None:
        self.version = version
        self.is_probe = will is None  # only asks whether the broker speaks this version
        self.connected = False
        self.ended: Ended | None = None
        self.cause = ""
        self.window = settings.in_flight  # messages that may be unacknowledged, narrowed by what the broker allows
        self.acks: deque[int] = deque()  # message ids, in the order of the broker's acknowledgements
        self.inbox: deque[tuple[str, bytes]] = deque(maxlen=INBOX_MESSAGES)
        self.inbox_dropped = 0
        self._where = f"{settings.host}:{settings.use_port}"
        self._opened_ns = time.monotonic_ns()
        five = version == "5"
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.max_inflight_messages_set(0)  # no limit, so that paho never queues: the owner keeps the window
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        if will:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        try:
            self._authenticate(settings)
            self._client.connect(settings.host, settings.use_port, settings.keepalive_s)
        except PROTOCOL_ERRORS as error:
            self._end(Ended.UNREACHABLE, f"broker {self._where}: {error}. {_advice(error)}")

    def step(self, timeout_s: float) -> None:
        """Move bytes, for `timeout_s` at most; shorter when something arrives."""
        if self.ended:
            return
        try:
            result = self._client.loop(timeout_s)
        except PROTOCOL_ERRORS as error:
            self._end(Ended.LOST if self.connected else Ended.UNREACHABLE, f"broker {self._where}: {error}")
            return
        if self.ended:
            pass
        elif result != MQTT_ERR_SUCCESS:
            self._closed(paho_error(result))
        elif not self.connected and time.monotonic_ns() - self._opened_ns > CONNACK_TIMEOUT_NS:
            self._end(Ended.UNREACHABLE, f"broker {self._where} accepts the connection but does not answer")

    def send(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Send now; returns the message id that `acks` will hold (QoS 1)."""
        return self._client.publish(topic, payload, qos=qos, retain=retain).mid

    def subscribe(self, pattern: str) -> None:
        self._client.subscribe(pattern, qos=0)

    def give_up(self, cause: str) -> None:
        """End without a DISCONNECT: the broker publishes the will."""
        self._end(Ended.LOST, cause)

    def close(self) -> None:
        """End with a DISCONNECT: the broker forgets the will."""
        if not self.ended:
            self._client.disconnect()
            self._end(Ended.LOST, "closed by this box")

    def _authenticate(self, settings: MqttSettings) -> None:
        if settings.use_tls:
            ca, cert, key = settings.ca_file, settings.cert_file, settings.key_file
            for file in filter(None, (ca, cert, key)):
                file.open("rb").close()  # names a missing file; ssl's own error names none
            self._client.tls_set(
                str(ca) if ca else None,
                str(cert) if cert else None,
                str(key) if key else None,
                tls_version=ssl.PROTOCOL_TLS_CLIENT,
            )
        if settings.username is not None:
            self._client.username_pw_set(settings.username, _password(settings.password_file))

    def _on_connect(
        self, _client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if not reason.is_failure:
            self.connected = True
            allowed = getattr(properties, "ReceiveMaximum", 65535)
            self.window = max(1, min(self.window, allowed - RESERVED))
        elif reason.getName() == "Unsupported protocol version":
            self._end(Ended.WRONG_VERSION, f"broker {self._where} does not speak MQTT {self.version}")
        else:
            self._end(
                Ended.REFUSED,
                f"broker {self._where} refuses the connection: {reason}. Check username, password_file and "
                "certificates in [mqtt], and the rights of this box at the broker.",
            )

    def _on_disconnect(
        self, _client: Client, _data: object, _flags: DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        self._closed(str(reason))

    def _on_publish(self, _client: Client, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        if reason.is_failure:
            self._end(
                Ended.REFUSED,
                f"broker {self._where} refuses a message: {reason}. Allow this box to write beltline/# at the broker.",
            )
        elif not self.ended:  # what is acknowledged after a refusal would be out of order
            self.acks.append(mid)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        if len(message.payload) > INBOX_BYTES or len(self.inbox) == INBOX_MESSAGES or message.retain:
            self.inbox_dropped += 1
            return
        try:
            self.inbox.append((message.topic, bytes(message.payload)))
        except UnicodeDecodeError:
            self.inbox_dropped += 1

    def _closed(self, why: str) -> None:
        if self.connected:
            self._end(Ended.LOST, f"broker {self._where} is gone: {why}")
        else:
            self._end(
                Ended.CLOSED_EARLY,
                f"broker {self._where} closed the connection before answering. Check port and tls in [mqtt]: a broker "
                "that expects TLS does this, and one that refuses this box.",
            )

    def _end(self, how: Ended, cause: str) -> None:
        if self.ended:
            return
        self.ended, self.cause, self.connected = how, cause, False
        connection = self._client.socket()
        if connection is not None:
            connection.close()


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    lines = file.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0]:
        raise ValueError(f"password_file {file} is empty")
    return lines[0]


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "Give the certificate authority as ca_file in [mqtt], and check host and this box's clock."
    if isinstance(error, ssl.SSLError):
        return "Check port and tls in [mqtt]: this looks like a broker without TLS, or certificates that do not fit."
    if isinstance(error, FileNotFoundError | PermissionError) and error.filename:
        return "Create the file, readable by the service user, or correct its path in [mqtt]."
    if isinstance(error, ConnectionResetError):
        return "Check port and tls in [mqtt]: a broker without TLS does this."
    if isinstance(error, ValueError):
        return "Write what it should hold, or correct its path in [mqtt]."
    return "Check host, port and the network; trying again."
