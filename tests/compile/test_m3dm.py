"""M3DM's parts against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM

from compile.methods.m3dm import Bank, Fuse, reweigh
from compile.methods.one_class import one_class_weights


def test_the_published_fusion_has_15_84_million_parameters() -> None:
    assert sum(each.numel() for each in Fuse(768, 1152).parameters()) == 15_840_896


def test_an_object_score_by_hand() -> None:
    """The nearest vector is (0, 0), 5 away; its neighbours are 4 and sqrt(10) + 3 from the cell."""
    found = reweigh(torch.tensor([5.0]), torch.tensor([[4.0, 7.0]]), 4)
    weight = 1 - math.exp(5 / 2) / (math.exp(4 / 2) + math.exp(7 / 2))
    assert float(found) == pytest.approx(weight * 5, abs=1e-6)


def test_a_bank_weighs_the_oddest_cell_that_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, cells = torch.randn(40, 6, generator=generator), 2 * torch.randn(3, 20, 6, generator=generator)
    bank = Bank(vectors)
    distances = bank(cells)
    torch.testing.assert_close(distances, torch.cdist(cells, vectors[None]).amin(2))
    distances[:, 10:] = 0
    for each, row, score in zip(cells, distances, bank.object_score(cells, distances), strict=True):
        cell = each[int(row.argmax())]
        best = vectors[int((vectors - cell).norm(dim=1).argmin())]
        others = vectors[(vectors - best).norm(dim=1).argsort()[1:3]]
        wanted = reweigh(row.max()[None], (others - cell).norm(dim=1)[None], 6)
        assert float(score) == pytest.approx(float(wanted), rel=1e-4)


def test_the_one_class_machine_is_a_linear_one() -> None:
    points = np.abs(np.random.default_rng(0).normal([3, 1, 2], [1, 0.5, 0.2], (400, 3)))
    wanted = OneClassSVM(kernel="linear", nu=0.5, tol=1e-6).fit(points).coef_[0]
    found = one_class_weights(torch.from_numpy(points)).numpy()
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999
