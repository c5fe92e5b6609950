from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.ranges import (
    BINS,
    METHODS,
    Histogram,
    asymmetric,
    fake_quantise,
    histogram,
    merge,
    minmax,
    mse,
    percentile,
    symmetric_scale,
)
from calibration.threshold import CalibrationError

tensors = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def same(a: Histogram, b: Histogram) -> bool:
    return (a.exponent, a.first, a.low, a.high) == (b.exponent, b.first, b.low, b.high) and np.array_equal(
        a.counts, b.counts
    )


@given(tensors, tensors, tensors)
@settings(deadline=None)
def test_merging_is_exact_in_any_order(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    ha, hb, hc = histogram(a), histogram(b), histogram(c)
    whole = histogram(np.concatenate([a, b, c]))
    assert same(merge(merge(ha, hb), hc), whole)
    assert same(merge(ha, merge(hc, hb)), whole)
    assert whole.values == a.size + b.size + c.size
    assert len(whole.counts) <= BINS


@given(tensors)
@settings(deadline=None)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_range_holds_zero_and_nothing_unseen(method: str, tensor: np.ndarray) -> None:
    seen = histogram(tensor)
    low, high = METHODS[method](seen)
    assert min(float(tensor.min()), 0) <= low <= 0 <= high <= max(float(tensor.max()), 0)
    scale, zero = asymmetric(low, high)
    assert scale > 0
    assert 0 <= zero <= 255
    assert fake_quantise(np.zeros(1), low, high, symmetric=False)[0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="1 of 3 values"):
        histogram([1.0, bad, 2.0])
    with pytest.raises(CalibrationError, match="finite"):
        asymmetric(0.0, bad)


def test_an_empty_tensor_is_refused() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        histogram(np.zeros((0, 4)))


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.5, 1e-30, 6e4])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_constant_tensor_keeps_its_value(method: str, constant: float) -> None:
    low, high = METHODS[method](histogram(np.full((2, 3, 4), constant)))
    kept = fake_quantise(np.array([constant]), low, high, symmetric=False)[0]
    assert kept == pytest.approx(constant, rel=1 / 100, abs=1e-37)


def test_percentile_matches_numpy_within_a_bin() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    seen = histogram(values)
    low, high = percentile(seen, 0.999)
    width = 2.0**seen.exponent
    assert low == pytest.approx(np.quantile(values, 0.0005), abs=2 * width)
    assert high == pytest.approx(np.quantile(values, 0.9995), abs=2 * width)
    assert percentile(seen, 1.0) == minmax(seen)


def test_mse_ignores_an_outlier_and_beats_the_other_ranges() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=100_000), 0)
    values[0] = 60.0
    seen = histogram(values)

    def loss(low: float, high: float) -> float:
        return float(np.mean((fake_quantise(values, low, high, symmetric=False) - values) ** 2))

    low, high = mse(seen)
    assert low == 0
    assert high < 60
    assert loss(low, high) < loss(*minmax(seen))
    exhaustive = min(loss(0.0, top) for top in np.linspace(1, 60, 200))
    assert loss(low, high) <= 1.05 * exhaustive


def test_symmetric_mse_is_symmetric() -> None:
    low, high = mse(histogram(np.random.default_rng(1).normal(size=10_000)), symmetric=True)
    assert low == -high


@given(st.floats(-1e3, 0), st.floats(0, 1e3))
def test_rounding_error_is_at_most_half_a_step_inside_the_range(low: float, high: float) -> None:
    inside = np.linspace(low, high, 257)
    scale, _ = asymmetric(low, high)
    error = np.abs(fake_quantise(inside, low, high, symmetric=False) - inside)
    assert error.max() <= scale * 1.0001  # the zero point is rounded too: up to half a step at either end
    error = np.abs(fake_quantise(inside, low, high, symmetric=True) - inside)
    assert error.max() <= symmetric_scale(low, high) * 0.5001


def test_known_arithmetic() -> None:
    assert asymmetric(-1.0, 1.55) == (pytest.approx(0.01), 100)
    assert asymmetric(0.0, 255.0) == (1.0, 0)
    assert symmetric_scale(-1.27, 1.0) == pytest.approx(0.01)
    assert symmetric_scale(-63.0, 5.0, largest=63) == 1.0
    with pytest.raises(CalibrationError, match="in order"):
        asymmetric(2.0, 1.0)
    with pytest.raises(CalibrationError, match="share"):
        percentile(histogram([1.0]), 0.2)
