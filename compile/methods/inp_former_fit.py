"""The fit of INP-Former, and of the reconstruction of INP-Former++, on cached maps of the frozen trunk.

Published: soft mining (per group, one minus the cosine of whole maps, whose gradient is weighted per place by the cube
of its distance relative to the batch's mean) plus 0.2 times the coherence of features and prototypes; StableAdamW;
linear warm-up over 100 steps, from 0, and a cosine to a tenth; gradients clipped to a norm of 0.1; 200 epochs of
batches of 16, whose incomplete last one is dropped. The public code weights the gradient in a hook; here the values
pass through and the gradient is scaled by arithmetic, which is the same and safe when one tensor serves two losses.

INP-Former++ (no public code; from descriptions of its paper, unverified) has a second mined term, the squared error,
with weights of its own, and a soft coherence: `PLUS_PLUS`. The balance of its two terms is not known: 1 to 1.

The settings of the paper are data, not options. Single-class: one fit per product, each with the same seed.
Multi-class and super-multi-class: one fit on the maps of all products, of one data set or of several, concatenated.
Few-shot: one fit on the maps of `compile.methods.few_shot`'s variants of all products. Zero-shot: `ZeroShot` of a
model fitted on other products.

Ours: shorter fits warm up over a tenth of their steps; the final rate is a tenth of the peak for ++ too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from compile.job import Progress
from compile.methods import FitError
from compile.methods.descent import descend, read
from compile.methods.inp_former import INPFormer, Size, assigned, cosine_distance, mean, nearest, to_tokens
from compile.stable_adamw import StableAdamW

GAMMA = 3.0  # how much more far places count
COHERENCE = 0.2
EPOCHS, BATCH = 200, 16
WARM_UP = 100  # steps
FINAL = 0.1  # of the peak rate
CLIP = 0.1  # norm of all gradients together
HEAD_WIDTH = 64  # channels per head, in all three published sizes


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is minimised, and how fast."""

    rate: float = 1e-3  # peak learning rate
    squared: float = 0.0  # weight of the mined squared error
    soft: bool = False  # coherence by soft assignment


PUBLISHED = Recipe()
PLUS_PLUS = Recipe(rate=5e-4, squared=1.0, soft=True)


def fit_inp_former(
    features: Sequence[NDArray[Any]],
    *,
    seed: int,
    steps: int | None = None,
    batch: int = BATCH,
    size: Size | None = None,
    recipe: Recipe = PUBLISHED,
    progress: Progress | None = None,
) -> INPFormer:
    """Fit on the group maps of good pictures.

    Args:
        features: one array or memmap [n, C, h, w] per group of the trunk's layers, of one shape.
        seed: fixes the result, on one thread to the bit.
        steps: of the optimiser; by default as many as 200 epochs have.
        batch: pictures per step; at most all.
        size: of the model; by default the published one for maps of this width.
        recipe: `PUBLISHED` or `PLUS_PLUS`, or what lies between.
        progress: called with (what, done, of).

    Raises:
        FitError: maps are not finite or of a width that no published model has, or the fit diverged.
        ValueError: maps differ in shape, there are none, or the size is not theirs.

    """
    shapes = [tuple(feature.shape) for feature in features]
    if not shapes or len(set(shapes)) > 1 or shapes[0][0] == 0:
        raise ValueError(f"group maps of shapes {shapes}: want one shape [n, C, h, w], n at least 1")
    count, width = shapes[0][:2]
    size = _published_size(width, len(shapes)) if size is None else size
    if (size.width, size.groups) != (width, len(shapes)):
        raise ValueError(
            f"a model of width {size.width} and {size.groups} groups for {len(shapes)} maps of width {width}"
        )
    batch = min(batch, count)
    steps = steps_for(count, batch) if steps is None else steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = INPFormer(size).train()
    optimiser = StableAdamW(model.parameters(), lr=1.0)
    schedule = LambdaLR(optimiser, partial(learning_rate, steps=steps, peak=recipe.rate))

    def loss(chosen: NDArray[np.int64]) -> Tensor:
        maps = read(features, chosen)
        if not all(torch.isfinite(each).all() for each in maps):
            raise FitError("the trunk's maps are not finite. Look at the pictures and at the trunk.")
        return objective(model, maps, recipe)

    order = _batches(count, batch, np.random.default_rng(seed))
    descend(model, optimiser, schedule, order, loss, steps=steps, clip=CLIP, mixed=True, progress=progress)
    return model.eval().requires_grad_(requires_grad=False)


def steps_for(count: int, batch: int = BATCH, epochs: int = EPOCHS) -> int:
    """Give the steps of so many epochs over `count` pictures, whose incomplete batches are dropped."""
    return epochs * (count // min(batch, count))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rate at a step, from 0: linear from 0 to the peak, then a cosine to its tenth at the last step."""
    warm_up = min(WARM_UP, steps // 10)
    if step < warm_up:
        return peak * step / warm_up
    done = (step - warm_up) / max(1, steps - 1 - warm_up)
    return peak * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * done)))


def objective(model: INPFormer, features: Sequence[Tensor], recipe: Recipe = PUBLISHED) -> Tensor:
    """Loss of group maps [B, C, h, w]; a scalar."""
    groups = to_tokens(features)
    fused = mean(groups)
    prototypes = model.prototypes(fused)
    rebuilt = model.rebuild(fused, prototypes)
    together = soft_coherence(fused, prototypes) if recipe.soft else coherence(fused, prototypes)
    return soft_mining(groups, rebuilt, squared=recipe.squared) + COHERENCE * together


def coherence(fused: Tensor, prototypes: Tensor) -> Tensor:
    """Mean cosine distance of features [B, N, C] to the nearest of the prototypes [B, M, C]."""
    return nearest(fused, prototypes).mean()


def soft_coherence(fused: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distance of whole pictures of features [B, N, C] and softly assigned prototypes (++)."""
    return cosine_distance(fused.flatten(1), assigned(fused, prototypes).flatten(1)).mean()


def soft_mining(groups: Sequence[Tensor], rebuilt: Sequence[Tensor], *, squared: float = 0.0) -> Tensor:
    """Distance of features and reconstruction [B, N, C], mean over groups; far places pull harder.

    Args:
        groups: features.
        rebuilt: the same, by the decoder.
        squared: weight of the squared error, summed over channels (++).

    """
    terms = [mined_cosine(e, d) for e, d in zip(groups, rebuilt, strict=True)]
    if squared:
        terms = [term + squared * mined_square(e, d) for term, e, d in zip(terms, groups, rebuilt, strict=True)]
    return torch.stack(terms).mean()


def mined_cosine(features: Tensor, rebuilt: Tensor) -> Tensor:
    pulled = scale_gradient(rebuilt, _emphasis(cosine_distance(features, rebuilt.detach())))
    return cosine_distance(features.flatten(1), pulled.flatten(1)).mean()


def mined_square(features: Tensor, rebuilt: Tensor) -> Tensor:
    error = (features - rebuilt.detach()).square().sum(2)
    return (features - scale_gradient(rebuilt, _emphasis(error))).square().sum(2).mean()


def scale_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """x, to the bit, with its gradient times `weight`: weight * x + (1 - weight) * sg(x), without its rounding."""
    fixed = x.detach()
    return fixed + weight * (x - fixed)


def _emphasis(error: Tensor) -> Tensor:
    """Weight [B, N, 1] of each place from its error [B, N]: the cube of its ratio to the batch's mean."""
    return (error.clamp(min=0) / error.mean().clamp(min=1e-12)).pow(GAMMA).unsqueeze(2)


def _published_size(width: int, groups: int) -> Size:
    if width % HEAD_WIDTH:
        raise FitError(f"maps of width {width}, which is no multiple of {HEAD_WIDTH}: take ViT-S, B or L as published.")
    return Size(width=width, heads=width // HEAD_WIDTH, groups=groups)


def _batches(count: int, batch: int, order: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Epoch after epoch in random order, without incomplete batches; rows of a batch in rising order, for the disk."""
    while True:
        shuffled = order.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield np.sort(shuffled[start : start + batch])
