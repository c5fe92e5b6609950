"""Any video that OpenCV reads, for a bench: part n sees the n-th frame that comes out of the decoder.

Not for a belt. Most videos hold differences between frames, and a decoder that meets damage shows a neighbour's picture
under the right number without a word. Only Motion JPEG in AVI (`edge.sources.video`) tells.
"""

from __future__ import annotations

import logging
import time

import cv2

from edge.frame import Frame
from edge.picture import rgb_from_opencv
from edge.settings import VideoSource
from edge.sources.source import CaptureError, SourceError
from firmware_bridge.parts import Reason, Trigger

log = logging.getLogger(__name__)


class Replay:
    """On demand and in order: parts are asked for one after the other."""

    def __init__(self, settings: VideoSource) -> None:
        self._path = settings.path
        self._read = 0
        self.problem = ""

    def open(self) -> None:
        if not self._path.is_file():
            raise SourceError(f"{self._path}: no such file. Set path in [source].")
        self._video = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        self._video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # as the camera saw it
        self._stated = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
        if not self._video.isOpened() or self._stated < 1:
            self._video.release()
            raise SourceError(f"{self._path}: no video that OpenCV can read, or one without frames.")
        log.warning(
            "%s: a damaged frame of this kind of video may show another frame's picture. That will do for a bench; for "
            "a belt convert it: ffmpeg -i FILE -c:v mjpeg -q:v 2 -an line.avi",
            self._path,
        )

    def close(self) -> None:
        self._video.release()

    def __len__(self) -> int:
        """Frames that the file's header states."""
        return self._stated

    def expect(self, trigger: Trigger) -> None:
        pass

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:  # noqa: ARG002 - never has to wait
        part = trigger.part_id.part
        name = f"{self._path.name} frame {part}"
        captured_ns = time.monotonic_ns()
        read, image = self._video.read() if part == self._read + 1 else (False, None)
        if not read or image is None:
            self.problem = f"{self._path}: of {self._stated} frames {self._read} could be read"
            raise CaptureError(Reason.BAD_FRAME, f"{name}: no frame could be read", name)
        self._read = part
        return Frame(trigger.part_id, captured_ns, rgb_from_opencv(image), name)

    def counters(self) -> dict[str, int]:
        return {"frames": self._read}
