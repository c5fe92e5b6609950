"""What is left of a scan when the belt is taken away: one part, or a clear word why not."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError

ABOVE = 5.0  # times the spread of the belt: higher is no belt
LEAST_SHARE = 1e-3  # of the scan's places: less is dirt
SECOND_SHARE = 0.25  # of the largest part: as large is another part, smaller is dirt


def find_part(height: NDArray[np.float32], spread: float) -> NDArray[np.bool_]:
    """Mark the one part [H, W] on the belt.

    Pieces count as one where at most two missing places lie between them.

    Args:
        height: [H, W] above the belt, mm; NaN: no return.
        spread: of the belt's own points, mm.

    Raises:
        FrameError: nothing but the belt, a belt that is not the background, or two parts.

    """
    above = height > ABOVE * spread  # false for NaN
    count, labels = cv2.connectedComponents(cv2.dilate(above.view(np.uint8), np.ones((3, 3), np.uint8)), connectivity=8)
    areas = np.bincount(labels[above], minlength=max(count, 2))
    areas[0] = 0
    largest = int(areas.argmax())
    behind = int((height < -ABOVE * spread).sum())
    if areas[largest] < LEAST_SHARE * height.size:
        if behind > LEAST_SHARE * height.size:
            raise FrameError(
                f"nothing lies before the belt, {behind} points behind it: z must grow away from the sensor"
            )
        raise FrameError(
            f"a plane only: nothing of {LEAST_SHARE * height.size:.0f} points or more stands {ABOVE * spread:.2g} mm "
            "above the belt"
        )
    second = int(np.partition(areas, -2)[-2])
    if second >= SECOND_SHARE * areas[largest]:
        raise FrameError(f"two parts in view, of {areas[largest]} and {second} points; one is inspected at a time")
    part: NDArray[np.bool_] = above & (labels == largest)
    return part
