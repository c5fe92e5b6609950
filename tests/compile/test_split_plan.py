from __future__ import annotations

import numpy as np
import pytest

from calibration.threshold import rank_for
from compile.split_plan import plan_classes, plan_split, together


@pytest.mark.parametrize(("parts", "target"), [(240, 0.03), (300, 0.02), (600, 0.01), (2000, 0.01)])
def test_held_out_parts_support_the_target_without_hanging_on_the_largest_score(parts: int, target: float) -> None:
    plan = plan_split(np.arange(parts), target, 0)
    assert not plan.cross_fitted
    train, held = plan.folds[0]
    assert not set(train) & set(held)
    assert len(train) >= 0.6 * parts - 1
    assert rank_for(len(held), target) < len(held)


@pytest.mark.parametrize(("parts", "target", "folds"), [(30, 0.01, 5), (74, 0.2, 5), (149, 0.2, 3), (240, 0.01, 3)])
def test_few_parts_for_the_target_are_cross_fitted(parts: int, target: float, folds: int) -> None:
    plan = plan_split(np.repeat(np.arange(parts), 2), target, 0)
    assert plan.cross_fitted
    assert len(plan.folds) == folds
    assert sorted(np.concatenate([held for _, held in plan.folds])) == list(range(2 * parts))


@pytest.mark.parametrize(("parts", "folds"), [((30, 40), 5), ((600, 40), 5), ((240, 600), 3), ((600, 700), 1)])
def test_classes_are_planned_apart_and_fitted_together(parts: tuple[int, ...], folds: int) -> None:
    classes = np.repeat([0, 1], parts)
    plans = plan_classes(np.arange(sum(parts)), classes, 0.01, 0)
    joint = together(plans)
    assert [len(plan.folds) for plan in (*plans, joint)] == [folds] * 3
    assert {plan.cross_fitted for plan in (*plans, joint)} == {folds > 1}
    for number, plan in enumerate(plans):
        assert set(classes[plan.held]) == {number}
        if folds > 1:
            assert sorted(plan.held) == list(np.flatnonzero(classes == number))
    for i, (train, held) in enumerate(joint.folds):
        assert not set(train) & set(held)
        assert set(train) == set.union(*(set(plan.folds[i][0]) for plan in plans))
        assert set(classes[train]) == {0, 1}


def test_one_class_is_planned_as_ever() -> None:
    groups = np.repeat(np.arange(30), 2)
    (plan,) = plan_classes(groups, np.zeros(60, np.int64), 0.05, 3)
    for found, wanted in zip(together([plan]).folds, plan_split(groups, 0.05, 3).folds, strict=True):
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])
