"""INP-Former++ on the embedded trunk: its groups, residual and head, and what one fit leaves to the other."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from compile.anomaly_graph import AnomalyHead
from compile.methods import FitError, inp_former_lite, inp_former_pp_fit
from compile.methods.inp_former import cosine_distance
from compile.methods.inp_former_pp import INPFormerPP, SegmentationHead
from compile.methods.inp_former_pp_fit import fit_inp_former_pp, objective
from compile.methods.lite_groups import Grouped, LiteGroups, fit_groups
from compile.methods.method import Samples
from compile.methods.registry import METHODS

SHAPES = [(6, 8, 12), (10, 4, 6), (14, 2, 3)]  # of strides 8, 16 and 32
COMPONENTS = 8
Maps = list[NDArray[np.float32]]


def good_maps(count: int = 24, seed: int = 0) -> Maps:
    """Three patterns that every picture mixes in its own way, and a little noise."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7)
    maps = []
    for shape in SHAPES:
        mixed = rng.normal(size=(count, 3)) @ patterns.normal(size=(3, shape[0]))
        maps.append((mixed[:, :, None, None] + 0.1 * rng.normal(size=(count, *shape)) + 0.5).astype(np.float32))
    return maps


def spoilt(maps: Maps, seed: int = 1) -> tuple[Maps, NDArray[np.float32]]:
    """With a square on each picture whose features are those of no good one, and where: a share of each fine cell."""
    rng = np.random.default_rng(seed)
    odd = [each.copy() for each in maps]
    covered = np.zeros((len(maps[0]), 16, 24), np.float32)
    for i in range(len(covered)):
        top, left = rng.integers(0, 2) * 8, rng.integers(0, 3) * 8
        covered[i, top : top + 8, left : left + 8] = 1
        for each in odd:
            step = 16 // each.shape[2]
            each[i, :, top // step : (top + 8) // step, left // step : (left + 8) // step] *= -1.5
    return odd, covered


def tensors(maps: Maps) -> list[Tensor]:
    return [torch.from_numpy(each) for each in maps]


@pytest.fixture(scope="module")
def groups() -> LiteGroups:
    return fit_groups(good_maps(), COMPONENTS)


@pytest.fixture(scope="module", autouse=True)
def _few_components() -> Iterator[None]:
    """As few as the channels here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inp_former_lite, "fit_groups", lambda features: fit_groups(features, COMPONENTS))
        yield


@pytest.fixture(scope="module")
def fitted(_few_components: None) -> INPFormerPP:
    good = good_maps()
    painted, covered = spoilt(good)
    return fit_inp_former_pp(good, painted, covered, seed=0, steps=100)


def test_groups_share_no_channel_and_hold_the_principal_components(groups: LiteGroups) -> None:
    maps = good_maps()
    shallow, deep = (each.numpy().astype(float) for each in groups(tensors(maps)))
    assert not shallow[:, COMPONENTS:].any()
    assert not deep[:, :COMPONENTS].any()
    fine = maps[0].reshape(24, 6, 4, 2, 6, 2).transpose(0, 1, 3, 5, 2, 4).reshape(24, 24, 4, 6)
    tokens = fine.transpose(0, 2, 3, 1).reshape(-1, 24).astype(float)
    tokens = (tokens - tokens.mean(0)) / (tokens.std(0, ddof=1) + 1e-3)
    _, sizes, axes = np.linalg.svd(tokens, full_matrices=False)
    expected = tokens @ axes[:COMPONENTS].T / np.sqrt((sizes[:COMPONENTS] ** 2 / len(tokens)).mean())
    found = shallow[:, :COMPONENTS].transpose(0, 2, 3, 1).reshape(-1, COMPONENTS)
    np.testing.assert_allclose(np.abs(found[:, ::-1][:, :3]), np.abs(expected[:, :3]), atol=1e-3)  # clear of each other
    np.testing.assert_allclose(np.square(found).sum(1), np.square(expected).sum(1), rtol=1e-3)


def test_rows_of_a_group_are_computed_when_they_are_asked_for(groups: LiteGroups) -> None:
    maps = good_maps()
    rows = np.array([3, 5, 11])
    whole = groups(tensors(maps))
    for i in range(2):
        lazy = Grouped(groups, maps, i)
        assert lazy.shape == (24, 2 * COMPONENTS, 4, 6)
        np.testing.assert_allclose(lazy[rows], whole[i][rows].numpy(), rtol=1e-5, atol=1e-6)


def test_the_error_is_a_length_and_the_residual_is_weighted_by_the_cosine(fitted: INPFormerPP) -> None:
    features = tensors(good_maps(2, seed=5))
    reconstruction = fitted.reconstruction
    error, seen = reconstruction.explain(features)
    tokens = [each.flatten(2).transpose(1, 2) for each in reconstruction.groups(features)]
    fused = (tokens[0] + tokens[1]) / 2
    rebuilt = reconstruction.model.rebuild(fused, reconstruction.model.prototypes(fused))
    lengths = [np.linalg.norm((a - b).numpy(), axis=2) for a, b in zip(tokens, rebuilt, strict=True)]
    np.testing.assert_allclose(error.flatten(1).numpy(), (lengths[0] + lengths[1]) / 2, rtol=1e-4)
    distance = sum(cosine_distance(a, b) for a, b in zip(tokens, rebuilt, strict=True)) / 2
    plain = sum((a - b).abs() for a, b in zip(tokens, rebuilt, strict=True)) / 2
    np.testing.assert_allclose(seen.flatten(2).transpose(1, 2), plain * distance[..., None], rtol=1e-3, atol=1e-6)


def test_the_head_finds_what_it_was_never_shown(fitted: INPFormerPP) -> None:
    odd, covered = spoilt(good_maps(12, seed=3), seed=4)
    (found,) = fitted(tensors(odd))
    assert found.min() >= 0
    assert found.shape == (12, 16, 24)
    assert roc_auc_score(covered.ravel() > 0, found.numpy().ravel()) > 0.9
    (quiet,) = fitted(tensors(good_maps(12, seed=3)))
    assert found.amax((1, 2)).min() > quiet.amax((1, 2)).max()
    for head in fitted.heads:
        logit = head([*tensors(odd), fitted.reconstruction.explain(tensors(odd))[1]])
        assert roc_auc_score(covered.ravel() > 0, logit.numpy().ravel()) > 0.95


def test_the_map_is_the_error_above_half_its_mean_times_the_heads_soft_probability(fitted: INPFormerPP) -> None:
    features = tensors(good_maps(3, seed=8))
    error, seen = fitted.reconstruction.explain(features)
    found = (error / fitted.usual).numpy().astype(float)
    logit = np.mean([head([*features, seen]).numpy().astype(float) for head in fitted.heads], axis=0)
    assert len(fitted.heads) > 1
    above = np.maximum(found - found.mean((1, 2), keepdims=True) / 2, 0)
    usual = np.mean([fitted.reconstruction(tensors([each[i : i + 1] for each in good_maps()]))[0] for i in range(24)])
    assert fitted.usual.item() == pytest.approx(usual, rel=1e-4)
    (fine,) = fitted(features)
    expected = above / (1 + np.exp(-logit[:, ::4, ::4] / 6))  # every fourth fine cell lies where a cell lies
    np.testing.assert_allclose(fine[:, ::4, ::4].numpy(), expected, rtol=1e-4, atol=1e-4)
    between = (above[:, 1, 1] * 0.25 + above[:, 1, 2] * 0.75) / (1 + np.exp(-logit[:, 4, 7] / 6))
    np.testing.assert_allclose(fine[:, 4, 7].numpy(), between, rtol=1e-4, atol=1e-4)


def test_the_head_trains_nothing_of_the_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    good = good_maps()
    painted, covered = spoilt(good)
    monkeypatch.setattr(inp_former_lite, "STEPS", 5)
    states = []
    for steps in (1, 30):
        monkeypatch.setattr(inp_former_pp_fit, "STEPS", steps)
        model = fit_inp_former_pp(good, painted, covered, seed=0)
        assert not any(each.requires_grad for each in model.parameters())
        states.append(model.state_dict())
    kinds = {"reconstruction": True, "head": False}
    for prefix, same in kinds.items():
        names = [name for name in states[0] if name.startswith(prefix) and name.endswith("weight")]
        assert names
        assert all(torch.equal(states[0][name], states[1][name]) for name in names) is same


def test_a_seed_fixes_the_fit_and_touches_nobody_elses() -> None:
    good = good_maps()
    painted, covered = spoilt(good)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again, other = (fit_inp_former_pp(good, painted, covered, seed=s, steps=3).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.0.leave.weight"], other["heads.0.leave.weight"])


def test_maps_that_are_not_finite_end_the_fit() -> None:
    good = good_maps()
    painted, covered = spoilt(good)
    painted[1][:] = np.nan
    with pytest.raises(FitError, match="diverged"):
        fit_inp_former_pp(good, painted, covered, seed=0, steps=2)


def test_the_loss_is_focal_for_all_and_dice_for_the_painted() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=(3, 4, 5))
    mask = (rng.random((3, 4, 5)) > 0.6).astype(float)
    mask[2] = 0
    found = 1 / (1 + np.exp(-logit))
    wrong = np.where(mask > 0, 1 - found, found)
    focal = (-np.log(1 - wrong) * wrong**2).mean()
    dice = [1 - (2 * (f * m).sum() + 1) / (f.sum() + m.sum() + 1) for f, m in zip(found[:2], mask[:2], strict=True)]
    computed = objective(torch.from_numpy(logit), torch.from_numpy(mask), 2).item()
    assert computed == pytest.approx(20 * focal + np.mean(dice))


def test_the_head_holds_nothing_that_remembers_painted_statistics() -> None:
    kinds = {type(module).__name__ for module in SegmentationHead(SHAPES).modules()}
    assert not any("Norm" in kind for kind in kinds)


@pytest.mark.slow
def test_it_exports_and_builds(fitted: INPFormerPP, check_export: Callable[..., None]) -> None:
    maps = good_maps(2, seed=5)
    grids = [(found.shape[1], found.shape[2]) for found in fitted(tensors(maps))]
    head = AnomalyHead(fitted, grids, (32, 48), top=0.0, smoothing=1.5).eval()
    inputs = (*tensors(maps), torch.ones(2, 32, 48))
    check_export(head, inputs)


def test_without_the_head_the_map_is_the_published_one() -> None:
    maps = good_maps()
    model = METHODS["inp-former"].fit(Samples(maps), 0, 5, None)
    features = tensors(good_maps(2, seed=5))
    (found,) = model(features)
    (expected,) = model.model(model.groups(features))
    assert found.shape == (2, 4, 6)
    assert torch.equal(found, expected)


def test_the_registry_gives_it_the_painted_pictures() -> None:
    good = good_maps()
    painted, covered = spoilt(good)
    method = METHODS["inp-former-pp"]
    assert method.painted
    model = method.fit(Samples(good, painted, covered), 0, 2, None)
    score, heat = method.head(model, good, (32, 48))(*tensors(good_maps(2, seed=9)), torch.ones(2, 32, 48))
    assert torch.equal(score, heat.flatten(1).amax(1))


def test_renderings_share_the_masks_of_their_pictures() -> None:
    good = good_maps()
    painted, covered = spoilt(good)
    twice = [np.concatenate([each, each]) for each in painted]
    short, long = (
        fit_inp_former_pp(good, twice, masks, seed=0, steps=3).state_dict()
        for masks in (covered, np.concatenate([covered, covered]))
    )
    assert all(torch.equal(short[name], long[name]) for name in short)
