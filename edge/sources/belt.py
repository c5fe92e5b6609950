"""The belt simulator's camera: a Unix socket that sends one packet per exposure, and names the part in it.

Wire: SOCK_SEQPACKET; each packet is one JSON object {"epoch", "part", "captured_ns", "picture"}, `captured_ns` on
CLOCK_MONOTONIC, `picture` the path of an image file; and where there is a scan, "scan" its path, and `picture` may be
empty. The simulator plays the camera and the photo-eye, so the part id is certain and nothing is paired by time.
Files are decoded as they come, on the grab thread, as a camera's driver would deliver them. A packet that is no such
object is counted and ignored; a connection that ends is made again every half second, and parts without a picture are
NO_FRAME.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import Counter, OrderedDict
from typing import NamedTuple

from edge.frame import Frame
from edge.front_end import FrameError
from edge.settings import BeltSource
from edge.sources.source import CaptureError
from edge.sources.trouble import Trouble
from edge.view import View, Wanted, named, read_view
from firmware_bridge.parts import PartId, Reason, Trigger

log = logging.getLogger(__name__)

RING = 32  # pictures that wait for their part's turn
RECONNECT_S = 0.5
LONGEST_PACKET = 65536


class Exposure(NamedTuple):
    part_id: PartId
    captured_ns: int
    view: View


class Belt:
    """See the module."""

    def __init__(self, settings: BeltSource, wanted: Wanted) -> None:
        self._settings, self._wanted = settings, wanted
        self._arrived = threading.Condition()
        self._pictures: OrderedDict[PartId, Frame | CaptureError] = OrderedDict()
        self._counters: Counter[str] = Counter()
        self._trouble = Trouble(log, f"belt camera {settings.socket}")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="grab", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def expect(self, trigger: Trigger) -> None:
        pass

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:
        part_id = trigger.part_id
        last_ns = trigger.at_ns + int(self._settings.timeout_ms * 1e6)
        with self._arrived:
            wait_s = min(timeout_s, (last_ns - time.monotonic_ns()) / 1e9)
            if not self._arrived.wait_for(lambda: part_id in self._pictures, max(0.0, wait_s)):
                if time.monotonic_ns() < last_ns:
                    return None
                raise CaptureError(Reason.NO_FRAME, f"{self._settings.socket}: no picture of part {part_id}")
            picture = self._pictures[part_id]
        if isinstance(picture, CaptureError):
            raise picture
        return picture

    def counters(self) -> dict[str, int]:
        with self._arrived:
            return dict(self._counters)

    @property
    def problem(self) -> str:
        return self._trouble.problem

    def _count(self, cause: str) -> None:
        with self._arrived:
            self._counters[cause] += 1

    def _listen(self) -> None:
        while not self._closing.is_set():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as camera:
                camera.settimeout(0.2)
                try:
                    camera.connect(str(self._settings.socket))
                    self._count("opened")
                    self._trouble.over()
                    self._receive(camera)
                    self._count("disconnected")
                except OSError as error:
                    self._count("open_failed")
                    self._trouble.begins(f"{error.strerror or error}. Start the simulator.")
            self._closing.wait(RECONNECT_S)

    def _receive(self, camera: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                packet = camera.recv(LONGEST_PACKET)
            except TimeoutError:
                continue
            except ConnectionError:
                return
            if not packet:
                return
            exposure = parse(packet)
            if exposure is None:
                self._count("bad_packet")
                continue
            picture = self._read(exposure)
            with self._arrived:
                if exposure.part_id in self._pictures:
                    picture = CaptureError(Reason.AMBIGUOUS_FRAME, f"two pictures of part {exposure.part_id}")
                self._pictures[exposure.part_id] = picture
                if len(self._pictures) > RING:
                    self._pictures.popitem(last=False)
                self._arrived.notify_all()

    def _read(self, exposure: Exposure) -> Frame | CaptureError:
        try:
            image, scan = read_view(exposure.view, self._wanted)
        except (OSError, FrameError) as error:
            self._count("unreadable")
            return CaptureError(Reason.BAD_FRAME, f"{exposure.view.file}: {error}", exposure.view.file.name)
        self._count("frames")
        return Frame(exposure.part_id, exposure.captured_ns, image, exposure.view.file.name, scan)


def parse(packet: bytes) -> Exposure | None:
    """The exposure that a packet announces, or None when it is not one."""
    try:
        raw = json.loads(packet)
        epoch, part, captured_ns, picture = raw["epoch"], raw["part"], raw["captured_ns"], raw["picture"]
        scan = raw.get("scan", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(type(number) is int for number in (epoch, part, captured_ns)) or not all(
        isinstance(path, str) and "\0" not in path for path in (picture, scan)
    ):
        return None
    return Exposure(PartId(epoch, part), captured_ns, named(picture, scan)) if picture or scan else None
