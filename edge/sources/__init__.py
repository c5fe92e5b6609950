"""Where pictures come from: one small interface, one module per kind."""

from __future__ import annotations

from edge.settings import BeltSource, CameraSource, FolderSource, Source, VideoSource
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
    source = _make(settings)
    try:
        source.open()
    except SourceError:
        if not (bench and isinstance(settings, VideoSource)):
            raise
        source = Replay(settings)
        source.open()
    return source


def _make(settings: Source) -> PictureSource:
    if isinstance(settings, FolderSource):
        return Folder(settings)
    if isinstance(settings, VideoSource):
        return Video(settings)
    if isinstance(settings, CameraSource):
        return Camera(settings)
    assert isinstance(settings, BeltSource)
    return Belt(settings)
