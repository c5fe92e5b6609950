"""INP-Former's losses have the values and gradients of their description, and its fit finds what is odd."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.methods import FitError
from compile.methods.inp_former import INPFormer, Size, mean, to_tokens
from compile.methods.inp_former_fit import (
    PLUS_PLUS,
    PUBLISHED,
    Recipe,
    coherence,
    fit_inp_former,
    learning_rate,
    mined_cosine,
    mined_square,
    objective,
    scale_gradient,
    soft_coherence,
    soft_mining,
    steps_for,
)

SIZE = Size(width=16, heads=4, prototypes=4, blocks=2, groups=2)


def pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e, d = torch.randn(2, 3, 10, 8, generator=generator, dtype=torch.float64)
    return e, (e + 0.7 * d).requires_grad_()


def global_cosine(e: Tensor, d: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(e.flatten(1), d.flatten(1))).mean()


def cube_of(error: Tensor) -> Tensor:
    return ((error / error.mean()) ** 3)[..., None]


def hooked_gradient(e: Tensor, d: Tensor, weight: Tensor, loss) -> Tensor:
    """The gradient at d of a loss whose gradient a hook multiplies by the weight."""
    inner = d * 1
    inner.register_hook(lambda gradient: gradient * weight)
    return torch.autograd.grad(loss(e, inner), d)[0]


def test_mined_cosine_has_the_gradient_of_a_hook():
    e, d = pairs()
    weight = cube_of(1 - functional.cosine_similarity(e, d.detach(), dim=2))
    want = hooked_gradient(e, d, weight, global_cosine)
    loss = mined_cosine(e, d)
    assert loss.item() == pytest.approx(global_cosine(e, d).item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, d)[0], want, rtol=1e-6, atol=1e-12)
    assert float(weight.max() / weight.min()) > 10  # the weight did something


def test_mined_square_has_the_gradient_of_a_hook():
    e, d = pairs()
    weight = cube_of((e - d.detach()).square().sum(2))
    want = hooked_gradient(e, d, weight, lambda a, b: (a - b).square().sum(2).mean())
    loss = mined_square(e, d)
    assert loss.item() == pytest.approx((e - d).square().sum(2).mean().item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, d)[0], want, rtol=1e-9, atol=1e-12)


def test_two_mined_terms_do_not_weight_each_other():
    """Hooks on one tensor would multiply both gradients by both weights."""
    (e_1, d_1), (e_2, d_2) = pairs(1), pairs(2)
    loss = soft_mining([e_1, e_2], [d_1, d_2], squared=0.3)
    want = 0.5 * sum(global_cosine(e, d) + 0.3 * (e - d).square().sum(2).mean() for e, d in ((e_1, d_1), (e_2, d_2)))
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    for e, d in ((e_1, d_1), (e_2, d_2)):
        cosine = hooked_gradient(e, d, cube_of(1 - functional.cosine_similarity(e, d.detach(), dim=2)), global_cosine)
        square = 2 * (d.detach() - e) * cube_of((e - d.detach()).square().sum(2)) / e[..., 0].numel()
        got = torch.autograd.grad(loss, d, retain_graph=True)[0]
        torch.testing.assert_close(got, 0.5 * (cosine + 0.3 * square), rtol=1e-6, atol=1e-10)


def test_a_scaled_gradient_leaves_the_values_to_the_bit():
    x = torch.randn(1000, requires_grad=True)
    scaled = scale_gradient(x, torch.full((1000,), 1e6))
    assert torch.equal(scaled, x)
    scaled.sum().backward()
    assert torch.equal(x.grad, torch.full((1000,), 1e6))


def test_coherence_is_that_of_the_broadcast_form_in_value_and_gradient():
    fused = torch.randn(2, 30, 8)
    one, two = (torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    got = coherence(fused, one)
    want = (1 - functional.cosine_similarity(fused[:, :, None], two[:, None], dim=3)).amin(2).mean()
    assert got.item() == pytest.approx(want.item(), abs=1e-5)
    torch.testing.assert_close(torch.autograd.grad(got, one), torch.autograd.grad(want, two), rtol=0, atol=1e-5)


def test_soft_coherence_is_written_out():
    fused = torch.randn(2, 30, 8)
    one, two = (torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    got = soft_coherence(fused, one)
    weights = functional.cosine_similarity(fused[:, :, None], two[:, None], dim=3).softmax(2)
    want = global_cosine(fused, (weights[..., None] * two[:, None]).sum(2))
    assert got.item() == pytest.approx(want.item(), abs=1e-5)
    torch.testing.assert_close(torch.autograd.grad(got, one), torch.autograd.grad(want, two), rtol=0, atol=1e-5)


def test_coherence_trains_tokens_and_extractor_alone():
    torch.manual_seed(0)
    model = INPFormer(SIZE)
    fused = mean(to_tokens(torch.randn(2, 2, 16, 4, 4)))
    coherence(fused, model.prototypes(fused)).backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"tokens", "extractor"}


def test_the_objective_adds_a_fifth_of_the_coherence():
    torch.manual_seed(0)
    model, features = INPFormer(SIZE), torch.randn(2, 2, 16, 4, 4)
    groups = to_tokens(features)
    prototypes = model.prototypes(mean(groups))
    rebuilt = model.rebuild(mean(groups), prototypes)
    want = soft_mining(groups, rebuilt) + 0.2 * coherence(mean(groups), prototypes)
    assert objective(model, features, PUBLISHED).item() == pytest.approx(want.item(), rel=1e-6)
    want = soft_mining(groups, rebuilt, squared=1.0) + 0.2 * soft_coherence(mean(groups), prototypes)
    assert objective(model, features, PLUS_PLUS).item() == pytest.approx(want.item(), rel=1e-6)


def test_the_rate_starts_at_zero_peaks_and_ends_at_a_tenth():
    rates = [learning_rate(step, 2000, 1e-3) for step in range(2000)]
    assert rates[0] == 0
    assert rates[50] == pytest.approx(5e-4)
    assert rates[100] == max(rates) == pytest.approx(1e-3)
    assert rates[-1] == min(rates[100:]) == pytest.approx(1e-4)
    assert learning_rate(2, 20, 1e-3) == pytest.approx(1e-3)  # a short fit warms up over a tenth
    assert learning_rate(0, 1, 1e-3) == pytest.approx(1e-3)


def test_incomplete_batches_are_dropped():
    assert steps_for(60) == 600  # 3 steps per epoch
    assert steps_for(5) == 200


def good_maps(count: int, seed: int) -> list[NDArray[np.float32]]:
    """Two groups of maps [n, 16, 6, 6]: each place shows one of three materials, slightly varied."""
    kinds = np.random.default_rng(0).normal(size=(2, 3, 16))
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, (count, 6, 6))
    return [
        (k[which] + 0.1 * rng.normal(size=(count, 6, 6, 16))).transpose(0, 3, 1, 2).astype(np.float32) for k in kinds
    ]


@pytest.mark.parametrize("recipe", [PUBLISHED, PLUS_PLUS], ids=["published", "plus-plus"])
def test_a_fitted_model_finds_what_is_odd(recipe):
    model = fit_inp_former(good_maps(48, 1), seed=0, steps=150, batch=16, size=SIZE, recipe=recipe)
    maps = good_maps(16, 2)
    odd = np.random.default_rng(3).normal(size=(2, 16, 16)).astype(np.float32)
    for each, vectors in zip(maps, odd, strict=True):
        each[:, :, 2, 3] = vectors
    (found,) = model([torch.from_numpy(each) for each in maps])
    hits = (found.flatten(1).argmax(1) == 2 * 6 + 3).float().mean()
    assert float(hits) > 0.8
    torch.manual_seed(0)
    (before,) = INPFormer(SIZE).requires_grad_(requires_grad=False)([torch.from_numpy(each) for each in maps])
    assert float((before.flatten(1).argmax(1) == 2 * 6 + 3).float().mean()) < 0.5  # it learned that


def test_the_seed_fixes_the_result_and_leaves_the_caller_s_state():
    maps = good_maps(9, 1)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    one, two, other = (fit_inp_former(maps, seed=s, steps=5, batch=4, size=SIZE).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["tokens"], other["tokens"])
    assert not torch.equal(one["bottleneck.0.weight"], other["bottleneck.0.weight"])


class Recorded:
    """Maps that note which rows are read."""

    def __init__(self, maps: NDArray[np.float32]) -> None:
        self.maps, self.shape = maps, maps.shape
        self.rows: list[list[int]] = []

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        self.rows.append(rows.tolist())
        return np.asarray(self.maps[rows])


def test_each_epoch_is_in_another_order_without_its_incomplete_batch():
    groups = [Recorded(maps) for maps in good_maps(10, 1)]
    fit_inp_former(groups, seed=0, steps=4, batch=4, size=SIZE)
    assert groups[0].rows == groups[1].rows
    first, second, third, fourth = (set(rows) for rows in groups[0].rows)
    assert [len(rows) for rows in (first, second, third, fourth)] == [4, 4, 4, 4]
    assert not first & second
    assert not third & fourth
    assert {frozenset(first), frozenset(second)} != {frozenset(third), frozenset(fourth)}


def test_at_a_rate_of_zero_the_model_stays_as_the_seed_made_it():
    torch.manual_seed(3)
    start = INPFormer(SIZE).state_dict()
    model = fit_inp_former(good_maps(4, 1), seed=3, steps=3, size=SIZE, recipe=Recipe(rate=0))
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_progress_counts_the_steps():
    seen: list[tuple[str, int, int]] = []
    model = fit_inp_former(good_maps(3, 1), seed=0, steps=3, size=SIZE, progress=lambda *args: seen.append(args))
    assert seen == [("fit", 1, 3), ("fit", 2, 3), ("fit", 3, 3)]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_diverging_fit_says_so():
    with pytest.raises(FitError, match=r"diverged at step \d+ of 20: loss .+ Look at the pictures"):
        fit_inp_former(good_maps(4, 1), seed=0, steps=20, size=SIZE, recipe=Recipe(rate=1e30))


def test_maps_that_are_not_finite_are_named():
    maps = good_maps(4, 1)
    maps[1][2, 0, 0, 0] = np.nan
    with pytest.raises(FitError, match="the trunk's maps are not finite"):
        fit_inp_former(maps, seed=0, steps=3, size=SIZE)


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        (lambda maps: [maps[0], maps[1][:2]], SIZE, r"\(4, 16, 6, 6\), \(2, 16, 6, 6\)"),
        (lambda maps: [each[:0] for each in maps], SIZE, "n at least 1"),
        (lambda maps: [], SIZE, r"shapes \[\]"),
        (lambda maps: maps, Size(width=32, heads=4), "width 32 and 2 groups for 2 maps of width 16"),
        (lambda maps: maps[:1], SIZE, "width 16 and 2 groups for 1 maps"),
        (lambda maps: maps, None, "width 16, which is no multiple of 64"),
    ],
)
def test_maps_that_do_not_fit_are_named(change, size, message):
    with pytest.raises((ValueError, FitError), match=message):
        fit_inp_former(change(good_maps(4, 1)), seed=0, steps=1, size=size)
