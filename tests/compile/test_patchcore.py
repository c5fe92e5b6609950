from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from compile.backbone import Trunk
from compile.methods.patchcore import (
    NEIGHBOURS,
    batches,
    fit_patchcore,
    greedy_coreset,
    nearest,
    patch_features,
    picture_scores,
)
from compile.metrics import auroc, pixel_metrics
from compile.synthesis import paint_many


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk()


def cuts(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    brick = cv2.cvtColor(data.brick(), cv2.COLOR_GRAY2RGB)
    places = [(rng.integers(0, 512 - 128), rng.integers(0, 512 - 128)) for _ in range(count)]
    return [brick[y : y + 128, x : x + 128] for y, x in places]


def test_coreset_is_greedy_k_centre() -> None:
    features = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    chosen = greedy_coreset(features, 40, seed=1)
    assert len(set(chosen.tolist())) == 40
    radius = nearest(features, features[chosen]).max()
    drawn = [nearest(features, features[torch.randperm(300)[:40]]).max() for _ in range(20)]
    assert radius < min(drawn)
    assert torch.equal(chosen, greedy_coreset(features, 40, seed=1))
    assert torch.equal(greedy_coreset(features[:30], 40, seed=1), torch.arange(30))


def test_coreset_covers_small_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    crowd = torch.randn(2000, 16, generator=generator)
    strays = torch.randn(5, 16, generator=generator) * 0.1 + 40 * torch.eye(16)[:5]
    chosen = greedy_coreset(torch.cat([crowd, strays]), 10, seed=0)
    assert set(range(2000, 2005)) <= set(chosen.tolist())


def test_nearest_equals_cdist() -> None:
    a, b = torch.randn(50, 7), torch.randn(30, 7)
    torch.testing.assert_close(nearest(a, b), torch.cdist(a, b).amin(1), atol=1e-3, rtol=1e-3)
    assert nearest(a, a).max() < 1e-2


def test_the_image_score_is_that_of_equation_7() -> None:
    """Written out with plain exponentials, one picture at a time."""
    generator = torch.Generator().manual_seed(0)
    bank, worst = torch.randn(40, 6, generator=generator), torch.randn(5, 6, generator=generator) + 1
    for patch, found in zip(worst, picture_scores(worst, bank), strict=True):
        distance = (bank - patch).norm(dim=1)
        best = int(distance.argmin())
        around = (bank - bank[best]).norm(dim=1).argsort()[:NEIGHBOURS]
        weight = 1 - np.exp(float(distance[best])) / np.exp(distance[around].numpy()).sum()
        assert float(found) == pytest.approx(weight * float(distance[best]), rel=1e-4)


def test_a_patch_near_a_rare_vector_scores_higher_than_one_as_far_from_a_crowd() -> None:
    crowd = 0.1 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rare = torch.tensor([[20.0, 0, 0, 0]])
    bank = torch.cat([crowd, rare])
    top = crowd[crowd[:, 1].argmax()]
    beside_rare, beside_crowd = rare[0] + torch.tensor([0, 1.0, 0, 0]), top + torch.tensor([0, 1.0, 0, 0])
    scores = picture_scores(torch.stack([beside_rare, beside_crowd]), bank)
    assert scores[0] == pytest.approx(1, abs=0.01)
    assert scores[1] < 0.95


def test_features_keep_place_and_order(trunk: Trunk) -> None:
    images = np.stack(cuts(3, 0))
    together, grid = patch_features(trunk, images)
    assert grid == (16, 16)
    assert together.shape == (3 * 256, 40 + 112)
    alone, _ = patch_features(trunk, images[1:2])
    torch.testing.assert_close(together[256:512], alone, atol=1e-4, rtol=1e-4)


def test_batches_lose_nothing() -> None:
    pictures = cuts(7, 0)
    stacked = list(batches(pictures, 3))
    assert [len(b) for b in stacked] == [3, 3, 1]
    assert np.array_equal(np.concatenate(stacked), np.stack(pictures))


def test_painted_defects_are_found_where_they_are(trunk: Trunk) -> None:
    model = fit_patchcore(trunk, batches(cuts(60, 0)), seed=0, bank=3000)
    good = cuts(20, 1)
    bad = paint_many(cuts(18, 2), 18, seed=0, smallest_px=24, largest_px=40)
    scores, maps = model.score(batches([*good, *(d.image for d in bad)]), (128, 128))
    assert maps.shape == (38, 128, 128)
    assert auroc(scores, np.repeat([0, 1], [20, 18])) > 0.9
    masks = [np.zeros((128, 128), bool)] * 20 + [d.mask for d in bad]
    assert pixel_metrics(list(maps), masks).auroc > 0.9
    again, _ = fit_patchcore(trunk, batches(cuts(60, 0)), seed=0, bank=3000).score(batches(good), (128, 128))
    np.testing.assert_allclose(again, scores[:20], rtol=1e-4)
