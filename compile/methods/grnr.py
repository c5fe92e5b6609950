"""GRNR: can each feature be told from its eight neighbours, as far as they are typical of the picture? No training.

The paper's (IEEE SMC: Systems, arXiv 2406.07333): each vector Q of a frozen backbone's map is regressed on
its local support S_L, the eight vectors around it, such that the combination also lies close to a global support S_G,
the vectors most typical of the same picture ("self-filter"); what it leaves of Q is the score. Maps of several scales
are fused by their product. The closed form, with weight LAM on each of the TYPICAL global vectors,

    W = (Q S_L' + LAM sum_n S_G^n S_L') [(1 + LAM TYPICAL) S_L S_L']^-1,   score = |Q - W S_L|,

needs of the global support its mean alone: W S_L is the projection of (Q + LAM TYPICAL mean) / (1 + LAM TYPICAL) on the
span of the neighbours. That is one 8x8 solve per place, here by Gauss-Jordan, as ONNX has none. What the public demo
does and what it means differ, and `self_filter` names both: the demo sets the diagonal of the distances to infinity
before it takes their means, so every mean is infinite and the sort returns the first vectors in raster order.

Ours: a ridge in place of the demo's random perturbation; on grids of more than SIDE cells a side, distances within a
regular part of them; no 3x3 average of the maps (a light convolutional trunk has looked wider already, and the average
hides the small and keeps the edges); support by other pictures of good parts (`fit_grnr`); and the border. There the
trunk's zero padding is odd. `border="cut"` is the paper's way: the rim carries the smallest inner value, and defects in
it stay unseen. `border="levelled"` divides each ring of the rim by its mean, so that a place at the border is as odd as
the rest of the border makes it. The settings behind the paper's tables are not public; LAM, TYPICAL, the rim and the
smoothing are those of its demo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import interpolation
from compile.job import Progress
from compile.methods import FitError

LAM = 5.0  # weight of each global vector
TYPICAL = 40  # global vectors
SIDE = 40  # cells a side that the self-filter compares at most
RIDGE = 1e-4  # of the mean square of the neighbours
RIM = 0.075  # of the grid's side: 3 of 40 cells and 2 of 20
SIGMA = 3 / 320  # of the picture's side: the smoothing of each scale's map
POOL = 6400  # vectors of good pictures that the self-filter compares
NEIGHBOURS = 8

SelfFilter = Literal["corrected", "published"]
Border = Literal["levelled", "cut"]


def neighbours(maps: Tensor) -> Tensor:
    """The eight vectors around each place of maps [B, C, h, w], reflected at the border: [B, h*w, 8, C]."""
    height, width = maps.shape[2:]
    padded = functional.pad(maps, (1, 1, 1, 1), mode="reflect")
    bands = [padded.narrow(2, y, height) for y in range(3)]
    shifted = [bands[y].narrow(3, x, width).flatten(2) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    return torch.stack(shifted, 1).permute(0, 3, 1, 2)


def solve(gram: Tensor, right: Tensor) -> Tensor:
    """Solve gram [..., n, n] x = right [..., n, 1] for positive definite matrices, by Gauss-Jordan without pivoting."""
    rows = torch.cat([gram, right], -1)
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for k in range(gram.shape[-1]):
        row, column = rows.narrow(-2, k, 1), rows.narrow(-1, k, 1)
        rows = rows - (column - unit.narrow(-1, k, 1)) * (row / row.narrow(-1, k, 1))
    return rows.narrow(-1, gram.shape[-1], 1)


def regress(vectors: Tensor, around: Tensor, typical: Tensor) -> Tensor:
    """What the neighbours [B, n, 8, C] and the mean of the global support [B or 1, 1, C] make of vectors [B, n, C]."""
    target = (vectors + LAM * TYPICAL * typical) / (1 + LAM * TYPICAL)
    gram = around @ around.transpose(2, 3)
    unit = torch.eye(NEIGHBOURS, dtype=gram.dtype, device=gram.device)
    size = (gram * unit).sum((2, 3), keepdim=True).clamp(min=1e-12) / NEIGHBOURS
    weights = solve(gram / size + RIDGE * unit, around @ target.unsqueeze(3) / size)
    return (weights * around).sum(2)


def self_filter_mean(vectors: Tensor) -> Tensor:
    """The mean [B, 1, C] of the TYPICAL of vectors [B, n, C] whose mean distance to the others is smallest."""
    centred = vectors - vectors.mean(1, keepdim=True)  # distances by matrix product cancel less
    squares = centred.square().sum(2, keepdim=True)
    apart = (squares + squares.transpose(1, 2) - 2 * centred @ centred.transpose(1, 2)).clamp(min=0).sqrt()
    found = apart.mean(2).topk(min(TYPICAL, vectors.shape[1]), largest=False).indices
    return vectors.gather(1, found.unsqueeze(2).expand(-1, -1, vectors.shape[2])).mean(1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Support:
    """What pictures of good parts say about one scale."""

    typical: Tensor  # float32 [C], the mean of their global support
    spread: Tensor  # float32 [C], root mean square of each channel's error, the rim left out
    expected: Tensor  # float32 [h, w], their mean score at each place


class Scale(nn.Module):
    """One map of the trunk, float32 [B, C, h, w], to its scores [B, h, w]; without support, from the picture alone."""

    typical: Tensor | None
    spread: Tensor | None
    expected: Tensor | None
    rings: Tensor
    inside: Tensor

    def __init__(self, grid: tuple[int, int], self_filter: SelfFilter, border: Border, support: Support | None) -> None:
        super().__init__()
        if min(grid) < 4:
            raise ValueError(f"trunk map of {grid} cells: GRNR needs 4 a side; use a larger picture or a finer stride")
        self.grid = grid
        self.rim = math.ceil(RIM * min(grid))
        self.step = math.ceil(max(grid) / SIDE)
        self.self_filter = self_filter
        self.border = border
        rings = functional.one_hot(_depth(grid).clamp(max=self.rim).flatten(), self.rim + 1).float()
        self.register_buffer("rings", rings, persistent=False)
        self.register_buffer("inside", (_depth(grid) >= self.rim).float(), persistent=False)
        self.register_buffer("typical", None if support is None else support.typical[None, None])
        self.register_buffer("spread", None if support is None else support.spread)
        self.register_buffer("expected", None if support is None else support.expected)

    def forward(self, maps: Tensor) -> Tensor:
        missed = self.missed(maps)
        if self.spread is not None and self.expected is not None:
            return self._size(missed / self.spread) / self.expected
        found = self._size(missed)
        if self.border == "cut":
            rim = self.rim
            lowest = found[:, rim:-rim, rim:-rim].amin((1, 2), keepdim=True)
            return found * self.inside + lowest * (1 - self.inside)
        means = (found.flatten(1) @ (self.rings / self.rings.sum(0))).clamp(min=1e-12)
        factors = (means[:, -1:] / means) @ self.rings.T
        return found * factors.reshape(-1, *self.grid)

    def missed(self, maps: Tensor) -> Tensor:
        """Q - W S_L at each place, in row order: [B, h*w, C]."""
        vectors = maps.flatten(2).transpose(1, 2)
        typical = self.typical if self.typical is not None else self.own_typical(maps)
        return vectors - regress(vectors, neighbours(maps), typical)

    def _size(self, missed: Tensor) -> Tensor:
        return missed.square().sum(2).sqrt().reshape(-1, *self.grid)

    def own_typical(self, maps: Tensor) -> Tensor:
        if self.self_filter == "published":
            return maps.flatten(2).transpose(1, 2)[:, :TYPICAL].mean(1, keepdim=True)
        return self_filter_mean(maps[:, :, :: self.step, :: self.step].flatten(2).transpose(1, 2))


class GRNR(nn.Module):
    """The trunk's maps, float32 [B, C_i, h_i, w_i], to one map [B, h, w] on the finest grid: the product of all scales.

    Args:
        grids: heights and widths of the trunk's maps.
        self_filter: how the global support is chosen where no support is given.
        border: how the rim is scored where no support is given.
        support: of good pictures, one per scale. It takes the place of both.

    """

    def __init__(
        self,
        grids: Sequence[tuple[int, int]],
        *,
        self_filter: SelfFilter = "corrected",
        border: Border = "levelled",
        support: Sequence[Support] | None = None,
    ) -> None:
        super().__init__()
        given: Sequence[Support | None] = support or [None] * len(grids)
        pairs = zip(grids, given, strict=True)
        self.scales = nn.ModuleList([Scale(grid, self_filter, border, each) for grid, each in pairs])
        self.grid = max(grids, key=math.prod)
        for i, (height, width) in enumerate(grids):
            self.register_buffer(f"rows_{i}", _bring(height, self.grid[0]), persistent=False)
            self.register_buffer(f"columns_{i}", _bring(width, self.grid[1]).T.contiguous(), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        product = None
        for i, (scale, maps) in enumerate(zip(self.scales, features, strict=True)):
            brought = getattr(self, f"rows_{i}") @ scale(maps) @ getattr(self, f"columns_{i}")
            product = brought if product is None else product * brought
        assert product is not None
        return (product,)


@torch.no_grad()
def fit_grnr(
    features: Sequence[NDArray[Any]],
    *,
    seed: int,
    progress: Progress | None = None,
    self_filter: SelfFilter = "corrected",
    border: Border = "levelled",
) -> GRNR:
    """Make the zero-shot model of no pictures, or the few-shot one of k pictures of good parts. Nothing is trained.

    Few-shot is ours, not the paper's: the global support is chosen among the vectors of the k pictures instead of
    among the inspected one's, and the error is counted by what good pictures leave: first in each channel, then at each
    place, which covers the border.

    Args:
        features: one array or memmap [k, C, h, w] of trunk maps per scale; k may be 0.
        seed: of the draw among more than POOL vectors; otherwise without effect.
        progress: called with (what, done, of).
        self_filter: as in `GRNR`; "published" exists without pictures only.
        border: as in `GRNR`, without effect where pictures are given.

    Raises:
        FitError: maps are not finite.
        ValueError: scales of different numbers of pictures; "published" with pictures.

    """
    counts = [each.shape[0] for each in features]
    if len(set(counts)) != 1:
        raise ValueError(f"features of {counts} pictures: want the same number in every scale")
    grids = [(each.shape[2], each.shape[3]) for each in features]
    if counts[0] == 0:
        return GRNR(grids, self_filter=self_filter, border=border).eval()
    if self_filter == "published":
        raise ValueError("the published self-filter is raster order within one picture: fit it with no pictures")
    support = []
    for i, (maps, grid) in enumerate(zip(features, grids, strict=True)):
        support.append(_measure(maps, grid, seed))
        if progress is not None:
            progress("fit", i + 1, len(features))
    return GRNR(grids, support=support).eval()


def _measure(maps: NDArray[Any], grid: tuple[int, int], seed: int) -> Support:
    count, cells = maps.shape[0], math.prod(grid)
    drawn = np.sort(np.random.default_rng(seed).permutation(count * cells)[:POOL])
    chosen = [
        np.asarray(maps[number], np.float32).reshape(maps.shape[1], cells)[:, drawn[drawn // cells == number] % cells]
        for number in range(count)
    ]
    pool = torch.from_numpy(np.concatenate(chosen, 1).T.copy())
    if not torch.isfinite(pool).all():
        raise FitError("the trunk's maps are not finite. Look at the pictures and at the trunk's INT8 rendering.")
    typical = self_filter_mean(pool[None])[0, 0]
    pictures = [torch.from_numpy(np.asarray(maps[number : number + 1], np.float32)) for number in range(count)]
    scale = Scale(grid, "corrected", "levelled", Support(typical, torch.ones(maps.shape[1]), torch.ones(grid)))
    inside = scale.inside.flatten() > 0
    square = torch.stack([scale.missed(each)[0, inside].square().mean(0) for each in pictures]).mean(0)
    spread = (square + 1e-4 * square.mean() + 1e-12).sqrt()
    scale = Scale(grid, "corrected", "levelled", Support(typical, spread, torch.ones(grid)))
    mean = torch.cat([scale(each) for each in pictures]).mean(0)
    around = functional.pad(mean[None, None], (1, 1, 1, 1), mode="replicate")
    expected = functional.avg_pool2d(around, 3, 1)[0, 0]
    return Support(typical, spread, expected.clamp(min=1e-3 * float(expected.mean()) + 1e-12))


def _depth(grid: tuple[int, int]) -> Tensor:
    """How many cells lie between each cell and the nearest border, int64 [h, w]."""
    rows, columns = (torch.minimum(torch.arange(n), n - 1 - torch.arange(n)) for n in grid)
    return torch.minimum(rows[:, None], columns[None])


def _bring(cells: int, to: int) -> Tensor:
    """[to, cells]: linear interpolation to the finest grid, then the Gaussian; each row sums to one."""
    offsets = torch.arange(to, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((offsets[:, None] - offsets) / (SIGMA * to)) ** 2)
    return ((kernel / kernel.sum(1, keepdim=True)) @ interpolation(cells, to).double()).float()
