"""Which good parts are trained on, and which set the threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.split import hold_out, kfold

FEW_PARTS = FEW_PICTURES = 150
LARGEST_HELD_OUT = 0.4  # of the parts
SMALLEST_HELD_OUT = 0.2
MANY_PARTS = 500  # from here on held-out parts always suffice


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Folds of (to train on, held out), indices of pictures; one fold when parts are simply held out."""

    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    cross_fitted: bool
    words: str

    @property
    def held(self) -> NDArray[np.int64]:
        """The pictures that set the threshold, fold by fold."""
        return np.concatenate([rows for _, rows in self.folds])


def plan_split(groups: NDArray[np.int64], target_false_reject: float, seed: int, folds: int | None = None) -> SplitPlan:
    """Cross-fit where parts are few for the target, hold parts out where there are enough.

    Args:
        groups: [n], the physical part of each picture.
        target_false_reject: n held-out parts support no less than 1/(n+1).
        seed: of the shuffle.
        folds: cross-fit in so many.

    """
    parts = int(np.unique(groups).size)
    needed = math.ceil(2 / target_false_reject)  # one rejected part expected below the largest score
    if folds or parts < FEW_PARTS or (needed > LARGEST_HELD_OUT * parts and parts < MANY_PARTS):
        k = folds or (5 if len(groups) < FEW_PICTURES else 3)
        words = (
            f"{k}-fold by physical part ({parts} parts, {len(groups)} pictures): every part is scored by a model that "
            "never saw it; the shipped model is fitted on all."
        )
        return SplitPlan(kfold(groups, k, seed), cross_fitted=True, words=words)
    share = min(LARGEST_HELD_OUT, max(SMALLEST_HELD_OUT, (needed + 1) / parts))
    train, held = hold_out(groups, share, seed)
    count = int(np.unique(groups[held]).size)
    words = f"{count} of {parts} physical parts ({len(held)} of {len(groups)} pictures) held out of the fit."
    return SplitPlan([(train, held)], cross_fitted=False, words=words)


def plan_classes(
    groups: NDArray[np.int64], classes: NDArray[np.int64], target_false_reject: float, seed: int
) -> list[SplitPlan]:
    """Plan each class by itself, all in as many folds as the one that needs most: one model is fitted per fold.

    Args:
        groups: [n], the physical part of each picture of any class.
        classes: [n], numbered from 0.
        target_false_reject: of each class, as for `plan_split`.
        seed: of the shuffles.

    """
    rows = [np.flatnonzero(classes == number) for number in range(int(classes.max()) + 1)]
    plans = [plan_split(groups[own], target_false_reject, seed) for own in rows]
    most = max(len(plan.folds) for plan in plans)
    plans = [
        plan if len(plan.folds) == most else plan_split(groups[own], target_false_reject, seed, most)
        for plan, own in zip(plans, rows, strict=True)
    ]
    return [
        replace(plan, folds=[(own[train], own[held]) for train, held in plan.folds])
        for plan, own in zip(plans, rows, strict=True)
    ]


def together(plans: Sequence[SplitPlan]) -> SplitPlan:
    """Give what one model of all classes is fitted on, fold by fold."""
    folds = [
        (np.concatenate([train for train, _ in parts]), np.concatenate([held for _, held in parts]))
        for parts in zip(*(plan.folds for plan in plans), strict=True)
    ]
    return replace(plans[0], folds=folds)
