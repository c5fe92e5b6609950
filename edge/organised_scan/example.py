"""A scan that a bundle takes, where there is none yet: the largest one, to measure what a part costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.bundle import ScanInput

VIEW = 0.4  # of the distance: how much lies in view
WAVES = 9


def example_scan(spec: ScanInput) -> NDArray[np.float32]:
    """Make a wavy surface, or a block that fills most of the view of a belt: float32 [H, W, 3], mm."""
    height, width = spec.source.height[1], spec.source.width[1]
    distance = sum(spec.source.distance_mm) / 2
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j] * VIEW / 2 * distance
    z = distance * (1 + 1e-3 * np.sin(WAVES * x / distance * 2 * np.pi) * np.sin(WAVES * y / distance * 2 * np.pi))
    if spec.background == "belt":
        block = np.maximum(np.abs(x), np.abs(y)) < 0.8 * VIEW / 2 * distance
        z = np.where(block, z - distance / 20, distance)
    return np.stack([x, y, z], axis=2).astype(np.float32)
