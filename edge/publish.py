"""The publisher: what the journal holds goes to the broker, in order, at least once; nothing here can hold up the belt.

Topics under `beltline/<site>/<line>/<station>/`: `verdict` (QoS 1, one per part), `state` (retained: birth, changes,
offline as the will), `fault` (retained), `health` (every few seconds), `cmd/health` -> `reply`.

One thread, one loop: bytes to and from the broker, acknowledgements into the cursor, new rows out of the journal, as
many as may be in flight. A connection that ends takes everything unacknowledged back to the cursor; the next one
starts there. A receiver may see a part twice, with the same `id`; never a gap, and first sightings are in order.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from edge.control import ControlError, ask
from edge.lock import hold
from edge.outbox import Outbox, Row
from edge.watchdog import Watchdog
from firmware_bridge.mqtt.broker import NOT_YET, Broker
from firmware_bridge.mqtt.identity import client_id, machine_id
from firmware_bridge.mqtt.messages import Command, FaultMessage, HealthMessage, Reply, StateMessage, VerdictMessage
from firmware_bridge.mqtt.session import Session, Will
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.mqtt.version import VersionChoice
from firmware_bridge.parts import PartId

STEP_S = 0.02  # a new row waits this long at most before it is noticed
LOOK_NS = 500_000_000  # between two looks at the station
LOOK_AGAIN_NS = 3_000_000_000  # at one that did not answer: a hung one costs 2 s each time
HEALTH_NS = 5_000_000_000
GOODBYE_NS = 500_000_000  # wait for outstanding acknowledgements when stopping
ACK_LIMIT_NS = 20_000_000_000  # a broker that takes verdicts and acknowledges none for so long is left

log = logging.getLogger(__name__)

StationView = Mapping[str, Any]
"""What the station says of itself: `state`, `fault`, `recipe` and plain figures. Empty when it does not answer."""


class Publisher:
    """Publishes one station. Use as a context manager around `run` or `step`.

    `look` asks the station how it is; it must answer or give up within a fraction of a second.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topic: str,
        outbox: Outbox,
        identity: str,
        *,
        look: Callable[[], StationView] = dict,
        versions: VersionChoice | None = None,
    ) -> None:
        self._topic, self._outbox, self._look = topic, outbox, look
        self._release = version("beltline")
        will = StateMessage(online=False, station=None, fault=None, recipe=None, version=self._release, time=None)
        self.broker = Broker(
            settings, identity, Will(f"{topic}/state", will.payload()), versions or VersionChoice(settings.protocol)
        )
        self._counters: Counter[str] = Counter(published=0, acknowledged=0, commands=0, commands_refused=0)
        self._station: StationView = {}
        self._told: tuple[str | None, str | None, str | None] | None = None
        self._fault: str | None = None
        self._look_ns = self._health_ns = self._progress_ns = 0
        self._last_problem = ""

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        """Say goodbye where that is possible, and keep the cursor."""
        if session := self.broker.session:
            patience_ns = time.monotonic_ns() + GOODBYE_NS
            while self._outbox.in_flight and not session.ended and time.monotonic_ns() < patience_ns:
                session.step(STEP_S)
                self._take_acknowledgements(session)
            self._send_state(session, online=False)
        self.broker.close()
        self._outbox.close()

    def run(self, watchdog: Watchdog, stopped: Callable[[], bool]) -> None:
        watchdog.ready()
        told_ns = 0
        while not stopped():
            self.step()
            watchdog.alive()
            if (now_ns := time.monotonic_ns()) - told_ns > LOOK_NS:
                told_ns = now_ns
                watchdog.status(self.summary())

    def step(self, timeout_s: float = STEP_S) -> None:
        """One round of the loop."""
        fresh = self.broker.step(timeout_s)
        self._note_problems()
        self._outbox.poll()
        session = self.broker.session
        if session is None:
            self._outbox.save()
            return
        if fresh:
            self._outbox.rewind()
            self._begin(session)
        self._take_acknowledgements(session)
        self._send_rows(session)
        self._answer(session)
        self._tell(session)
        self._outbox.save()

    def health(self) -> HealthMessage:
        session = self.broker.session
        outbox = self._outbox
        return HealthMessage(
            protocol=session.version if session else "5",
            fell_back=self.broker.fell_back,
            last_problem=self._last_problem,
            backlog=outbox.backlog,
            dropped=outbox.cursor.dropped if outbox.cursor else 0,
            counters={
                **self._counters,
                **outbox.counters,
                **{f"broker_{cause}": count for cause, count in self.broker.counters.items()},
            },
            station=_flat(self._station),
            time=_now(),
        )

    def summary(self) -> str:
        """One line for people."""
        where = self.broker.problem or "connected"
        return f"{where}; {self._outbox.backlog} to send" + (
            f"; {self._outbox.problem}" if self._outbox.problem else ""
        )

    def _begin(self, session: Session) -> None:
        self._told = None
        self._look_ns = self._health_ns = 0
        self._progress_ns = time.monotonic_ns()
        session.subscribe(f"{self._topic}/cmd/#")

    def _take_acknowledgements(self, session: Session) -> None:
        now_ns = time.monotonic_ns()
        if not self._outbox.in_flight:
            self._progress_ns = now_ns
        while session.acks:
            self._counters["acknowledged"] += self._outbox.acknowledged(session.acks.popleft())
            self._progress_ns = now_ns
        if now_ns - self._progress_ns > ACK_LIMIT_NS:
            session.give_up(f"the broker acknowledged nothing for {ACK_LIMIT_NS // 10**9} s; connecting again")

    def _send_rows(self, session: Session) -> None:
        while not session.ended and self._outbox.in_flight < session.window and (row := self._outbox.next_row()):
            try:
                message = verdict_message(row)
            except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
                log.error("journal row %r cannot be published: %s", row.get("id"), error)  # noqa: TRY400
                self._outbox.skip()
                continue
            self._outbox.sent(session.send(f"{self._topic}/verdict", message.payload(), qos=1))
            self._counters["published"] += 1

    def _answer(self, session: Session) -> None:
        self._counters["commands_refused"] += session.inbox_dropped
        session.inbox_dropped = 0
        while session.inbox:
            topic, payload = session.inbox.popleft()
            try:
                command = Command.model_validate_json(payload)
            except ValidationError:
                self._counters["commands_refused"] += 1
                continue
            name = topic.removeprefix(f"{self._topic}/cmd/")
            known = name == "health"
            self._counters["commands" if known else "commands_refused"] += 1
            reply = Reply(id=command.id, ok=known, error="" if known else "no such command; there is: health")
            session.send(f"{self._topic}/reply", reply.payload(), qos=0)
            if known:
                self._health_ns = 0

    def _tell(self, session: Session) -> None:
        """State and fault when they change, health every few seconds."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._look_ns:
            self._station = self._look()
            self._look_ns = time.monotonic_ns() + (LOOK_NS if self._station else LOOK_AGAIN_NS)
            state = (self._text("state"), self._text("fault"), self._text("recipe"))
            if state != self._told:
                self._send_state(session, online=True)
                if self._told is None or self._fault != state[1]:
                    self._fault = state[1]
                    fault = FaultMessage(fault=self._fault, time=_now())
                    session.send(f"{self._topic}/fault", fault.payload(), qos=1, retain=True)
                self._told = state
        if now_ns >= self._health_ns:
            self._health_ns = now_ns + HEALTH_NS
            session.send(f"{self._topic}/health", self.health().payload(), qos=0)

    def _send_state(self, session: Session, *, online: bool) -> None:
        message = StateMessage(
            online=online,
            station=self._text("state") if online else None,
            fault=self._text("fault") if online else None,
            recipe=self._text("recipe") if online else None,
            version=self._release,
            time=_now(),
        )
        session.send(f"{self._topic}/state", message.payload(), qos=1, retain=True)

    def _text(self, name: str) -> str | None:
        value = self._station.get(name)
        return None if value is None else str(value)

    def _note_problems(self) -> None:
        broker = "" if self.broker.problem == NOT_YET else self.broker.problem
        self._last_problem = broker or self._outbox.problem or self._last_problem


def verdict_message(row: Row) -> VerdictMessage:
    """One row of the journal's `outcome` as a message.

    Raises:
        ValueError, TypeError, KeyError, OverflowError, OSError: the row is damaged.

    """
    fields = {name: row[name] for name in VerdictMessage.model_fields if name in row and name != "id"}
    return VerdictMessage.model_validate(
        {
            **fields,
            "schema": 1,
            "id": str(PartId(row["epoch"], row["part"])),
            "asked": row["verdict_decision"],
            "asked_reason": row["verdict_reason"],
            "time": datetime.fromtimestamp(row["wall_ns"] / 1e9, timezone.utc).isoformat(timespec="milliseconds"),
            "times_ms": json.loads(row["times_ms"]),
        }
    )


def lock(cursor_file: Path) -> ExitStack:
    """Hold the cursor for this process alone; the lock goes with the returned file.

    Raises:
        LockError: another publisher has it, or the folder cannot be written.

    """
    return hold(
        cursor_file,
        f"another `beltline publish` holds {cursor_file}: stop it first (systemctl stop beltline-publish)",
    )


def publisher(settings: MqttSettings, site: str, line: str, name: str, journal: Path, **more: Any) -> Publisher:
    """A publisher with everything where it belongs: the cursor beside the journal, the id from the machine."""
    outbox = Outbox(journal, cursor_of(journal), settings.backlog_rows)
    identity = client_id(machine_id(journal.parent), site, line, name)
    return Publisher(settings, f"beltline/{site}/{line}/{name}", outbox, identity, **more)


def _flat(view: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool | None]:
    """Nested tables as one, `path.connected`; what is no plain value is left out."""
    flat: dict[str, int | float | str | bool | None] = {}
    for name, value in view.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        elif value is None or isinstance(value, int | float | str):
            flat[f"{prefix}{name}"] = value
    return flat


def look_at(control: Path) -> StationView:
    """The station's status through its control socket; empty when it does not answer."""
    try:
        status = ask(control, "status")
    except ControlError:
        return {}
    return status if isinstance(status, dict) else {}


def cursor_of(journal: Path) -> Path:
    return journal.with_name(journal.name + ".published")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
