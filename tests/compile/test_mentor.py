"""Mentor3AD and its ancestors: what they see in a scan whose picture and surface disagree, and as a graph."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from compile.anomaly_graph import AnomalyHead
from compile.export import export
from compile.methods.cells import Cells
from compile.methods.cfm import CFM
from compile.methods.mapping import Mapping
from compile.methods.mentor import Mentor3AD, contrast
from compile.methods.mentor_fit import fit_mentor
from compile.methods.method import Samples, fit_alone
from compile.methods.registry import SCAN_METHODS
from compile.methods.voting import Deviation, Voting
from compile.onnx_session import open_session
from compile.tensorrt_build import build, check_allowed

STEPS, SIDE, GOOD = 30, 64, 30
NAMES = ["maps_8", "maps_16", "geometry", "mask"]
Maps = list[np.ndarray]


def scans(count: int, seed: int) -> Maps:
    """One smooth, hidden field shows in the picture and in the surface; each has noise of its own."""
    rng, mix = np.random.default_rng(seed), np.random.default_rng(99)
    hidden = gaussian_filter(rng.normal(0, 8, (count, 3, 8, 8)), (0, 0, 2, 2))
    near = np.einsum("ck,nkhw->nchw", mix.normal(0, 1, (12, 3)), hidden) + rng.normal(0, 0.2, (count, 12, 8, 8))
    far = rng.normal(0, 1, (count, 6, 4, 4))
    surface = np.einsum("ck,nkhw->nchw", mix.normal(0, 1, (7, 3)), hidden).repeat(4, 2).repeat(4, 3)
    surface = surface + rng.normal(0, 0.3, surface.shape)
    surface[:, 3] = -1
    return [each.astype(np.float32) for each in (near, far, surface)]


def dented(seed: int) -> Maps:
    """A scan with a surface that is unusual in the cells of rows and columns 2 to 4; its picture shows nothing."""
    maps = scans(1, seed)
    maps[2][:, 4:, 8:20, 8:20] += 4 * np.array([1, -1, 1], np.float32)[:, None, None]
    return maps


def tensors(maps: Maps) -> list[torch.Tensor]:
    return [torch.from_numpy(each) for each in maps]


def test_contrast_is_infonce_both_ways() -> None:
    a, b = (torch.nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    alike = (a @ b.T / 0.07).exp()
    own = alike.diagonal()
    wanted = -((own / alike.sum(1)).log() + (own / alike.sum(0)).log()).mean() / 2
    torch.testing.assert_close(contrast((a, b)), wanted)


def test_a_deviation_is_mahalanobis_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(5000, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 7
    count = Deviation(4)
    count.measure(good)
    found = count(good).square().mean()
    assert float(found) == pytest.approx(4, rel=0.15)  # the ridge takes a little
    assert float(count(good.mean(0))) == pytest.approx(0, abs=1e-3)


def test_only_votes_above_what_is_usual_count() -> None:
    votes = torch.randn(20_001, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50, 0.1]) + 9
    voting = Voting()
    voting.measure(votes)
    torch.testing.assert_close(voting.spread, torch.tensor([1.0, 50, 0.1]), rtol=0.03, atol=0)
    assert float(voting(voting.usual - voting.spread)) == 0
    assert float(voting(voting.usual + voting.spread * torch.tensor([3.0, 4, -9]))) == pytest.approx(5)


@pytest.fixture(scope="module")
def models() -> tuple[Mentor3AD, Mentor3AD]:
    """With the mentor, and without."""
    good = scans(GOOD, 0)
    return fit_mentor(good, seed=0, steps=STEPS), fit_mentor(good, seed=0, steps=STEPS, guided=False)


def test_the_mentor_does_not_pass_a_defect_on(models: tuple[Mentor3AD, Mentor3AD]) -> None:
    """It has seen the dent that it helps to tell, and the surface's vote finds it still, as without a mentor."""
    found = []
    for model in models:
        votes = [model.votes(model.cells(tensors(dented(seed))))[0].reshape(8, 8, 3) for seed in range(200, 230)]
        surface = torch.stack(votes)[..., 1]
        odd, usual = surface[:, 2:5, 2:5].flatten(), surface[:, :, 7].flatten()
        found.append(float((odd[:, None] > usual).float().mean()))
    assert found[0] > 0.9
    assert found[0] > found[1] - 0.05


def test_the_mentor_helps_to_tell(models: tuple[Mentor3AD, Mentor3AD]) -> None:
    seen = models[0].cells(tensors(scans(20, 5)))
    left = [sum(part.square().mean() for part in m.residuals(seen, m.fusion.align(seen))) for m in models]
    assert left[0] < 0.9 * left[1]


def test_a_fit_is_the_same_again_and_leaves_the_generator_alone() -> None:
    good, state = scans(10, 0), torch.get_rng_state()
    first, again = (fit_mentor(good, seed=3, steps=5) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for (name, a), (_, b) in zip(first.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    other = fit_mentor(good, seed=4, steps=5)
    assert not torch.equal(other.fusion.join[0].weight, first.fusion.join[0].weight)


@pytest.fixture(scope="module", params=["mentor3ad", "m3dm"])
def head(request: pytest.FixtureRequest) -> AnomalyHead:
    return fitted(request.param, STEPS)


def fitted(name: str, steps: int) -> AnomalyHead:
    method, good = SCAN_METHODS[name], scans(GOOD, 0)
    model: nn.Module = fit_alone(method, Samples(good), 0, steps, None)
    return replace(method, smoothing=2.0).head(model, good, (SIDE, SIDE))


def test_a_dent_is_found_where_it_is(head: AnomalyHead) -> None:
    usual, scores, inside, around = dents(head)
    assert (scores[:, None] > usual).float().mean() > 0.8
    assert (inside > around).float().mean() > 0.8


def test_cfm_finds_a_dent_where_it_is() -> None:
    """By its map; its score is relative to the scan's own mean, and a dent of a seventh of the cells raises both."""
    _, _, inside, around = dents(fitted("cfm", 250))
    assert inside.mean() > 1.1 * around.mean()


def dents(head: AnomalyHead) -> list[torch.Tensor]:
    """Scores of 30 good and of 30 dented scans; of the latter the mean in the dent, and of all."""
    good, odd = scans(30, 7), [np.concatenate(each) for each in zip(*map(dented, range(300, 330)), strict=True)]
    (usual, _), (scores, heat) = (head(*tensors(maps), torch.ones(30, SIDE, SIDE)) for maps in (good, odd))
    return [usual, scores, heat[:, 20:36, 20:36].mean((1, 2)), heat.mean((1, 2))]


def test_an_object_score_of_cfm_by_hand() -> None:
    cells = Cells([(2, 2, 2), (7, 4, 4)])
    model = CFM(cells, Mapping(2, 42, 8), Mapping(42, 2, 8))
    maps = torch.tensor([[[0.5, 0.0], [2.0, 1.1]], [[0.0, 0.0], [0.0, 0.0]]])
    shown = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]).expand(2, -1, -1)
    assert model.image_score([], [maps], [shown]).tolist() == pytest.approx([2 / (2.5 / 2) ** 0.5, 0])


@pytest.fixture(scope="module")
def graph(head: AnomalyHead) -> onnx.ModelProto:
    return export(head, (*tensors(scans(2, 1)), torch.ones(2, SIDE, SIDE)), NAMES, ["score", "map"])


def test_the_exported_head_says_what_torch_says(head: AnomalyHead, graph: onnx.ModelProto) -> None:
    assert check_allowed(graph) == []
    for count in (1, 3):
        maps = [*scans(count, 11), np.ones((count, SIDE, SIDE), np.float32)]
        maps[2][:, :, :9, :6] = 0
        maps[3][:, 40:] = 0
        found = open_session(graph).run(["score", "map"], dict(zip(NAMES, maps, strict=True)))
        for a, b in zip(found, head(*tensors(maps)), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4 * float(b.abs().max()))
            assert math.isfinite(a.max())


@pytest.mark.slow
def test_the_head_builds_in_tensorrt(graph: onnx.ModelProto) -> None:
    assert len(build(graph).engine) > 10_000
