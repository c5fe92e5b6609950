"""PatchCore (Roth et al. 2022): the baseline that every accuracy table shows next to our models.

The paper's: patches of good pictures, as features of the frozen trunk averaged over 3x3 neighbours, are kept in a
memory bank chosen greedily (each next vector is the one farthest from all chosen so far) on a random projection; a
patch is as anomalous as its distance to the nearest one in the bank, a picture as its worst patch, weighted by how
close the bank's own vectors lie around that nearest one (eq. 7); maps are smoothed by a Gaussian.

Ours: the trunk; where there are very many patches the selection sees a random part of them; the bank is a constant of
the graph, with the neighbours of each of its vectors in a table, so that eq. 7 needs no second search. Nothing is tuned
on test pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.job import Progress

BANK = 10_000  # vectors
POOL = 100_000  # patches that the selection looks at
PROJECTED = 32  # dimensions of the random projection
NEIGHBOURS = 9  # b of eq. 7: vectors of the bank around the nearest one, itself included
CLOSE = 4  # vectors of the bank that are told apart exactly, where one looks nearest
BLUR_SIGMA = 4.0  # pixels of the map, as in the paper
CHUNK = 1024  # patches of a picture compared at once
TOLD_EVERY = 100  # vectors


class PatchCore(nn.Module):
    """A fitted bank: trunk maps to one map [B, h, w] of distances, on the finest hierarchy's grid.

    Args:
        bank: float32 [m, C], C being the channels of all hierarchies together.
        grids: height and width of each hierarchy, the finest first.

    """

    bank: Tensor
    table: Tensor
    squares: Tensor

    def __init__(self, bank: Tensor, grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.join = Join(grids)
        self.register_buffer("bank", bank)
        self.register_buffer("table", neighbours(bank))
        self.register_buffer("squares", bank.square().sum(1), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        """Trunk maps float32 [B, C_i, h_i, w_i] to the distance of each patch to the bank [B, h, w]."""
        patches = self.join(features)
        nearest = torch.cat([self._nearest(chunk)[0] for chunk in torch.split(patches, CHUNK, 1)], 1)
        return (nearest.reshape(-1, *self.join.grid),)

    def image_score(self, features: Sequence[Tensor], maps: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        """Weight each picture's worst patch by eq. 7; [B].

        The weight is one minus the share that the nearest vector has of the exponentials of the distances to its own
        neighbours in the bank: a patch near a rare vector is rarer than its distance says.

        Args:
            features: the trunk's maps.
            maps: what `forward` gives for them.
            seen: one [B, h, w]: 1 where the recipe's mask shows some of a patch, else 0.

        """
        patches = self.join(features)
        distances = (maps[0] * seen[0]).flatten(1)
        at = distances.argmax(1).reshape(-1, 1, 1).expand(-1, 1, patches.shape[2])
        worst = patches.gather(1, at)
        around = self._distances(worst, self.table.index_select(0, self._nearest(worst)[1].flatten()))[:, 0]
        return (1 - functional.softmax(around, 1)[:, 0]) * distances.amax(1)

    def _nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of patches [B, L, C] to the nearest vector of the bank, and which it is: [B, L] each.

        The squares of long vectors lose the digits that tell close ones apart, and a bank of several renderings has
        many such: so the few around the one that looks nearest are compared by their differences.
        """
        likely = (-2 * patches @ self.bank.T + self.squares).argmin(2)
        close = self.table[:, :CLOSE].index_select(0, likely.flatten())
        found, which = self._distances(patches, close).min(2)
        return found, close.gather(1, which.reshape(-1, 1)).reshape(likely.shape)

    def _distances(self, patches: Tensor, chosen: Tensor) -> Tensor:
        """Distances [B, L, k] of patches [B, L, C] to their chosen vectors of the bank [B * L, k], by differences."""
        near = self.bank.index_select(0, chosen.flatten()).reshape(*patches.shape[:2], chosen.shape[1], -1)
        found: Tensor = torch.linalg.vector_norm(patches.unsqueeze(2) - near, dim=3)
        return found


class HeldOut(nn.Module):
    """Banks of a part of the pictures each; what the one says that is most surprised.

    A bank knows its own pictures by heart and has nothing to say about them. Of two, one has not seen a given picture,
    and it is the more surprised one. Ours, for a teacher, which is asked about the pictures that it was fitted on.
    """

    def __init__(self, banks: Sequence[PatchCore]) -> None:
        super().__init__()
        self.banks = nn.ModuleList(banks)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        return (torch.stack([bank(features)[0] for bank in self.banks]).amax(0),)

    def image_score(self, features: Sequence[Tensor], maps: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        """Give the largest score of all banks; [B]."""
        del maps
        scores = [cast(PatchCore, bank).image_score(features, bank(features), seen) for bank in self.banks]
        return torch.stack(scores).amax(0)


class Join(nn.Module):
    """Trunk maps to patches [B, L, C]: averaged over 3x3 cells, raised to the finest grid (the first) and joined."""

    def __init__(self, grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.grid = grids[0]
        for i, (height, width) in enumerate(grids):
            self.register_buffer(f"rows_{i}", _raise(height, self.grid[0]), persistent=False)
            self.register_buffer(f"columns_{i}", _raise(width, self.grid[1]).T.contiguous(), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        levels = [functional.avg_pool2d(f, 3, stride=1, padding=1, count_include_pad=False) for f in features]
        coarse = [
            getattr(self, f"rows_{i}") @ level @ getattr(self, f"columns_{i}")
            for i, level in enumerate(levels[1:], start=1)
        ]
        return torch.cat([levels[0], *coarse], 1).flatten(2).transpose(1, 2)


@torch.no_grad()
def fit_patchcore(
    features: Sequence[NDArray[Any]], *, seed: int, bank: int = BANK, progress: Progress | None = None
) -> PatchCore:
    """Choose the bank from trunk maps of good images.

    Args:
        features: one array or memmap [n, C, h, w] per hierarchy, the finest first.
        seed: fixes the result, on one thread to the bit.
        bank: vectors to keep.
        progress: called with (what, done, of).

    """
    grids = [(f.shape[2], f.shape[3]) for f in features]
    join, generator = Join(grids), torch.Generator().manual_seed(seed)
    count = features[0].shape[0] * grids[0][0] * grids[0][1]
    rows = torch.randperm(count, generator=generator)[: max(POOL, bank)] if count > bank else torch.arange(count)
    pool = _patches(join, features, rows)
    return PatchCore(pool[greedy_coreset(pool, bank, generator, progress)], grids)


def greedy_coreset(points: Tensor, count: int, generator: torch.Generator, progress: Progress | None = None) -> Tensor:
    """Choose `count` rows of points [n, C], which stand in random order, by greedy k-centre; int64 [min(count, n)]."""
    if len(points) <= count:
        return torch.arange(len(points))
    if points.shape[1] > PROJECTED:
        points = points @ (torch.randn(points.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5)
    squares = points.square().sum(1)
    nearest_yet = torch.full((len(points),), torch.inf)
    chosen = torch.empty(count, dtype=torch.int64)
    current = 0  # the order is random: any start is
    for step in range(count):
        chosen[step] = current
        distance = (points @ points[current]).mul_(-2).add_(squares).add_(squares[current])
        torch.minimum(nearest_yet, distance, out=nearest_yet)
        current = int(nearest_yet.argmax())
        if progress is not None and (step + 1) % TOLD_EVERY == 0:
            progress("fit", step + 1, count)
    return chosen


def neighbours(bank: Tensor) -> Tensor:
    """int64 [m, min(9, m)]: for each vector of the bank [m, C] the nearest ones, itself first."""
    count = min(NEIGHBOURS, len(bank))
    return torch.cat([torch.cdist(c, bank).topk(count, largest=False).indices for c in torch.split(bank, CHUNK)])


def _patches(join: Join, features: Sequence[NDArray[Any]], rows: Tensor) -> Tensor:
    """Give the chosen patches [len(rows), C], numbered over all pictures, without holding all of them."""
    cells = join.grid[0] * join.grid[1]
    found = torch.empty(len(rows), sum(f.shape[1] for f in features))
    pictures = rows // cells
    for picture in pictures.unique().tolist():  # type: ignore[no-untyped-call]
        places = torch.nonzero(pictures == picture)[:, 0]
        maps = [torch.from_numpy(np.asarray(f[picture : picture + 1], np.float32)) for f in features]
        found[places] = join(maps)[0, rows[places] % cells]
    return found


def _raise(cells: int, wanted: int) -> Tensor:
    """[wanted, cells]: linear interpolation between the centres of the cells' spans, constant beyond the outer ones."""
    at = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * cells / wanted - 0.5).clamp(0, cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0).float()
