"""StableAdamW agrees with itself written out in NumPy, one number at a time."""

import math

import numpy as np
import pytest
import torch

from compile.stable_adamw import StableAdamW


def slow(start: np.ndarray, gradients: list[np.ndarray], rates: list[float]) -> tuple[np.ndarray, list[float]]:
    """Parameters after all steps, and by how much each step shrank."""
    p, m, v, top = start.copy(), np.zeros_like(start), np.zeros_like(start), np.zeros_like(start)
    shrunk = []
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        total = 0.0
        for i in np.ndindex(p.shape):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            top[i] = max(top[i], v[i])
            total += (g[i] / (math.sqrt(top[i]) / math.sqrt(1 - 0.999**t) + 1e-10)) ** 2
        shrunk.append(max(1.0, math.sqrt(total / p.size)))
        for i in np.ndindex(p.shape):
            p[i] -= lr * 1e-4 * p[i]
            denominator = math.sqrt(top[i]) / math.sqrt(1 - 0.999**t) + 1e-10
            p[i] -= lr / (1 - 0.9**t) / shrunk[-1] * m[i] / denominator
    return p, shrunk


def run(start: np.ndarray, gradients: list[np.ndarray], rates: list[float]) -> np.ndarray:
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = StableAdamW([parameter])
    for gradient, rate in zip(gradients, rates, strict=True):
        optimiser.param_groups[0]["lr"] = rate
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
    return parameter.detach().numpy()


def test_agrees_with_the_slow_form():
    """Gradients fall, rise and burst, so that the largest moment, its bias and the shrinking all matter."""
    rng = np.random.default_rng(0)
    scale = [1, 1, 0.1, 0.01, 0.01, 5, 0.1, 0.1, 20, 1]
    gradients = [s * rng.normal(size=(3, 4)) for s in scale]
    rates = [0.0, *np.linspace(0.01, 0.1, 9)]
    start = rng.normal(size=(3, 4))
    want, shrunk = slow(start, gradients, rates)
    assert max(shrunk) > 2  # a burst was met
    assert min(shrunk) == 1
    np.testing.assert_allclose(run(start, gradients, rates), want, rtol=1e-12, atol=1e-14)


def test_a_burst_moves_less_than_under_adamw():
    """After 50 quiet steps a gradient of 1 meets a denominator of sqrt(0.001 / (1 - 0.999^51)): RMS 7.05."""
    gradients = [np.full(4, 1e-3)] * 50 + [np.full(4, 1.0)]
    rates = [0.0] * 50 + [0.1]
    plain = torch.nn.Parameter(torch.zeros(4).double())
    optimiser = torch.optim.AdamW([plain], eps=1e-10, amsgrad=True)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimiser.param_groups[0]["lr"] = rate
        plain.grad = torch.from_numpy(gradient)
        optimiser.step()
    moved = run(np.zeros(4), gradients, rates)
    assert plain.detach().numpy() / moved == pytest.approx(np.full(4, 7.053), rel=1e-4)


def test_without_bursts_it_is_adamw_with_amsgrad():
    gradients = [np.array([0.5, -0.2]) / (i + 1) for i in range(20)]
    moved = run(np.ones(2), gradients, [0.05] * 20)
    plain = torch.nn.Parameter(torch.ones(2).double())
    optimiser = torch.optim.AdamW([plain], lr=0.05, eps=1e-10, weight_decay=1e-4, amsgrad=True)
    for gradient in gradients:
        plain.grad = torch.from_numpy(gradient)
        optimiser.step()
    assert moved == pytest.approx(plain.detach().numpy(), rel=1e-9)


def test_resumes_from_its_state():
    rng = np.random.default_rng(1)
    gradients = [torch.from_numpy(rng.normal(size=5)) for _ in range(6)]
    whole, parts = (torch.nn.Parameter(torch.ones(5).double()) for _ in range(2))
    optimiser, first = StableAdamW([whole]), StableAdamW([parts])
    for gradient in gradients:
        whole.grad = gradient
        optimiser.step()
    for gradient in gradients[:3]:
        parts.grad = gradient
        first.step()
    second = StableAdamW([parts])
    second.load_state_dict(first.state_dict())
    for gradient in gradients[3:]:
        parts.grad = gradient
        second.step()
    assert torch.equal(whole, parts)
