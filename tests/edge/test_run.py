"""`beltline run` as a process: what it says of itself while its controller is away, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

LINK = """
[reject]
kind = "link"
port = "nowhere/ttyACM0"
decision_distance_counts = 800
gate_distance_counts = 1000
gate_window_before_counts = 50
gate_window_after_counts = 100
min_part_spacing_counts = 200
"""


def beltline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def station_file(tmp_path: Path, make_bundle: Callable[..., Path], make_parts: Callable[..., Path]) -> Path:
    make_bundle()
    make_parts(128, 250)
    file = tmp_path / "station.toml"
    file.write_text(
        '[bundle]\npath = "tiny.bundle"\nallow_unsigned = true\n[source]\nkind = "folder"\npath = "parts"\n'
        f'[paths]\njournal = "journal.db"\ncontrol = "control.sock"\n{LINK}'
    )
    return file


class Running:
    def __init__(self, file: Path, *options: str) -> None:
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(file.parent / "notify"))
        self.notify.settimeout(30)
        environment = os.environ | {"NOTIFY_SOCKET": str(file.parent / "notify"), "WATCHDOG_USEC": "2000000"}
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "edge.cli", "run", str(file), *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def heard(self, line: str) -> None:
        while self.notify.recv(4096).decode().strip() != line:
            pass

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        try:
            out, err = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            pytest.fail(f"it does not end; its threads stand here:\n{self.process.communicate(timeout=30)[1]}")
        self.notify.close()
        return self.process.returncode, out, err


@pytest.fixture
def start(station_file: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*options: str) -> Running:
        running = Running(station_file, *options)
        started.append(running)
        running.heard("READY=1")
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()
        running.notify.close()


def status(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(beltline("status", file, "--json").stdout)
    return found


def test_a_station_without_its_controller_is_visible_and_ends_cleanly(
    station_file: Path, start: Callable[..., Running]
) -> None:
    running = start()
    running.heard("WATCHDOG=1")
    found = status(station_file)
    assert found["state"] == "Operational/Initialized"
    assert not found["path"]["connected"]
    assert "nowhere/ttyACM0" in found["fault"]
    page = beltline("status", station_file, "--once")
    assert page.returncode == 0
    assert "no permit" in page.stdout
    jog = beltline("jog-gate", station_file)
    assert jog.returncode == 1
    assert "refuses" in jog.stderr
    acknowledged = beltline("ack", station_file)
    assert acknowledged.returncode == 1
    assert "no permit" in acknowledged.stderr
    second = beltline("run", station_file)
    assert second.returncode == 1
    assert "another station is running" in second.stderr
    start_s = time.monotonic()
    code, _, err = running.end()
    assert code == 0, err
    assert time.monotonic() - start_s < 5
    assert not station_file.with_name("control.sock").exists()
    assert "Traceback" not in err


def test_a_dry_run_is_visible_everywhere(station_file: Path, start: Callable[..., Running]) -> None:
    running = start("--dry-run")
    assert status(station_file)["path"]["inhibited"]
    assert "the gate is inhibited" in beltline("status", station_file, "--once").stdout
    code, _, err = running.end(signal.SIGINT)
    assert code == 0
    assert "dry run" in err


def test_check_names_the_missing_port(station_file: Path) -> None:
    done = beltline("run", station_file, "--check", "--json")
    assert done.returncode == 1
    problems = [finding for finding in json.loads(done.stdout) if not finding["ok"]]
    assert [problem["what"] for problem in problems] == ["reject path"]
    assert "nowhere/ttyACM0" in problems[0]["found"]


def test_a_stopped_station_keeps_its_socket_and_its_journal(
    station_file: Path, start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start()
    running.process.send_signal(signal.SIGSTOP)
    inode = station_file.with_name("control.sock").stat().st_ino
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(station_file.read_text().replace("control.sock", "other.sock"))
    for file in (station_file, elsewhere):
        second = beltline("run", file)
        assert second.returncode == 1
        assert "journal.db: another station is running" in second.stderr
        checked = json.loads(beltline("run", file, "--check", "--json").stdout)
        problems = {finding["what"] for finding in checked if not finding["ok"]}
        assert problems == {"reject path", "journal"} | ({"control"} if file == station_file else set())
    assert station_file.with_name("control.sock").stat().st_ino == inode
    running.process.send_signal(signal.SIGCONT)
    assert running.end()[0] == 0


def test_a_missing_folder_of_the_journal_is_one_clear_line(station_file: Path) -> None:
    station_file.write_text(station_file.read_text().replace('"journal.db"', '"nowhere/journal.db"'))
    done = beltline("run", station_file)
    assert done.returncode == 1
    assert "nowhere/journal.db" in done.stderr
    assert "set [paths]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not station_file.with_name("control.sock").exists()


def test_check_leaves_a_file_in_the_sockets_place_alone(station_file: Path) -> None:
    station_file.with_name("control.sock").write_text("dear data")
    done = beltline("run", station_file, "--check", "--json")
    [control] = [finding for finding in json.loads(done.stdout) if finding["what"] == "control"]
    assert not control["ok"]
    assert "no socket" in control["found"]
    assert beltline("run", station_file).returncode == 1
    assert station_file.with_name("control.sock").read_text() == "dear data"


def test_a_step_limit_that_the_graph_cannot_keep_is_refused(
    station_file: Path, make_bundle: Callable[..., Path], tiny: SimpleNamespace
) -> None:
    make_bundle(graphs={"float": slowed(tiny.graph())})
    station_file.write_text(station_file.read_text() + "step_limit_ms = 100\n")
    done = beltline("run", station_file)
    assert done.returncode == 1
    assert "step_limit_ms = 100 is less than" in done.stderr
    assert "Raise it and heartbeat_timeout_ms with it" in done.stderr
    findings = json.loads(beltline("run", station_file, "--check", "--json").stdout)
    assert [finding["what"] for finding in findings if not finding["ok"]] == ["step limit", "reject path"]


def slowed(graph: bytes) -> bytes:
    """The same answer after some 100 ms: a large product of matrices, times zero, is added to the map."""
    model = onnx.load_from_string(graph)
    side = 1024
    for node in model.graph.node:
        node.output[:] = ["quick" if name == "map" else name for name in node.output]
    scored = model.graph.node.pop()
    scored.input[:] = ["map"]
    constants = {"shape": np.array([1, side, 1], np.int64), "row": np.zeros((side, side), np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.append(helper.make_node("ReduceMax", ["quick"], ["peak"], axes=[1, 2], keepdims=1))
    model.graph.node.append(helper.make_node("Expand", ["peak", "shape"], ["column"]))
    model.graph.node.append(helper.make_node("Mul", ["column", "row"], ["p0"]))
    for turn in range(4):
        model.graph.node.append(helper.make_node("MatMul", [f"p{turn}", f"p{turn}"], [f"p{turn + 1}"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["p4"], ["zero"], axes=[1, 2], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["quick", "zero"], ["map"]))
    model.graph.node.append(scored)
    data: bytes = model.SerializeToString()
    return data
