"""The fit of INP-Former++ on the embedded trunk: the reconstruction, then a head on the frozen one.

The paper's, by its descriptions: the head never trains the reconstruction; Dice on the head's sigmoid. Ours: a focal
term beside it, good pictures in every batch (for the focal term alone: an empty mask has no Dice), noise on the trunk's
maps, which keeps a head on few good pictures from learning them by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.job import Progress
from compile.methods.descent import batches, descend, device, one_cycle
from compile.methods.inp_former_fit import PLUS_PLUS
from compile.methods.inp_former_lite import fit_inp_former_lite
from compile.methods.inp_former_pp import INPFormerPP, Reconstruction, SegmentationHead
from compile.methods.side_by_side import side_by_side
from compile.standardise import measure_spread

HEADS = 2
STEPS = 200  # of each, at most
PASSES, LEAST_STEPS = 2, 100  # over few painted pictures
PAINTED_BATCH, GOOD_BATCH = 8, 4
RATE = 1e-3
NOISE = 0.1  # of a channel's deviation
FOCAL, SHARPNESS = 20.0, 2.0  # weight, and exponent of how wrong a place is
COVERED = 0.3  # share of a cell that the mask covers
MEASURED = 100  # good pictures that the head's inputs are scaled on


def fit_inp_former_pp(
    features: Sequence[NDArray[Any]],
    painted: Sequence[NDArray[Any]],
    covered: NDArray[np.float32],
    *,
    seed: int,
    steps: int | None = None,
    progress: Progress | None = None,
) -> INPFormerPP:
    """Fit on maps of good pictures and of pictures with painted defects.

    Args:
        features: of good pictures, [n, C, h, w] for strides 8, 16 and 32.
        painted: the same of pictures with painted defects, m of them.
        covered: float32 [m / r, 2 h, 2 w], h and w at stride 8: the share of each cell at stride 4 that is painted; m
            may be r renderings of the same pictures, one after another.
        seed: fixes the result, on one thread to the bit.
        steps: of either fit, at most.
        progress: called with (what, done, of).

    Raises:
        FitError: maps are not finite, or a fit diverged.

    """
    fitted = fit_inp_former_lite(features, seed=seed, steps=steps, recipe=PLUS_PLUS, progress=progress)
    reconstruction = Reconstruction(fitted.groups, fitted.model).eval()
    spread = measure_spread(reconstruction, features)
    own = min(STEPS, max(LEAST_STEPS, PASSES * len(covered) // PAINTED_BATCH))
    steps = own if steps is None else min(own, steps)
    known = _inputs(reconstruction, [each[: min(features[0].shape[0], MEASURED)] for each in features])
    seeds = range(HEADS * seed, HEADS * (seed + 1))
    heads = [_new_head(known, each) for each in seeds]
    show = partial(_inputs, reconstruction)
    fits = [
        partial(_fit_head, head, show=show, features=features, painted=painted, covered=covered, seed=each, steps=steps)
        for head, each in zip(heads, seeds, strict=True)
    ]
    side_by_side(fits, progress)
    height, width = features[1].shape[2:]
    usual = (spread.sums[0].mean() / spread.pictures).float()
    return INPFormerPP(reconstruction, (height, width), usual, heads).eval().requires_grad_(requires_grad=False)


def _new_head(known: Sequence[Tensor], seed: int) -> SegmentationHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SegmentationHead([tuple(each.shape[1:]) for each in known])
    _scale(head, known)
    return head


def _fit_head(
    head: SegmentationHead,
    progress: Progress,
    *,
    show: Callable[[Sequence[NDArray[Any]]], list[Tensor]],
    features: Sequence[NDArray[Any]],
    painted: Sequence[NDArray[Any]],
    covered: NDArray[np.float32],
    seed: int,
    steps: int,
) -> None:
    head.train()
    optimiser = torch.optim.AdamW(head.parameters(), RATE, weight_decay=1e-2)

    def loss(chosen: tuple[list[int], list[int], int]) -> Tensor:
        odd, good, step = chosen
        maps = [np.concatenate([p[odd], g[good]]) for p, g in zip(painted, features, strict=True)]
        noise = torch.Generator().manual_seed(seed * steps + step)  # of this step alone: the heads share no generator
        inputs = [
            each.to(device())
            + NOISE * getattr(head, f"deviation_{i}") * torch.randn(each.shape, generator=noise).to(device())
            for i, each in enumerate(show(maps))
        ]
        mask = torch.zeros(len(inputs[0]), *covered.shape[1:])
        mask[: len(odd)] = torch.from_numpy(covered[np.array(odd) % len(covered)] > COVERED).float()
        return objective(head(inputs), mask.to(device()), len(odd))

    rows = batches(painted[0].shape[0], PAINTED_BATCH, seed)
    order = zip(rows, batches(features[0].shape[0], GOOD_BATCH, seed + 1), count(), strict=False)
    schedule = one_cycle(optimiser, RATE, steps)
    descend(head, optimiser, schedule, order, loss, steps=steps, what="fit head", mixed=True, progress=progress)


def objective(logit: Tensor, mask: Tensor, painted: int) -> Tensor:
    """Focal loss of all pictures and Dice of the first, which are painted: logit and mask [B, h, w] to a scalar."""
    found = logit.sigmoid()
    plain = functional.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    focal = (plain * (found - mask).abs().pow(SHARPNESS)).mean()
    return FOCAL * focal + dice(found[:painted], mask[:painted])


def dice(found: Tensor, mask: Tensor) -> Tensor:
    """Dice loss of probabilities and mask [B, h, w], each picture's own; a scalar."""
    both, either = (found * mask).sum((1, 2)), (found + mask).sum((1, 2))
    return (1 - (2 * both + 1) / (either + 1)).mean()


@torch.no_grad()
def _inputs(reconstruction: Reconstruction, maps: Sequence[NDArray[Any]]) -> list[Tensor]:
    features = [torch.from_numpy(np.asarray(each, np.float32)) for each in maps]
    return [*features, reconstruction.explain(features)[1]]


def _scale(head: SegmentationHead, known: Sequence[Tensor]) -> None:
    for i, each in enumerate(known):
        getattr(head, f"mean_{i}").copy_(each.mean((0, 2, 3))[:, None, None])
        getattr(head, f"deviation_{i}").copy_(each.std((0, 2, 3))[:, None, None] + 1e-4)
