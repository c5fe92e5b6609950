"""What a station file leads to: its reject path, its broker, what is installed for it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator

from edge.doctor.finding import Finding
from edge.installed import InstalledError, read_state
from edge.lock import is_held
from edge.reject import describe
from edge.settings import ModbusReject, Settings
from firmware_bridge.modbus import WireError, probe
from firmware_bridge.mqtt.identity import client_id
from firmware_bridge.mqtt.session import Session
from firmware_bridge.mqtt.settings import MqttSettings
from firmware_bridge.mqtt.version import VersionChoice

BROKER_PATIENCE_NS = 8_000_000_000


def reject_path(settings: Settings) -> Finding:
    """A PLC is asked once; not while a station is running: many serve one connection, and so does a serial port."""
    text, there = describe(settings.reject)
    if not there or not isinstance(settings.reject, ModbusReject):
        return Finding("station", "reject path", text, "ok" if there else "missing")
    running = is_held(settings.paths.journal)
    if running is None:
        text += f": not tried, for this user may not see at {settings.paths.journal} whether a station is running"
        return Finding("station", "reject path", text, "note")
    if running:
        text += ": not tried, for a station is running; `beltline status` shows it"
        return Finding("station", "reject path", text, "note")
    try:
        return Finding("station", "reject path", f"{text}: {probe(settings.reject)}")
    except WireError as error:
        return Finding("station", "reject path", f"{text}: {error}", "missing")


def broker(mqtt: MqttSettings, settings: Settings) -> Finding:
    """Connect once, as somebody else than the publisher, which would else be thrown out."""
    where = settings.station
    identity = client_id(f"doctor {platform.node()} {os.getpid()}", where.site, where.line, where.name)
    versions = VersionChoice(mqtt.protocol)
    session = None
    for _ in range(4):  # three closes before an answer, then the older version
        now_ns = time.monotonic_ns()
        session = Session(mqtt, identity, versions.version(now_ns), None)
        while not session.connected and not session.ended and time.monotonic_ns() - now_ns < BROKER_PATIENCE_NS:
            session.step(0.05)
        if session.connected:
            found = (
                f"{mqtt.host}:{mqtt.use_port} answers, MQTT {session.version}, {'TLS' if mqtt.use_tls else 'no TLS'}"
            )
            session.close()
            return Finding("station", "broker", found)
        if session.ended:
            versions.ended(session.ended, session.version, now_ns)
            if session.ended.value not in ("closed_early", "wrong_version"):
                break
    return Finding("station", "broker", session.cause if session else "", "missing")


def installed(settings: Settings) -> Iterator[Finding]:
    """What `beltline install` put in place, and how its trial goes."""
    folder = settings.paths.bundles
    try:
        state = read_state(folder)
    except InstalledError as error:
        yield Finding("bundle", "installed", str(error), "note" if settings.bundle.path else "missing")
        return
    if state is None:
        if settings.bundle.path is None:
            yield Finding("bundle", "installed", f"nothing in {folder}: `beltline install`", "missing")
        return
    former = f", before it {state.previous[:12]}" if state.previous else ""
    used = "" if settings.bundle.path is None else "; not used, for the station file has a [bundle] path"
    yield Finding("bundle", "installed", f"{state.current[:12]}{former}{used}", "note" if used else "ok")
    if state.trial:
        stage = "running" if state.trial.running else "from the station's next start"
        words = f"{stage}, {settings.bundle.trial_parts} parts; else {state.trial.back_to[:12]} comes back"
        yield Finding("bundle", "trial", words, "note")
    elif state.last and state.last.result == "failed":
        yield Finding("bundle", "trial", f"{state.last.bundle[:12]} failed {state.last.at}: {state.last.why}", "note")
