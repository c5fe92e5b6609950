"""The fit of INP-Former++ on a vision transformer: the reconstruction, then a head on the frozen one.

The paper's, by its descriptions: 200 epochs of the reconstruction (`inp_former_fit.PLUS_PLUS`), 100 of the head, which
never trains it; Dice on the head's sigmoid, of painted pictures alone. Ours: the head has the optimiser and schedule of
the reconstruction; the mask is compared on the head's grid, not at the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from compile.anomaly_graph import interpolation
from compile.job import Progress
from compile.methods.descent import batches, descend, device, read
from compile.methods.inp_former_fit import BATCH, CLIP, PLUS_PLUS, fit_inp_former, learning_rate
from compile.methods.inp_former_pp_fit import COVERED, MEASURED, dice
from compile.methods.inp_former_pp_patches import (
    FINER,
    Fusion,
    PatchHead,
    PatchINPFormerPP,
    PatchReconstruction,
    fuse_by_product,
)
from compile.stable_adamw import StableAdamW

HEAD_EPOCHS = 100


def fit_inp_former_pp_on_patches(
    features: Sequence[NDArray[Any]],
    painted: Sequence[NDArray[Any]],
    covered: NDArray[np.float32],
    *,
    seed: int,
    steps: int | None = None,
    fuse: Fusion = fuse_by_product,
    progress: Progress | None = None,
) -> PatchINPFormerPP:
    """Fit on group maps of good pictures and of pictures with painted defects.

    Args:
        features: of good pictures, one array [n, C, h, w] per group.
        painted: the same of pictures with painted defects, m of them.
        covered: float32 [m / r, H / 4, W / 4], the share of each cell of 4x4 pixels that is painted
            (`compile.pseudo_defects`); m may be r renderings of the same pictures, one after another.
        seed: fixes the result, on one thread to the bit.
        steps: of either fit; by default as many as their epochs have.
        fuse: how error and head become one map.
        progress: called with (what, done, of).

    Raises:
        FitError: maps are not finite or of a width that no published model has, or a fit diverged.

    """
    model = fit_inp_former(features, seed=seed, steps=steps, recipe=PLUS_PLUS, progress=progress)
    reconstruction = PatchReconstruction(model).eval().to(device())
    largest, size = _usual(reconstruction, features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PatchHead(size).train()
    grid = (features[0].shape[2], features[0].shape[3])
    masks = _masks(covered, grid)
    batch = min(BATCH, painted[0].shape[0])
    steps = HEAD_EPOCHS * -(-painted[0].shape[0] // batch) if steps is None else steps
    optimiser = StableAdamW(head.parameters(), lr=1.0)
    schedule = LambdaLR(optimiser, partial(learning_rate, steps=steps, peak=PLUS_PLUS.rate))

    def loss(rows: list[int]) -> Tensor:
        with torch.no_grad():
            _, seen = reconstruction(read(painted, rows))
        return dice(head(seen).sigmoid(), masks[np.array(rows) % len(masks)].to(device()))

    order = batches(painted[0].shape[0], batch, seed)
    descend(
        head, optimiser, schedule, order, loss, steps=steps, what="fit head", clip=CLIP, mixed=True, progress=progress
    )
    fitted = PatchINPFormerPP(reconstruction.cpu(), head, grid, largest, fuse)
    return fitted.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def _usual(reconstruction: PatchReconstruction, features: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
    """Of good pictures the mean of their largest errors, a scalar, and the root mean square of the residual, [C]."""
    chosen = np.unique(np.linspace(0, features[0].shape[0] - 1, MEASURED).astype(int))
    largest, squares = [], []
    for rows in np.array_split(chosen, -(-len(chosen) // BATCH)):
        error, seen = reconstruction(read(features, rows))
        largest.append(error.amax((1, 2)))
        squares.append(seen.square().mean((2, 3)))
    return torch.cat(largest).mean().cpu(), (torch.cat(squares).mean(0) + 1e-12).sqrt().cpu()


def _masks(covered: NDArray[np.float32], grid: tuple[int, int]) -> Tensor:
    """Bring the painted share of cells to the head's grid: float32 [m, 4h, 4w], 1 where it counts as painted."""
    rows, columns = (interpolation(n, FINER * cells) for n, cells in zip(covered.shape[1:], grid, strict=True))
    return (rows @ torch.from_numpy(covered) @ columns.T > COVERED).float()
