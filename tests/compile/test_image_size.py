from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.backbones.choice import DEFAULT, LARGEST, SMALLEST
from compile.image_size import (
    ImageSizeError,
    choose_size,
    measure_ms_per_megapixel,
)


@given(
    st.integers(16, 8192),
    st.none() | st.floats(1, 500),
    st.none() | st.floats(20, 1000),
    st.floats(5, 400),
)
def test_every_choice_is_a_size_and_keeps_the_budget(side, defect, budget, cost) -> None:
    try:
        chosen = choose_size(side, smallest_defect_px=defect, budget_ms=budget, ms_per_megapixel=cost)
    except ImageSizeError:
        assert budget is not None
        assert budget < cost * SMALLEST**2 / 1e6 * 1.0001
        return
    assert chosen.size % DEFAULT.step == 0
    assert SMALLEST <= chosen.size <= LARGEST
    assert budget is None or cost * chosen.size**2 / 1e6 <= budget * 1.0001
    missed = defect is not None and defect * chosen.size / side < DEFAULT.cell * 0.999
    assert missed == bool(chosen.warning)
    assert str(chosen.size) in chosen.explanation


def test_the_default_follows_the_source() -> None:
    sides = {100: 128, 200: 224, 320: 256, 640: 256, 768: 320, 1024: 384, 4096: 384}
    assert {side: choose_size(side).size for side in sides} == sides
    assert "not stated" in choose_size(768).explanation
    assert "--smallest-defect says" in choose_size(4096).explanation
    assert "--smallest-defect says" not in choose_size(768).explanation


def test_a_smaller_defect_needs_a_larger_picture() -> None:
    assert choose_size(1024, smallest_defect_px=16).size == 512
    assert choose_size(1024, smallest_defect_px=64).size == 128


def test_a_size_that_was_asked_for_is_taken_and_its_blindness_said() -> None:
    assert choose_size(1024, size=320).size == 320
    assert "from 32 source pixels" in choose_size(1024, size=256, smallest_defect_px=10).warning


@pytest.mark.parametrize("budget", [1e9, 1e308])
def test_a_budget_without_end_pays_for_the_largest_size(budget: float) -> None:
    assert choose_size(8192, smallest_defect_px=1, budget_ms=budget, ms_per_megapixel=80).size == LARGEST


def test_a_budget_next_to_nothing_is_refused() -> None:
    with pytest.raises(ImageSizeError, match="Allow more time"):
        choose_size(1024, budget_ms=5e-324, ms_per_megapixel=80)


def test_the_cost_is_measured(trunk) -> None:
    assert 1 < measure_ms_per_megapixel(trunk, 0.6, runs=3) < 100_000
