"""The fit of Mentor3AD: the modalities are aligned by contrast, then the mentor guides, then the votes are scaled.

Ours: AdamW in one cycle each, on batches of cells of all scans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.job import Progress
from compile.methods.cells import Pair, fit_cells
from compile.methods.descent import batches, descend, device, one_cycle
from compile.methods.mentor import Mentor3AD, contrast
from compile.methods.voting import Deviation

STEPS = 600  # of contrast, and of guidance
BATCH = 1024  # cells
RATE = 2e-3
DECAY = 1e-4
CHUNK = 16384  # cells measured at once


def fit_mentor(
    features: Sequence[NDArray[Any]],
    *,
    seed: int,
    steps: int | None = None,
    guided: bool = True,
    progress: Progress | None = None,
) -> Mentor3AD:
    """Fit on maps [n, C, h, w] of good scans: the trunk's, the finest first, then `geometry`.

    Args:
        features: as `Cells` takes them.
        seed: fixes the result, on one thread to the bit.
        steps: of either optimiser, at most.
        guided: whether the mentor guides.
        progress: called with (what, done, of).

    Raises:
        FitError: no cell has points, maps are not finite, or a fit diverged.

    """
    steps = STEPS if steps is None else min(STEPS, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cells, known, held = fit_cells(features, seed)
        model = Mentor3AD(cells, guided=guided)

        def apart(some: Pair) -> Tensor:
            return contrast(model.fusion.align(some))

        _descend(model.fusion, apart, known, seed=seed, steps=steps, what="align", progress=progress)
        for aligned in (model.fusion.picture, model.fusion.surface):
            aligned.requires_grad_(requires_grad=False)
        told = nn.ModuleList([model.fusion, model.guidance])

        def left(some: Pair) -> Tensor:
            parts = model.residuals(some, model.fusion.align(some))
            return sum((part.square().mean() for part in parts), torch.zeros((), device=parts[0].device))

        _descend(told, left, known, seed=seed + 1, steps=steps, what="guide", progress=progress)
    _measure(model.eval(), known, held)
    return model.requires_grad_(requires_grad=False)


def _descend(
    part: nn.Module,
    loss: Callable[[Pair], Tensor],
    known: Pair,
    *,
    seed: int,
    steps: int,
    what: str,
    progress: Progress | None,
) -> None:
    learned = [each for each in part.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(learned, RATE, weight_decay=DECAY)

    def objective(rows: list[int]) -> Tensor:
        return loss(Pair(*(each[rows].to(device()) for each in known)))

    order = batches(len(known.known), BATCH, seed)
    schedule = one_cycle(optimiser, RATE, steps)
    descend(part, optimiser, schedule, order, objective, steps=steps, what=what, progress=progress)


@torch.no_grad()
def _measure(model: Mentor3AD, known: Pair, held: Pair) -> None:
    """Learn the residuals' deviations where the model was fitted, and the votes' scale where it was not."""
    chunks = [known.at(slice(start, start + CHUNK)) for start in range(0, len(known.known), CHUNK)]
    left = [model.residuals(each, model.fusion.align(each)) for each in chunks]
    for count, parts in zip(model.deviations, zip(*left, strict=True), strict=True):
        cast(Deviation, count).measure(torch.cat(parts))
    model.voting.measure(model.votes(held))
