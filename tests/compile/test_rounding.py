from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compile.rounding import output_error, round_weights


def drawn(seed: int, groups: int, rows: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, second moments of strongly dependent inputs, and step sizes."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, n, n)) @ rng.normal(size=(groups, n, 4 * n)) + 3 * rng.normal(size=(groups, n, 1))
    moments = inputs @ inputs.transpose(0, 2, 1) / (4 * n) + 1e-3 * np.eye(n)
    return rng.normal(size=(groups, rows, n)), moments, rng.uniform(0.1, 0.7, (groups, rows))


def nearest(weights: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    return np.clip(np.rint(weights / scales[..., None]), -limit, limit)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 7))
def test_never_worse_than_the_nearest_steps_and_within_the_limit(seed, groups, rows, n, limit) -> None:
    weights, moments, scales = drawn(seed, groups, rows, n)
    steps = round_weights(weights, moments, scales, limit)
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() <= limit
    found = output_error(weights, moments, scales, steps)
    assert np.all(found <= output_error(weights, moments, scales, nearest(weights, scales, limit)))


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_independent_inputs_want_the_nearest_steps(seed, n) -> None:
    weights, moments, scales = drawn(seed, 2, 3, n)
    alone = moments * np.eye(n)
    np.testing.assert_array_equal(round_weights(weights, alone, scales, 7), nearest(weights, scales, 7))


def test_finds_what_brute_force_finds_where_the_nearest_steps_are_wrong() -> None:
    """Two inputs that always agree: 0.4 + 0.4 is closest to 1 + 0, where the nearest steps give 0 + 0."""
    weights, scales = np.array([[[0.4, 0.4]]]), np.ones((1, 1))
    moments = np.array([[[1.0, 0.999], [0.999, 1.0]]])
    errors = {
        steps: float(output_error(weights, moments, scales, np.array([[steps]]))[0, 0])
        for steps in itertools.product(range(-2, 3), repeat=2)
    }
    steps = round_weights(weights, moments, scales, 2)
    assert errors[tuple(steps[0, 0])] == min(errors.values())
    assert errors[0, 0] > 5 * min(errors.values())


def test_comes_close_to_brute_force_on_dependent_inputs() -> None:
    choices = np.array(list(itertools.product(range(-2, 3), repeat=4)), float)
    lost, lost_nearest = [], []
    for seed in range(60):
        weights, moments, _ = drawn(seed, 1, 1, 4)
        scales = np.abs(weights).max(axis=2) / 2
        best = output_error(weights, moments, scales, choices[None]).min()
        found = output_error(weights, moments, scales, round_weights(weights, moments, scales, 2))[0, 0]
        assert found >= best * (1 - 1e-9)
        lost.append(found / best)
        lost_nearest.append(output_error(weights, moments, scales, nearest(weights, scales, 2))[0, 0] / best)
    assert np.median(lost) < 1.01
    assert np.mean(lost) < 0.6 * np.mean(lost_nearest)
