"""A scan as a picture for people: how high it stands, dark to bright; blue where nothing is known."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.organised_scan.front_end import Prepared
from edge.worst import Worst

MARKED = (240, 200, 60)
UNKNOWN = (24, 32, 64)  # red, green, blue
SHOWN = (0.01, 0.99)  # of the heights: from dark to bright


def draw_height(scan: Prepared) -> NDArray[np.uint8]:
    """Draw the height over the plane, shaded as lit from the upper left: uint8 [H, W, 3] RGB on the graph's grid."""
    known = scan.known > 0
    height = scan.geometry[..., 0]
    low, high = np.quantile(height[known], SHOWN)
    level = np.clip((height - low) / max(float(high - low), 1e-6), 0, 1)
    light = scan.geometry[..., 1:4] @ np.array([-0.35, -0.35, -0.87], np.float32)
    grey = (255 * (0.55 * level + 0.45 * np.clip(light, 0, 1))).astype(np.uint8)
    picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    picture[~known] = UNKNOWN
    return np.asarray(picture, np.uint8)


def draw_worst(scan: Prepared, worst: Worst, map_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw the height with a box around the worst place of a map [h, w]."""
    picture = draw_height(scan)
    across, down = picture.shape[1] / map_size[1], picture.shape[0] / map_size[0]
    left, top, width, height = worst.box
    first, last = (left * across, top * down), ((left + width) * across, (top + height) * down)
    cv2.rectangle(picture, [int(each) for each in first], [int(each) for each in last], MARKED, 2)
    return picture
