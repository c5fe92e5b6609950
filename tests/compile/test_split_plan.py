from __future__ import annotations

import numpy as np
import pytest

from calibration.threshold import rank_for
from compile.split_plan import plan_split


@pytest.mark.parametrize(("parts", "target"), [(240, 0.03), (300, 0.02), (600, 0.01), (2000, 0.01)])
def test_held_out_parts_support_the_target_without_hanging_on_the_largest_score(parts: int, target: float) -> None:
    plan = plan_split(np.arange(parts), target, 0)
    assert not plan.cross_fitted
    train, held = plan.folds[0]
    assert not set(train) & set(held)
    assert len(train) >= 0.6 * parts - 1
    assert rank_for(len(held), target) < len(held)


@pytest.mark.parametrize(("parts", "target", "folds"), [(30, 0.01, 5), (149, 0.2, 5), (240, 0.01, 3)])
def test_few_parts_for_the_target_are_cross_fitted(parts: int, target: float, folds: int) -> None:
    plan = plan_split(np.repeat(np.arange(parts), 2), target, 0)
    assert plan.cross_fitted
    assert len(plan.folds) == folds
    assert sorted(np.concatenate([held for _, held in plan.folds])) == list(range(2 * parts))
