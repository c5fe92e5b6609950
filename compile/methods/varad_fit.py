"""The fit of VarAD's head: maximum likelihood on the frozen trunk's maps of good images.

The adapter starts as symmetric whitening of the data and the rest as Mamba starts; a collapsed adapter is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.job import Progress
from compile.methods import FitError
from compile.methods.descent import batches, descend, one_cycle, read
from compile.methods.varad import SIZES, TAPS, Size, Stream, VarAD

PASSES = 8  # over the images: more would learn them by heart
LEAST_STEPS = 150  # so many may be taken however few the images
BATCH = 4  # images of 256 pixels per step
WHITEN_FLOOR = 1e-2  # of the mean eigenvalue: below it lies noise, quantisation noise included
STEPS = 120  # more gains little; 300 pictures must take no more than six minutes on two cores
MEASURED_PICTURES, MEASURED_TOKENS = 256, 2**18  # at most, that the whitening is measured on
COLLAPSE = 0.05  # smallest adapted spread, relative to the start, that is not a collapse


def fit_varad(
    features: Sequence[NDArray[Any]],
    *,
    seed: int,
    progress: Progress | None = None,
    steps: int = STEPS,
    rate: float = 3e-3,
    sizes: Sequence[Size] = SIZES,
) -> VarAD:
    """Fit the head on trunk maps of good images.

    Args:
        features: one array or memmap [n, C, h, w] per hierarchy, float16 or float32. Several renderings of an image
            (float and quantised trunk) may stand in it as further rows: the head then learns to ignore their noise.
        seed: fixes the result, on one thread to the bit.
        progress: called with (what, done, of).
        steps: at most so many optimiser steps, to which the time is proportional; `steps_for` says how many it will be.
        rate: peak learning rate.
        sizes: of the blocks.

    Raises:
        FitError: maps are not finite, the fit diverged, or an adapter collapsed.

    """
    count = features[0].shape[0]
    if count == 0 or any(f.shape[0] != count for f in features):
        raise ValueError(f"features of {[f.shape[0] for f in features]} images: want the same number, at least one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VarAD([f.shape[1] for f in features], [(f.shape[2], f.shape[3]) for f in features], sizes)
        for stream, feature in zip(model.hierarchies(), features, strict=True):
            _start(stream, feature)
        model.train()
        grid = model.hierarchies()[-1].grid
        steps = steps_for(count, grid, steps)
        _optimise(model, features, seed, steps=steps, batch=_batch(grid), rate=rate, progress=progress)
    model.eval().requires_grad_(requires_grad=False)
    check_adapters(model)
    return model


def steps_for(count: int, grid: tuple[int, int], steps: int) -> int:
    """Give how many optimiser steps a fit takes where `steps` are allowed: few images get fewer.

    Args:
        count: of rows of the features.
        grid: tokens of the coarsest hierarchy, height and width.
        steps: at most so many.

    """
    return min(steps, max(LEAST_STEPS, PASSES * count // _batch(grid)))


def _batch(grid: tuple[int, int]) -> int:
    """Images per step: larger ones get fewer, at least one, so that a step costs the same."""
    return max(1, min(BATCH, BATCH * 256 // math.prod(grid)))


def check_adapters(model: VarAD) -> None:
    """Raise FitError when an adapter shrank a direction of its tokens: a constant is easy to predict, and useless."""
    for i, stream in enumerate(model.hierarchies()):
        smallest = float(torch.linalg.svdvals(stream.adapter.detach().double())[-1])
        if not smallest >= COLLAPSE:
            raise FitError(
                f"adapter of hierarchy {i} collapsed: a direction of its tokens shrank to {smallest:.3g} of its spread "
                f"(at least {COLLAPSE} wanted). Fit with another seed, or check that the pictures differ at all."
            )


def _start(stream: Stream, feature: NDArray[Any]) -> None:
    """Symmetric whitening from the data; the rest as Mamba starts."""
    most = min(MEASURED_PICTURES, max(1, MEASURED_TOKENS // math.prod(stream.grid)))
    chosen = np.linspace(0, feature.shape[0] - 1, min(feature.shape[0], most)).astype(int)
    maps = torch.from_numpy(np.asarray(feature[chosen], np.float32))
    if not torch.isfinite(maps).all():
        raise FitError("the trunk's maps are not finite. Look at the pictures and at the trunk's INT8 rendering.")
    centre = maps.mean((0, 2, 3))
    tokens = functional.pixel_unshuffle(maps - centre[:, None, None], stream.size.fold)
    rows = tokens.transpose(0, 1).flatten(1).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T / rows.shape[1])
    values = values.clamp(min=0) + max(WHITEN_FLOOR * float(values.mean()), 1e-12)
    stream.centre.copy_(centre)
    stream.whitening.copy_(vectors / values.sqrt() @ vectors.T)
    heads = stream.size.heads
    with torch.no_grad():
        stream.conv.uniform_(-1 / math.sqrt(TAPS), 1 / math.sqrt(TAPS))
        stream.conv[-1] += 1
        stream.log_rate.copy_(torch.linspace(0.0, math.log(8.0), heads))
        steps = torch.exp(torch.linspace(math.log(1e-3), math.log(0.1), heads))
        stream.in_proj.bias[-heads:] = torch.log(torch.expm1(steps))
        stream.readout.weight.mul_(0.1)
        stream.readout.bias.zero_()


def _optimise(
    model: VarAD,
    features: Sequence[NDArray[Any]],
    seed: int,
    *,
    steps: int,
    batch: int,
    rate: float,
    progress: Progress | None,
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.02)

    def loss(chosen: list[int]) -> Tensor:
        pairs = zip(model.hierarchies(), read(features, chosen), strict=True)
        return torch.stack([stream.nll(feature) for stream, feature in pairs]).sum()

    order = batches(features[0].shape[0], batch, seed)
    schedule = one_cycle(optimiser, rate, steps)
    descend(model, optimiser, schedule, order, loss, steps=steps, progress=progress)  # the scan needs float32
