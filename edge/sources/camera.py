"""A V4L2 camera through OpenCV: a grab thread keeps a short ring of time-stamped pictures, `edge.pairing` picks.

The time stamp is the driver's, on CLOCK_MONOTONIC (what CAP_PROP_POS_MSEC means for V4L2), minus exposure and readout
as configured. A picture whose time stamp cannot be (older than a second, in the future, not after its predecessor) is
dropped and counted: a driver that stamps otherwise gives no pictures rather than wrong ones. After an unplug the device
is opened again every half second; parts that pass meanwhile are NO_FRAME. Each such time is one warning in the log.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from edge.frame import Frame
from edge.front_end import FrameError
from edge.pairing import Pairing, Rules
from edge.picture import Picture, rgb_from_opencv
from edge.settings import CameraSource
from edge.sources.source import CaptureError
from edge.sources.trouble import Trouble
from firmware_bridge.parts import Reason, Trigger

log = logging.getLogger(__name__)

RING = 32  # pictures; what waits for its trigger or its turn
REOPEN_S = 0.5
OLDEST_STAMP_NS = 1_000_000_000
ODD_STAMPS = 10  # in a row: no start-up any more
V4L2_MAJOR = 81  # the kernel's number for video devices
WHICH = "set device in [source]; `beltline doctor` lists the cameras"


class NoCameraError(Exception):
    """The device cannot be opened now. The message is the reason and the next step."""


def device_problem(device: Path) -> str | None:
    """Why no camera can be opened there, with the next step; None where one may be."""
    try:
        state = device.stat()
    except OSError as error:
        return f"{error.strerror}. Plug the camera in, or {WHICH}."
    if not stat.S_ISCHR(state.st_mode) or os.major(state.st_rdev) != V4L2_MAJOR:
        return f"no V4L2 camera. Change it: {WHICH}."
    return None if os.access(device, os.R_OK | os.W_OK) else "not permitted. Let the user join the group `video`."


def open_v4l2(settings: CameraSource) -> cv2.VideoCapture:
    """The opened device.

    Raises:
        NoCameraError: it is not there, no camera, forbidden, busy, or refuses.

    """
    device = settings.device
    if problem := device_problem(device):
        raise NoCameraError(problem)
    capture = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise NoCameraError(f"busy, or no device that captures. Stop what holds it (fuser -v {device}), or {WHICH}.")
    for key, value in (
        (cv2.CAP_PROP_FRAME_WIDTH, settings.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, settings.height),
        (cv2.CAP_PROP_FPS, settings.fps),
    ):
        if value:
            capture.set(key, value)
    return capture


class Camera:
    """See the module. `open_capture` is replaced where no device is at hand."""

    def __init__(self, settings: CameraSource, open_capture: Callable[[CameraSource], Any] = open_v4l2) -> None:
        self._settings = settings
        self._open_capture = open_capture
        self._offset_ns = int((settings.exposure_ms + settings.readout_ms) * 1e6)
        self._pairing = Pairing(
            Rules(
                settings.triggered,
                int(settings.delay_ms * 1e6),
                int(settings.window_ms * 1e6),
                int(settings.transfer_ms * 1e6),
                int(settings.trigger_latency_ms * 1e6),
            )
        )
        self._arrived = threading.Condition()
        self._ring: OrderedDict[int, Picture] = OrderedDict()  # exposure start, ns -> picture
        self._counters: Counter[str] = Counter()
        self._trouble = Trouble(log, f"camera {settings.device}")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._grab, name="grab", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=12)  # OpenCV gives up on a silent V4L2 device after 10 s

    def expect(self, trigger: Trigger) -> None:
        with self._arrived:
            self._pairing.trigger(trigger.part_id, trigger.at_ns)
            self._arrived.notify_all()

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:
        give_up_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        with self._arrived:
            while (found := self._pairing.settle(trigger.part_id, trigger.at_ns, time.monotonic_ns())) is None:
                left_s = (give_up_ns - time.monotonic_ns()) / 1e9
                if left_s <= 0:
                    return None
                self._arrived.wait(min(left_s, 0.002))  # an answer may also fall due by time alone
            if isinstance(found, Reason):
                raise CaptureError(found, f"{self._settings.device}: {found.value} for part {trigger.part_id}")
            image = self._ring.get(found)
        if image is None:
            with self._arrived:
                self._counters["ring_overrun"] += 1
            raise CaptureError(Reason.NO_FRAME, f"{self._settings.device}: the picture left the ring before its turn")
        return Frame(trigger.part_id, found, image, self._settings.device.name)

    def counters(self) -> dict[str, int]:
        with self._arrived:
            return dict(self._counters)

    @property
    def problem(self) -> str:
        return self._trouble.problem

    def _count(self, cause: str) -> None:
        with self._arrived:
            self._counters[cause] += 1

    def _grab(self) -> None:
        while not self._closing.is_set():
            try:
                capture = self._open_capture(self._settings)
            except NoCameraError as error:
                self._trouble.begins(str(error))
                self._count("open_failed")
                self._closing.wait(REOPEN_S)
                continue
            self._count("opened")
            self._read(capture)
            capture.release()
            if not self._closing.is_set():
                self._trouble.begins("gives no picture, and is opened again. Look at its plug and its supply.")
                self._count("disconnected")
                self._closing.wait(REOPEN_S)

    def _read(self, capture: Any) -> None:
        last_ns, odd_stamps = 0, 0
        while not self._closing.is_set():
            read, image = capture.read()
            if not read:
                return
            now_ns = time.monotonic_ns()
            stamp_ns = int(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if not max(last_ns, now_ns - OLDEST_STAMP_NS) < stamp_ns <= now_ns:
                self._count("bad_timestamp")
                odd_stamps += 1
                if odd_stamps == ODD_STAMPS:
                    self._trouble.begins(
                        f"its driver's time stamps lie {(now_ns - stamp_ns) / 1e9:.3f} s back on the monotonic clock: "
                        "no picture can be given to a part. Use a camera whose driver stamps on that clock."
                    )
                continue
            last_ns, odd_stamps = stamp_ns, 0
            try:
                picture = rgb_from_opencv(image)
            except FrameError as error:
                self._trouble.begins(f"{error}. Choose another format in its driver.")
                self._count("bad_picture")
                continue
            self._trouble.over()
            with self._arrived:
                self._counters["frames"] += 1
                self._ring[stamp_ns - self._offset_ns] = picture
                if len(self._ring) > RING:
                    self._ring.popitem(last=False)
                self._pairing.exposure(stamp_ns - self._offset_ns)
                self._arrived.notify_all()
