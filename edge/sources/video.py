"""A Motion JPEG AVI file: part n sees frame n, or nothing.

Other videos are refused. Their frames are differences to earlier ones, and a decoder that meets damage shows the
neighbour's picture or a mixture, under the right time stamp and without a word (so do OpenCV and FFmpeg with MPEG-4 and
VP8; in a damaged AVI their frame numbers and time stamps count what was found, too). A JPEG stands alone and tells its
damage.
"""

from __future__ import annotations

import logging
import time

from edge.frame import Frame
from edge.front_end import FrameError
from edge.picture import decode
from edge.settings import VideoSource
from edge.sources.avi import AviError, find_frames
from edge.sources.source import CaptureError, SourceError
from firmware_bridge.parts import Reason, Trigger

log = logging.getLogger(__name__)


class Video:
    """On demand: a frame is read when its part is asked for."""

    def __init__(self, settings: VideoSource) -> None:
        self._path = settings.path
        self._frames = 0
        self._unreadable = 0
        self._damage = self.problem = ""

    def open(self) -> None:
        if not self._path.is_file():
            raise SourceError(f"{self._path}: no such file. Set path in [source].")
        try:
            self._places, self._stated, broken_at = find_frames(self._path)
            self._file = self._path.open("rb", buffering=0)
        except AviError as error:
            raise SourceError(
                f"{self._path}: {error}. Record Motion JPEG in AVI, or convert a whole file: "
                "ffmpeg -i FILE -c:v mjpeg -q:v 2 -an line.avi"
            ) from error
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror}.") from error
        if broken_at is not None:
            self._damage = self.problem = (
                f"{self._path}: damaged at byte {broken_at}: of {self._stated} frames only the first "
                f"{len(self._places)} are certain. The parts after them are FAULT; record the file again."
            )
            log.warning("%s", self.problem)

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Frames that the file's header states."""
        return self._stated

    def expect(self, trigger: Trigger) -> None:
        pass

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:  # noqa: ARG002 - never has to wait
        part = trigger.part_id.part
        name = f"{self._path.name} frame {part}"
        if not 0 < part <= self._stated:
            why = f"{self._path}: {self._stated} frames, none for part {part}"
            self.problem = self._damage or why
            raise CaptureError(Reason.NO_FRAME, why)
        if part > len(self._places):
            self._unreadable += 1
            raise CaptureError(Reason.BAD_FRAME, f"{name}: the file is damaged before it", name)
        captured_ns = time.monotonic_ns()
        offset, length = self._places[part - 1]
        try:
            self._file.seek(offset)
            image = decode(self._file.read(length))
        except (OSError, FrameError) as error:
            self._unreadable += 1
            raise CaptureError(Reason.BAD_FRAME, f"{name}: {error}", name) from error
        self._frames += 1
        self.problem = self._damage
        return Frame(trigger.part_id, captured_ns, image, name)

    def counters(self) -> dict[str, int]:
        return {"frames": self._frames, "unreadable": self._unreadable}
