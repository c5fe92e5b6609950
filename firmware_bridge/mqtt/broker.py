"""Keeps one session to the broker: connects, backs off, chooses the version, and says in words how it stands."""

from __future__ import annotations

import logging
import time
from collections import Counter

from firmware_bridge.mqtt.session import Ended, Session, Will
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.mqtt.version import VersionChoice

FIRST_DELAY_NS = 100_000_000
LONGEST_DELAY_NS = 1_500_000_000  # with the connect timeout below the 5 s in which a returned broker must be found

log = logging.getLogger(__name__)

NOT_YET = "not connected yet"


class Broker:
    """Not thread-safe: the thread that calls `step` owns it."""

    def __init__(self, settings: MqttSettings, client_id: str, will: Will, versions: VersionChoice) -> None:
        self.counters = Counter({"connects": 0, **{how.value: 0 for how in Ended}})
        self.problem = NOT_YET  # empty while connected
        self.session: Session | None = None  # a connected one, or None
        self._settings, self._client_id, self._will, self._versions = settings, client_id, will, versions
        self._opening: Session | None = None
        self._delay_ns = FIRST_DELAY_NS
        self._next_ns = 0

    @property
    def fell_back(self) -> bool:
        return self._versions.fell_back

    def step(self, timeout_s: float) -> bool:
        """Do what is due, waiting for `timeout_s` at most (a connection attempt may block for 3 s more).

        Returns True when a new session has just become usable: all that was in flight before is to be sent again.
        """
        now_ns = time.monotonic_ns()
        session = self.session or self._opening
        if session is None:
            if now_ns < self._next_ns:
                time.sleep(min(timeout_s, (self._next_ns - now_ns) / 1e9))
                return False
            will = None if self._versions.needs_probe(now_ns) else self._will
            session = self._opening = Session(self._settings, self._client_id, self._versions.version(now_ns), will)
        session.step(timeout_s)
        if session.ended:
            self._ended(session, session.ended)
        elif session.connected and session.is_probe:
            session.close()
            self._opening = None
            self._versions.connected(session.version)
        elif session.connected and self._opening:
            self.session, self._opening = session, None
            self._versions.connected(session.version)
            self._delay_ns = FIRST_DELAY_NS
            self.counters["connects"] += 1
            self.problem = ""
            log.info("connected to the broker %s with MQTT %s", self._settings.host, session.version)
            return True
        elif self.session and self._versions.wants_upgrade(now_ns):
            session.close()
            self.session = None
            self.problem = "trying MQTT 5 again"
        return False

    def close(self) -> None:
        for session in filter(None, (self.session, self._opening)):
            session.close()
        self.session = self._opening = None

    def _ended(self, session: Session, how: Ended) -> None:
        now_ns = time.monotonic_ns()
        self.session = self._opening = None
        self._versions.ended(how, session.version, now_ns)
        self.counters[how.value] += 1
        if session.cause != self.problem:
            log.warning("%s", session.cause)
        self.problem = session.cause
        self._next_ns = now_ns + self._delay_ns
        self._delay_ns = min(2 * self._delay_ns, LONGEST_DELAY_NS)
