"""Accuracy figures: image AUROC, AP and F1max; pixel AUROC, AP, F1max and AUPRO; paired bootstrap intervals.

All of them are exact (no thresholds, no strips) and follow from one thing: for every defective score, how many
defective and how many good scores lie at or above it.

    AUROC   area under the ROC curve; ties count half
    AP      mean over the defective scores of the precision at that score
    F1max   largest F1 over all thresholds
    AUPRO   per-region overlap, averaged over the 8-connected regions of the masks, against the false-positive rate of
            good pixels, integrated by trapezoids up to the limit (0.3) and divided by it. Each defective pixel adds
            1/(region's pixels x regions) from the false-positive rate at which it is found, so no curve is built.

Pixels count at the map's resolution; good pixels of defective pictures are good pixels. A picture without a mask
(`None`) stays out of the pixel figures: neither its defect nor its good pixels are known.

Mask rules, to bring a mask to the map's resolution. Two go through PIL's bilinear (antialiased) reduction: `half` keeps
pixels of at least half cover; `paper_nonzero` keeps any non-zero value, which grows masks by about a pixel and is the
rule behind INP-Former's published pixel AP. `max_pool` keeps every pixel whose own area holds some of the defect,
however little. Name the rule next to every pixel figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.errors import BeltlineError

AUPRO_LIMIT = 0.3
BOOTSTRAP_BINS = 4096
MaskRule = Literal["half", "paper_nonzero", "max_pool"]
Masks = Sequence[NDArray[np.bool_] | None]


class MetricError(BeltlineError):
    """A figure does not exist for these values. The message says why."""


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    auroc: float
    ap: float
    f1_max: float


@dataclass(frozen=True, slots=True)
class PixelMetrics:
    auroc: float
    ap: float
    f1_max: float
    aupro: float
    regions: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A minus b, with its paired bootstrap interval over pictures."""

    value: float
    low: float
    high: float


class PixelDifferences(NamedTuple):
    auroc: Difference
    ap: Difference
    f1_max: Difference
    aupro: Difference


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> ImageMetrics:
    """Compute all image figures of scores [n] for labels [n] (true = defective).

    Raises:
        MetricError: only one kind, shapes that differ, a score that is not finite.

    """
    counts = _Counts.of(*_classes(scores, labels))
    return ImageMetrics(counts.auroc(), counts.ap(), counts.f1_max())


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of scores [n] for labels [n] (true = defective)."""
    return _Counts.of(*_classes(scores, labels)).auroc()


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """AP of scores [n] for labels [n] (true = defective)."""
    return _Counts.of(*_classes(scores, labels)).ap()


def f1_max(scores: ArrayLike, labels: ArrayLike) -> float:
    """Largest F1 over all thresholds on scores [n] for labels [n] (true = defective)."""
    return _Counts.of(*_classes(scores, labels)).f1_max()


def pixel_metrics(maps: Sequence[NDArray[np.float32]], masks: Masks, limit: float = AUPRO_LIMIT) -> PixelMetrics:
    """Compute all pixel figures at once.

    Args:
        maps: per picture, float [h, w]; sizes may differ between pictures.
        masks: per picture, bool [h, w] of the map's size (all false for a good one), or None: unknown.
        limit: of the false-positive rate for AUPRO.

    Raises:
        MetricError: no defective or no good pixel, a size that differs, a value that is not finite.

    """
    defective, good, weights, regions = [], [], [], 0
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        if mask is None:
            continue
        _check_map(number, scores, mask)
        good.append(scores[~mask])
        count, covers = _covers(mask)
        regions += count
        defective.append(scores[mask])
        weights.append(covers)
    if regions == 0:
        raise MetricError("no picture has a mask with a defect: pixel figures do not exist")
    counts = _Counts.of(np.concatenate(defective), np.concatenate(good), np.concatenate(weights) / regions)
    return PixelMetrics(counts.auroc(), counts.ap(), counts.f1_max(), counts.overlap(limit), regions)


def resize_mask(mask: NDArray[Any], height: int, width: int, rule: MaskRule = "half") -> NDArray[np.bool_]:
    """Bring a mask (HxW, non-zero = defect) to bool [height, width] by the named rule."""
    cover: NDArray[Any] = (mask != 0).astype(np.float64) * 255
    if rule == "max_pool":
        return np.asarray(_touches(mask.shape[0], height) @ cover @ _touches(mask.shape[1], width).T > 0)
    if mask.shape[1] != width:
        cover = np.rint(cover @ _triangle(mask.shape[1], width).T)  # PIL rounds to 8 bits after each pass
    if mask.shape[0] != height:
        cover = np.rint(_triangle(mask.shape[0], height) @ cover)
    return np.asarray(cover > (0 if rule == "paper_nonzero" else 127))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    labels: ArrayLike,
    metric: Callable[[ArrayLike, ArrayLike], float] = auroc,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Compare two scores [n] of the same pictures: metric(a) - metric(b) with its 95 % interval.

    The pictures are drawn with replacement, good and defective separately, the same ones for both. Where a method was
    fitted several times, its scores are [runs, n], and its figure is the mean over the runs.
    """
    first, second, truth = np.atleast_2d(a), np.atleast_2d(b), np.asarray(labels, dtype=bool)

    def difference(drawn: Any) -> float:
        sides = [np.mean([metric(run[drawn], truth[drawn]) for run in runs]) for runs in (first, second)]
        return float(sides[0] - sides[1])

    rng = np.random.default_rng(seed)
    low, high = np.quantile([difference(_draw(truth, rng)) for _ in range(resamples)], [0.025, 0.975])
    return Difference(difference(slice(None)), float(low), float(high))


def paired_pixel_difference(
    a: Sequence[NDArray[np.float32]],
    b: Sequence[NDArray[np.float32]],
    masks: Masks,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Difference, Difference]:
    """Compare two sets of maps of the same pictures: (pixel AUROC, AUPRO) of a minus b with 95 % intervals."""
    found = paired_pixel_differences([a], [b], masks, resamples=resamples, seed=seed)
    return found.auroc, found.aupro


def paired_pixel_differences(
    a: Sequence[Sequence[NDArray[np.float32]]],
    b: Sequence[Sequence[NDArray[np.float32]]],
    masks: Masks,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> PixelDifferences:
    """Compare the maps of two methods, one set of maps per run of a method: its figures are the means over its runs.

    The values are exact; the intervals come from resampled per-picture histograms of about 4096 bins, half of them of
    equal count of all pixels and half of equal count of the defective ones.
    """
    known = [i for i, mask in enumerate(masks) if mask is not None]
    kept: list[NDArray[np.bool_]] = [mask for mask in masks if mask is not None]
    truth = np.array([mask.any() for mask in kept])
    values, binned = [], []
    for runs in (a, b):
        chosen = [[maps[i] for i in known] for maps in runs]
        exact = [pixel_metrics(maps, kept) for maps in chosen]
        values.append(np.mean([(e.auroc, e.ap, e.f1_max, e.aupro) for e in exact], axis=0))
        binned.append([_Binned.of(maps, kept) for maps in chosen])
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, 4))
    for turn in range(resamples):
        times = np.bincount(_draw(truth, rng), minlength=len(truth))
        sides = [np.mean([run.figures(times) for run in runs], axis=0) for runs in binned]
        drawn[turn] = sides[0] - sides[1]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    value = values[0] - values[1]
    return PixelDifferences(*(Difference(float(value[i]), float(low[i]), float(high[i])) for i in range(4)))


@dataclass(frozen=True, slots=True)
class _Counts:
    """Per defective score, best first: defective at or above it, good above it, good at or above it."""

    true: NDArray[np.int64]
    above: NDArray[np.int64]
    at_or_above: NDArray[np.int64]
    good: int
    weights: NDArray[np.float64]  # what each defective score adds to the overlap

    @classmethod
    def of(cls, defective: NDArray[Any], good: NDArray[Any], weights: NDArray[np.float64] | None = None) -> _Counts:
        if good.size == 0:
            raise MetricError("no good score to compare with: the figure does not exist")
        order = np.argsort(defective)
        ranked, ascending = defective[order], good
        ascending.sort()  # in place: good pixels are many, and both callers made the array for this
        share = np.full(order.size, 1 / order.size) if weights is None else weights[order]
        return cls(
            true=(order.size - np.searchsorted(ranked, ranked, side="left"))[::-1],
            above=(good.size - np.searchsorted(ascending, ranked, side="right"))[::-1],
            at_or_above=(good.size - np.searchsorted(ascending, ranked, side="left"))[::-1],
            good=good.size,
            weights=share[::-1],
        )

    def auroc(self) -> float:
        return float(1 - (self.above + self.at_or_above).mean() / (2 * self.good))

    def ap(self) -> float:
        return float((self.true / (self.true + self.at_or_above)).mean())

    def f1_max(self) -> float:
        return float((2 * self.true / (self.true + self.at_or_above + self.true.size)).max())

    def overlap(self, limit: float) -> float:
        start, end = self.above / self.good, self.at_or_above / self.good
        return float(self.weights @ _area_from(start, end, limit) / limit)


@dataclass(frozen=True, slots=True)
class _Binned:
    """Per picture and bin, best bin first: good pixels, defective pixels, overlap; and regions per picture."""

    good: NDArray[np.float64]
    defective: NDArray[np.float64]
    overlap: NDArray[np.float64]
    regions: NDArray[np.int64]

    @classmethod
    def of(cls, maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> _Binned:
        pooled = np.concatenate([scores.ravel()[:: max(1, len(maps) // 64)] for scores in maps])
        marked = np.concatenate([scores[mask] for scores, mask in zip(maps, masks, strict=True)])
        ranks = np.linspace(0, 1, BOOTSTRAP_BINS // 2 + 1)[1:-1]
        edges = np.unique(np.concatenate([np.quantile(each, ranks) for each in (pooled, marked)]).astype(np.float32))
        shape = (len(maps), edges.size + 1)
        good, defective, overlap = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        regions = np.zeros(len(maps), dtype=np.int64)
        for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
            bins = edges.size - np.searchsorted(edges, scores)
            good[i] = np.bincount(bins[~mask], minlength=shape[1])
            defective[i] = np.bincount(bins[mask], minlength=shape[1])
            regions[i], covers = _covers(mask)
            overlap[i] = np.bincount(bins[mask], weights=covers, minlength=shape[1])
        return cls(good, defective, overlap, regions)

    def figures(self, times: NDArray[np.int64]) -> tuple[float, float, float, float]:
        """Give (pixel AUROC, AP, F1max, AUPRO) when picture i counts `times[i]` times."""
        good, defective = times @ self.good, times @ self.defective
        end = np.cumsum(good) / good.sum()
        start = np.concatenate([[0.0], end[:-1]])
        area = float(defective @ (1 - (start + end) / 2) / defective.sum())
        true = np.cumsum(defective)
        chosen = np.maximum(true + end * good.sum(), 1)
        precision = float(defective @ (true / chosen) / defective.sum())
        best = float((2 * true / (chosen + true[-1])).max())
        overlap = (times @ self.overlap) / (times @ self.regions)
        return area, precision, best, float(overlap @ _area_from(start, end, AUPRO_LIMIT) / AUPRO_LIMIT)


def _area_from(start: NDArray[np.float64], end: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Area up to `limit` under a curve that rises from 0 at `start` linearly to 1 at `end` (a tie) and stays there."""
    width = np.maximum(end - start, np.finfo(np.float64).tiny)
    whole = limit - (start + end) / 2
    cut = np.maximum(limit - start, 0) ** 2 / (2 * width)
    return np.asarray(np.where(end <= limit, whole, np.where(start >= limit, 0.0, cut)))


def _covers(mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.float64]]:
    """Give the number of regions and, per defective pixel in row order, 1 / its region's pixels."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    sizes = np.bincount(labels.ravel(), minlength=count)
    return count - 1, 1.0 / sizes[labels[mask]]


def _classes(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    values, truth = np.asarray(scores), np.asarray(labels, dtype=bool)
    if values.shape != truth.shape or values.ndim != 1:
        raise MetricError(f"scores of shape {values.shape} and labels of shape {truth.shape}: expected [n] both")
    if not np.isfinite(values).all():
        raise MetricError(f"score {int(np.argmin(np.isfinite(values)))} is not finite")
    if truth.all() or not truth.any():
        raise MetricError(f"{truth.sum()} of {truth.size} pictures are defective: both kinds are needed")
    return values[truth], values[~truth]


def _check_map(number: int, scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    if scores.shape != mask.shape or mask.dtype != np.bool_:
        raise MetricError(
            f"picture {number}: map {scores.shape}, mask {mask.shape} of {mask.dtype}; bring the mask to the map's "
            "size with resize_mask"
        )
    if not np.isfinite(scores).all():
        raise MetricError(f"picture {number}: its map holds a value that is not finite")


def _draw(truth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    drawn = [rng.choice(np.flatnonzero(truth == kind), int(np.sum(truth == kind))) for kind in (False, True)]
    return np.concatenate(drawn)


def _triangle(source: int, target: int) -> NDArray[np.float64]:
    """Give PIL's bilinear weights [target, source]: a triangle as wide as the reduction."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / reach
    weights = np.maximum(1 - distance, 0)
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _touches(source: int, target: int) -> NDArray[np.float64]:
    """Give [target, source]: 1 where the pixels of two grids over the same length share some of it."""
    start, other = np.arange(target)[:, None] * source, np.arange(source) * target
    return ((start < other + target) & (other < start + source)).astype(np.float64)
