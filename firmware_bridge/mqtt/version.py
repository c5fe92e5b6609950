"""Which MQTT version to speak: 5, and 3.1.1 only where the broker has shown that it cannot.

`auto` falls back on a refused protocol version, or after three closes before CONNACK in a row (how brokers older than
version 5 meet a CONNECT they cannot read). Nothing else is evidence: a broker that is away, silent or unwilling says
nothing about its version. A broker that reads a version 5 CONNECT as 3.1.1 takes the will for a longer packet and
waits for its end without a word; so, until 5 is proven, a connection without will asks first. After an hour 5 is tried
again, once, because a restart can also look like such closes.
"""

from __future__ import annotations

from typing import Literal

from firmware_bridge.mqtt.session import Ended, Version

EARLY_CLOSES = 3
RETRY_NS = 3600 * 1_000_000_000


class VersionChoice:
    def __init__(self, setting: Literal["auto", "5", "3.1.1"], retry_ns: int = RETRY_NS) -> None:
        self._auto = setting == "auto"
        self._fixed: Version = "3.1.1" if setting == "3.1.1" else "5"
        self._retry_ns = retry_ns
        self._early_closes = 0
        self._proven = False  # the broker has accepted 5, and has not been away since
        self._retry_at_ns: int | None = None  # while set: fallen back

    @property
    def fell_back(self) -> bool:
        return self._retry_at_ns is not None

    def version(self, now_ns: int) -> Version:
        if not self._auto:
            return self._fixed
        return "3.1.1" if self._retry_at_ns is not None and now_ns < self._retry_at_ns else "5"

    def needs_probe(self, now_ns: int) -> bool:
        return self._auto and not self._proven and self.version(now_ns) == "5"

    def wants_upgrade(self, now_ns: int) -> bool:
        """The hour on 3.1.1 is over."""
        return self._retry_at_ns is not None and now_ns >= self._retry_at_ns

    def connected(self, version: Version) -> None:
        self._early_closes = 0
        if version == "5":
            self._retry_at_ns = None
            self._proven = True

    def ended(self, how: Ended, version: Version, now_ns: int) -> None:
        """Learn from a session that ended."""
        if not self._auto or version != "5":
            return
        self._proven = self._proven and how in (Ended.LOST, Ended.REFUSED)
        if how is Ended.CLOSED_EARLY:
            self._early_closes += 1
        elif how is not Ended.WRONG_VERSION:
            self._early_closes = 0
        retrying = self._retry_at_ns is not None and how is Ended.CLOSED_EARLY
        if how is Ended.WRONG_VERSION or self._early_closes >= EARLY_CLOSES or retrying:
            self._early_closes = 0
            self._retry_at_ns = now_ns + self._retry_ns
