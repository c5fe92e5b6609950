"""A scan's file becomes one kind of array, whatever its format: an organised cloud in the file's own unit.

Organised TIFF (MVTec 3D-AD), NPY, PLY and PCD hold x, y and z for each place of the scanner's grid; depth images (TIFF,
NPY, 16-bit PNG) need the camera (`edge.scans.depth`). x and y lie across, z is the distance from the sensor and grows
away from it. Missing returns (NaN, infinite, z = 0, or further away than anything on earth) are NaN in all three.

Failure modes: what each format's module says; no return at all; and swapped axes, which would make distance width: the
grid must be spread over x and y more than over any other pair of axes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.picture import PNG_MAGIC, decode
from edge.scans import npy, pcd, ply, tiff
from edge.scans.depth import depth_to_points
from edge.scans.grid import check_grid

SUFFIXES = frozenset({".tif", ".tiff", ".npy", ".ply", ".pcd", ".png"})
LARGEST_FILE = 1 << 30  # bytes
SMALLEST_SIDE = 16  # points; nothing smaller shows a part
FEWEST_RETURNS = 100  # points; fewer tell nothing
FARTHEST = 1e6  # beyond it a number says that there is no return
SPARSE = 64  # places a side that the check of the axes looks at


def read_points(file: Path) -> NDArray[np.float32]:
    """Read a scan: float32 [H, W, 3] in the file's unit, contiguous, NaN where there is no return.

    Raises:
        FrameError: missing, truncated, damaged, unorganised, empty, without returns, of a kind that is no scan, or with
            swapped axes.

    """
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise FrameError(f"larger than {LARGEST_FILE} bytes: no scan of one part")
        data = file.read_bytes()
    except OSError as error:
        raise FrameError(error.strerror or str(error)) from error
    array = _decode(data)
    if array.ndim == 2:
        array = depth_to_points(array, file)
    with np.errstate(over="ignore"):
        points = np.ascontiguousarray(array, dtype=np.float32)
    height, width = points.shape[:2]
    check_grid(height, width)
    if min(height, width) < SMALLEST_SIDE:
        raise FrameError(f"{width}x{height} points, at least {SMALLEST_SIDE} a side are needed")
    return _without_missing(points if points.flags.writeable else points.copy())


def _decode(data: bytes) -> NDArray[Any]:
    """Decode by the first bytes, not by the name."""
    if not data:
        raise FrameError("empty file")
    if data.startswith(tiff.MAGIC):
        return tiff.decode_tiff(data)
    if data.startswith(npy.MAGIC):
        return npy.decode_npy(data)
    if data.startswith(ply.MAGIC):
        return ply.decode_ply(data)
    if data.startswith(pcd.MAGIC):
        return pcd.decode_pcd(data)
    if data.startswith(PNG_MAGIC):
        check_grid(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
        image = decode(data)
        if image.ndim != 2 or image.dtype != np.uint16:
            raise FrameError("a PNG that is no depth image: one channel of 16 bits is read as depth")
        return image
    raise FrameError("no scan: organised TIFF, NPY, PLY, PCD and depth images (TIFF, NPY, 16-bit PNG) are read")


def _without_missing(points: NDArray[np.float32]) -> NDArray[np.float32]:
    x, y, z = (points[..., axis] for axis in range(3))
    returned = (np.abs(x) < FARTHEST) & (np.abs(y) < FARTHEST) & (np.abs(z) < FARTHEST) & (z != 0)  # false for NaN
    if (count := int(returned.sum())) < FEWEST_RETURNS:
        what = "no point has a return" if count == 0 else f"only {count} points have a return"
        raise FrameError(f"an empty scan: {what}, of {returned.size}")
    points[~returned] = np.nan
    _check_axes(points)
    return points


def _check_axes(points: NDArray[np.float32]) -> None:
    """See that z looks along the sight: the area that the grid covers is largest as seen along z."""
    sparse = points[:: -(-points.shape[0] // SPARSE), :: -(-points.shape[1] // SPARSE)].astype(np.float64)
    down, right = sparse[1:, :-1] - sparse[:-1, :-1], sparse[:-1, 1:] - sparse[:-1, :-1]
    steps = [np.nanmedian(step.reshape(-1, 3), axis=0) if _any(step) else None for step in (down, right)]
    if steps[0] is None or steps[1] is None:
        return  # too few neighbours to tell
    areas = np.abs(np.cross(steps[1], steps[0]))
    along = int(areas.argmax())
    if areas[along] > 2 * areas[2]:
        seen = next(pair for pair in itertools.combinations("xyz", 2) if "xyz"[along] not in pair)
        raise FrameError(
            f"swapped axes: the grid spreads over {seen[0]} and {seen[1]}, so {'xyz'[along]} is the distance. Export x "
            "and y across and z away from the sensor"
        )


def _any(step: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(step).all(axis=-1).any())
