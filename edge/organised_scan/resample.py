"""From the scanner's grid to the graph's: each cell has the mean of its points, or the one in its middle.

The mean takes off noise, but over an edge of depth it would invent a point between two surfaces. So it stands only
where it lies no further from the middle point than the noise, and what half a cell of a slope of 60 degrees rises; else
the middle point stands. Where there is no middle point, nothing is made up.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

STEEPEST = 3**0.5 / 2  # rise of a slope of 60 degrees over half a cell


class Grid(NamedTuple):
    """`points` float32 [H, W, 3] in mm are 0 where they are not `known` [H, W]; `pitch` is the distance between
    neighbours across the sight, mm: the median, 0 where there are none.
    """

    points: NDArray[np.float32]
    known: NDArray[np.bool_]
    pitch: float


def resample(points: NDArray[np.float32], known: NDArray[np.bool_], height: int, width: int, noise: float) -> Grid:
    """Bring points to another grid. A finer one than the scanner's repeats its points.

    Args:
        points: [H, W, 3], mm.
        known: [H, W], the ones that count.
        height: of the new grid.
        width: of the new grid.
        noise: of the sensor, mm.

    """
    size = (width, height)
    middle = np.asarray(cv2.resize(points, size, interpolation=cv2.INTER_NEAREST_EXACT), np.float32)
    there = cv2.resize(known.view(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).view(np.bool_)
    middle[~there] = 0
    pitch = _pitch(middle, there)
    if height > known.shape[0] or width > known.shape[1] or there.shape == known.shape:
        return Grid(middle, there, pitch)
    sums = cv2.resize(cv2.copyTo(points, known.view(np.uint8)), size, interpolation=cv2.INTER_AREA)
    share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    means = sums / np.maximum(share, np.float32(1e-6))[..., None]
    like = there & (np.abs(means[..., 2] - middle[..., 2]) <= noise + STEEPEST * pitch)
    cv2.copyTo(means, like.view(np.uint8), middle)
    return Grid(middle, there, pitch)


def _pitch(points: NDArray[np.float32], known: NDArray[np.bool_]) -> float:
    right, down = points[::8, 1:] - points[::8, :-1], points[1:, ::8] - points[:-1, ::8]
    pairs = known[::8, 1:] & known[::8, :-1], known[1:, ::8] & known[:-1, ::8]
    steps = np.concatenate([step[pair] for step, pair in zip((right, down), pairs, strict=True)])
    return float(np.median(np.hypot(steps[:, 0], steps[:, 1]))) if len(steps) else 0.0
