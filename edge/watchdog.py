"""The service manager's notification socket: readiness, status and the watchdog.

systemd names a datagram socket in NOTIFY_SOCKET (a path, or an abstract name behind `@`) and takes lines `KEY=VALUE`
from it: READY=1 once, STATUS= for people, WATCHDOG=1 more often than WATCHDOG_USEC microseconds, STOPPING=1. A process
that goes silent is killed and started again, so `alive` belongs in the loop that does the work and never in a thread
beside it. Outside systemd the socket is not named and every method does nothing. A notification that cannot be sent is
dropped: the next one follows, and a manager that hears none acts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Watchdog:
    """Tells systemd how this process is. Use it from one thread.

    `environment` is os.environ, or what a test puts in its place.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environment.get("WATCHDOG_USEC", "")
        self._period_ns = int(limit_us) * 1000 // 4 if for_us and limit_us.isdigit() else 0
        self._next_ns = 0
        self._status = ""

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping()

    def ready(self) -> None:
        """Start-up is complete."""
        self._send("READY=1")

    def alive(self) -> None:
        """A step of work is done. Cheap: sends four times per watchdog period at most."""
        if self._period_ns and (now_ns := time.monotonic_ns()) >= self._next_ns:
            self._next_ns = now_ns + self._period_ns
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; repeated text is not sent again."""
        line = " ".join(text.split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """The process shuts down on purpose."""
        self._send("STOPPING=1")

    def _send(self, line: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.sendto(line.encode(), self._address)
