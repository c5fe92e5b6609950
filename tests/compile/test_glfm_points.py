"""GLFM on a small Point-MAE: what it learns from stretched clouds, and that objects go to their class."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from compile.methods import glfm_banks
from compile.methods.glfm_points import adapt_encoder, fill_point_banks, score_points
from compile.methods.point_mae import PointEncoder, to_points
from compile.methods.stretching import stretch

SMALL = {"groups": 32, "neighbours": 12}
Cloud = tuple[np.ndarray, np.ndarray]


def cloud(kind: int, seed: int) -> Cloud:
    """Kind 0 is flat, kind 1 a dome; with normals."""
    rng = np.random.default_rng([seed, kind])
    flat = rng.uniform(-1, 1, (500, 2))
    points = np.column_stack([flat, kind * 0.5 * (flat**2).sum(1)])
    normals = np.column_stack([kind * flat, -np.ones(len(flat))])
    return points.astype(np.float32), (normals / np.linalg.norm(normals, axis=1)[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def good() -> list[Cloud]:
    return [cloud(kind, seed) for seed in range(6) for kind in (0, 1)]


@pytest.fixture(scope="module")
def fresh() -> PointEncoder:
    torch.manual_seed(0)
    return PointEncoder(24, 3, 2).requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def encoder(good: list[Cloud], fresh: PointEncoder) -> PointEncoder:
    found = deepcopy(fresh)
    adapt_encoder(found, *zip(*good, strict=True), seed=0, steps=6, **SMALL)
    return found


def test_all_of_the_encoder_learns(fresh: PointEncoder, encoder: PointEncoder) -> None:
    assert not encoder.training
    for (name, a), b in zip(encoder.named_parameters(), fresh.parameters(), strict=True):
        assert not torch.equal(a, b), name


@pytest.mark.parametrize("choice", ["k-means", "k-centre"])
def test_objects_go_to_their_class(good: list[Cloud], encoder: PointEncoder, choice: str) -> None:
    model = fill_point_banks(encoder, [each[0] for each in good], entries=2, seed=0, choice=choice, **SMALL)
    routes = [[score_points(model, cloud(kind, seed)[0])[1] for seed in range(20, 26)] for kind in (0, 1)]
    assert {len(set(each)) for each in routes} == {1}
    assert routes[0][0] != routes[1][0]


def test_what_is_in_the_bank_is_usual_and_a_bump_is_not(
    good: list[Cloud], encoder: PointEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glfm_banks, "REDUCED", 1)  # all that was seen is kept
    model = fill_point_banks(encoder, [each[0] for each in good], entries=2, seed=0, **SMALL)
    for points, normals in good[:2]:
        bump = stretch(points, normals, np.random.default_rng(1))
        before, after = (score_points(model, each)[0] for each in (points, bump.points))
        assert before.shape == after.shape == (500,)
        assert before.max() < 1e-3
        assert after[torch.from_numpy(bump.moved)].mean() > 0.1


def test_values_of_one_kind_stay_so_on_points() -> None:
    points = cloud(1, 0)[0]
    torch.testing.assert_close(to_points(torch.full((9, 2), 4.0), points, points[:9]), torch.full((500, 2), 4.0))
