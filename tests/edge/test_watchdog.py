"""The notifications, heard by a real datagram socket."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.watchdog import Watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """systemd's end of the socket, and the environment it gives."""
    path = str(tmp_path / "notify") if request.param == "path" else f"@beltline-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(path.replace("@", "\0", 1) if path.startswith("@") else path)
        heard.setblocking(False)
        yield heard, {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}


def heard_by(manager: socket.socket) -> list[bytes]:
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(manager.recv(4096))
    return messages


def test_a_life_from_ready_to_stopping(manager: tuple[socket.socket, dict[str, str]]) -> None:
    end, environment = manager
    with Watchdog(environment) as watchdog:
        watchdog.ready()
        watchdog.status("two\nlines")
        watchdog.status("two lines")
        watchdog.alive()
    assert heard_by(end) == [b"READY=1", b"STATUS=two lines", b"WATCHDOG=1", b"STOPPING=1"]


def test_alive_is_sent_often_enough_and_no_more(manager: tuple[socket.socket, dict[str, str]]) -> None:
    end, environment = manager
    with Watchdog(environment) as watchdog:
        start = time.monotonic()
        while time.monotonic() - start < 0.5:
            watchdog.alive()
            time.sleep(0.001)
        assert 8 <= len(heard_by(end)) <= 11  # every 50 ms of a 200 ms limit


def test_no_watchdog_wanted_or_meant_for_another_process(manager: tuple[socket.socket, dict[str, str]]) -> None:
    end, environment = manager
    for changed in ({"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1"}):
        with Watchdog({**environment, **changed}) as watchdog:
            watchdog.alive()
    assert heard_by(end) == [b"STOPPING=1"] * 3


def test_a_manager_that_does_not_read_blocks_nothing(manager: tuple[socket.socket, dict[str, str]]) -> None:
    _, environment = manager
    with Watchdog(environment) as watchdog:
        start = time.monotonic()
        for number in range(2000):
            watchdog.status(f"status {number}")
        assert time.monotonic() - start < 2


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1"}):
        with Watchdog(environment) as watchdog:
            watchdog.ready()
            watchdog.alive()
            watchdog.status("x")
