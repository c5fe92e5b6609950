"""A folder of pictures: part n sees file n, in the order of names; the parts after the last see nothing."""

from __future__ import annotations

import time

from edge.frame import Frame
from edge.front_end import FrameError
from edge.picture import decode
from edge.settings import FolderSource
from edge.sources.source import CaptureError, SourceError
from firmware_bridge.parts import Reason, Trigger

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


class Folder:
    """On demand: the file is read when its part is asked for."""

    def __init__(self, settings: FolderSource) -> None:
        self._path = settings.path
        self._frames = 0
        self._unreadable = 0
        self.problem = ""

    def open(self) -> None:
        if not self._path.is_dir():
            raise SourceError(f"{self._path}: no such folder. Set path in [source].")
        self._files = sorted(f for f in self._path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
        if not self._files:
            raise SourceError(f"{self._path}: no pictures ({', '.join(sorted(SUFFIXES))}) in this folder.")

    def close(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self._files)

    def expect(self, trigger: Trigger) -> None:
        pass

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:  # noqa: ARG002 - never has to wait
        part = trigger.part_id.part
        if not 0 < part <= len(self._files):
            self.problem = f"{self._path}: {len(self._files)} pictures, none for part {part}"
            raise CaptureError(Reason.NO_FRAME, self.problem)
        file = self._files[part - 1]
        captured_ns = time.monotonic_ns()
        try:
            image = decode(file.read_bytes())
        except (OSError, FrameError) as error:
            self._unreadable += 1
            raise CaptureError(Reason.BAD_FRAME, f"{file}: {error}", file.name) from error
        self._frames += 1
        self.problem = ""
        return Frame(trigger.part_id, captured_ns, image, file.name)

    def counters(self) -> dict[str, int]:
        return {"frames": self._frames, "unreadable": self._unreadable}
