"""Set each graph's threshold on parts that it was not trained on, and say what it hangs on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.threshold import (
    DEFAULT_ABOVE,
    DEFAULT_TARGET,
    SMALLEST_CALIBRATION,
    check_tail,
    default_target,
    set_threshold,
    supported,
    tail_threshold,
)
from compile.evidence import Evidence
from compile.features import Features
from compile.job import FILES, Job, Settings
from compile.model import Heads
from compile.split_plan import SplitPlan
from edge.bundle import GraphName

NAMED_PARTS = 3


def set_thresholds(
    job: Job, features: Features, plan: SplitPlan, heads: Heads, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Set one threshold per graph from its own scores of held-out parts; returns which pictures those are.

    Raises:
        CalibrationError: the scores allow none, or a tail model was asked for and the parts are too few for it.

    """
    held = plan.held
    job.evidence.good_groups = groups[held]
    parts = int(np.unique(groups[held]).size)
    target = job.settings.target_false_reject or default_target(parts)
    extrapolated = extrapolates(job.settings, parts)
    rule = tail_threshold if extrapolated else set_threshold
    for name in (each for each in FILES if each in features.renderings):
        scores = np.concatenate(
            [
                features.score(head, name, rows, job.map_side, job.class_index)
                for head, (_, rows) in zip(heads.folds, plan.folds, strict=True)
            ]
        )
        job.evidence.good_scores[name] = scores
        job.evidence.thresholds[name] = rule(
            scores, target, cross_fitted=plan.cross_fitted, groups=groups[held].tolist()
        )
    found = job.evidence.thresholds["float"]
    low, high = found.interval
    job.evidence.promise = (
        f"The threshold, {found.rule}, rejects {found.target_false_reject:.2%} of good parts "
        f"(95 % interval {low:.2%} to {high:.2%})."
    )
    if job.settings.target_false_reject is None and target > DEFAULT_TARGET:
        job.evidence.promise += (
            f" {parts} good parts say too little about {DEFAULT_TARGET:.0%}: {DEFAULT_ABOVE} of {parts + 1} was aimed "
            f"at, as at the oddest part alone the threshold would be luck. --target-false-reject asks for another."
        )
    if job.settings.tail_model and not extrapolated:
        job.evidence.promise += f" --tail-model was not needed: {parts} good parts support {target:.2%}."
    return held


def extrapolates(wanted: Settings, parts: int) -> bool:
    """Whether a tail model sets the threshold on so many held-out parts.

    Raises:
        CalibrationError: it should, but the parts are too few for one.

    """
    target = wanted.target_false_reject
    if not wanted.tail_model or target is None or supported(parts, target):
        return False
    check_tail(parts)
    return True


def oddest_parts(found: Evidence, name: GraphName, count: int = NAMED_PARTS) -> list[int]:
    """Give the highest picture of each of the good parts with the highest scores, as positions in `good_scores`."""
    order = np.argsort(found.good_scores[name])[::-1]
    _, first = np.unique(found.good_groups[order], return_index=True)
    return [int(i) for i in order[np.sort(first)[:count]]]


def warn_of_outliers(found: Evidence) -> None:
    """Pass on what is flagged about the threshold, with the names of the good parts that it hangs on."""
    if flag := found.thresholds["float"].flagged:
        found.warnings.append(
            f"{found.label}Threshold: {flag}. The good parts with the highest scores: {_named(found, 'float')}."
        )


def warn_of_blindness(found: Evidence, target: float | None) -> None:
    """Say loudly, before all else, which graphs find fewer than half of the defects known here.

    Args:
        found: thresholds, and scores of good parts and of defects.
        target: the false-reject target that was asked for, if any.

    """
    blind = [
        f"{found.label}THE THRESHOLD OF {FILES[name]} FINDS ONLY {each.found} OF {each.of} {found.other_name.upper()}. "
        f"It hangs on the good parts with the highest scores: {_named(found, name)}."
        f"{_without_oddest(found, name, target)} Take pictures out if their parts are not good, add good parts, or "
        "allow more false rejects with --target-false-reject."
        for name, each in found.defects_found().items()
        if 2 * each.found < each.of
    ]
    found.warnings[:0] = blind


def _without_oddest(found: Evidence, name: GraphName, target: float | None) -> str:
    """What the threshold would find without the parts that it let stand above it, as a hint and no more."""
    limit = found.thresholds[name]
    above = max(1, limit.parts - limit.rank) if limit.rank else 1
    odd = found.good_groups[oddest_parts(found, name, above)]
    kept = ~np.isin(found.good_groups, odd)
    groups = found.good_groups[kept].tolist()
    if (parts := len(set(groups))) < SMALLEST_CALIBRATION:
        return ""
    would = set_threshold(found.good_scores[name][kept], target or default_target(parts), groups=groups)
    finds = int(np.sum(found.other_scores[name] > would.value))
    return f" Without {above} of them it would be {would.value:.4g} and find {finds}."


def _named(found: Evidence, name: GraphName) -> str:
    scores = found.good_scores[name]
    return ", ".join(f"{found.good_names[i]} ({scores[i]:.4g})" for i in oddest_parts(found, name))
