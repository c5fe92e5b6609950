from __future__ import annotations

import time
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sk

from compile.metrics import (
    MetricError,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    paired_difference,
    paired_pixel_difference,
    paired_pixel_differences,
    pixel_metrics,
    resize_mask,
)

# Few distinct values: most draws hold ties.
scored = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@given(scored)
def test_figures_equal_scikit_learn_under_ties(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([r[0] for r in rows], dtype=np.float32), np.array([r[1] for r in rows])
    assert auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    found = pixel_metrics([scores[None]], [labels[None]])
    assert found.ap == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    best = max(sk.f1_score(labels, scores >= threshold) for threshold in set(scores[labels].tolist()))
    assert found.f1_max == pytest.approx(best, abs=1e-12)
    whole = image_metrics(scores, labels)
    assert (whole.auroc, whole.ap, whole.f1_max) == (found.auroc, found.ap, found.f1_max)
    assert (average_precision(scores, labels), f1_max(scores, labels)) == (whole.ap, whole.f1_max)


def test_by_hand() -> None:
    labels = [0, 0, 1, 1]
    assert auroc([1, 2, 3, 4], labels) == 1
    assert auroc([1, 3, 2, 4], labels) == 0.75
    assert auroc([1, 1, 1, 1], labels) == 0.5
    found = pixel_metrics([np.array([[1, 3, 2, 4]], np.float32)], [np.array([labels], bool)])
    assert found.ap == pytest.approx((1 + 2 / 3) / 2)
    assert found.f1_max == pytest.approx(0.8)


def slow_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float = 0.3) -> float:
    """Walk every threshold there is and integrate the curve by trapezoids, cut at the limit by interpolation."""
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [scores[labels == label] for label in range(1, count)]
    good = np.concatenate([s[~m] for s, m in zip(maps, masks, strict=True)])
    everything = np.unique(np.concatenate([s.ravel() for s in maps]))[::-1]
    rates, overlaps = [0.0], [0.0]
    for threshold in everything:
        rates.append(float(np.mean(good >= threshold)))
        overlaps.append(float(np.mean([np.mean(r >= threshold) for r in regions])))
    area = 0.0
    for i in range(1, len(rates)):
        left, right = rates[i - 1], rates[i]
        if left >= limit:
            break
        end = overlaps[i]
        if right > limit:
            end = overlaps[i - 1] + (end - overlaps[i - 1]) * (limit - left) / (right - left)
        area += (min(right, limit) - left) * (overlaps[i - 1] + end) / 2
    return area / limit


def pictures(seed: int, count: int = 6, side: int = 24, levels: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(count):
        mask = np.zeros((side, side), bool)
        for _ in range(i % 3):
            y, x = rng.integers(0, side - 6, 2)
            mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
        scores = rng.normal(size=mask.shape) + rng.uniform(0, 3) * mask
        maps.append((np.round(scores * levels) / levels if levels else scores).astype(np.float32))
        masks.append(mask)
    return maps, masks


@given(st.integers(0, 10_000), st.sampled_from([0, 1, 2]))
@settings(deadline=None, max_examples=40)
def test_pixel_figures_equal_slow_exact_ones(seed: int, levels: int) -> None:
    maps, masks = pictures(seed, levels=levels)
    found = pixel_metrics(maps, masks)
    flat, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    assert found.auroc == pytest.approx(sk.roc_auc_score(truth, flat), abs=1e-9)
    assert found.ap == pytest.approx(sk.average_precision_score(truth, flat), abs=1e-9)
    assert found.aupro == pytest.approx(slow_aupro(maps, masks), abs=1e-9)


def test_aupro_of_perfect_inverted_and_constant_maps() -> None:
    _, masks = pictures(3)
    assert pixel_metrics([m.astype(np.float32) for m in masks], masks).aupro == pytest.approx(1)
    assert pixel_metrics([-m.astype(np.float32) for m in masks], masks).aupro == 0
    constant = pixel_metrics([np.zeros(m.shape, np.float32) for m in masks], masks)
    assert constant.aupro == pytest.approx(0.15)  # the diagonal up to 0.3
    assert constant.auroc == 0.5


def test_aupro_counts_every_region_the_same() -> None:
    mask = np.zeros((20, 20), bool)
    mask[0, 0] = True
    mask[5:15, 5:15] = True
    scores = np.zeros(mask.shape, np.float32)
    scores[5:15, 5:15] = 1
    found = pixel_metrics([scores], [mask])
    assert found.regions == 2
    assert found.aupro == pytest.approx(0.5 + 0.5 * 0.15)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_figures_do_not_change_under_a_monotone_transform(seed: int) -> None:
    maps, masks = pictures(seed, levels=4)
    stretched = [np.exp(m.astype(np.float64) / 3).astype(np.float64) for m in maps]
    assert pixel_metrics(maps, masks) == pixel_metrics(stretched, masks)


def test_pictures_without_a_mask_stay_out() -> None:
    maps, masks = pictures(5)
    wild = np.full((7, 9), 1e6, np.float32)
    assert pixel_metrics([*maps, wild], [*masks, None]) == pixel_metrics(maps, masks)
    defects_unmarked = [None if mask.any() else mask for mask in masks[:-1]]
    marked = pixel_metrics(maps, [*defects_unmarked, masks[-1]])
    assert marked == pixel_metrics(
        [m for m, d in zip(maps, masks, strict=True) if d is masks[-1] or not d.any()],
        [d for d in masks if d is masks[-1] or not d.any()],
    )
    with pytest.raises(MetricError, match="no picture has a mask"):
        pixel_metrics([wild, maps[0]], [None, np.zeros_like(masks[0])])


def test_what_has_no_figure_is_refused() -> None:
    with pytest.raises(MetricError, match="both kinds"):
        auroc([1.0, 2.0], [1, 1])
    with pytest.raises(MetricError, match="not finite"):
        auroc([1.0, np.nan], [0, 1])
    with pytest.raises(MetricError, match="expected"):
        auroc([1.0], [0, 1])
    maps, masks = pictures(0)
    with pytest.raises(MetricError, match="picture 0"):
        pixel_metrics([maps[0][:5], *maps[1:]], masks)
    maps[1][0, 0] = np.inf
    with pytest.raises(MetricError, match="picture 1"):
        pixel_metrics(maps, masks)
    with pytest.raises(MetricError, match="no good score"):
        pixel_metrics([np.zeros((4, 4), np.float32)], [np.ones((4, 4), bool)])


@given(
    st.integers(0, 500),
    st.tuples(st.integers(40, 90), st.integers(40, 90)),
    st.tuples(st.integers(16, 64), st.integers(16, 64)),
)
@settings(deadline=None, max_examples=40)
def test_mask_rules_are_those_of_pil_bilinear(seed: int, source: tuple[int, int], target: tuple[int, int]) -> None:
    mask = (cv2.GaussianBlur(np.random.default_rng(seed).normal(size=source), (0, 0), 3) > 0.1).astype(np.uint8)
    height, width = target
    reference = np.asarray(Image.fromarray(mask * 255).resize((width, height), Image.Resampling.BILINEAR))
    nonzero, half = resize_mask(mask, height, width, "paper_nonzero"), resize_mask(mask, height, width, "half")
    clear = np.abs(reference - 127.5) > 2  # PIL's weights are fixed-point: it may be off by a level or two
    assert np.array_equal(half[clear], reference[clear] > 127)
    assert np.all(nonzero[reference > 2])
    assert np.mean(nonzero != (reference > 0)) < 0.01
    assert np.all(nonzero | ~half)


@given(st.integers(0, 500), st.integers(40, 90), st.integers(8, 120))
@settings(deadline=None, max_examples=40)
def test_max_pooling_keeps_every_pixel_that_holds_some_defect(seed: int, source: int, target: int) -> None:
    mask = (cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(source, source)), (0, 0), 3) > 0.1) * 255
    pooled = resize_mask(mask, target, target, "max_pool")
    spans = [
        slice(i * source // target, max(-(-(i + 1) * source // target), i * source // target + 1))
        for i in range(target)
    ]
    assert np.array_equal(pooled, [[mask[y, x].any() for x in spans] for y in spans])
    if target <= source:
        assert np.all(pooled | ~resize_mask(mask, target, target, "half"))


def test_a_speck_survives_max_pooling_and_no_other_rule() -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[500, 500] = 255
    assert resize_mask(mask, 64, 64, "max_pool").sum() == 1
    assert resize_mask(mask, 64, 64, "half").sum() == 0


def test_paired_interval_holds_a_known_difference() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    base = rng.normal(size=400)
    good, poor = base + 2.0 * labels, base + 1.0 * labels
    difference = paired_difference(good, poor, labels)
    assert difference.low < difference.value < difference.high
    assert difference.low > 0.05
    assert paired_difference(good, poor, labels) == difference
    same = paired_difference(good, good, labels)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_paired_interval_covers_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    truth = 0.9213504 - 0.7602499  # normal shift s: AUROC = Phi(s / sqrt 2), s = 2 and 1
    labels = np.repeat([0, 1], 60)
    for trial in range(150):
        a, b = rng.normal(size=(2, 120)) + np.array([[2.0], [1.0]]) * labels
        found = paired_difference(a, b, labels, resamples=200, seed=trial)
        covered += found.low <= truth <= found.high
    assert covered / 150 > 0.87


def test_paired_pixel_interval_agrees_with_exact_resampling() -> None:
    rng = np.random.default_rng(2)
    maps, masks = pictures(11, count=30)
    worse = [(m + rng.normal(scale=0.8, size=m.shape)).astype(np.float32) for m in maps]
    area, overlap = paired_pixel_difference(maps, worse, masks, resamples=200)
    assert area.low < area.value < area.high
    assert overlap.low < overlap.value < overlap.high
    exact = pixel_metrics(maps, masks).aupro - pixel_metrics(worse, masks).aupro
    assert overlap.value == pytest.approx(exact)
    truth = np.array([m.any() for m in masks])
    draws = np.random.default_rng(0)
    exact_draws = []
    for _ in range(200):
        drawn = np.concatenate(
            [draws.choice(np.flatnonzero(truth == k), int((truth == k).sum())) for k in (False, True)]
        )
        sides = [pixel_metrics([m[i] for i in drawn], [masks[i] for i in drawn]).aupro for m in (maps, worse)]
        exact_draws.append(sides[0] - sides[1])
    low, high = np.quantile(exact_draws, [0.025, 0.975])
    assert overlap.low == pytest.approx(low, abs=0.002)
    assert overlap.high == pytest.approx(high, abs=0.002)


def test_differences_of_several_runs_are_those_of_their_means() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 40)
    runs = rng.normal(size=(3, 80)) + 1.5 * labels
    other = rng.normal(size=80) + labels
    for metric in (auroc, average_precision, f1_max):
        alone = [paired_difference(run, other, labels, metric, resamples=50) for run in runs]
        together = paired_difference(runs, other, labels, metric, resamples=50)
        assert together.value == pytest.approx(np.mean([each.value for each in alone]))
        assert together.high - together.low < max(each.high - each.low for each in alone)
    maps, masks = pictures(7, count=12)
    noisy = [[(m + rng.normal(size=m.shape)).astype(np.float32) for m in maps] for _ in range(2)]
    single = [paired_pixel_differences([run], [maps], masks, resamples=50) for run in noisy]
    both = paired_pixel_differences(noisy, [maps], masks, resamples=50)
    for figure in ("auroc", "ap", "f1_max", "aupro"):
        values = [getattr(each, figure).value for each in single]
        assert getattr(both, figure).value == pytest.approx(np.mean(values))
        exact = np.mean([getattr(pixel_metrics(run, masks), figure) for run in noisy])
        assert getattr(both, figure).value == pytest.approx(exact - getattr(pixel_metrics(maps, masks), figure))
        assert getattr(both, figure).low <= getattr(both, figure).value <= getattr(both, figure).high


def test_intervals_of_pixel_ap_and_f1_agree_with_exact_resampling() -> None:
    rng = np.random.default_rng(2)
    maps, masks = pictures(11, count=30)
    worse = [(m + rng.normal(scale=0.8, size=m.shape)).astype(np.float32) for m in maps]
    found = paired_pixel_differences([maps], [worse], masks, resamples=200)
    truth = np.array([m.any() for m in masks])
    draws, exact = np.random.default_rng(0), []
    for _ in range(200):
        drawn = np.concatenate(
            [draws.choice(np.flatnonzero(truth == k), int((truth == k).sum())) for k in (False, True)]
        )
        sides = [pixel_metrics([m[i] for i in drawn], [masks[i] for i in drawn]) for m in (maps, worse)]
        exact.append([sides[0].ap - sides[1].ap, sides[0].f1_max - sides[1].f1_max])
    for difference, values in zip((found.ap, found.f1_max), np.transpose(exact), strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert difference.low == pytest.approx(low, abs=0.003)
        assert difference.high == pytest.approx(high, abs=0.003)


def test_what_two_hundred_strips_get_wrong() -> None:
    """The gap of binned figures, as papers compute them; one far outlier crowds all scores into few strips."""
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.01
    scores = rng.normal(size=labels.size) + 2 * labels

    def binned(values: np.ndarray) -> np.ndarray:
        strips = (values - values.min()) / np.ptp(values) * 200
        return np.floor(strips)

    def gaps(values: np.ndarray) -> tuple[float, float]:
        return tuple(abs(f(binned(values), labels) - f(values, labels)) for f in (auroc, average_precision))

    area, precision = gaps(scores)
    assert area < 1e-4
    assert 1e-4 < precision < 0.01  # 0.005 of 0.3
    area, precision = gaps(np.append(scores[:-1], 500.0))
    assert area > 0.02
    assert precision > 0.05


def test_five_hundred_maps_take_seconds() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(256, 256)).astype(np.float32) for _ in range(100)]
    masks = [np.zeros((256, 256), bool) for _ in maps]
    for mask in masks[::2]:
        mask[40:60, 40:60] = True
    started = time.process_time()
    tracemalloc.start()
    pixel_metrics(maps, masks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - started < 15  # about 1
    assert peak < 3 * sum(m.nbytes for m in maps)
