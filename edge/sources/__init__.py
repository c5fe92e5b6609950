"""Where pictures come from: one small interface, one module per kind."""

from __future__ import annotations

from edge.settings import BeltSource, CameraSource, FolderSource, Source, VideoSource
from edge.sources.belt import Belt
from edge.sources.camera import Camera
from edge.sources.folder import Folder
from edge.sources.replay import Replay
from edge.sources.source import CaptureError, PictureSource, SourceError
from edge.sources.video import Video
from edge.view import Wanted

__all__ = ["CaptureError", "PictureSource", "SourceError", "open_source"]

PICTURES = Wanted()


def open_source(settings: Source, *, bench: bool = False, wanted: Wanted = PICTURES) -> PictureSource:
    """The source that the settings describe, opened.

    Args:
        settings: of the station.
        bench: nothing is thrown off any belt, so any video will do.
        wanted: what the bundle looks at.

    Raises:
        SourceError: it can never work as it is set up.

    """
    source = _make(settings, wanted)
    try:
        source.open()
    except SourceError:
        if not (bench and isinstance(settings, VideoSource)):
            raise
        source = Replay(settings)
        source.open()
    return source


def _make(settings: Source, wanted: Wanted) -> PictureSource:
    if isinstance(settings, FolderSource):
        return Folder(settings, wanted)
    if wanted.unit and not isinstance(settings, BeltSource):
        raise SourceError(
            f"[source] kind = {settings.kind!r} gives pictures alone, and the bundle looks at scans. Take a folder of "
            "scans, or a bundle for pictures."
        )
    if isinstance(settings, VideoSource):
        return Video(settings)
    if isinstance(settings, CameraSource):
        return Camera(settings)
    assert isinstance(settings, BeltSource)
    return Belt(settings, wanted)
