"""The control socket: how `beltline status`, `ack` and `jog-gate` talk to the running station.

Wire: a Unix stream socket, mode 0660, so that its group may operate the station. One request per connection: one line
of JSON, {"do": "ack", "at_ns": ...} with the time of asking on CLOCK_MONOTONIC; one line comes back, {"ok": true,
"reply": ...} or {"ok": false, "error": "..."}. A request that is too long, too slow, no JSON or of an unknown name is
answered with an error. So is one that waited for more than a second, unless it only looks: who asked may have given
up, and an acknowledgement must not start a belt behind somebody's back. The server has a thread of its own and serves
one connection after the other: nobody who asks can hold up the loop. A lock beside the socket says who owns it. Only a
socket that nobody listens to is replaced: what a killed station left behind. Any other file of that name is left alone,
and a stopped station keeps its socket.
"""

from __future__ import annotations

import json
import logging
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.errors import BeltlineError
from edge.lock import hold, is_held

log = logging.getLogger(__name__)

LONGEST_REQUEST = 4096  # bytes
LONGEST_REPLY = 1 << 20
LOOKING = ("status",)
FRESH_NS = 1_000_000_000  # age of any other request that is still answered
TIMEOUT_S = 5.0  # of who asks: more than that age and the longest answer together
SILENCE_S = 0.5  # of a client, after which the server turns to the next one


class ControlError(BeltlineError):
    """The station is not there, or refuses what was asked."""


_RUNNING = "{}: another station is running. Stop it, or set [paths] control."


class ControlServer:
    """Answers requests by name. A handler that raises RuntimeError refuses, with its message."""

    def __init__(self, path: Path, handlers: Mapping[str, Callable[[], Any]]) -> None:
        self._path, self._handlers = path, handlers
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def open(self) -> None:
        """Listen.

        Raises:
            ControlError: another station listens here, something else has this name, or the folder cannot be written.
            LockError: another station is about to listen here.

        """
        if problem := occupied(self._path):
            raise ControlError(problem)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self._path, _RUNNING.format(self._path))
        except OSError as error:
            raise self._cannot(error) from error
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            self._listener.bind(str(self._path))
            self._path.chmod(0o660)
            self._inode = self._path.lstat().st_ino
        except OSError as error:
            self._listener.close()
            self._lock.close()
            raise self._cannot(error) from error
        self._listener.listen(8)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        if self._path.exists() and self._path.lstat().st_ino == self._inode:  # not another's, should ours be gone
            self._path.unlink()
        self._lock.close()

    def _cannot(self, error: OSError) -> ControlError:
        why = error.strerror or error
        return ControlError(f"{self._path}: cannot listen ({why}). Set [paths] control in the station file.")

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                raise
            with connection:
                connection.settimeout(SILENCE_S)
                try:
                    answer = self._answer(_read_line(connection, LONGEST_REQUEST))
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                except OSError as error:
                    log.info("control: a request was dropped: %s", error)

    def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(request)
        except ValueError:
            return {"ok": False, "error": "the request is not one line of JSON"}
        name, at_ns = (asked.get("do"), asked.get("at_ns")) if isinstance(asked, dict) else (None, None)
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            return {"ok": False, "error": f"no request {name!r}; there are: {', '.join(self._handlers)}"}
        if name not in LOOKING and (type(at_ns) is not int or not 0 <= time.monotonic_ns() - at_ns <= FRESH_NS):
            return {"ok": False, "error": f"the request {name!r} is too old: ask again"}
        try:
            return {"ok": True, "reply": handler()}
        except RuntimeError as error:
            return {"ok": False, "error": str(error)}


def occupied(path: Path) -> str | None:
    """Why no station can listen at `path`; None where nothing is, or only the socket of a station that died."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return f"{path}: a file that is no socket has this name. Move it away, or set [paths] control."
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SILENCE_S)
            connection.connect(str(path))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except BlockingIOError:  # its queue is full
        return _RUNNING.format(path)
    except OSError as error:
        why = error.strerror or error
        return f"{path}: cannot tell whether a station runs here ({why}). Remove it if none does, or use sudo."
    return _RUNNING.format(path)


def ask(path: Path, request: str) -> Any:
    """Ask the station behind a control socket.

    Raises:
        ControlError: no station answers, or it refuses.

    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"do": request, "at_ns": time.monotonic_ns()}).encode() + b"\n")
            line = _read_line(connection, LONGEST_REPLY)
        except PermissionError:
            raise ControlError(f"{path}: not permitted. Join the group of the socket, or use sudo.") from None
        except OSError as error:
            why = error.strerror or error
            if is_held(path):
                raise ControlError(
                    f"{path}: a station runs here and does not answer ({why}): it hangs or was stopped. Start it again."
                ) from error
            raise ControlError(
                f"{path}: no station answers ({why}). Start one with `beltline run STATION.toml`."
            ) from error
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError(f"{path}: the station broke off its answer. Ask again.") from None
    match answer:
        case {"ok": True, "reply": reply}:
            return reply
        case {"ok": False, "error": why}:
            raise ControlError(f"the station refuses: {why}")
    raise ControlError(f"{path}: what answers here is no beltline station. Correct [paths] control.")


def _read_line(connection: socket.socket, longest: int) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < longest:
        received = connection.recv(65536)
        if not received:
            break
        line += received
    return line
