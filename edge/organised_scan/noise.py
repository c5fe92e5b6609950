"""How rough a scan is by its sensor: every tolerance of the front end is a multiple of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAGS = (
    1,
    2,
    4,
)  # places apart: noise of stereo and of filtered sensors is alike in neighbours, and shows only further apart
ROWS = 16  # rows and columns that are looked at
TO_SIGMA = 1.4826  # of a normal distribution, over its median absolute deviation


def measure_noise(z: NDArray[np.float32]) -> float:
    """Standard deviation of the noise of z [H, W] (NaN: none), in its unit.

    From second differences along rows and columns, which planes do not have: of a - 2b + c the variance is six times
    that of one value; the median is blind to edges. At least what the steps of the samples make of any value, and above
    zero. A part that bends over most of the scan is taken for some noise.
    """
    rows = z[:: max(1, z.shape[0] // ROWS)]
    columns = z[:, :: max(1, z.shape[1] // ROWS)].T
    found = 0.0
    for lines in (rows, np.ascontiguousarray(columns)):
        for lag in LAGS:
            bend = np.abs(lines[:, : -2 * lag] - 2 * lines[:, lag:-lag] + lines[:, 2 * lag :])
            bend = bend[~np.isnan(bend)]
            if bend.size:
                found = max(found, TO_SIGMA * float(np.median(bend)) / 6**0.5)
    steps = np.abs(np.diff(rows, axis=1))
    steps = steps[steps > 0]
    finest = 4 * np.spacing(np.nanmax(np.abs(rows))) if np.isfinite(rows).any() else np.float32(1e-6)
    return max(found, float(steps.min()) / 12**0.5 if steps.size else 0.0, float(finest))
