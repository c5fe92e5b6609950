"""A folder of pictures, or of scans: part n sees file n, in the order of names; the parts after the last see nothing.

Scans lie in it, or in `xyz`, each with its picture beside it, or in `rgb` (`edge.scans.folder`).
"""

from __future__ import annotations

import time

from edge.frame import Frame
from edge.front_end import FrameError
from edge.scans.folder import list_views
from edge.settings import FolderSource
from edge.sources.source import CaptureError, SourceError
from edge.view import View, Wanted, read_view
from firmware_bridge.parts import Reason, Trigger

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


class Folder:
    """On demand: the file is read when its part is asked for."""

    def __init__(self, settings: FolderSource, wanted: Wanted) -> None:
        self._path, self._wanted = settings.path, wanted
        self._frames = 0
        self._unreadable = 0
        self.problem = ""

    def open(self) -> None:
        if not self._path.is_dir():
            raise SourceError(f"{self._path}: no such folder. Set path in [source].")
        if self._wanted.unit:
            self._views = list_views(self._path)
            if not self._views:
                raise SourceError(f"{self._path}: no scans in this folder, and the bundle looks at scans.")
            return
        pictures = sorted(f for f in self._path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
        if not pictures:
            raise SourceError(f"{self._path}: no pictures ({', '.join(sorted(SUFFIXES))}) in this folder.")
        self._views = [View(picture) for picture in pictures]

    def close(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self._views)

    def expect(self, trigger: Trigger) -> None:
        pass

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:  # noqa: ARG002 - never has to wait
        part = trigger.part_id.part
        if not 0 < part <= len(self._views):
            what = "scans" if self._wanted.unit else "pictures"
            self.problem = f"{self._path}: {len(self._views)} {what}, none for part {part}"
            raise CaptureError(Reason.NO_FRAME, self.problem)
        view = self._views[part - 1]
        captured_ns = time.monotonic_ns()
        try:
            image, scan = read_view(view, self._wanted)
        except (OSError, FrameError) as error:
            self._unreadable += 1
            raise CaptureError(Reason.BAD_FRAME, f"{view.file}: {error}", view.file.name) from error
        self._frames += 1
        self.problem = ""
        return Frame(trigger.part_id, captured_ns, image, view.file.name, scan)

    def counters(self) -> dict[str, int]:
        return {"frames": self._frames, "unreadable": self._unreadable}
