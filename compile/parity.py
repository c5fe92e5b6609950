"""Evidence that the deployed graphs say what the trained model said.

Three questions. Is the float graph the trained model (1e-4 relative, same labels outside that margin)? Does a graph
behave (same input twice and after a reload the same answer, another input another answer: a constant graph is dead)?
And does a reduced graph give up no more than the accuracy budget: image AUROC 0.005, judged on labelled test pictures
where there are some, else on good parts held out and the same parts with painted defects, where the ranks must agree
too (Spearman 0.99)? A reduced graph outside the budget is left out of the bundle, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from compile.metrics import auroc, paired_difference
from edge.errors import BeltlineError

FLOAT_TOLERANCE = 1e-4  # relative
AUROC_BUDGET = 0.005
SPEARMAN_BUDGET = 0.99
RESAMPLES = 500


class ParityError(BeltlineError):
    """A graph does not say what the model said. Nothing is shipped."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What one graph says of n pictures."""

    scores: NDArray[np.float64]  # [n]
    maps: NDArray[np.float32]  # [n, h, w]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A reduced graph against the float one."""

    kept: bool
    reason: str
    evidence: str  # "labelled test pictures" or "held-out good parts and painted defects"
    auroc_float: float
    auroc_reduced: float
    auroc_loss: float  # float minus reduced
    auroc_loss_interval: tuple[float, float]  # 95 %, paired bootstrap
    spearman: float
    false_reject_shift: float  # realised on good parts at each graph's own threshold: reduced minus float


def score_all(
    session: ort.InferenceSession,
    pictures: NDArray[np.uint8],
    map_side: int,
    tick: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score pictures uint8 [n, H, W, 3] one by one, as the box does."""
    mask = np.ones((1, map_side, map_side), np.float32)
    scores = np.empty(len(pictures))
    maps = np.empty((len(pictures), map_side, map_side), np.float32)
    for position, picture in enumerate(pictures):
        score, heat = session.run(["score", "map"], {"image": picture[None], "mask": mask})
        scores[position], maps[position] = score[0], heat[0]
        if tick:
            tick(position + 1, len(pictures))
    return Scored(scores, maps)


def check_float(trained: Scored, graph: Scored, threshold: float) -> dict[str, float | int]:
    """Compare the float graph with the trained model.

    Raises:
        ParityError: a score or map differs by more than 1e-4 relative, or a label outside that margin.

    """
    scale = np.maximum(np.abs(trained.scores), 1e-12)
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


def check_behaviour(open_graph: Callable[[], ort.InferenceSession], pictures: NDArray[np.uint8], map_side: int) -> None:
    """Refuse a graph that does not repeat itself or does not look at its input.

    Raises:
        ParityError: says which.

    """
    session = open_graph()
    first = score_all(session, pictures, map_side)
    for what, again in (("the second time", session), ("after a reload", open_graph())):
        second = score_all(again, pictures, map_side)
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
    thresholds: tuple[float, float],
    good: tuple[ArrayLike, ArrayLike],
    *,
    labelled: bool,
) -> Reduced:
    """Judge a reduced graph by the accuracy budget.

    Args:
        full: scores [n] of the float graph.
        reduced: scores [n] of the reduced graph, of the same pictures.
        defective: labels [n].
        thresholds: of the float and of the reduced graph.
        good: scores of held-out good parts under the float and the reduced graph.
        labelled: the labels come from real test pictures, not from painted defects.

    """
    a, b, truth = np.asarray(full), np.asarray(reduced), np.asarray(defective, bool)
    loss = paired_difference(a, b, truth, resamples=RESAMPLES)
    ranks = float(stats.spearmanr(a, b).statistic)
    rates = [float(np.mean(np.asarray(s) > t)) for s, t in zip(good, thresholds, strict=True)]
    problems = []
    if loss.value > AUROC_BUDGET:
        problems.append(f"image AUROC falls by {loss.value:.4f}, allowed {AUROC_BUDGET}")
    if not labelled and not ranks >= SPEARMAN_BUDGET:
        problems.append(f"score ranks agree to {ranks:.4f} (Spearman), wanted {SPEARMAN_BUDGET}")
    return Reduced(
        kept=not problems,
        reason="; ".join(problems) or "inside the accuracy budget",
        evidence="labelled test pictures" if labelled else "held-out good parts and painted defects",
        auroc_float=auroc(a, truth),
        auroc_reduced=auroc(b, truth),
        auroc_loss=loss.value,
        auroc_loss_interval=(loss.low, loss.high),
        spearman=ranks,
        false_reject_shift=rates[1] - rates[0],
    )


def image_auroc(scores: ArrayLike, defective: Sequence[bool] | NDArray[np.bool_]) -> tuple[float, float, float]:
    """Image AUROC with its 95 % bootstrap interval: (value, low, high). A constant score has 0.5 in every sample."""
    found = paired_difference(scores, np.zeros(len(defective)), defective, resamples=RESAMPLES)
    return found.value + 0.5, found.low + 0.5, found.high + 0.5
