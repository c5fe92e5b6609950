"""The control socket: real sockets, and clients that misbehave."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.cli import main
from edge.control import ControlError, ControlServer, ask
from edge.lock import LockError, hold


def refuse() -> None:
    raise RuntimeError("the belt is running")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run" / "control.sock"
    server = ControlServer(
        path, {"status": lambda: {"state": "Operational/Ready"}, "ack": lambda: None, "jog-gate": refuse}
    )
    server.open()
    yield path
    server.close()
    assert not path.exists()


def raw(path: Path, request: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as stream:
            answer: dict[str, object] = json.loads(stream.readline())
            return answer


def test_requests_are_answered_and_refusals_say_why(server: Path) -> None:
    assert ask(server, "status") == {"state": "Operational/Ready"}
    assert ask(server, "ack") is None
    with pytest.raises(ControlError, match="the belt is running"):
        ask(server, "jog-gate")
    with pytest.raises(ControlError, match="there are: status, ack, jog-gate"):
        ask(server, "explode")


def test_a_request_that_waited_is_not_carried_out(tmp_path: Path) -> None:
    """Who asked a stopped station has given up: its acknowledgement must not start the belt when it goes on."""
    done: list[str] = []
    path = tmp_path / "control.sock"
    server = ControlServer(path, {"ack": lambda: done.append("ack"), "status": lambda: "well"})
    server.open()
    old = time.monotonic_ns() - 1_100_000_000
    for at in (old, time.monotonic_ns() + 1_000_000_000, "now", None, True):
        answer = raw(path, json.dumps({"do": "ack", "at_ns": at}).encode() + b"\n")
        assert not answer["ok"]
        assert "too old" in str(answer["error"])
    assert raw(path, b'{"do": "ack"}\n')["ok"] is False
    assert done == []
    assert raw(path, json.dumps({"do": "status", "at_ns": old}).encode() + b"\n") == {"ok": True, "reply": "well"}
    assert ask(path, "ack") is None
    assert done == ["ack"]
    server.close()


@pytest.mark.parametrize("answer", [b"[]", b"7", b'{"ok": 1}', b'{"ok": true}', b"[" * 50_000, b""])
def test_an_answer_that_is_none_of_ours_is_said(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(1)

        def reply() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer + b"\n")

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(ControlError, match=r"no beltline station|broke off"):
            ask(path, "status")
        thread.join()


def test_a_station_that_hangs_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.control.TIMEOUT_S", 0.2)
    path = tmp_path / "control.sock"
    lock = hold(path, "taken")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen(1)
        with pytest.raises(ControlError, match="a station runs here and does not answer"):
            ask(path, "status")
    lock.close()


def test_only_owner_and_group_may_ask(server: Path) -> None:
    assert stat.S_IMODE(server.stat().st_mode) == 0o660


@pytest.mark.parametrize(
    "request_", [b"", b"\n", b"{", b"[]", b'{"do": 7}\n', b'{"do": []}\n', b"\xff\xfe\n", b"x" * 100_000]
)
def test_nonsense_is_answered_and_harms_nobody(server: Path, request_: bytes) -> None:
    try:
        assert raw(server, request_)["ok"] is False
    except ConnectionError:
        assert len(request_) > 4096  # the server closed on an endless request
    assert ask(server, "status")


def test_a_client_that_says_nothing_delays_others_only_for_a_while(server: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(server))
        assert ask(server, "status")


def test_a_second_station_is_refused_and_a_dead_ones_socket_replaced(server: Path) -> None:
    with pytest.raises(ControlError, match="another station is running"):
        ControlServer(server, {}).open()
    dead = server.with_name("dead.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(dead))
    replaced = ControlServer(dead, {"status": lambda: 1})
    replaced.open()
    assert ask(dead, "status") == 1
    replaced.close()


@pytest.mark.parametrize("asked_json", [True, False])
def test_what_was_done_is_said_as_json_where_json_was_asked_for(
    server: Path, capsys: pytest.CaptureFixture[str], *, asked_json: bool
) -> None:
    file = server.with_name("station.toml")
    file.write_text(f'[bundle]\npath = "b"\n[source]\nkind = "folder"\npath = "p"\n[paths]\ncontrol = "{server}"\n')
    more = ["--json"] if asked_json else []
    assert main(["ack", str(file), *more]) == 0
    assert capsys.readouterr().out == ('{"ok": true}\n' if asked_json else "Acknowledged: the belt may run.\n")
    assert main(["jog-gate", str(file), *more]) == 1
    told = capsys.readouterr().out
    assert (json.loads(told) if told else None) == (
        {"error": "the station refuses: the belt is running"} if asked_json else None
    )


def test_nobody_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "station.toml").write_text(
        '[bundle]\npath = "b"\n[source]\nkind = "folder"\npath = "p"\n[paths]\ncontrol = "no.sock"\n'
    )
    for command in ("status", "ack", "jog-gate"):
        done = subprocess.run(
            [sys.executable, "-m", "edge.cli", command, str(tmp_path / "station.toml")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "no station answers" in done.stderr


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file"])
def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "results.csv"
    kept = tmp_path / "kept"
    kept.write_text("dear data")
    if kind == "file":
        path.write_text("dear data")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kept)
    with pytest.raises(ControlError, match=r"results\.csv: a file that is no socket.*set \[paths\] control"):
        ControlServer(path, {}).open()
    assert path.is_dir() if kind == "folder" else path.read_text() == "dear data"


def test_a_station_that_does_not_answer_keeps_its_socket(tmp_path: Path) -> None:
    """As one does that was stopped with SIGSTOP: it listens, and says nothing."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen(0)
        inode = path.stat().st_ino
        for _ in range(3):
            with pytest.raises(ControlError, match="another station is running"):
                ControlServer(path, {}).open()
        assert path.stat().st_ino == inode


def test_the_end_of_a_station_removes_only_its_own_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = ControlServer(path, {})
    first.open()
    path.unlink()
    with pytest.raises(LockError, match="another station is running"):
        ControlServer(path, {}).open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        first.close()
        assert path.is_socket()
