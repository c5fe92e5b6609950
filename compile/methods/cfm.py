"""CFM, crossmodal feature mapping (arXiv 2312.04521), on the embedded trunk: what Mentor3AD is without its mentor.

The paper's: `compile.methods.mapping`; the product of both distances as the map; 0 where there is no surface; the
object's score, which is the largest value over the root of the mean of those that are not 0 (its other two scalings are
for its pixel figures alone, and a box has one map for one threshold). Ours: `compile.methods.cells`, not whitened, in
place of DINO and Point-MAE, a narrower mapping, fewer steps on cells of all scans, and one Gaussian of the same
variance as the paper's eight box filters. Published with DINO and Point-MAE on MVTec 3D-AD: image AUROC 0.954, on
Eyecandies 0.881 (second-hand); not measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.job import Progress
from compile.methods.cells import Cells, Pair, fit_cells
from compile.methods.descent import batches, descend, device, one_cycle
from compile.methods.mapping import Mapping, distance, loss

HIDDEN = 128
STEPS, BATCH = 600, 1024  # cells in a batch
RATE = 1e-3
SMOOTHING = 22**0.5  # pixels: of five box filters of 5 pixels and three of 7


class CFM(nn.Module):
    """Maps of a scan to one map [B, h, w]: the product of both distances, 0 where there is no surface."""

    def __init__(self, cells: Cells, to_surface: Mapping, to_picture: Mapping) -> None:
        super().__init__()
        self.cells, self.to_surface, self.to_picture = cells, to_surface, to_picture

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        seen = self.cells(features)
        found = distance(self.to_picture(seen.surface), seen.picture)
        found = found * distance(self.to_surface(seen.picture), seen.surface)
        return ((found * seen.known).reshape(-1, *self.cells.grid),)

    def image_score(self, features: Sequence[Tensor], maps: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        """Give the largest value over the root of the mean of those above 0 [B]; 0 where none is."""
        del features
        found = (maps[0] * seen[0]).flatten(1)
        mean = found.sum(1) / (found > 0).float().sum(1).clamp(min=1)
        return found.amax(1) / mean.clamp(min=1e-12).sqrt()


def fit_cfm(
    features: Sequence[NDArray[Any]], *, seed: int, steps: int | None = None, progress: Progress | None = None
) -> CFM:
    """Fit on maps [n, C, h, w] of good scans: the trunk's, the finest first, then `geometry`.

    Args:
        features: as `Cells` takes them.
        seed: fixes the result, on one thread to the bit.
        steps: of the optimiser, at most.
        progress: called with (what, done, of).

    Raises:
        FitError: no cell has points, maps are not finite, or the fit diverged.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cells, known, _ = fit_cells(features, seed, whiten=False)
        widths = known.picture.shape[1], known.surface.shape[1]
        to_surface, to_picture = Mapping(*widths, HIDDEN), Mapping(*widths[::-1], HIDDEN)
        both = nn.ModuleList([to_surface, to_picture])

        def objective(rows: list[int]) -> Tensor:
            some = _there(known, rows)
            return loss(to_surface(some.picture), some.surface) + loss(to_picture(some.surface), some.picture)

        steps = STEPS if steps is None else min(STEPS, steps)
        optimiser = torch.optim.Adam(both.parameters(), RATE)
        order = batches(len(known.known), BATCH, seed)
        descend(both, optimiser, one_cycle(optimiser, RATE, steps), order, objective, steps=steps, progress=progress)
    return CFM(cells, to_surface, to_picture).eval().requires_grad_(requires_grad=False)


def _there(known: Pair, rows: list[int]) -> Pair:
    return Pair(*(each[rows].to(device()) for each in known))
