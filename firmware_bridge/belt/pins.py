"""The pins of the simulated controller, as messages over a Unix SOCK_SEQPACKET socket.

Format, little-endian; the C side is `controller/host_port.c`::

    tick:   u32 sequence, u32 count, u64 us at which `count` was reached, u16 n,
            then n eye edges: u32 count, u64 us, u8 level
    answer: u32 sequence, u16 n, then n output edges: u8 kind, u8 level, u32 count, u32 a, u32 b

Failure modes: the controller is not there, dies, hangs, or comes back. Strategy: one client, the newest wins; a tick
that a hung controller does not take is not lost, its counts and edges go with the next one; a closed socket is a
controller without power, so all its outputs fall.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

GATE, PERMIT, STROBE = 1, 2, 3
_TICK = struct.Struct("<IIQH")
_EYE = struct.Struct("<IQB")
_ANSWER = struct.Struct("<IH")
_EDGE = struct.Struct("<BBIII")
_MOST_EYE_EDGES = 200


@dataclass(frozen=True, slots=True)
class EyeEdge:
    count: int
    at_us: int
    level: bool


@dataclass(frozen=True, slots=True)
class OutputEdge:
    kind: int
    level: bool
    count: int
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Answer:
    sequence: int
    edges: tuple[OutputEdge, ...]


def encode_tick(sequence: int, count: int, at_us: int, edges: list[EyeEdge]) -> bytes:
    head = _TICK.pack(sequence, count, at_us, len(edges))
    return head + b"".join(_EYE.pack(edge.count, edge.at_us, edge.level) for edge in edges)


def decode_answer(packet: bytes) -> Answer:
    sequence, n = _ANSWER.unpack_from(packet)
    edges = (_EDGE.unpack_from(packet, _ANSWER.size + i * _EDGE.size) for i in range(n))
    return Answer(sequence, tuple(OutputEdge(kind, bool(level), *rest) for kind, level, *rest in edges))


def listen(path: Path) -> socket.socket:
    """A non-blocking SOCK_SEQPACKET server at `path`, replacing what lies there."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.setblocking(False)
    server.bind(str(path))
    server.listen(4)
    return server


class Pins:
    """The socket to the controller."""

    def __init__(self, path: Path) -> None:
        self._server = listen(path)
        self._client: socket.socket | None = None
        self._sequence = 0
        self._unsent: list[EyeEdge] = []

    @property
    def connected(self) -> bool:
        return self._client is not None

    def readers(self) -> list[socket.socket]:
        """What to wait on: a controller that comes, or an answer."""
        return [self._server] if self._client is None else [self._server, self._client]

    def accept(self, count: int, now_us: int, eye: bool) -> bool:
        """Take a waiting controller; it is told the eye's level first. True when there was one."""
        try:
            client, _ = self._server.accept()
        except BlockingIOError:
            return False
        self.drop()
        client.setblocking(False)
        self._client = client
        self._unsent = [EyeEdge(count, now_us, eye)]
        return True

    def tick(self, count: int, at_us: int, edges: list[EyeEdge]) -> int | None:
        """Send a tick; its sequence number, or None when nobody took it."""
        if self._client is None:
            return None
        self._unsent += edges
        sequence = (self._sequence + 1) % (1 << 32)
        now, later = self._unsent[:_MOST_EYE_EDGES], self._unsent[_MOST_EYE_EDGES:]
        last_count, last_us = (now[-1].count, now[-1].at_us) if later else (count, at_us)
        try:
            self._client.send(encode_tick(sequence, last_count, last_us, now))
        except BlockingIOError:
            return None
        except (BrokenPipeError, ConnectionResetError):
            self.drop()
            return None
        self._sequence, self._unsent = sequence, later
        return sequence

    def answers(self) -> list[Answer]:
        """All answers that wait. Drops the controller when its socket is closed."""
        received = []
        while self._client is not None:
            try:
                packet = self._client.recv(8192)
            except BlockingIOError:
                break
            except ConnectionResetError:
                packet = b""
            if not packet:
                self.drop()
                break
            received.append(decode_answer(packet))
        return received

    def drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        self.drop()
        self._server.close()
