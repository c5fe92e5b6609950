"""The files that show one part: a picture, a scan, or both."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Spec
from edge.front_end import FrameError
from edge.picture import Picture, decode
from edge.scans.read import read_points
from edge.scans.unit import Unit, in_millimetres


class Wanted(NamedTuple):
    """What is looked at: pictures, and scans, whose files have this unit."""

    picture: bool = True
    unit: Unit | None = None


class View(NamedTuple):
    picture: Path | None
    scan: Path | None = None

    @property
    def file(self) -> Path:
        """The one that names the part."""
        file = self.picture or self.scan
        assert file is not None
        return file


def wanted(spec: Spec | None) -> Wanted:
    """What a bundle's graphs look at; pictures where there is none."""
    return Wanted(spec.image is not None, spec.scan.source.unit if spec.scan else None) if spec else Wanted()


def named(picture: str, scan: str = "") -> View:
    """A view whose files are named by text, empty where there is none."""
    return View(Path(picture) if picture else None, Path(scan) if scan else None)


def read_view(view: View, wanted: Wanted) -> tuple[Picture | None, NDArray[np.float32] | None]:
    """Read what is wanted of a view and there: the picture, and the scan in millimetres.

    Raises:
        OSError, FrameError: a file cannot be read, is damaged, or is a scan of another unit.

    """
    image = decode(view.picture.read_bytes()) if view.picture and wanted.picture else None
    if not (view.scan and wanted.unit):
        return image, None
    try:
        return image, in_millimetres(read_points(view.scan), wanted.unit)
    except FrameError as error:
        raise FrameError(
            f"scan: {error}" if view.scan == view.file else f"its scan {view.scan.name}: {error}"
        ) from error
