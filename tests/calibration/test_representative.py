from __future__ import annotations

import numpy as np
import pytest

from calibration.representative import FEWEST, check_representative
from calibration.threshold import CalibrationError


def pictures(count: int) -> list[np.ndarray]:
    """Exposures of one still grey card, with the noise of a camera."""
    rng = np.random.default_rng(0)
    return [np.clip(rng.normal(128, 1.5, (16, 16, 3)), 0, 255).astype(np.uint8) for _ in range(count)]


def test_enough_different_pictures_pass() -> None:
    check_representative(pictures(FEWEST))
    check_representative([*pictures(FEWEST), *pictures(FEWEST)])


def test_three_are_too_few() -> None:
    with pytest.raises(CalibrationError, match="3 pictures, 0 of them copies of others, are too few"):
        check_representative(pictures(3))


def test_copies_do_not_count_even_when_they_were_saved_anew() -> None:
    few = pictures(FEWEST - 1)
    again = few[0].copy()
    again[::4] += 1
    with pytest.raises(CalibrationError, match=f"{FEWEST + 2} pictures, 3 of them copies of others"):
        check_representative([*few, few[0], few[1], again])
