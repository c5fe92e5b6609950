"""GRNR's closed form is the paper's, its self-filter both the published and the corrected one, its graph plain."""

import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from skimage import data

from compile.anomaly_graph import AnomalyHead
from compile.export import export
from compile.methods import FitError, grnr
from compile.methods.grnr import (
    GRNR,
    LAM,
    RIDGE,
    TYPICAL,
    Scale,
    fit_grnr,
    neighbours,
    regress,
    self_filter_mean,
    solve,
)
from compile.tensorrt_build import build, check_allowed

GRIDS = ((12, 16), (6, 8))
CHANNELS = (24, 32)


def textures(count: int, seed: int) -> list[np.ndarray]:
    """Maps of a constant texture with noise, one array per scale."""
    rng = np.random.default_rng(seed)
    maps = []
    for channels, (height, width) in zip(CHANNELS, GRIDS, strict=True):
        constant = np.random.default_rng(7).normal(3, 1, (channels, 1, 1))
        maps.append((constant + rng.normal(0, 0.1, (count, channels, height, width))).astype(np.float32))
    return maps


def tensors(maps: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(each) for each in maps]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_projection_is_the_naive_closed_form(monkeypatch):
    """GRNR-1: with all global vectors in sums of their own, as the paper writes it; float64, no ridge, then float32."""
    q, around, typical = random(1, 5, 16), random(1, 5, 8, 16, seed=1), random(TYPICAL, 16, seed=2)
    naive = []
    for vector, local in zip(q[0].numpy(), around[0].numpy(), strict=True):
        right = vector @ local.T + LAM * sum(each @ local.T for each in typical.numpy())
        naive.append(right @ np.linalg.inv((1 + LAM * TYPICAL) * local @ local.T) @ local)
    mean = typical.mean(0)[None, None]
    monkeypatch.setattr(grnr, "RIDGE", 0.0)
    assert np.abs(regress(q, around, mean)[0].numpy() - naive).max() < 1e-12
    assert np.abs(regress(q.float(), around.float(), mean.float())[0].numpy() - naive).max() < 1e-5


def test_the_inspected_vector_weighs_one_in_two_hundred_and_one():
    """GRNR-2, where the neighbours span everything: moving Q by one moves its reconstruction by 1/201."""
    around, typical = torch.eye(8, dtype=torch.float64)[None, None], torch.zeros(1, 1, 8, dtype=torch.float64)
    made = regress(torch.ones(1, 1, 8, dtype=torch.float64), around, typical)
    assert made.numpy() * (1 + RIDGE) == pytest.approx(1 / 201, rel=1e-9)


def test_the_corrected_self_filter_takes_the_typical_and_the_published_one_the_top_rows():
    """GRNR-3: vectors of the first rows are odd; only the corrected filter leaves them out."""
    maps = random(1, 6, 12, 12, seed=3).float() * 0.1 + 2
    maps[:, :, :4] += 5 * random(1, 6, 4, 12, seed=4).float()
    vectors = maps.flatten(2).transpose(1, 2)
    published = Scale((12, 12), "published", "cut", None).own_typical(maps)
    corrected = Scale((12, 12), "corrected", "cut", None).own_typical(maps)
    assert torch.equal(published, vectors[:, :40].mean(1, keepdim=True))
    apart = np.linalg.norm(vectors[0, :, None].double() - vectors[0, None].double(), axis=2).mean(1)
    chosen = np.argsort(apart)[:TYPICAL]
    assert not set(chosen) & set(range(TYPICAL))
    assert torch.allclose(corrected[0, 0], vectors[0, chosen].mean(0), atol=1e-5)


def test_distances_survive_a_large_common_part():
    """Features of a rectified trunk lie far from zero and near each other."""
    vectors = random(1, 120, 6, seed=5)
    near = self_filter_mean(vectors.float()) + 1000
    assert torch.allclose(self_filter_mean((vectors + 1000).float()), near, atol=1e-3)


def test_neighbours_are_the_eight_around_each_place():
    """GRNR-4: against a gather by index, reflected at the border."""
    maps = random(2, 3, 5, 7)
    found = neighbours(maps)
    for y, x in itertools.product(range(5), range(7)):
        steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
        for i, (dy, dx) in enumerate(steps):
            row, column = 4 - abs(4 - abs(y + dy)), 6 - abs(6 - abs(x + dx))
            assert torch.equal(found[:, y * 7 + x, i], maps[:, :, row, column])


@pytest.mark.parametrize("self_filter", ["corrected", "published"])
@pytest.mark.parametrize("border", ["levelled", "cut"])
def test_the_peak_lies_on_the_altered_patch(self_filter, border):
    """GRNR-5."""
    maps = textures(2, 0)
    maps[0][1, :, 7, 10] = maps[0][1, :, 7, 10][::-1]
    maps[1][1, :, 3, 5] = maps[1][1, :, 3, 5][::-1]
    (found,) = GRNR(GRIDS, self_filter=self_filter, border=border)(tensors(maps))
    assert found.shape == (2, 12, 16)
    row, column = divmod(int(found[1].argmax()), 16)
    assert abs(row - 7) <= 1
    assert abs(column - 10) <= 1
    assert found[1].max() > 2 * found[0].max()


def test_the_unrolled_solve_agrees_with_float64():
    """On Gram matrices as they come: neighbours of real photographs, nearly alike, kept apart by the ridge alone."""
    patches = torch.from_numpy(data.coffee()[:64, :64].astype(np.float64) / 255).permute(2, 0, 1)
    maps = torch.nn.functional.pixel_unshuffle(patches, 4)[None]
    around = neighbours(maps)
    gram = around @ around.transpose(2, 3)
    gram = gram / gram.diagonal(dim1=2, dim2=3).mean(2)[..., None, None] + RIDGE * torch.eye(8)
    right = gram @ random(1, gram.shape[1], 8, 1)
    exact = np.linalg.solve(gram.numpy(), right.numpy())
    assert np.abs(solve(gram, right).numpy() - exact).max() < 1e-8
    assert np.abs(solve(gram.float(), right.float()).numpy() - exact).max() < 2e-2  # the condition is 8e4
    made = (solve(gram.float(), right.float()).double() * around).sum(2).numpy()
    assert np.abs(made - (exact * around.numpy()).sum(2)).max() < 1e-3


def test_a_blank_map_scores_nothing():
    (found,) = GRNR(GRIDS)([torch.zeros(1, c, *g) for c, g in zip(CHANNELS, GRIDS, strict=True)])
    assert torch.equal(found, torch.zeros(1, 12, 16))


def test_the_border_is_scored_unless_it_is_cut():
    """An odd rim is level with the rest, a defect in it still shows; the published border shows neither."""
    maps = textures(1, 1)[0]
    maps[0, :, 0, :] *= 1.5 + 0.1 * np.random.default_rng(2).normal(size=(CHANNELS[0], 1))
    odd = maps.copy()
    odd[0, :, 0, 9] = odd[0, :, 0, 9][::-1]
    raw = Scale(GRIDS[0], "corrected", "levelled", None).missed(torch.from_numpy(maps)).norm(dim=2).reshape(12, 16)
    assert raw[0].mean() > 2 * raw[3:-3].mean()
    levelled = Scale(GRIDS[0], "corrected", "levelled", None)
    plain, found = levelled(torch.from_numpy(maps))[0], levelled(torch.from_numpy(odd))[0]
    ring = torch.cat([plain[0], plain[-1], plain[1:-1, 0], plain[1:-1, -1]])
    assert float(ring.mean()) == pytest.approx(float(plain[1:-1, 1:-1].mean()), rel=1e-4)
    assert int(found.argmax()) == 9
    cut = Scale(GRIDS[0], "corrected", "cut", None)(torch.from_numpy(odd))[0]
    assert torch.equal(cut[0], cut.min().expand(16))


def test_large_grids_compare_a_regular_part():
    maps = random(1, 3, 90, 64).float()
    scale = Scale((90, 64), "corrected", "levelled", None)
    part = maps[:, :, ::3, ::3].flatten(2).transpose(1, 2)
    assert part.shape[1] == 30 * 22
    assert torch.equal(scale.own_typical(maps), self_filter_mean(part))


def test_few_shots_measure_each_place_by_good_pictures():
    """A place that is odd on every good part is no defect; without pictures it is."""
    good, test = textures(4, 3), textures(2, 4)
    for maps in (good[0], test[0]):
        maps[:, :, 5, 5] *= -1
    for maps in (good[1], test[1]):
        maps[:, :, 2, 2] *= -1
    test[0][1, :, 8, 12] *= 0.5
    test[1][1, :, 4, 6] *= 0.5
    (zero,) = fit_grnr([each[:0] for each in good], seed=0)(tensors(test))
    (few,) = fit_grnr(good, seed=0)(tensors(test))
    habit, defect = (slice(4, 7), slice(4, 7)), (slice(7, 10), slice(11, 14))
    assert zero[1][habit].max() > 2 * zero[1][defect].max()
    assert few[1][defect].max() > 2 * few[1][habit].max()


def test_few_shots_count_each_channel_by_what_good_pictures_leave():
    """A defect of a quiet channel is seen through the noise of a loud one."""
    good, test = textures(4, 3), textures(2, 4)
    noise = np.random.default_rng(8)
    for maps in (*good, *test):
        maps[:, 0] += noise.normal(0, 20, maps[:, 0].shape)
    test[0][1, 5, 8, 12] += 5
    test[1][1, 5, 4, 6] += 5
    (found,) = fit_grnr(good, seed=0)(tensors(test))
    assert found[1, 7:10, 11:14].max() == found.max()
    assert found[1].max() > 3 * found[0].max()


def test_the_fit_is_repeatable_and_leaves_the_random_state(monkeypatch):
    monkeypatch.setattr(grnr, "POOL", 150)  # of 3 * 192 and 3 * 48 vectors
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (fit_grnr(textures(3, 0), seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["scales.0.typical"], other["scales.0.typical"])


def test_bad_input_is_refused():
    good = textures(2, 0)
    with pytest.raises(ValueError, match=r"features of \[2, 1\] pictures"):
        fit_grnr([good[0], good[1][:1]], seed=0)
    with pytest.raises(ValueError, match="raster order"):
        fit_grnr(good, seed=0, self_filter="published")
    with pytest.raises(ValueError, match="needs 4 a side"):
        GRNR([(8, 8), (3, 8)])
    good[1][0, 0, 0, 0] = np.nan
    with pytest.raises(FitError, match="not finite"):
        fit_grnr(good, seed=0)


@pytest.mark.parametrize(("count", "scales"), [(0, 2), (2, 1)])
def test_exports_to_plain_operators_that_agree_and_build(count, scales):
    features = tensors(textures(3, 6))[:scales]
    model = fit_grnr([each[:count] for each in textures(2, 0)[:scales]], seed=0)
    head = AnomalyHead(model, [model.grid], (24, 32)).eval()
    names = [*("fine", "coarse")[:scales], "mask"]
    graph = export(head, (*features, torch.ones(3, 24, 32)), names, ["score", "map"])
    assert check_allowed(graph) == []
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = [*(each[:batch] for each in features), torch.ones(batch, 24, 32)]
        found = session.run(None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)})
        for got, want in zip(found, head(*inputs), strict=True):
            assert np.abs(got - want.numpy()).max() <= 1e-4 * float(want.max())
    assert len(build(graph).engine) > 10_000
