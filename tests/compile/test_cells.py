"""Picture and surface stand in the same cell, and missing points count nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compile.methods import FitError
from compile.methods.cells import Cells, fit_cells

SHAPES = [(3, 4, 4), (2, 2, 2), (7, 16, 16)]


def scans(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = [rng.normal(0, 3, (count, *shape)).astype(np.float32) for shape in SHAPES]
    maps[2][:, 3] = -1
    return maps


def test_a_cell_has_the_mean_and_deviation_of_its_points() -> None:
    maps = [torch.from_numpy(each) for each in scans(2)]
    found = Cells(SHAPES).raw(maps)
    assert found.surface.shape == (2, 16, 42)
    block = maps[2][1, :, 4:8, 8:12].flatten(1)
    own = torch.cat([block.mean(1), block.std(1, correction=0)])
    torch.testing.assert_close(found.surface[1, 6, :14], own)
    around = found.surface[1].reshape(4, 4, 42)[0:3, 1:4, :14].mean((0, 1))
    torch.testing.assert_close(found.surface[1, 6, 14:28], around)


def test_missing_points_count_nowhere() -> None:
    maps = [torch.from_numpy(each) for each in scans(1)]
    maps[2][0, :, 4:8, 8:10] = 0  # half of a cell
    maps[2][0, :, 0:4, 8:12] = 0  # the cell above it
    found = Cells(SHAPES).raw(maps)
    torch.testing.assert_close(found.surface[0, 6, :7], maps[2][0, :, 4:8, 10:12].mean((1, 2)))
    assert found.known[0].tolist() == [1, 1, 0, *[1] * 13]
    rows, columns = [1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 3, 1, 2, 3, 1, 3]
    cells = found.surface[0].reshape(4, 4, 42)[rows, columns, 0]
    share = torch.tensor([1, 0.5, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(found.surface[0, 6, 14], (cells * share).sum() / share.sum())
    empty = [maps[0], maps[1], torch.zeros_like(maps[2])]
    assert all(torch.isfinite(each).all() for each in Cells(SHAPES)(empty))


def test_the_picture_is_read_at_the_middles_of_cells() -> None:
    """The trunk's cells are centred on the edge of their span; a ramp tells where it is read."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    coarse = 2 * torch.arange(4.0).expand(1, 1, 4, 4)
    cells = Cells([(1, 8, 8), (1, 4, 4), (7, 16, 16)])
    found = cells.raw([ramp, coarse, -torch.ones(1, 7, 16, 16)]).picture.reshape(8, 8, 2)
    torch.testing.assert_close(found[4, 3:5, 0], torch.tensor([3.5, 4.5]))
    torch.testing.assert_close(found[4, 2:4, 1], torch.tensor([2.5, 3.5]))


def test_a_fit_whitens_by_the_scans_that_it_may_see() -> None:
    maps = scans(40)
    cells, known, held = fit_cells(maps, seed=0)
    assert (len(known.known), len(held.known)) == (32 * 16, 8 * 16)
    spread = torch.cov(known.picture.T)
    assert (spread - torch.eye(len(spread))).abs().max() < 0.05
    assert known.surface.std(0)[0] == pytest.approx(1, abs=0.05)  # later directions hardly vary
    others = [each.copy() for each in maps]
    for each in others:
        each[32:] *= 2
    assert torch.equal(fit_cells(others, seed=0)[0].picture.weight, cells.picture.weight)
    through = cells([torch.from_numpy(each[:1]) for each in maps])
    assert all(row in through.picture[0] for row in known.picture[:16])


def test_what_cannot_be_fitted_on_is_said() -> None:
    maps = scans(6)
    with pytest.raises(ValueError, match=r"geometry of \(18, 16\) points does not divide into \(4, 4\) cells"):
        Cells([*SHAPES[:2], (7, 18, 16)])
    with pytest.raises(FitError, match="no cell of the scans has points"):
        fit_cells([maps[0], maps[1], np.zeros_like(maps[2])], seed=0)
    maps[0][2, 1, 1, 1] = np.nan
    with pytest.raises(FitError, match="not finite"):
        fit_cells(maps, seed=0)
