"""The threshold of a model, from the scores of good parts that it was not trained on, and what it promises.

A part is rejected when score > threshold. For a target false-reject rate `a` and `n` parts the threshold is the score
of rank r = ceil((n+1)(1-a)), moved half-way to the next, so that a rounding difference on another machine does not
turn over the part it was set on. At r = n there is no next: half the gap below the largest score is added, and the
result is flagged. `n` good parts support no target below 1/(n+1).

What is known of the realised false-reject rate needs no model of the scores. If the next parts are like the
calibration parts (exchangeable), the rate above the score of rank r follows Beta(n+1-r, r), and above the next score
Beta(n-r, r+1). The threshold lies between the two, so the upper bound comes from the first and the lower from the
second: the interval holds wherever in the gap the threshold lies. Ties only lower the rate.

All of it counts physical parts. The line sees a part once, in one of the pictures that might have been taken of it: so
each of m pictures of a part counts for 1/m of it, and the threshold stands where the parts counted so add up to
(n+1)(1-a), which need not be a whole number then. One picture per part gives the plain rule. With more the interval is
approximate, for pictures of one part are alike.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

SMALLEST_CALIBRATION = 20  # parts
OUTLYING = 1.5  # interquartile ranges: a gap beside the threshold that wide has an outlier on its far side
DEFAULT_TARGET = 0.01
DEFAULT_ABOVE = 3  # parts expected above a default threshold at least: one or two odd parts must not decide it
ROUNDING = 1e-6  # parts: of sums of shares
TAIL_SHARE = 0.2  # of the parts, at most
TAIL_LEAST = 100  # parts: of fewer, the share is too few exceedances
TAIL_RESAMPLES = 400


class CalibrationError(ValueError):
    """No honest number follows from these values. The message says what was wrong and what to do next."""


@dataclass(frozen=True, slots=True)
class ThresholdResult:
    """A threshold and what it promises."""

    value: float
    rule: str  # for people
    rank: int | None  # of the order statistic, 1 = smallest score; None: a tail model
    parts: int  # physical parts that it was set on
    target_false_reject: float  # the one used: looser than asked for where the parts did not support that
    interval: tuple[float, float]  # 95 % interval of the realised false-reject rate
    approximate: bool  # cross-fitted, several pictures per part or a tail model: the interval is not exact
    flagged: str  # a warning that people must see, or nothing


def set_threshold(
    scores: ArrayLike, target: float, *, cross_fitted: bool = False, groups: Sequence[object] | None = None
) -> ThresholdResult:
    """Set the threshold for a target false-reject rate.

    A target below 1/(n+1) is loosened to 1/(n+1) and flagged; `tail_threshold` is the labelled alternative.

    Args:
        scores: [pictures], finite, of good parts that the model was not trained on.
        target: share of good parts that may be rejected, in (0, 1).
        cross_fitted: each score comes from a sibling model (K-fold), not from the one to be used.
        groups: [pictures], the physical part of each picture; without it each picture is a part.

    Raises:
        CalibrationError: fewer than 20 parts, a score that is not finite, all scores equal, target outside (0, 1).

    """
    found = _part_scores(scores, target, groups)
    ordered, n = found.ordered, len(found.largest)
    flags = []
    used = target
    if not supported(n, target):
        used = 1 / (n + 1)
        flags.append(
            f"asked for {target:.4%} false rejects, but {n} good parts support no less than {used:.4%}: "
            f"that was used; add good parts up to {math.ceil(1 / target) - 1}, or "
            f"extrapolate with --tail-model (from {TAIL_LEAST} parts on)"
        )
    rank = rank_for(n, used)
    exact = min((n + 1) * (1 - used), n) if found.pictures else rank
    place = int(np.searchsorted(found.upto, exact - ROUNDING))
    at = ordered[place]
    after = int(
        np.searchsorted(ordered, at, side="right")
    )  # what is as large counts as one, in whatever order it stands
    several = len(set(found.part[np.searchsorted(ordered, at) : after].tolist())) > 1
    tied = several and found.upto[after - 1] > exact + ROUNDING
    if tied or after < len(ordered):
        gap = 0.0 if tied else ordered[after] - at
        rule = f"score of rank {exact:.5g} of {n}, moved half-way to the next"
    else:
        gap = at - found.largest[-2]
        rule = f"largest of {n} scores plus half its gap to the one below"
        flags.append(f"the threshold hangs on the single largest score of {n} good parts")
    lower, upper = ordered[np.searchsorted(found.upto, (n / 4 - ROUNDING, 3 * n / 4 - ROUNDING))]
    if gap > 0 and gap > OUTLYING * (upper - lower):
        flags.append(
            f"the threshold moved up by half of an unusually wide gap ({gap:.4g}): look at the good "
            f"parts of the {n - min(rank, n - 1)} largest score(s), they may not be good"
        )
    if gap == 0:
        rule += f"; tied with its neighbour, so not moved ({int(np.sum(ordered == at))} pictures have this score)"
    value = float(at + gap / 2)
    if cross_fitted:
        rule += "; cross-fitted, approximate"
    return ThresholdResult(
        value=value,
        rule=f"{rule}{found.pictures}{', each counted as its share of its part' if found.pictures else ''}",
        rank=rank,
        parts=n,
        target_false_reject=used,
        interval=(false_reject_interval(n, rank)[0], false_reject_interval(n, exact)[1]),
        approximate=cross_fitted or ordered.size > n,
        flagged="; ".join(flags),
    )


def default_target(parts: int) -> float:
    """Give the false-reject target where nobody stated one: 1 %, or 3/(n+1) where n parts are too few for that.

    At 1/(n+1), the strictest target that n parts support, the single oddest good part would set the threshold.
    """
    return max(DEFAULT_TARGET, DEFAULT_ABOVE / (parts + 1))


def rank_for(n: int, target: float) -> int:
    """Give r = ceil((n+1)(1-target)), in 1..n+1; n+1 means that n parts do not support the target."""
    return max(1, n + 1 - math.floor((n + 1) * target * (1 + 1e-12)))


def false_reject_interval(n: int, rank: float, level: float = 0.95) -> tuple[float, float]:
    """Give the interval of the realised false-reject rate of a threshold between scores `rank` and `rank`+1 of n.

    A rank between two whole numbers goes by the same law, continued.
    """
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, n - rank, rank + 1) if rank < n else 0.0
    return float(low), float(stats.beta.ppf(1 - tail, n + 1 - rank, rank))


def overkill_interval(n_calibration: int, rank: int, n_line: int, level: float = 0.99) -> tuple[int, int]:
    """Give the interval of the number of false rejects among `n_line` further good parts (beta-binomial).

    Both ends belong to it. It covers the chance in the calibration parts and in the line parts.
    """
    if not (1 <= rank <= n_calibration and n_line >= 0 and 0 < level < 1):
        raise CalibrationError(
            f"rank {rank} of {n_calibration} parts, {n_line} line parts, level {level}: "
            "the rank must lie in 1..parts, the level in (0, 1)"
        )
    tail = (1 - level) / 2
    low = stats.betabinom.ppf(tail, n_line, n_calibration - rank, rank + 1) if rank < n_calibration else 0
    high = stats.betabinom.ppf(1 - tail, n_line, n_calibration + 1 - rank, rank)
    return int(low), int(high)


def tail_threshold(
    scores: ArrayLike,
    target: float,
    *,
    cross_fitted: bool = False,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> ThresholdResult:
    """Set a threshold below what the parts support, by a generalised Pareto model of their upper tail.

    A model, labelled as one: it assumes that the tail goes on beyond the largest score as it began. The interval is
    the nominal 95 % interval of the rate under the fitted model, by a bootstrap over parts; on 100 parts it held the
    true rate in 80 to 91 % of simulations, on 300 in 87 to 94 %. Arguments and errors as for `set_threshold`, and at
    least 100 parts.
    """
    found = _part_scores(scores, target, groups)
    n = len(found.largest)
    exceedances = int(TAIL_SHARE * n)
    check_tail(n)
    if target >= exceedances / n:
        raise CalibrationError(f"target {target} lies inside the scores: no tail model is needed, use set_threshold")
    first = int(np.searchsorted(found.upto, n - exceedances - ROUNDING)) + 1
    if found.ordered[first] == found.ordered[-1]:
        raise CalibrationError(
            f"{exceedances} of {n} good parts and more share the largest score, {found.ordered[-1]:.4g}: there is no "
            "tail to extrapolate; take a target that the parts support"
        )
    model = _fit_tail(found.ordered, found.share, exceedances)
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(TAIL_RESAMPLES):
        times = np.bincount(rng.integers(n, size=n), minlength=n)[found.part]  # each part's pictures come together
        again = _fit_tail(found.ordered, found.share * times, exceedances)
        rates.append(_tail_rate(model, _tail_quantile(again, target)))
    low, high = np.quantile(rates, [0.025, 0.975])
    return ThresholdResult(
        value=_tail_quantile(model, target),
        rule=f"tail model: generalised Pareto on the top {exceedances} of {n} scores, shape {model.shape:.2f}"
        + (f"{found.pictures}, each counted as its share of its part" if found.pictures else ""),
        rank=None,
        parts=n,
        target_false_reject=target,
        interval=(float(low), float(high)),
        approximate=True,
        flagged=f"{target:.4%} false rejects is extrapolated by a tail model, not counted on parts"
        + ("; cross-fitted" if cross_fitted else ""),
    )


def check_tail(parts: int) -> None:
    """Raise CalibrationError where the parts are too few for a tail model."""
    if parts < TAIL_LEAST:
        raise CalibrationError(
            f"{parts} good parts are too few for a tail model: it needs {TAIL_LEAST}. "
            "Add good parts or choose a looser target."
        )


class _PartScores(NamedTuple):
    ordered: NDArray[np.float64]  # [pictures], ascending
    part: NDArray[np.int64]  # [pictures], in the same order
    share: NDArray[np.float64]  # [pictures], of its part that each picture counts for
    upto: NDArray[np.float64]  # [pictures], parts counted up to and with each
    largest: NDArray[np.float64]  # [parts], ascending: of each part its largest score
    pictures: str  # how pictures became parts, for people


def _part_scores(scores: ArrayLike, target: float, groups: Sequence[object] | None) -> _PartScores:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise CalibrationError(f"scores of shape {values.shape}; expected one number per picture")
    if not 0 < target < 1:
        raise CalibrationError(f"target false-reject rate {target}: it must lie between 0 and 1, for example 0.01")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise CalibrationError(
            f"{bad.size} of {values.size} scores are not finite, the first is number {bad[0]} ({values[bad[0]]}): "
            "the model is broken or diverged; fit it again"
        )
    names = range(values.size) if groups is None else groups
    if len(names) != values.size:
        raise CalibrationError(f"{len(names)} groups for {values.size} scores: one per picture is needed")
    members: dict[object, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        members[name].append(position)
    if len(members) < SMALLEST_CALIBRATION:
        raise CalibrationError(
            f"{len(members)} good parts are too few to set a threshold: at least {SMALLEST_CALIBRATION} are needed, "
            "better 100 or more. Add pictures of further good parts."
        )
    if values.min() == values.max():
        raise CalibrationError(
            f"all {len(members)} parts score {values[0]}: the model tells no two parts apart; fit it again"
        )
    order = np.argsort(values, kind="stable")
    part = np.empty(values.size, np.int64)
    share = np.empty(values.size)
    for number, positions in enumerate(members.values()):
        part[positions], share[positions] = number, 1 / len(positions)
    many = values.size > len(members)
    return _PartScores(
        ordered=values[order],
        part=part[order],
        share=share[order],
        upto=np.cumsum(share[order]),
        largest=np.sort([values[positions].max() for positions in members.values()]),
        pictures=f"; {values.size} pictures of {len(members)} parts" if many else "",
    )


def supported(n: int, target: float) -> bool:
    """Whether n parts support the target, or only a tail model reaches it."""
    return rank_for(n, target) <= n


@dataclass(frozen=True, slots=True)
class _Tail:
    start: float
    share: float  # of the parts above `start`
    shape: float
    scale: float


def _fit_tail(ordered: NDArray[np.float64], share: NDArray[np.float64], exceedances: int) -> _Tail:
    """Fit by probability-weighted moments (Hosking and Wallis 1987): closed form, steady on few exceedances.

    Args:
        ordered: [pictures] ascending.
        share: [pictures], of a part that each counts for; ones are the paper's plain sample.
        exceedances: parts that the tail is to hold.

    """
    parts = float(share.sum())
    upto = np.cumsum(share)
    place = int(np.searchsorted(upto, parts - exceedances - ROUNDING))
    start = float(ordered[place])
    above, share = ordered[place + 1 :] - start, share[place + 1 :]
    held = float(share.sum())
    rarity = (parts - upto[place + 1 :] + 0.35 * share) / held
    mean, weighted = float(share @ above) / held, float((share * rarity) @ above) / held
    excess = mean - 2 * weighted
    if excess <= 0:  # all mass in one place: no tail to speak of
        return _Tail(start, held / parts, 0.0, max(mean, np.finfo(np.float64).tiny))
    return _Tail(start, held / parts, 2 - mean / excess, 2 * mean * weighted / excess)


def _tail_quantile(tail: _Tail, rate: float) -> float:
    times = rate / tail.share
    if abs(tail.shape) < 1e-9:
        return tail.start - tail.scale * math.log(times)
    return tail.start + tail.scale * (math.pow(times, -tail.shape) - 1) / tail.shape


def _tail_rate(tail: _Tail, value: float) -> float:
    above = (value - tail.start) / tail.scale
    if abs(tail.shape) < 1e-9:
        return tail.share * math.exp(min(-above, 0.0))
    reach = 1 + tail.shape * above
    return tail.share * math.pow(reach, -1 / tail.shape) if reach > 0 else 0.0
