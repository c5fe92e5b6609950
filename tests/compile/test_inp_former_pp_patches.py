"""INP-Former++ on a vision transformer: its two fusions, its head, and the whole graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import AnomalyGraph
from compile.backbones.choice import find_backbone
from compile.export import export, join
from compile.half import render_half
from compile.methods import FitError, inp_former_fit
from compile.methods.inp_former_pp_patches import PatchHead, PatchINPFormerPP, fuse_by_product, fuse_by_sum
from compile.methods.inp_former_pp_patches_fit import _masks, fit_inp_former_pp_on_patches
from compile.methods.method import Samples
from compile.methods.registry import find_method
from compile.onnx_session import open_session
from compile.tensorrt_build import build, check_allowed
from compile.trunk_graph import export_trunk, map_names

SIDE = 154  # pixels, no whole number of the mask's cells of 4
GRID, WIDTH = (6, 8), 64
Maps = list[NDArray[np.float32]]


def good_maps(count: int, seed: int) -> Maps:
    """Two groups that every picture mixes in its own way from three patterns, and a little noise."""
    rng, patterns = np.random.default_rng(seed), np.random.default_rng(7)
    mixed = rng.normal(size=(count, 3, *GRID))
    mixed = functional.avg_pool2d(torch.from_numpy(mixed), 5, 1, 2).numpy()
    return [
        np.asarray(
            np.einsum("nkhw,kc->nchw", mixed, patterns.normal(size=(3, WIDTH)))
            + 0.05 * rng.normal(size=(count, WIDTH, *GRID))
            + patterns.normal(size=(WIDTH, 1, 1)),
            np.float32,
        )
        for _ in range(2)
    ]


def spoilt(maps: Maps, seed: int) -> tuple[Maps, NDArray[np.float32]]:
    """With three patches a side that no good one is like, and their share of each cell of 4x4 pixels."""
    rng, odd = np.random.default_rng(seed), [each.copy() for each in maps]
    covered = np.zeros((len(maps[0]), 21, 28), np.float32)
    for i, (top, left) in enumerate(rng.integers(0, (GRID[0] - 2, GRID[1] - 2), (len(covered), 2))):
        covered[i, round(3.5 * top) : round(3.5 * (top + 3)), round(3.5 * left) : round(3.5 * (left + 3))] = 1
        for each in odd:
            each[i, :, top : top + 3, left : left + 3] *= -1
    return odd, covered


def tensors(maps: Maps) -> list[Tensor]:
    return [torch.from_numpy(each) for each in maps]


@pytest.fixture(scope="module")
def fitted() -> PatchINPFormerPP:
    good = good_maps(16, 0)
    return fit_inp_former_pp_on_patches(good, *spoilt(good, 1), seed=0, steps=25, fuse=fuse_by_sum)


def test_the_sum_is_the_mean_of_error_and_probability_as_described(fitted: PatchINPFormerPP) -> None:
    features = tensors(good_maps(2, 5))
    model = fitted.reconstruction.model
    tokens = [each.flatten(2).transpose(1, 2) for each in features]
    fused = (tokens[0] + tokens[1]) / 2
    rebuilt = model.rebuild(fused, model.prototypes(fused))
    each = [
        0.5 * (1 - functional.cosine_similarity(e, d, dim=2) + torch.linalg.vector_norm(e - d, dim=2))
        for e, d in zip(tokens, rebuilt, strict=True)
    ]
    expected = ((each[0] + each[1]) / 2).reshape(2, *GRID)
    error, seen = fitted.reconstruction(features)
    torch.testing.assert_close(error, expected, rtol=1e-4, atol=1e-5)
    raised = functional.interpolate(expected[:, None] / fitted.usual, scale_factor=4, mode="bilinear")[:, 0]
    (found,) = fitted(features)
    torch.testing.assert_close(found, (raised + fitted.head(seen).sigmoid()) / 2, rtol=1e-4, atol=1e-5)


def test_the_product_is_the_error_above_half_its_mean_times_the_softened_probability(fitted: PatchINPFormerPP) -> None:
    features = tensors(good_maps(2, 5))
    error, seen = fitted.reconstruction(features)
    counted = error / fitted.usual
    above = (counted - counted.mean((1, 2), keepdim=True) / 2).clamp(min=0)
    raised = functional.interpolate(above[:, None], scale_factor=4, mode="bilinear")[:, 0]
    other = PatchINPFormerPP(fitted.reconstruction, fitted.head, GRID, fitted.usual, fuse_by_product)
    torch.testing.assert_close(other(features)[0], raised * (fitted.head(seen) / 6).sigmoid(), rtol=1e-4, atol=1e-5)


def test_errors_are_counted_in_the_largest_of_a_usual_good_picture(fitted: PatchINPFormerPP) -> None:
    error, seen = fitted.reconstruction(tensors(good_maps(16, 0)))
    assert fitted.usual.item() == pytest.approx(error.amax((1, 2)).mean().item(), rel=1e-4)
    counted = seen / fitted.head.usual
    torch.testing.assert_close(counted.square().mean((0, 2, 3)), torch.ones(WIDTH), rtol=1e-3, atol=1e-3)


def test_it_finds_what_it_was_never_shown(fitted: PatchINPFormerPP) -> None:
    odd, covered = spoilt(good_maps(12, 3), 4)
    mask = _masks(covered, GRID).numpy().ravel() > 0
    (found,) = fitted(tensors(odd))
    assert roc_auc_score(mask, found.numpy().ravel()) > 0.95
    _, seen = fitted.reconstruction(tensors(odd))
    assert roc_auc_score(mask, fitted.head(seen).numpy().ravel()) > 0.95


def test_masks_lie_where_the_head_looks() -> None:
    covered = np.zeros((1, 98, 98), np.float32)
    covered[0, 7:14, 14:28] = 1  # centres at pixels 28 to 52 and 56 to 108 of 392; fading out over 4
    found = _masks(covered, (28, 28))[0].numpy()
    rows, columns = (3.5 * (np.flatnonzero(found.any(axis)) + 0.5) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (26.25, 54.25, 54.25, 110.25)


def test_the_head_has_two_transposed_convolutions_a_plain_one_and_no_memory_of_painted_ones() -> None:
    kinds = [type(each) for each in PatchHead(torch.ones(WIDTH)).children()]
    assert kinds == [nn.ConvTranspose2d, nn.ConvTranspose2d, nn.Conv2d]
    assert PatchHead(torch.ones(WIDTH))(torch.ones(2, WIDTH, 5, 7)).shape == (2, 20, 28)


def test_the_recipe_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    good = good_maps(16, 0)
    painted, covered = spoilt(good_maps(33, 1), 1)
    recipes = []
    objective = inp_former_fit.objective

    def spied(model: nn.Module, maps: list[Tensor], recipe: inp_former_fit.Recipe) -> Tensor:
        recipes.append(recipe)
        return objective(model, maps, recipe)

    monkeypatch.setattr(inp_former_fit, "objective", spied)
    monkeypatch.setattr(inp_former_fit, "steps_for", lambda *_: 1)

    class EnoughError(Exception):
        pass

    def tell(what: str, done: int, of: int) -> None:
        told.append((what, of))
        if what == "fit head":
            raise EnoughError

    with pytest.raises(EnoughError):
        fit_inp_former_pp_on_patches(good, painted, covered, seed=0, progress=tell)
    assert recipes[0] == inp_former_fit.Recipe(rate=5e-4, squared=1.0, soft=True)
    assert told[-1] == ("fit head", 300)  # 100 epochs of three batches


def test_a_seed_fixes_the_fit_renderings_share_masks_and_nan_ends_it() -> None:
    good = good_maps(8, 0)
    painted, covered = spoilt(good, 1)
    twice = [np.concatenate([each, each]) for each in painted]
    both = np.concatenate([covered, covered])
    first, again, other = (
        fit_inp_former_pp_on_patches(good, twice, masks, seed=seed, steps=3).state_dict()
        for masks, seed in ((covered, 0), (both, 0), (covered, 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.leave.weight"], other["head.leave.weight"])
    painted[0][:] = np.nan
    with pytest.raises(FitError, match="diverged"):
        fit_inp_former_pp_on_patches(good, painted, covered, seed=0, steps=2)


def test_its_whole_graph_says_what_torch_says_and_builds(vit: Path) -> None:
    backbone = find_backbone(str(vit))
    product, method = (find_method(name, backbone) for name in ("inp-former-pp", "inp-former-pp-sum"))
    for each in (product, method):
        assert (each.several, each.painted, each.centre) == (True, True, 0.5)
    trunk = backbone.build(method.levels, SIDE)
    pictures = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    with torch.inference_mode():
        maps = [each.numpy() for each in trunk(torch.from_numpy(pictures))]
    covered = np.zeros((6, 39, 39), np.float32)
    covered[:, 4:16, 4:16] = 1
    side = backbone.map_side(SIDE)
    head = method.head(method.fit(Samples(maps, maps, covered), 0, 2, None), maps, (side, side))
    inputs = (*(torch.from_numpy(each[:2]) for each in maps), torch.ones(2, side, side))
    exported = export(head, inputs, [*map_names(method.levels), "mask"], ["score", "map"])
    plain = export_trunk(trunk, SIDE)
    graph = join(plain, exported)
    feeds = {"image": pictures[:2], "mask": np.ones((2, side, side), np.float32)}
    whole = AnomalyGraph(trunk, head)(torch.from_numpy(pictures[:2]), inputs[-1])
    for expected, found in zip(whole, open_session(graph).run(None, feeds), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=1e-4)
    half = join(render_half(plain), exported)
    assert check_allowed(half) == []
    assert len(build(half).engine) > 100_000
