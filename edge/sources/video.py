"""A video file: part n sees frame n. Parts are asked for in rising order; a frame once passed does not come again."""

from __future__ import annotations

import time

import cv2

from edge.frame import Frame
from edge.picture import rgb_from_opencv
from edge.settings import VideoSource
from edge.sources.source import CaptureError, SourceError
from firmware_bridge.parts import Reason, Trigger


class Video:
    """On demand: frames are decoded when their part is asked for."""

    def __init__(self, settings: VideoSource) -> None:
        self._path = settings.path
        self._capture = cv2.VideoCapture()
        self._passed = 0  # frames decoded so far, used or not
        self._frames = 0
        self._skipped = 0

    def open(self) -> None:
        if not self._path.is_file():
            raise SourceError(f"{self._path}: no such file. Set path in [source].")
        if not self._capture.open(str(self._path)):
            raise SourceError(
                f"{self._path}: not a video that OpenCV can read. Convert it, for example to MJPEG in AVI."
            )

    def close(self) -> None:
        self._capture.release()

    def __len__(self) -> int:
        """Frames in the file, as its header states; 0 when it does not."""
        return max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def expect(self, trigger: Trigger) -> None:
        pass

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:  # noqa: ARG002 - never has to wait
        part = trigger.part_id.part
        if part <= self._passed:
            raise CaptureError(Reason.NO_FRAME, f"{self._path}: frame {part} has passed")
        while self._passed < part - 1:
            if not self._capture.grab():
                raise CaptureError(Reason.NO_FRAME, f"{self._path}: ends before frame {part}")
            self._passed += 1
            self._skipped += 1
        captured_ns = time.monotonic_ns()
        decoded, image = self._capture.read()
        if not decoded:
            raise CaptureError(Reason.NO_FRAME, f"{self._path}: ends before frame {part}")
        self._passed += 1
        self._frames += 1
        return Frame(trigger.part_id, captured_ns, rgb_from_opencv(image), f"{self._path.name} frame {part}")

    def counters(self) -> dict[str, int]:
        return {"frames": self._frames, "skipped": self._skipped}
