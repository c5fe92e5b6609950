"""Whether pictures can stand for all good parts when ranges are taken from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.threshold import CalibrationError

FEWEST = 8  # distinct pictures
SAME = 0.5  # of 255, mean absolute difference: a copy, or one saved anew; two exposures of a still part differ by more


def check_representative(pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Refuse pictures, uint8 of one shape, of which fewer than 8 differ from each other.

    Raises:
        CalibrationError: says how many there are and how many are copies.

    """
    distinct: list[NDArray[np.int16]] = []
    for picture in pictures:
        wide = picture.astype(np.int16)
        if all(np.abs(wide - other).mean() >= SAME for other in distinct):
            distinct.append(wide)
    if len(distinct) < FEWEST:
        copies = len(pictures) - len(distinct)
        raise CalibrationError(
            f"{len(pictures)} pictures, {copies} of them copies of others, are too few to calibrate INT8 on: at least "
            f"{FEWEST} different ones are needed. Add pictures of other good parts."
        )
