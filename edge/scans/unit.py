"""Metres or millimetres: no format says which, and a factor of 1000 must not pass.

What a scanner over a belt sees is between some millimetres and some metres wide, so the numbers tell: a scan that
spans less than 3 is one in metres (3 mm would be a crumb), any other is in millimetres (3 m and more would be no part
on a belt).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError

Unit = Literal["m", "mm"]
METRES_BELOW = 3.0
SMALLEST_MM, LARGEST_MM = 1.0, 10_000.0
MM: dict[Unit, float] = {"m": 1000.0, "mm": 1.0}
SAMPLES = 10_000  # points that a measurement looks at


def measure_extent(points: NDArray[np.float32]) -> float:
    """How far the points [H, W, 3] (NaN: none) reach along the longest axis, a hundredth left out at each end."""
    flat = points.reshape(-1, 3)
    flat = flat[:: max(1, len(flat) // SAMPLES)]
    flat = flat[~np.isnan(flat[:, 2])]
    if not len(flat):
        return 0.0
    low, high = np.quantile(flat, (0.01, 0.99), axis=0)
    return float((high - low).max())


def choose_unit(extents: Sequence[float]) -> Unit:
    """Tell the unit of a set of scans from what they span; one scan may be a stray, so the middle one decides."""
    return "m" if statistics.median(extents) < METRES_BELOW else "mm"


def scale_to_mm(extent: float, unit: Unit) -> float:
    """Give the millimetres of one unit, for a scan that spans `extent` of them.

    Raises:
        FrameError: it spans what no scan on a belt does, so the unit is another.

    """
    extent_mm = extent * MM[unit]
    if not SMALLEST_MM <= extent_mm <= LARGEST_MM:
        other = "mm" if unit == "m" else "m"
        raise FrameError(
            f"the scan spans {extent_mm:.4g} mm if its unit is {unit}, and a scan spans {SMALLEST_MM:g} to "
            f"{LARGEST_MM:g} mm: its unit is probably {other}"
        )
    return MM[unit]


def in_millimetres(points: NDArray[np.float32], unit: Unit) -> NDArray[np.float32]:
    """Bring points [H, W, 3] to millimetres.

    Raises:
        FrameError: their unit is another, see `scale_to_mm`.

    """
    scale = scale_to_mm(measure_extent(points), unit)
    return points if unit == "mm" else points * np.float32(scale)
