"""Where on a part its map is worst, in millimetres, for people and for whatever marks the place."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.organised_scan.front_end import Prepared

SHARE = 0.5  # of the peak: lower is no longer the same place


@dataclass(frozen=True, slots=True)
class Worst:
    """A region of a map; millimetres in the scanner's coordinates."""

    x_mm: float  # its middle
    y_mm: float
    z_mm: float
    width_mm: float  # along x
    height_mm: float  # along y
    box: tuple[int, int, int, int]  # left, top, width, height, in pixels of the map


def find_worst(heat: NDArray[np.float32], scan: Prepared) -> Worst | None:
    """Find the connected region around the map's peak that has half of it at least.

    Args:
        heat: a verdict's map [h, w].
        scan: what it is of.

    Returns:
        None where no point of the scan lies there.

    """
    top, left = divmod(int(heat.argmax()), heat.shape[1])
    if not heat[top, left] > 0:
        return None
    labels = cv2.connectedComponents((heat >= SHARE * heat[top, left]).astype(np.uint8), connectivity=8)[1]
    region = (labels == labels[top, left]).astype(np.uint8)
    grid = cv2.resize(region, scan.known.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    points = scan.scan[(grid > 0) & (scan.known > 0)] + scan.centre
    if not len(points):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    x, y, z = (float(each) for each in points.mean(axis=0))
    left, top, width, height = (int(each) for each in cv2.boundingRect(region))
    return Worst(x, y, z, float(high[0] - low[0]), float(high[1] - low[1]), (left, top, width, height))
