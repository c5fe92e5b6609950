"""The simulated camera: one JSON packet per strobe on a Unix SOCK_SEQPACKET socket.

`{"epoch": u32, "part": u32, "captured_ns": monotonic ns, "picture": path}` for the part that truly lies under the
camera; with "scan": path where a scanner saw it. Pixels stay in files; truth never crosses. A picture that no client is
there to take is lost, as with a camera.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from firmware_bridge.belt.pins import listen


class Camera:
    """Serves any number of clients, coming and going."""

    def __init__(self, path: Path) -> None:
        self._server = listen(path)
        self._clients: list[socket.socket] = []

    def expose(self, epoch: int, part: int, captured_ns: int, picture: str, scan: str = "") -> bool:
        """Send one picture; False when nobody took it."""
        self._accept()
        record = {"epoch": epoch, "part": part, "captured_ns": captured_ns, "picture": picture}
        if scan:
            record["scan"] = scan
        packet = json.dumps(record).encode()
        taken = [self._send(client, packet) for client in list(self._clients)]
        return any(taken)

    def _send(self, client: socket.socket, packet: bytes) -> bool:
        try:
            client.send(packet)
        except BlockingIOError:
            return False  # a client that does not read loses pictures
        except (BrokenPipeError, ConnectionResetError):
            client.close()
            self._clients.remove(client)
            return False
        return True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except BlockingIOError:
                return
            client.setblocking(False)
            self._clients.append(client)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._server.close()
