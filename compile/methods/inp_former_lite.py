"""INP-Former on the embedded trunk: the published model on `LiteGroups`, smaller and fitted in fewer steps.

The paper's: everything in `inp_former` and `inp_former_fit`. Ours: the groups, the size, and a rate that suits narrower
layers and few steps, 400 at most, in place of 200 passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.job import Progress
from compile.methods.inp_former import INPFormer, Size, zero_shot
from compile.methods.inp_former_fit import PUBLISHED, Recipe, fit_inp_former
from compile.methods.lite_groups import Grouped, LiteGroups, fit_groups

STEPS, BATCH = 400, 8
PASSES, LEAST_STEPS = 5, 150  # over few pictures
RATE = 3e-3
HEADS, BLOCKS = 8, 4


class LiteINPFormer(nn.Module):
    """Trunk maps of strides 8, 16 and 32 to one map [B, h, w] of cosine distances, h and w at stride 16."""

    def __init__(self, groups: LiteGroups, model: INPFormer) -> None:
        super().__init__()
        self.groups, self.model = groups, model

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.model(self.groups(features))
        return found


def fit_inp_former_lite(
    features: Sequence[NDArray[Any]],
    *,
    seed: int,
    steps: int | None = None,
    recipe: Recipe = PUBLISHED,
    progress: Progress | None = None,
) -> LiteINPFormer:
    """Fit on maps [n, C, h, w] of good pictures, one array per stride.

    Args:
        features: for strides 8, 16 and 32.
        seed: fixes the result, on one thread to the bit.
        steps: of the optimiser, at most.
        recipe: what is minimised; its rate is replaced.
        progress: called with (what, done, of).

    Raises:
        FitError: maps are not finite, or the fit diverged.

    """
    with torch.random.fork_rng(devices=[]):  # layers draw values that are then replaced
        groups = fit_groups(features)
    own = min(STEPS, max(LEAST_STEPS, PASSES * features[0].shape[0] // BATCH))
    model = fit_inp_former(
        [Grouped(groups, features, i) for i in range(2)],  # type: ignore[misc]
        seed=seed,
        steps=own if steps is None else min(own, steps),
        batch=BATCH,
        size=Size(width=2 * groups.components, heads=HEADS, blocks=BLOCKS, groups=2),
        recipe=replace(recipe, rate=RATE),
        progress=progress,
    )
    return LiteINPFormer(groups, model).eval()


def zero_shot_lite(model: nn.Module) -> nn.Module:
    """Turn a fitted one to pictures of a product that it was not fitted on; the components stay those of the others."""
    assert isinstance(model, LiteINPFormer)
    return nn.Sequential(model.groups, zero_shot(model.model)).eval()
