"""The whole line on one machine, each member a process of its own: broker, controller, belt, station, publisher.

The demo, the line tests and the station benchmark rehearse with it; so may an integrator before there is a belt. The
members are the real ones: the compiled controller on a pseudo-terminal, `beltline run`, `beltline publish`, a broker.
Only belt, photo-eye, gate and camera are simulated, by a process that alone knows the truth.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.control import ControlError, ask
from edge.errors import BeltlineError
from firmware_bridge.belt.config import BeltConfig, TruePart
from firmware_bridge.host_controller import build

MEMBERS = ("broker", "controller", "belt", "station", "publisher")
STOP_S = 10.0
SPARE_MS = 100  # from the longest step to the end of the controller's patience


class RehearsalError(BeltlineError):
    """A member of the line did not start or did not do its part; the message names its log."""


@dataclass(frozen=True)
class Belt:
    """A belt for parts 100 mm apart: at 1000 mm/s they come at 600 a minute, each with 250 ms for its decision."""

    speed_mm_s: float = 1000.0
    counts_per_mm: int = 5
    pitch_mm: int = 100
    part_length_mm: int = 50
    decision_mm: int = 250
    gate_mm: int = 300
    window_before_mm: int = 10
    window_after_mm: int = 60
    actuator_delay_ms: float = 15.0
    step_limit_ms: int = 200  # of the station


class Rehearsal:
    """One run of the line in `folder`; use as a context manager.

    Args:
        folder: receives every file: settings, logs, journal, judgement.
        bundle: what the station inspects with.
        parts: what lies on the belt, in order; pictures as absolute paths.
        belt: its geometry.
        graph: of the bundle, or "auto".
        keys: folder of the public keys that the station accepts; without it a bundle may be unsigned.
        faults: for the belt simulator, as its configuration takes them.

    """

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        parts: Sequence[TruePart],
        *,
        belt: Belt | None = None,
        graph: str = "auto",
        keys: Path | None = None,
        faults: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.folder, self.bundle, self.parts = folder, bundle.absolute(), list(parts)
        self.belt, self.graph, self.faults = belt or Belt(), graph, list(faults)
        self.trust = "allow_unsigned = true" if keys is None else f"keys = {json.dumps(str(keys.absolute()))}"
        self.sockets = Path(tempfile.mkdtemp(prefix="beltline-"))  # socket paths are limited to 107 bytes
        self.broker_port = _free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.broker_kind = ""
        self._controller_program: Path | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.station_file = folder / "station.toml"
        self.journal = folder / "journal.db"
        self.judgement = folder / "belt"

    def clear(self) -> None:
        """Remove what an earlier run left in the folder."""
        for name in ("journal.db", "journal.db-wal", "journal.db-shm", "belt/summary.json", "mosquitto.db"):
            (self.folder / name).unlink(missing_ok=True)
        for left in (*self.folder.glob("*.log"), *self.folder.glob("*.published*")):
            left.unlink()

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(MEMBERS):
            self.stop(name)
        shutil.rmtree(self.sockets, ignore_errors=True)

    # Members

    def start_all(self) -> float:
        """Start every member and wait until the station is ready. Returns the station's cold start in seconds."""
        self._write_settings()
        self.start("broker")
        self.start("belt")
        self.start("controller")
        started_s = time.monotonic()
        self.start("station")
        self.start("publisher")
        self.wait_for(lambda: bool(self.status()["path"]["ready"]), 30, "the station is not ready", "station")
        return time.monotonic() - started_s

    def start(self, name: str) -> None:
        """Start one member, again after it ended or was killed."""
        commands: dict[str, Callable[[], list[str]]] = {
            "broker": self._broker,
            "belt": lambda: [sys.executable, "-m", "firmware_bridge.belt", str(self.folder / "belt.json")],
            "controller": self._controller,
            "station": lambda: [sys.executable, "-m", "edge", "run", str(self.station_file)],
            "publisher": lambda: [sys.executable, "-m", "edge", "publish", str(self.station_file)],
        }
        command = commands[name]()
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        ready = {
            "broker": lambda: _listens(self.broker_port),
            "belt": (self.sockets / "pins").exists,
            "controller": (self.sockets / "link").is_symlink,
        }.get(name)
        if ready:
            self.wait_for(ready, 10, f"the {name} did not start", name)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def signal(self, name: str, number: int) -> None:
        os.kill(self.processes[name].pid, number)

    def kill(self, name: str) -> None:
        """End a member at once, as a crash or a power cut would."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """Ask a member to end, and insist."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a stopped process hears nothing
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # The run

    def status(self) -> dict[str, Any]:
        """What the station says of itself; Preoperational while it does not answer."""
        try:
            status: dict[str, Any] = ask(self.sockets / "control", "status")
        except ControlError:
            return {"state": "Preoperational", "path": {"ready": False, "permit": False, "fault": None}, "counters": {}}
        return status

    def ack(self, timeout_s: float = 15.0) -> None:
        """Give the belt its permit as the operator does: again, until it is granted."""
        self.wait_for(self._acked, timeout_s, "the belt got no permit", "station", every_s=0.1)

    def _acked(self) -> bool:
        try:
            ask(self.sockets / "control", "ack")
        except ControlError:
            return False
        return True

    def wait_for_belt(self, timeout_s: float) -> dict[str, Any]:
        """Wait until the belt has carried and judged every part. Returns its summary."""
        summary = self.judgement / "summary.json"
        self.wait_for(summary.exists, timeout_s, "the belt did not finish", "belt")
        self.processes.pop("belt").wait(STOP_S)
        result: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
        return result

    def wait_for(
        self, done: Callable[[], bool], timeout_s: float, failure: str, member: str, every_s: float = 0.02
    ) -> None:
        """Wait for something that `member` must bring about.

        Raises:
            RehearsalError: with `failure`, after `timeout_s` or when the member ended.

        """
        deadline_s = time.monotonic() + timeout_s
        while not done():
            process = self.processes.get(member)
            if process is not None and process.poll() not in (None, 0):
                raise RehearsalError(f"{member} ended with {process.returncode}: {self._tail(member)}")
            if time.monotonic() > deadline_s:
                raise RehearsalError(f"{failure} within {timeout_s:g} s: {self._tail(member)}")
            time.sleep(every_s)

    def _tail(self, name: str) -> str:
        log = self.log(name)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return f"{log} ends with: {' | '.join(lines[-3:]) or 'nothing'}"

    # Commands and files

    def _broker(self) -> list[str]:
        mosquitto = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if mosquitto:
            self.broker_kind = "mosquitto"
            config = self.folder / "mosquitto.conf"
            config.write_text(  # persistent: a killed broker keeps its sessions; its own user could not write here
                f"user {getpass.getuser()}\nlistener {self.broker_port} 127.0.0.1\n"
                "allow_anonymous true\nmax_queued_messages 0\n"
                f"persistence true\npersistence_location {self.folder.absolute()}/\n"
                "autosave_on_changes true\nautosave_interval 1\n"
            )
            return [mosquitto, "-c", str(config)]
        self.broker_kind = "amqtt"
        config = self.folder / "amqtt.yaml"
        config.write_text(
            f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{self.broker_port}\n"
            "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
        )
        return [str(Path(sys.executable).with_name("amqtt")), "-c", str(config)]

    def _controller(self) -> list[str]:
        if self._controller_program is None:
            self._controller_program = build(self.folder / "controller")
        (self.sockets / "link").unlink(missing_ok=True)
        return [
            str(self._controller_program),
            "--link",
            str(self.sockets / "link"),
            "--pins",
            str(self.sockets / "pins"),
        ]

    def _write_settings(self) -> None:
        belt, parts = self.belt, self.folder / "belt-parts.jsonl"
        parts.write_text("".join(part.model_dump_json() + "\n" for part in self.parts), encoding="utf-8")
        config = BeltConfig(
            parts=parts,
            output=self.judgement,
            pins_socket=self.sockets / "pins",
            camera_socket=self.sockets / "camera",
            speed_mm_s=belt.speed_mm_s,
            counts_per_mm=belt.counts_per_mm,
            pitch_mm=belt.pitch_mm,
            part_length_mm=belt.part_length_mm,
            gate_distance_mm=belt.gate_mm,
            gate_window_before_mm=belt.window_before_mm,
            gate_window_after_mm=belt.window_after_mm,
            actuator_delay_ms=belt.actuator_delay_ms,
            faults=self.faults,
        )
        (self.folder / "belt.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
        per_mm = belt.counts_per_mm
        self.station_file.write_text(
            f"""\
[station]
site = "demo"
line = "belt"
name = "station"

[bundle]
path = {json.dumps(str(self.bundle))}
graph = "{self.graph}"
{self.trust}

[source]
kind = "belt"
socket = "{self.sockets / "camera"}"

[reject]
kind = "link"
port = "{self.sockets / "link"}"
decision_distance_counts = {belt.decision_mm * per_mm}
gate_distance_counts = {belt.gate_mm * per_mm}
gate_window_before_counts = {belt.window_before_mm * per_mm}
gate_window_after_counts = {belt.window_after_mm * per_mm}
min_part_spacing_counts = {(belt.window_before_mm + belt.window_after_mm) * per_mm}
actuator_delay_ms = {belt.actuator_delay_ms}
step_limit_ms = {belt.step_limit_ms}
heartbeat_timeout_ms = {belt.step_limit_ms + SPARE_MS}

[mqtt]
host = "127.0.0.1"
port = {self.broker_port}

[paths]
journal = {json.dumps(str(self.journal.absolute()))}
control = "{self.sockets / "control"}"
""",
            encoding="utf-8",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
