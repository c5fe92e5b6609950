from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
import torch
from skimage import data

from compile.anomaly_graph import AnomalyHead
from compile.backbone import Trunk
from compile.bench.score import score_maps
from compile.export import export
from compile.methods.patchcore import NEIGHBOURS, Join, PatchCore, fit_patchcore, greedy_coreset
from compile.methods.registry import METHODS, UnknownMethodError, find_method
from compile.metrics import auroc, pixel_metrics
from compile.onnx_session import open_session
from compile.synthesis import paint_many
from compile.tensorrt_build import build, check_allowed

NAMES = ["maps_8", "maps_16"]


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk()


def cuts(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    brick = cv2.cvtColor(data.brick(), cv2.COLOR_GRAY2RGB)
    places = [(rng.integers(0, 512 - 128), rng.integers(0, 512 - 128)) for _ in range(count)]
    return [brick[y : y + 128, x : x + 128] for y, x in places]


def maps_of(trunk: Trunk, pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [level.numpy() for level in trunk(torch.from_numpy(np.stack(pictures)))]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def radius(points: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points, points[chosen]).amin(1).max()


def test_coreset_is_greedy_k_centre() -> None:
    points = torch.randn(300, 12, generator=seeded())
    chosen = greedy_coreset(points, 40, seeded(1))
    assert len(set(chosen.tolist())) == 40
    assert radius(points, chosen) < min(radius(points, torch.randperm(300)[:40]) for _ in range(20))
    assert torch.equal(chosen, greedy_coreset(points, 40, seeded(1)))
    assert torch.equal(greedy_coreset(points[:30], 40, seeded(1)), torch.arange(30))


def test_coreset_covers_small_clusters() -> None:
    crowd = torch.randn(2000, 16, generator=seeded())
    strays = torch.randn(5, 16, generator=seeded(1)) * 0.1 + 40 * torch.eye(16)[:5]
    chosen = greedy_coreset(torch.cat([crowd, strays]), 10, seeded())
    assert set(range(2000, 2005)) <= set(chosen.tolist())


@pytest.fixture
def small() -> tuple[PatchCore, list[torch.Tensor]]:
    """A bank of 40 vectors, and the maps of five pictures, none near it."""
    bank = torch.randn(40, 6, generator=seeded())
    maps = [torch.randn(5, 4, 6, 8, generator=seeded(1)) + 1, torch.randn(5, 2, 3, 4, generator=seeded(2)) - 1]
    return PatchCore(bank, [(6, 8), (3, 4)]).eval(), maps


def test_a_patch_is_as_odd_as_its_distance_to_the_nearest_of_the_bank(small) -> None:
    model, maps = small
    (found,) = model(maps)
    distances = torch.cdist(model.join(maps), model.bank[None]).amin(2).reshape(5, 6, 8)
    torch.testing.assert_close(found, distances, atol=1e-4, rtol=1e-4)
    inside = PatchCore(model.join(maps).flatten(0, 1), [(6, 8), (3, 4)])
    assert float(inside(maps)[0].max()) < 0.01


def test_patches_are_means_of_neighbourhoods_in_their_place(small) -> None:
    model, maps = small
    patches = model.join(maps).reshape(5, 6, 8, 6)
    torch.testing.assert_close(patches[2, 3, 4, :4], maps[0][2, :, 2:5, 3:6].mean((1, 2)))
    torch.testing.assert_close(patches[2, 0, 0, :4], maps[0][2, :, :2, :2].mean((1, 2)))  # no zeros from outside
    raised = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(maps[1], 3, 1, 1, count_include_pad=False), (6, 8), mode="bilinear"
    )
    torch.testing.assert_close(patches[..., 4:], raised.permute(0, 2, 3, 1))


def test_the_image_score_is_that_of_equation_7(small) -> None:
    """Written out with plain exponentials, one picture at a time."""
    model, maps = small
    distances = model(maps)
    scores = model.image_score(maps, distances, [torch.ones(5, 6, 8)])
    for patches, grid, found in zip(model.join(maps), distances[0], scores, strict=True):
        distance = (model.bank - patches[int(grid.argmax())]).norm(dim=1)
        best = int(distance.argmin())
        around = (model.bank - model.bank[best]).norm(dim=1).argsort()[:NEIGHBOURS]
        weight = 1 - np.exp(float(distance[best])) / np.exp(distance[around].numpy()).sum()
        assert float(found) == pytest.approx(weight * float(distance[best]), rel=1e-4)


def test_a_patch_near_a_rare_vector_scores_higher_than_one_as_far_from_a_crowd() -> None:
    crowd = 0.1 * torch.randn(50, 4, generator=seeded())
    rare = torch.tensor([[20.0, 0, 0, 0]])
    model = PatchCore(torch.cat([crowd, rare]), [(1, 1)])
    top = crowd[crowd[:, 1].argmax()]
    beside = torch.stack([rare[0] + torch.tensor([0, 1.0, 0, 0]), top + torch.tensor([0, 1.0, 0, 0])])
    maps = [beside[:, :, None, None]]
    scores = model.image_score(maps, model(maps), [torch.ones(2, 1, 1)])
    assert scores[0] == pytest.approx(1, abs=0.01)
    assert scores[1] < 0.95


def test_close_vectors_far_from_the_origin_are_told_apart() -> None:
    """A bank of several renderings holds each patch several times, a little moved; their squares are all the same."""
    maps = [300 + 3 * torch.randn(1, 32, 5, 8, generator=seeded())]
    own = Join([(5, 8)])(maps)[0]
    moved = own + 0.01 * torch.randn(40, 32, generator=seeded())
    model = PatchCore(torch.cat([moved, own]), [(5, 8)])
    squares = (-2 * own @ model.bank.T + model.squares).argmin(1)
    assert (squares != 40 + torch.arange(40)).any()  # alone they would not do
    assert float(model(maps)[0].max()) < 1e-4
    assert float(model.image_score(maps, model(maps), [torch.ones(1, 5, 8)])) < 1e-4


def test_what_the_mask_hides_sets_no_score(small) -> None:
    model, maps = small
    head = AnomalyHead(model, [(6, 8)], (24, 32), smoothing=2.0).eval()
    whole, heat = head(*maps, torch.ones(5, 24, 32))
    worst = model(maps)[0].flatten(1).argmax(1)
    mask = torch.ones(5, 24, 32)
    for each, at in zip(mask, worst.tolist(), strict=True):
        row, column = divmod(at, 8)
        each[max(4 * row - 3, 0) : 4 * row + 4, max(4 * column - 3, 0) : 4 * column + 4] = 0
    hidden, cut = head(*maps, mask)
    assert torch.equal(cut, heat * mask)
    seen = torch.ones(5, 48).scatter(1, worst[:, None], 0).reshape(5, 6, 8)  # every other cell shows some of itself
    torch.testing.assert_close(hidden, model.image_score(maps, model(maps), [seen]))
    assert not torch.any(hidden == whole)
    assert torch.equal(head(*maps, torch.zeros(5, 24, 32))[0], torch.zeros(5))


def test_painted_defects_are_found_where_they_are(trunk: Trunk) -> None:
    good = maps_of(trunk, cuts(60, 0))
    state = torch.get_rng_state()
    model = fit_patchcore(good, seed=0, bank=3000).eval()
    assert torch.equal(state, torch.get_rng_state())
    method = METHODS["patchcore"]
    head = method.head(model, good, (128, 128))
    defects = paint_many(cuts(18, 2), 18, seed=0, smallest_px=24, largest_px=40)
    test = maps_of(trunk, [*cuts(20, 1), *(d.image for d in defects)])
    found = score_maps(head, test)
    assert auroc(found.scores, np.repeat([0, 1], [20, 18])) > 0.9
    masks = [np.zeros((128, 128), bool)] * 20 + [d.mask for d in defects]
    assert pixel_metrics(list(found.maps), masks).auroc > 0.9
    again = fit_patchcore(good, seed=0, bank=3000)
    assert torch.equal(again.bank, model.bank)
    assert not torch.equal(fit_patchcore(good, seed=1, bank=3000).bank, model.bank)


def test_the_bank_is_drawn_from_the_patches_of_all_pictures(trunk: Trunk) -> None:
    good = maps_of(trunk, cuts(6, 0))
    whole = fit_patchcore(good, seed=0)  # as many as there are
    assert torch.equal(whole.bank, whole.join([torch.from_numpy(m) for m in good]).flatten(0, 1))
    few = fit_patchcore(good, seed=0, bank=50)
    apart = torch.cdist(few.bank, whole.bank)
    assert float(apart.amin(1).max()) < 0.2  # others are 50 away
    assert len(set((apart.argmin(1) // 256).tolist())) > 3


@pytest.fixture(scope="module")
def graph(trunk: Trunk) -> tuple[AnomalyHead, onnx.ModelProto]:
    good = maps_of(trunk, cuts(6, 0))
    head = METHODS["patchcore"].head(fit_patchcore(good, seed=0, bank=300).eval(), good, (64, 64))
    example = (*(torch.from_numpy(m[:2]) for m in good), torch.ones(2, 64, 64))
    return head, export(head, example, [*NAMES, "mask"], ["score", "map"])


def test_the_exported_head_says_what_torch_says(graph, trunk: Trunk) -> None:
    head, model = graph
    assert check_allowed(model) == []
    for count in (1, 3):
        maps = maps_of(trunk, cuts(count, 5))
        mask = np.ones((count, 64, 64), np.float32)
        mask[:, :20] = 0
        found = open_session(model).run(["score", "map"], dict(zip([*NAMES, "mask"], [*maps, mask], strict=True)))
        wanted = head(*(torch.from_numpy(m) for m in [*maps, mask]))
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_head_builds_in_tensorrt(graph) -> None:
    assert len(build(graph[1]).engine) > 100_000


def test_the_score_is_said_as_the_head_takes_it(graph) -> None:
    head, _ = graph
    assert head.image_score is not None
    assert "eq. 7" in METHODS["patchcore"].score
    assert METHODS["varad"].score == "mean of the largest 1% of the map"
    assert METHODS["grnr"].score == "maximum of the map"
    assert METHODS["inp-former-pp"].score == "maximum of the smoothed map"


def test_methods_are_found_by_name() -> None:
    assert find_method("varad") == METHODS["varad"]
    with pytest.raises(UnknownMethodError, match=r"no method 'sam'\. There are: patchcore, "):
        find_method("sam")
