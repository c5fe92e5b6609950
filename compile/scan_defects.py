"""Dents and bumps in scans of good parts: what a check can use where nobody has real defects.

As painted pictures (`compile.synthesis`) they stand in for real ones where a reduced graph is compared and where it is
said what a threshold finds. They say nothing about how well real defects are found. Ours: a Gaussian along the sight,
as wide and as deep, for its width, as is stated here; unlike published syntheses it does not hang on the unit.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

DIAMETERS = (1 / 8, 1 / 4)  # of the scan's shorter side
DEPTHS = (0.15, 0.3)  # of the diameter
SIGMA = 0.25  # of the diameter


def dent(
    points: NDArray[np.float32], counts: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], str]:
    """Press one dent, or push one bump, into a scan.

    Args:
        points: [H, W, 3], mm, NaN where there is no return.
        counts: [h, w], of any size: above 0 where the part is.
        rng: draws place, size, depth and side.

    Returns:
        a copy of the scan; and what was done, for people.

    """
    height, width = points.shape[:2]
    diameter = float(np.exp(rng.uniform(*np.log(DIAMETERS)))) * min(height, width)
    part = cv2.resize(counts, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0
    part &= ~np.isnan(points[..., 2])
    inner = cv2.erode(
        np.pad(part, 1).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [int(diameter)] * 2)
    )
    places = np.flatnonzero(inner[1:-1])
    middle_y, middle_x = divmod(int(rng.choice(places if places.size else np.flatnonzero(part))), width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    away = ((x - middle_x) ** 2 + (y - middle_y) ** 2) / np.float32(2 * (SIGMA * diameter) ** 2)
    diameter_mm = diameter * _pitch(points)
    depth_mm = rng.uniform(*DEPTHS) * diameter_mm * rng.choice((-1, 1))
    changed = points.copy()
    changed[..., 2] += np.float32(depth_mm) * np.exp(-away)
    what = "dent" if depth_mm > 0 else "bump"
    return changed, f"{what}, {diameter_mm:.3g} mm wide and {abs(depth_mm):.2g} mm deep"


def _pitch(points: NDArray[np.float32]) -> float:
    """Distance of neighbours across the sight, mm."""
    right = points[:, 1:, :2] - points[:, :-1, :2]
    return float(np.nanmedian(np.hypot(right[..., 0], right[..., 1])))
