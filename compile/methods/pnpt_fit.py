"""The fit of PNPT-style models: templates are exact class means, the rest is learned by cosine distance.

Ours, as nothing of the paper's optimiser is public: AdamW with one cycle, and noise on the sample's features while
fitting, so that copying the sample does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compile.job import Progress
from compile.methods import FitError
from compile.methods.descent import batches, descend, device, one_cycle, read
from compile.methods.pnpt import PNPT, Select, Size, cosine_distance

STEPS = 300
BATCH = 8
NOISE = 0.5  # standard deviations of a channel
CHUNK = 16  # pictures read at once


def fit_pnpt(
    features: Sequence[NDArray[Any]],
    classes: NDArray[np.int64],
    *,
    seed: int,
    progress: Progress | None = None,
    steps: int = STEPS,
    rate: float = 1e-3,
    size: Size | None = None,
    select: Select = "given",
) -> PNPT:
    """Fit on trunk maps of good pictures of one or more classes.

    Args:
        features: one array or memmap [n, C, h, w] per scale, float16 or float32.
        classes: of the pictures, int64 [n]; every number from 0 to the largest must occur.
        seed: fixes the result, on one thread to the bit.
        progress: called with (what, done, of).
        steps: of the optimiser, BATCH pictures each.
        rate: peak learning rate.
        size: of the transformer.
        select: as in `PNPT`.

    Raises:
        FitError: maps are not finite, or the fit diverged.
        ValueError: numbers of pictures that differ, a class without pictures.

    """
    counts = [len(classes), *(each.shape[0] for each in features)]
    if len(set(counts)) != 1 or counts[0] == 0:
        raise ValueError(f"{counts[0]} classes for features of {counts[1:]} pictures: want one each, at least one")
    numbers, pictures = np.unique(classes, return_counts=True)
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise ValueError(f"classes {numbers.tolist()}: want all of 0 to {numbers.max()}, each with a good picture")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grids = [(each.shape[2], each.shape[3]) for each in features]
        model = PNPT([each.shape[1] for each in features], grids, len(numbers), size, select)
        for scale, maps in enumerate(features):
            _fill_pool(model, scale, maps, classes, pictures)
        _optimise(model, features, classes, seed, steps=steps, rate=rate, progress=progress)
    return model.eval().requires_grad_(requires_grad=False)


def _fill_pool(
    model: PNPT, scale: int, maps: NDArray[Any], classes: NDArray[np.int64], pictures: NDArray[np.int64]
) -> None:
    """Class means and channel statistics of one scale, summed in float64."""
    sums = torch.zeros(len(pictures), *maps.shape[1:], dtype=torch.float64)
    squares = torch.zeros(maps.shape[1], dtype=torch.float64)
    for start in range(0, len(classes), CHUNK):
        chunk = torch.from_numpy(np.asarray(maps[start : start + CHUNK], np.float64))
        sums.index_add_(0, torch.from_numpy(classes[start : start + CHUNK]), chunk)
        squares += chunk.square().sum((0, 2, 3))
    if not torch.isfinite(squares).all():
        raise FitError("the trunk's maps are not finite. Look at the pictures and at the trunk's INT8 rendering.")
    values = len(classes) * maps.shape[2] * maps.shape[3]
    mean = sums.sum((0, 2, 3)) / values
    variance = (squares / values - mean.square()).clamp(min=0)
    spread = (variance + 1e-4 * variance.mean() + 1e-12).sqrt()
    getattr(model, f"template_{scale}").copy_(sums / torch.from_numpy(pictures)[:, None, None, None])
    getattr(model, f"centre_{scale}").copy_(mean[:, None, None])
    getattr(model, f"spread_{scale}").copy_(spread[:, None, None])


def _optimise(
    model: PNPT,
    features: Sequence[NDArray[Any]],
    classes: NDArray[np.int64],
    seed: int,
    *,
    steps: int,
    rate: float,
    progress: Progress | None,
) -> None:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)

    def loss(chosen: list[int]) -> Tensor:
        maps = model.standardise(read(features, chosen))
        return _loss(model, maps, torch.from_numpy(classes[chosen]).to(device()))

    order = batches(len(classes), BATCH, seed)
    schedule = one_cycle(optimiser, rate, steps)
    descend(model, optimiser, schedule, order, loss, steps=steps, mixed=True, progress=progress)


def _loss(model: PNPT, maps: list[Tensor], classes: Tensor) -> Tensor:
    noisy = [each + NOISE * torch.randn_like(each) for each in maps]
    pairs = zip(maps, model.rebuild(noisy, classes), strict=True)
    return torch.stack([cosine_distance(wanted, rebuilt).mean() for wanted, rebuilt in pairs]).sum()
