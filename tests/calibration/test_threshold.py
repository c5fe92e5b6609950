from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from calibration.threshold import (
    CalibrationError,
    _Tail,
    _tail_quantile,
    _tail_rate,
    default_target,
    false_reject_interval,
    overkill_interval,
    rank_for,
    set_threshold,
    tail_threshold,
)

finite = st.floats(-1e6, 1e6)
score_lists = st.lists(finite, min_size=20, max_size=200).filter(lambda s: len(set(s)) > 1)


@given(score_lists, st.floats(0.001, 0.5))
def test_rule_is_the_order_statistic_moved_half_way(scores: list[float], target: float) -> None:
    n = len(scores)
    result = set_threshold(scores, target)
    ordered = sorted(scores)
    if math.ceil(Fraction(n + 1) * (1 - Fraction(target))) > n:
        assert result.target_false_reject == 1 / (n + 1)
        assert "support no less" in result.flagged
    else:
        assert result.target_false_reject == target
    assert result.rank is not None
    below = ordered[result.rank - 1]
    if result.rank < n:
        above = ordered[result.rank]
        assert below <= result.value <= above
        assert result.value == pytest.approx((below + above) / 2, abs=1e-9)
        assert "single largest" not in result.flagged
    else:
        assert result.value == pytest.approx(below + (below - ordered[-2]) / 2, abs=1e-9)
        assert "single largest" in result.flagged
    assert sum(s > result.value for s in scores) <= n - result.rank
    low, high = result.interval
    assert 0 <= low < high <= 1


@pytest.mark.parametrize(
    ("n", "target", "rank"),
    [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (240, 0.05, 229), (20, 0.05, 20), (999, 0.1, 900)],
)
def test_rank_is_exact_where_floating_point_is_not(n: int, target: float, rank: int) -> None:
    assert rank_for(n, target) == rank
    assert set_threshold(np.arange(n), target).rank == rank


def test_known_value() -> None:
    result = set_threshold(np.arange(1, 200), 0.01)  # n = 199: rank 198
    assert result.value == 198.5
    assert result.parts == 199
    assert result.rule == "score of rank 198 of 199, moved half-way to the next"


@given(score_lists, st.randoms(use_true_random=False))
def test_order_of_the_scores_does_not_matter(scores: list[float], random: object) -> None:
    shuffled = list(scores)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert set_threshold(scores, 0.1) == set_threshold(shuffled, 0.1)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=20, max_size=40),
    st.floats(0.02, 0.5),
    st.randoms(use_true_random=False),
)
def test_order_does_not_matter_among_ties_of_parts_with_different_numbers_of_pictures(
    parts: list[tuple[int, int]], target: float, random: object
) -> None:
    """One part has more pictures than another, and some score the same."""
    pictures = [(float(score + (turn > 1)), part) for part, (score, count) in enumerate(parts) for turn in range(count)]
    assume(len({score for score, _ in pictures}) > 1)
    shuffled = list(pictures)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (
        set_threshold([score for score, _ in some], target, groups=[part for _, part in some])
        for some in (pictures, shuffled)
    )
    assert first == second


@given(score_lists, st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_a_looser_target_never_raises_the_threshold(scores: list[float], a: float, b: float) -> None:
    assert set_threshold(scores, max(a, b)).value <= set_threshold(scores, min(a, b)).value


def test_ties_are_said_and_reject_no_more_than_promised() -> None:
    scores = [0.0] * 50 + [1.0] * 50
    result = set_threshold(scores, 0.3)  # ranks 70 and 71 are both 1.0
    assert result.value == 1.0
    assert "tied" in result.rule
    assert "50 pictures have this score" in result.rule


def test_an_outlier_beside_the_threshold_is_named() -> None:
    ordinary = np.random.default_rng(0).normal(size=30)
    assert "unusually wide gap" in set_threshold([*ordinary, 20.0], 0.01).flagged  # the outlier is the threshold
    assert "1 largest score(s)" in set_threshold([*ordinary, 20.0], 0.0626).flagged  # the threshold moves towards it
    assert not set_threshold([*ordinary, 20.0], 0.2).flagged
    assert not set_threshold(np.random.default_rng(1).normal(size=300), 0.02).flagged


def test_a_tie_at_the_top_is_flagged_and_does_not_move() -> None:
    result = set_threshold([*range(30), 30, 30], 1e-4)
    assert result.value == 30
    assert result.flagged


def test_each_picture_counts_as_its_share_of_its_part() -> None:
    """As a slow count says: the parts up to the threshold add up to (n + 1)(1 - target), here 18.9."""
    scores = [*range(30), 100, 101, 102, 103]
    groups = [*range(10), *np.repeat(np.arange(10, 20), 2), *range(16, 20)]  # parts 16 to 19 have three pictures
    found = set_threshold(scores, 0.1, groups=groups)
    counted, at = Fraction(0), 0
    for at, (_, group) in enumerate(sorted(zip(scores, groups, strict=True))):  # noqa: B007
        counted += Fraction(1, groups.count(group))
        if counted >= Fraction(189, 10):
            break
    ordered = sorted(scores)
    assert found.value == (ordered[at] + ordered[at + 1]) / 2
    assert (found.rank, found.parts) == (19, 20)
    assert found.interval == (false_reject_interval(20, 19)[0], pytest.approx(stats.beta.ppf(0.975, 2.1, 18.9)))
    assert "rank 18.9 of 20" in found.rule
    assert found.approximate
    assert "34 pictures of 20 parts, each counted as its share of its part" in found.rule


@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0.02, 0.5))
def test_pictures_that_say_the_same_change_nothing(copies: int, seed: int, target: float) -> None:
    """Each part photographed several times with one score is the part photographed once."""
    scores = np.random.default_rng(seed).normal(size=60)
    once = set_threshold(scores, target)
    often = set_threshold(np.repeat(scores, copies), target, groups=np.repeat(np.arange(60), copies).tolist())
    assert (often.rank, often.value) == (once.rank, once.value)
    assert often.interval[0] == once.interval[0]
    assert once.interval[1] <= often.interval[1] <= false_reject_interval(60, once.rank - 1)[1]


@pytest.mark.parametrize(("parts", "target"), [(150, 0.01), (60, 0.03)])
def test_many_pictures_near_the_limit_of_the_parts_do_not_make_it_the_worst_of_all(parts: int, target: float) -> None:
    """The rate is about that of a calibration with one picture of each part, and was a third of it and less."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(parts), 6).tolist()
    rates = np.empty((60, 2))
    for row in rates:
        scores = rng.normal(size=(2000 + parts, 1)) + rng.normal(size=(2000 + parts, 6))
        many = set_threshold(scores[:parts].reshape(-1), target, groups=groups)
        one = set_threshold(scores[:parts, 0], target)
        row[:] = np.mean(scores[parts:] > many.value), np.mean(scores[parts:] > one.value)
    of_many, of_one = rates.mean(0)
    assert 0.6 * of_one < of_many < target


def test_a_tail_model_of_many_pictures_is_right_on_average() -> None:
    """Six pictures each: the rate of single pictures is the target, and the interval holds it as often as it says."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(150), 6).tolist()
    rates, held = [], 0
    for _ in range(20):
        scores = rng.normal(size=(6000, 1)) + rng.normal(size=(6000, 6))
        found = tail_threshold(scores[:150].reshape(-1), 0.005, groups=groups)
        rates.append(float(np.mean(scores[150:] > found.value)))
        held += found.interval[0] <= rates[-1] <= found.interval[1]
    assert np.mean(rates) == pytest.approx(0.005, rel=0.5)
    assert held >= 15
    assert "each counted as its share of its part" in found.rule


def test_the_rate_on_the_line_is_that_of_one_picture_per_part() -> None:
    """600 parts under six lights: the share of single pictures above the threshold is the target, not far below."""
    rng = np.random.default_rng(5)
    rates = []
    for _ in range(40):
        parts = rng.normal(size=(600, 1)) + rng.normal(size=(600, 6))
        found = set_threshold(parts[:300].reshape(-1), 0.05, groups=np.repeat(np.arange(300), 6).tolist())
        rates.append(np.mean(parts[300:] > found.value))
    assert np.mean(rates) == pytest.approx(0.05, abs=0.006)


def test_cross_fitted_is_labelled() -> None:
    result = set_threshold(np.arange(100), 0.05, cross_fitted=True)
    assert result.approximate
    assert "approximate" in result.rule
    assert not set_threshold(np.arange(100), 0.05).approximate


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="number 7"):
        set_threshold([*range(7), bad, *range(40)], 0.05)


@pytest.mark.parametrize("count", [0, 1, 3, 19])
def test_too_few_parts_are_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match="at least 20"):
        set_threshold(list(range(count)), 0.1)


def test_many_pictures_of_few_parts_are_too_few_parts() -> None:
    with pytest.raises(CalibrationError, match="10 good parts"):
        set_threshold(list(range(100)), 0.1, groups=[i % 10 for i in range(100)])


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_an_impossible_target_is_refused(target: float) -> None:
    with pytest.raises(CalibrationError, match="target"):
        set_threshold(list(range(100)), target)


def test_a_model_that_says_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="tells no two parts apart"):
        set_threshold([0.5] * 100, 0.05)


def test_interval_matches_the_beta_law_of_order_statistics() -> None:
    low, high = false_reject_interval(240, 229)
    assert high == pytest.approx(stats.beta(12, 229).ppf(0.975))
    assert low == pytest.approx(stats.beta(11, 230).ppf(0.025))
    assert false_reject_interval(50, 50)[0] == 0
    assert false_reject_interval(50, 50)[1] == pytest.approx(1 - 0.025 ** (1 / 50))


@pytest.mark.parametrize("draw", ["normal", "lognormal", "uniform"])
@pytest.mark.parametrize(("n", "target"), [(60, 0.05), (240, 0.02), (30, 0.04)])
def test_realised_rate_lies_in_the_interval_as_often_as_promised(draw: str, n: int, target: float) -> None:
    law = {"normal": stats.norm, "lognormal": stats.lognorm(1.0), "uniform": stats.uniform}[draw]
    rng = np.random.default_rng(n)
    trials = 2000
    inside, rates = 0, []
    for scores in law.rvs(size=(trials, n), random_state=rng):
        result = set_threshold(scores, target)
        rate = float(law.sf(result.value))
        rates.append(rate)
        inside += result.interval[0] <= rate <= result.interval[1]
    slack = 4 * math.sqrt(0.95 * 0.05 / trials)
    assert inside / trials >= 0.95 - slack
    mean_slack = 4 * float(np.std(rates)) / math.sqrt(trials)
    rank = rank_for(n, target)
    assert np.mean(rates) <= (n + 1 - rank) / (n + 1) + mean_slack  # of the order statistic below
    assert np.mean(rates) >= (n - rank) / (n + 1) - mean_slack  # of the one above


def test_overkill_interval_matches_scipy() -> None:
    low, high = overkill_interval(240, 229, 240)
    assert high == stats.betabinom(240, 12, 229).ppf(0.995)
    assert low == stats.betabinom(240, 11, 230).ppf(0.005)
    assert overkill_interval(50, 50, 0) == (0, 0)


@given(st.integers(20, 400), st.floats(0.005, 0.3), st.integers(0, 400))
@settings(deadline=None)
def test_overkill_interval_holds_what_is_expected(n: int, target: float, line: int) -> None:
    rank = min(rank_for(n, target), n)
    low, high = overkill_interval(n, rank, line)
    assert 0 <= low <= high <= line
    assert low <= line * (n + 1 - rank) / (n + 1) <= high + 1
    wider = overkill_interval(n, rank, line, level=0.999)
    assert wider[0] <= low
    assert high <= wider[1]


def test_overkill_covers_lines_of_further_parts() -> None:
    rng = np.random.default_rng(5)
    n, line, target, trials = 120, 240, 0.03, 3000
    low, high = overkill_interval(n, rank_for(n, target), line)
    inside = 0
    for _ in range(trials):
        scores = rng.normal(size=n + line)
        value = set_threshold(scores[:n], target).value
        inside += low <= int(np.sum(scores[n:] > value)) <= high
    assert inside / trials >= 0.99 - 4 * math.sqrt(0.99 * 0.01 / trials)


@pytest.mark.parametrize(
    ("n", "rank", "line", "level"), [(20, 0, 5, 0.9), (20, 21, 5, 0.9), (20, 5, -1, 0.9), (20, 5, 5, 1)]
)
def test_overkill_refuses_nonsense(n: int, rank: int, line: int, level: float) -> None:
    with pytest.raises(CalibrationError):
        overkill_interval(n, rank, line, level)


def test_tail_model_is_labelled_and_extrapolates() -> None:
    scores = np.random.default_rng(0).exponential(size=400)
    result = tail_threshold(scores, 0.0005)
    assert result.rank is None
    assert result.approximate
    assert "tail model" in result.rule
    assert "extrapolated" in result.flagged
    assert result.value == pytest.approx(-math.log(0.0005), rel=0.35)
    assert result.interval[0] < 0.0005 < result.interval[1]
    assert tail_threshold(scores, 0.0005) == result


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.2])
def test_tail_model_is_right_on_average(shape: float) -> None:
    law = stats.genpareto(shape)
    rates = [law.sf(tail_threshold(law.rvs(size=500, random_state=seed), 0.001).value) for seed in range(30)]
    assert 0.0005 < float(np.mean(rates)) < 0.003


def test_tail_model_bears_ties() -> None:
    assert math.isfinite(tail_threshold([0.0] * 150 + [1.0] * 30 + [2.0] * 20, 0.001).value)


def test_scores_without_a_tail_are_refused() -> None:
    for scores in ([0.0] * 150 + [1.0] * 50, [*np.linspace(0, 0.9, 160), *[1.0] * 40]):
        with pytest.raises(CalibrationError, match="no tail to extrapolate"):
            tail_threshold(scores, 0.001)


def test_tail_model_refuses_what_it_cannot_do() -> None:
    with pytest.raises(CalibrationError, match="too few for a tail model"):
        tail_threshold(np.arange(99), 0.001)
    with pytest.raises(CalibrationError, match="use set_threshold"):
        tail_threshold(np.arange(200), 0.3)


@pytest.mark.parametrize("shape", [-0.4, -1e-12, 0.0, 0.3])
def test_tail_arithmetic_is_the_generalised_pareto_law(shape: float) -> None:
    tail = _Tail(start=2.0, share=0.2, shape=shape, scale=1.5)
    law = stats.genpareto(shape, loc=2.0, scale=1.5)
    for rate in (0.1, 0.01, 1e-4):
        value = _tail_quantile(tail, rate)
        assert value == pytest.approx(law.isf(rate / 0.2))
        assert _tail_rate(tail, value) == pytest.approx(rate)


@pytest.mark.parametrize(("parts", "target"), [(20, 3 / 21), (30, 3 / 31), (126, 3 / 127), (299, 0.01), (5000, 0.01)])
def test_the_default_target_leaves_three_parts_above_the_threshold_or_is_one_percent(parts: int, target: float) -> None:
    assert default_target(parts) == pytest.approx(target)
    scores = np.random.default_rng(0).lognormal(size=parts)
    found = set_threshold(scores, default_target(parts))
    assert np.sum(scores > found.value) >= 2
    assert not found.flagged or "gap" in found.flagged


def test_one_odd_part_does_not_move_a_default_threshold() -> None:
    scores = np.random.default_rng(0).lognormal(size=30)
    odd = np.where(scores == scores.max(), 1000.0, scores)
    assert set_threshold(odd, default_target(30)).value == set_threshold(scores, default_target(30)).value
