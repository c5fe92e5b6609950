"""What every reader of scans checks: the size before anything is allocated, and the grid."""

from __future__ import annotations

from typing import NoReturn

from edge.front_end import FrameError

MOST_POINTS = 2**24  # 4096 x 4096; a damaged header may ask for terabytes
MOST_COLUMNS = 64  # values of a point in a file that describes its own columns


def check_grid(height: int, width: int) -> None:
    """Refuse what no scanner gives.

    Raises:
        FrameError: an empty grid, or one of too many points.

    """
    if height < 1 or width < 1:
        raise FrameError(f"an empty scan: {width}x{height} points")
    if height * width > MOST_POINTS:
        raise FrameError(f"{width}x{height} points; a scan of at most {MOST_POINTS} points is read")


def refuse_unorganised(kind: str, points: int, how: str) -> NoReturn:
    raise FrameError(
        f"an unorganised {kind} of {points} points: which are neighbours is lost. Export the scanner's grid with all "
        f"of its points, missing ones as NaN: {how}, or an xyz TIFF"
    )
