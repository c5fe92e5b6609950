"""Where pictures come from: one small interface, one module per kind."""

from __future__ import annotations

from edge.settings import BeltSource, CameraSource, FolderSource, Source, VideoSource
from edge.sources.avi import is_motion_jpeg
from edge.sources.belt import Belt
from edge.sources.camera import Camera
from edge.sources.folder import Folder
from edge.sources.replay import Replay
from edge.sources.source import CaptureError, PictureSource, SourceError
from edge.sources.video import Video

__all__ = ["CaptureError", "PictureSource", "SourceError", "open_source"]


def open_source(settings: Source, *, bench: bool = False) -> PictureSource:
    """The source that the settings describe, opened. `bench`: nothing is thrown off any belt, so any video will do.

    Raises:
        SourceError: it can never work as it is set up.

    """
    source = _make(settings, bench=bench)
    source.open()
    return source


def _make(settings: Source, *, bench: bool) -> PictureSource:
    if isinstance(settings, FolderSource):
        return Folder(settings)
    if isinstance(settings, VideoSource):
        return Replay(settings) if bench and not is_motion_jpeg(settings.path) else Video(settings)
    if isinstance(settings, CameraSource):
        return Camera(settings)
    assert isinstance(settings, BeltSource)
    return Belt(settings)
