"""`Link`: the reject path over a serial port, on its own thread.

The thread opens the port, reopens it when it vanishes (unplugged, controller restarted, hang-up of a
pseudo-terminal), moves bytes between it and the `Session`, and calls back. Everything that other threads touch is
under one lock; callbacks run outside it.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import secrets
import select
import termios
import threading
import time
from collections.abc import Callable

import serial

from firmware_bridge.link import wire
from firmware_bridge.link.session import MS, Event, Session
from firmware_bridge.link.settings import LinkSettings
from firmware_bridge.parts import Outcome, PartId, Trigger, Verdict
from firmware_bridge.reject_path import Memory, PathHealth

log = logging.getLogger(__name__)

REOPEN_S = 0.2
GREETING_NS = 500 * MS  # a controller that says nothing for so long is told of
COMMAND_TIMEOUT_S = 1.0
BACKLOG_BYTES = 4096  # a controller that reads nothing for this long is not there
PORT_ERRORS = (OSError, termios.error, ValueError, OverflowError)  # what pyserial raises for a port or its settings


class Link:
    """A `RejectPath` over the beltline reject controller."""

    def __init__(self, settings: LinkSettings, memory: Memory, inhibit: bool = False) -> None:
        self.on_trigger: Callable[[Trigger], None] = lambda _trigger: None
        self.on_outcome: Callable[[Outcome], None] = lambda _outcome: None
        self.on_lost: Callable[[PartId], None] = lambda _part_id: None
        self._settings = settings
        self._inhibit = inhibit
        self._lock = threading.Lock()
        self._session = Session(settings, memory, inhibit, nonce=secrets.randbits(32))
        self._step_ns = 0
        self._port_problem: str | None = f"{settings.port} is not open yet"
        self._told: str | None = None  # the problem that the log knows
        self._heard_ns = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def open(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1

    def decide(self, verdict: Verdict) -> None:
        with self._lock:
            self._session.decide(verdict, time.monotonic_ns())
        self._wake()

    def step_done(self) -> None:
        self._step_ns = time.monotonic_ns()

    def health(self) -> PathHealth:
        with self._lock:
            session, status = self._session, self._session.status
            counters = dict(session.counters)
            counters |= {f"controller_{name}": value for name, value in session.controller_counters.items()}
            return PathHealth(
                connected=session.connected,
                ready=session.ready,
                permit=status is not None and status.permit,
                fault=self._port_problem or session.problem or self._latched() or self._silence(),
                epoch=session.epoch,
                inhibited=self._inhibit,
                counters=counters,
            )

    def ack(self) -> None:
        """Ask the controller to clear its latched fault; waits up to a second. `health()` tells whether it did."""
        result = self._command(wire.ACK)
        if result != 0:
            with self._lock:
                self._session.counters["acks_refused"] += 1

    def jog_gate(self) -> None:
        result = self._command(wire.JOG)
        if result is None:
            raise RuntimeError(f"the gate did not move: no answer from the controller at {self._settings.port}")
        if result:
            raise RuntimeError(f"the controller refused to move the gate: {wire.RESULTS.get(result, str(result))}")

    def _latched(self) -> str | None:
        status = self._session.status
        return status.fault_words if status is not None else None

    def _silence(self) -> str | None:
        return None if self._session.connected else f"no controller answers at {self._settings.port}"

    def _command(self, kind: int) -> int | None:
        """Returns the result code; None when the controller is not there or does not answer in time."""
        answers: queue.Queue[int] = queue.Queue()
        with self._lock:
            if not self._session.ready:
                return None
            sequence = self._session.command(kind, time.monotonic_ns(), answers.put)
        self._wake()
        try:
            return answers.get(timeout=COMMAND_TIMEOUT_S)
        except queue.Empty:
            with self._lock:
                self._session.cancel(sequence)  # a late answer must not act on another day
            return None

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EBADF):
                raise

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._use_port()
        finally:
            if not self._stop.is_set():
                self._port_problem = "the link died: its last words stand in the log. Start the station again."
                with self._lock:
                    self._session.closed()

    def _use_port(self) -> None:
        """Open the port and talk until it is lost."""
        try:
            port = serial.Serial(self._settings.port, self._settings.baud, timeout=0, exclusive=True)
        except PORT_ERRORS as error:
            self._port_problem = self._explain(error)
            self._note()
            self._stop.wait(REOPEN_S)
            return
        self._port_problem = None
        self._heard_ns = time.monotonic_ns()
        try:
            self._talk(port)
        except (OSError, termios.error) as error:
            self._port_problem = f"{self._settings.port} was lost: {error}; reopening"
            self._note()
        finally:
            self._hang_up(port)

    def _note(self) -> None:
        """Each changed problem into the log once, and its end."""
        with self._lock:
            connected, ready = self._session.connected, self._session.ready
            problem = self._port_problem or self._session.problem or self._latched() or self._silence()
        now_ns = time.monotonic_ns()
        if connected:
            self._heard_ns = now_ns
        elif problem == self._silence() and now_ns - self._heard_ns < GREETING_NS:
            return  # it may be about to answer
        if problem == self._told:
            return
        if problem:
            latched = " (the controller's latched fault: clear it with `beltline ack`)"
            log.warning("%s%s", problem, latched if problem == self._latched() else "")
        elif not ready:
            return
        else:
            log.info("%s: all is well with the reject controller", self._settings.port)
        self._told = problem

    def _explain(self, error: Exception) -> str:
        port = self._settings.port
        number = getattr(error, "errno", None)
        if number == errno.ENOENT or "No such file" in str(error):
            return f"{port} does not exist; is the controller plugged in, and the name right?"
        if number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in str(error):
            return f"{port} is busy: another program holds it; stop that program"
        if number == errno.EACCES:
            return f"{port} may not be opened by this user; add it to the group `dialout`"
        return f"{port} cannot be opened: {error}"

    def _hang_up(self, port: serial.Serial) -> None:
        with self._lock:
            self._session.closed()
            self._session.counters["disconnects"] += 1
        try:
            port.close()
        except (OSError, termios.error) as error:
            self._port_problem = f"{self._settings.port} was lost: {error}; reopening"

    def _talk(self, port: serial.Serial) -> None:
        decoder = wire.Decoder()
        with self._lock:
            self._session.out.clear()
            self._session.opened(time.monotonic_ns())
        descriptor = port.fileno()
        while not self._stop.is_set():
            received = self._wait(descriptor)
            now_ns = time.monotonic_ns()
            with self._lock:
                for frame in decoder.feed(received):
                    self._session.received(frame, now_ns)
                self._session.counters["crc_errors"] += decoder.crc_errors
                self._session.counters["bad_frames"] += decoder.bad_frames
                decoder.crc_errors = decoder.bad_frames = 0
                self._session.tick(now_ns, now_ns - self._step_ns <= self._settings.step_limit_ms * MS)
                events, self._session.events = self._session.events, []
            for event in events:
                self._deliver(event)
            self._note()
            self._write(descriptor)

    def _wait(self, descriptor: int) -> bytes:
        now_ns = time.monotonic_ns()
        with self._lock:
            timeout_s = max(0.0, (self._session.next_due_ns(now_ns) - now_ns) / 1e9)
            writers = [descriptor] if self._session.out else []
        readable, _, _ = select.select([descriptor, self._wake_read], writers, [], min(timeout_s, 0.1))
        if self._wake_read in readable:
            os.read(self._wake_read, 4096)
        if descriptor not in readable:
            return b""
        received = os.read(descriptor, 4096)
        if not received:
            raise OSError(errno.EIO, "hang-up")
        return received

    def _write(self, descriptor: int) -> None:
        with self._lock:
            out = self._session.out
            if not out:
                return
            try:
                del out[: os.write(descriptor, out)]
            except BlockingIOError:
                if len(out) > BACKLOG_BYTES:
                    raise OSError(errno.EIO, "the controller reads nothing") from None

    def _deliver(self, event: Event) -> None:
        if isinstance(event, Trigger):
            self.on_trigger(event)
        elif isinstance(event, Outcome):
            self.on_outcome(event)
        else:
            self.on_lost(event.part_id)
