"""Evidence that the deployed graphs say what the trained model said.

Three questions. Is the float graph the trained model (1e-4 relative, same labels outside that margin)? Does a graph
behave (same input twice and after a reload the same answer, another input another answer: a constant graph is dead)?
And does a reduced graph give up no more than the accuracy budget: image AUROC 0.005 by INT8 and 0.001 by half
precision, on held-out good parts and painted defects, where the ranks must agree too (Spearman 0.99), and on labelled
test pictures where there are some? A graph outside the budget is replaced by one with more in float (`compile.search`),
or left out of the bundle, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calibration.split import hold_out
from calibration.threshold import rank_for
from compile.metrics import auroc, paired_difference
from compile.recipe import Precision
from edge.errors import BeltlineError

FLOAT_TOLERANCE = 1e-4  # relative
SMALL = 0.1  # of the threshold: a smaller score is compared relative to that; a bank's own pictures score but rounding
AUROC_BUDGETS: dict[Precision, float] = {"int8": 0.005, "float16": 0.001}
SPEARMAN_BUDGET = 0.99
RESAMPLES = 500
SHIFT_SPLITS = 20  # random halvings, each used both ways
LABELLED = "labelled test pictures"
PAINTED = "held-out good parts and painted defects"


Inputs = Mapping[str, NDArray[Any]]  # of the graphs by name, `mask` among them; the parts along the first axis


class ParityError(BeltlineError):
    """A graph does not say what the model said. Nothing is shipped."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What one graph says of n parts."""

    scores: NDArray[np.float64]  # [n]
    maps: NDArray[np.float32]  # [n, h, w]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A reduced graph against the float one."""

    kept: bool
    reason: str
    evidence: str  # LABELLED or PAINTED, or both
    auroc_float: float
    auroc_reduced: float
    auroc_loss: float  # float minus reduced
    auroc_loss_interval: tuple[float, float]  # 95 %, paired bootstrap
    spearman: float
    false_reject_shift: float  # mean difference of the realised rates, see the function of this name


def of_pictures(pictures: NDArray[np.uint8], map_side: int) -> Inputs:
    """Give the inputs of graphs that look at pictures alone, uint8 [n, H, W, 3]."""
    return {"image": pictures, "mask": np.broadcast_to(np.float32(1), (len(pictures), map_side, map_side))}


def score_all(
    session: ort.InferenceSession,
    inputs: Inputs,
    tick: Callable[[int, int], None] | None = None,
    class_index: int | None = None,
) -> Scored:
    """Score parts one by one, as the box does; all as one class if the graph must be told."""
    told = {} if class_index is None else {"class": np.array([class_index], np.int64)}
    maps = np.empty(inputs["mask"].shape, np.float32)
    scores = np.empty(len(maps))
    for position in range(len(maps)):
        given = {name: np.ascontiguousarray(values[position : position + 1]) for name, values in inputs.items()}
        score, heat = session.run(["score", "map"], given | told)
        scores[position], maps[position] = score[0], heat[0]
        if tick:
            tick(position + 1, len(maps))
    return Scored(scores, maps)


def check_float(trained: Scored, graph: Scored, threshold: float) -> dict[str, float | int]:
    """Compare the float graph with the trained model.

    Raises:
        ParityError: a score or map differs by more than 1e-4 relative, or a label outside that margin.

    """
    scale = np.maximum(np.abs(trained.scores), max(SMALL * abs(threshold), 1e-12))
    score_error = float((np.abs(graph.scores - trained.scores) / scale).max())
    peak = float(np.abs(trained.maps).max())
    map_error = float(np.abs(graph.maps - trained.maps).max()) / max(peak, 1e-12)
    near = np.abs(trained.scores - threshold) <= FLOAT_TOLERANCE * abs(threshold)
    other = int(np.sum(((graph.scores > threshold) != (trained.scores > threshold)) & ~near))
    if not (score_error <= FLOAT_TOLERANCE and map_error <= 10 * FLOAT_TOLERANCE and other == 0):
        raise ParityError(
            f"the exported float graph differs from the trained model: scores by {score_error:.2g} relative, maps by "
            f"{map_error:.2g} of the peak, {other} other label(s) (allowed {FLOAT_TOLERANCE:g}, "
            f"{10 * FLOAT_TOLERANCE:g}, 0). The export is broken: report it with the versions of torch and onnx."
        )
    return {
        "pictures": len(trained.scores),
        "score_error_relative": score_error,
        "map_error_of_peak": map_error,
        "labels_differ": other,
    }


def check_behaviour(
    open_graph: Callable[[], ort.InferenceSession],
    inputs: Inputs,
    class_index: int | None = None,
) -> None:
    """Refuse a graph that does not repeat itself or does not look at its input.

    Raises:
        ParityError: says which.

    """
    session = open_graph()
    first = score_all(session, inputs, class_index=class_index)
    for what, again in (("the second time", session), ("after a reload", open_graph())):
        second = score_all(again, inputs, class_index=class_index)
        if not (np.array_equal(first.scores, second.scores) and np.array_equal(first.maps, second.maps)):
            raise ParityError(f"the graph answers the same pictures differently {what}")
    if not np.isfinite(first.scores).all() or not np.isfinite(first.maps).all():
        raise ParityError("the graph gives scores or maps that are not finite")
    if np.ptp(first.scores) <= 1e-6 * np.abs(first.scores).max() or np.ptp(first.maps) == 0:
        raise ParityError(f"the graph is dead: it answers {first.scores[0]:.6g} to different pictures")


def judge_reduced(
    full: ArrayLike,
    reduced: ArrayLike,
    defective: ArrayLike,
    *,
    shift: float,
    labelled: bool,
    precision: Precision = "int8",
) -> Reduced:
    """Judge a reduced graph by the accuracy budget.

    Args:
        full: scores [n] of the float graph.
        reduced: scores [n] of the reduced graph, of the same pictures.
        defective: labels [n].
        shift: see `false_reject_shift`.
        labelled: the labels come from real test pictures, not from painted defects.
        precision: of the reduced graph, which has its own budget.

    """
    budget = AUROC_BUDGETS[precision]
    a, b, truth = np.asarray(full), np.asarray(reduced), np.asarray(defective, bool)
    loss = paired_difference(a, b, truth, resamples=RESAMPLES)
    ranks = float(stats.spearmanr(a, b).statistic)
    problems = []
    if loss.value > budget:
        problems.append(f"image AUROC falls by {loss.value:.4f}, allowed {budget}")
    if not labelled and not ranks >= SPEARMAN_BUDGET:
        problems.append(f"score ranks agree to {ranks:.4f} (Spearman), wanted {SPEARMAN_BUDGET}")
    return Reduced(
        kept=not problems,
        reason="; ".join(problems) or "inside the accuracy budget",
        evidence=LABELLED if labelled else PAINTED,
        auroc_float=auroc(a, truth),
        auroc_reduced=auroc(b, truth),
        auroc_loss=loss.value,
        auroc_loss_interval=(loss.low, loss.high),
        spearman=ranks,
        false_reject_shift=shift,
    )


def both(labelled: Reduced, painted: Reduced) -> Reduced:
    """Keep a graph only where both kinds of evidence hold: AUROC as on the labelled pictures, ranks as on the others.

    Labelled pictures are the truth, but few of them, or ones that every graph tells apart, prove little.
    """
    words = [f"on {each.evidence}: {each.reason}" for each in (labelled, painted) if not each.kept]
    inside = f"{labelled.reason}; on {painted.evidence} too, image AUROC given up {painted.auroc_loss:.4f}"
    return replace(
        labelled,
        kept=labelled.kept and painted.kept,
        reason="; ".join(words) or inside,
        evidence=f"{labelled.evidence}; {painted.evidence}",
        spearman=painted.spearman,
    )


def false_reject_shift(full: ArrayLike, reduced: ArrayLike, groups: NDArray[np.int64], target: float) -> float:
    """Measure how far apart the false-reject rates of two graphs come out on parts that did not set the thresholds.

    Both thresholds are set on one half of the parts by the rank of `calibration.threshold`, and the rates are counted
    on the other half; then the other way round, over several halvings. The mean of the absolute differences: with signs
    they cancel for any two graphs, as a threshold of its own gives each graph the same rate on average. That is why it
    informs and does not gate: it says by how much a line may see the graphs differ, and grows with noise to what two
    unrelated graphs would show.

    Args:
        full: scores [n] of held-out good pictures under the float graph.
        reduced: the same under the reduced graph.
        groups: [n], the physical part of each picture.
        target: share of good parts that may be rejected.

    """
    _, part = np.unique(groups, return_inverse=True)
    scores = np.full((2, part.max() + 1), -np.inf)
    for row, values in zip(scores, (full, reduced), strict=True):
        np.maximum.at(row, part, np.asarray(values))
    rates = []
    for seed in range(SHIFT_SPLITS):
        one, other = hold_out(np.arange(scores.shape[1]), 0.5, seed)
        for setting, counted in ((one, other), (other, one)):
            rank = min(rank_for(len(setting), target), len(setting))
            limits = np.sort(scores[:, setting], axis=1)[:, rank - 1]
            rates.append((scores[:, counted] > limits[:, None]).mean(axis=1))
    return float(np.abs(np.diff(rates, axis=1)).mean())


def image_auroc(scores: ArrayLike, defective: Sequence[bool] | NDArray[np.bool_]) -> tuple[float, float, float]:
    """Image AUROC with its 95 % bootstrap interval: (value, low, high). A constant score has 0.5 in every sample."""
    found = paired_difference(scores, np.zeros(len(defective)), defective, resamples=RESAMPLES)
    return found.value + 0.5, found.low + 0.5, found.high + 0.5
