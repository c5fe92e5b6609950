"""Picture and surface on one grid: what methods that compare the two modalities look at. Ours; no paper's.

The picture: maps of the trunk, averaged over 3x3 cells and brought to the middles of the finest map's cells, where the
points of a cell lie around. The surface: of each quantity of the front end's `geometry` (height over the plane, normal,
curvatures, roughness) mean and deviation over the cell's points, and the mean over 3x3 and 7x7 cells, as a dent is told
from a rough surface by what lies around it. Missing points count nowhere. Both are whitened, so that no quantity
outweighs the others by its unit; directions with hardly any variance are held down. Where published systems have DINO
(768 numbers a cell) and Point-MAE (1152), `Mentor` and `CFM` take those in the place of these cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import interpolation
from compile.methods import FitError

AROUND = (3, 7)  # cells a side, of the means
COMPONENTS = 96  # of the picture, at most
RIDGE = 1e-2  # of a standardised direction's variance, added
POOL = 200_000  # cells that a fit looks at
NORMAL_Z = 3  # of `geometry`: below zero wherever there is a surface


class Pair(NamedTuple):
    """`picture` [..., P] and `surface` [..., S] of the same cells; `known` [...] is 1 where there are points."""

    picture: Tensor
    surface: Tensor
    known: Tensor

    def at(self, rows: Tensor | slice) -> Pair:
        return Pair(self.picture[rows], self.surface[rows], self.known[rows])


class Cells(nn.Module):
    """Maps of the trunk [B, C_i, h_i, w_i], the finest first, and `geometry` [B, G, H, W] to a `Pair` of [B, h * w].

    Args:
        shapes: of one scan's maps in this order; H and W are multiples of the finest h and w.

    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        *trunk, geometry = shapes
        self.grid = (trunk[0][1], trunk[0][2])
        if geometry[1] % self.grid[0] or geometry[2] % self.grid[1]:
            raise ValueError(f"geometry of {geometry[1:]} points does not divide into {self.grid} cells")
        for i, (_, height, width) in enumerate(trunk):
            self.register_buffer(f"rows_{i}", interpolation(height, self.grid[0]), persistent=False)
            columns = interpolation(width, self.grid[1]).T.contiguous()
            self.register_buffer(f"columns_{i}", columns, persistent=False)
        channels = sum(shape[0] for shape in trunk)
        surface = surface_width(geometry[0])
        self.picture = nn.Linear(channels, min(channels, COMPONENTS))
        self.surface = nn.Linear(surface, surface)

    def raw(self, features: Sequence[Tensor]) -> Pair:
        """Before whitening."""
        *trunk, geometry = features
        levels = [functional.avg_pool2d(f, 3, stride=1, padding=1, count_include_pad=False) for f in trunk]
        raised = [getattr(self, f"rows_{i}") @ f @ getattr(self, f"columns_{i}") for i, f in enumerate(levels)]
        surface, known = describe_surface(geometry, self.grid)
        return Pair(torch.cat(raised, 1).flatten(2).transpose(1, 2), surface, known)

    def forward(self, features: Sequence[Tensor]) -> Pair:
        found = self.raw(features)
        return Pair(self.picture(found.picture), self.surface(found.surface), found.known)


def surface_width(channels: int) -> int:
    """Numbers that `describe_surface` gives a cell."""
    return 2 * (1 + len(AROUND)) * channels


def describe_surface(geometry: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Describe each cell's surface.

    Args:
        geometry: [B, G, H, W]; H and W are multiples of the grid's sides.
        grid: h and w.

    Returns:
        float32 [B, h * w, 6 G]: mean and deviation over the points of a cell, then the means of these over the cells
        around; and [B, h * w], 1 where a cell has points.

    """
    mean, deviation, share = _of_cells(geometry, grid)
    own = torch.cat([mean, deviation], 1)
    parts = [own, *(around(own, share, side) for side in AROUND)]
    return torch.cat(parts, 1).flatten(2).transpose(1, 2), (share > 0).flatten(1).float()


def around(values: Tensor, share: Tensor, side: int) -> Tensor:
    """Mean of values [B, C, h, w] over the cells around, by their share [B, 1, h, w] of points."""
    near = functional.avg_pool2d(share, side, stride=1, padding=side // 2)
    return functional.avg_pool2d(values * share, side, stride=1, padding=side // 2) / near.clamp(min=1e-6)


def _of_cells(geometry: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation over each cell's points [B, G, h, w], and the share of its places that have one."""
    height, width = grid
    channels, down, right = geometry.shape[1], geometry.shape[2] // height, geometry.shape[3] // width
    known = (geometry[:, NORMAL_Z : NORMAL_Z + 1] < 0).float().reshape(-1, 1, height, down, width, right)
    values = geometry.reshape(-1, channels, height, down, width, right)
    share = known.mean((3, 5))
    least = share.clamp(min=1e-6)
    mean = (values * known).mean((3, 5)) / least
    apart = (values - mean.reshape(-1, channels, height, 1, width, 1)) * known
    return mean, ((apart * apart).mean((3, 5)) / least).sqrt(), share


@torch.no_grad()
def fit_cells(features: Sequence[NDArray[Any]], seed: int, *, whiten: bool = True) -> tuple[Cells, Pair, Pair]:
    """Measure the whitening on good scans.

    Args:
        features: trunk maps [n, C, h, w] of the pictures, the finest first, then `geometry` [n, G, H, W].
        seed: which cells are looked at, where there are more than `POOL`.
        whiten: whether all directions come to a variance near one; else each quantity does, which keeps for a cosine
            how much they have in common.

    Returns:
        the cells; those of the first four fifths of the scans, to fit on; and those of the last fifth, which no fit
        has seen (neighbours, which often show one part, are on one side). Whitened, known ones alone.

    Raises:
        FitError: no cell has points, or maps are not finite.

    """
    count = features[0].shape[0]
    cells = Cells([tuple(each.shape[1:]) for each in features])
    generator = torch.Generator().manual_seed(seed)
    most = max(1, POOL // count)
    pairs = [_known(cells, features, i, most, generator) for i in range(count)]
    first = first_held(count)
    held = _stack(pairs[first:])
    known = _stack(pairs[:first]) if first else held
    for each in (known, held):
        if not len(each.known):
            raise FitError("no cell of the scans has points to fit on. Look at the scans: has each a surface?")
    for project, values in ((cells.picture, known.picture), (cells.surface, known.surface)):
        measure_directions(project, values, whiten=whiten)
    return cells.eval(), _through(cells, known), _through(cells, held)


def first_held(count: int) -> int:
    """Number of the first of so many scans that no fit sees; 0 of one alone, which then serves for both."""
    return 0 if count < 2 else count - max(1, count // 5)


def _known(cells: Cells, features: Sequence[NDArray[Any]], row: int, most: int, generator: torch.Generator) -> Pair:
    found = cells.raw([torch.from_numpy(np.array(each[row : row + 1], np.float32)) for each in features])
    rows = torch.nonzero(found.known[0])[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator)[:most]]
    return Pair(found.picture[0, rows], found.surface[0, rows], found.known[0, rows])


def _stack(pairs: Sequence[Pair]) -> Pair:
    return Pair(*(torch.cat(each) for each in zip(*pairs, strict=True)))


def _through(cells: Cells, raw: Pair) -> Pair:
    return Pair(cells.picture(raw.picture), cells.surface(raw.surface), raw.known)


def measure_directions(project: nn.Linear, rows: Tensor, *, whiten: bool = True) -> None:
    """Make a linear map of `rows` [n, C], standardised, to principal components, the largest first."""
    values = rows.double()
    if not torch.isfinite(values).all():
        raise FitError("the maps are not finite. Look at the scans and at the trunk's rendering.")
    mean, deviation = values.mean(0), values.std(0, correction=0) + 1e-6
    values = (values - mean) / deviation
    size, vectors = torch.linalg.eigh(values.T @ values / len(values))
    size, vectors = size.flip(0)[: project.out_features], vectors.flip(1)[:, : project.out_features]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # a vector's own is any
    length = (size.clamp(min=0) + RIDGE).sqrt() if whiten else torch.ones_like(size)
    weight = (vectors / length).T / deviation
    project.weight = nn.Parameter(weight.float(), requires_grad=False)
    project.bias = nn.Parameter((-weight @ mean).float(), requires_grad=False)
