"""The training of MVP-PCLIP on labelled scans of other things than will be inspected.

The public code's: Adam with betas of 0.5 and 0.999, three passes, a rate for each part; focal loss and Dice of the
points' probability. Ours: the focal loss of the object's probability, without which its projections learn nothing;
gradients clipped; a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR

from compile.backbones.clip import CLIP, Sentences
from compile.job import Progress
from compile.methods.adaclip import margins
from compile.methods.adaclip_fit import FOCUS, focal
from compile.methods.descent import batches, descend, device
from compile.methods.mvp_pclip import MVPPCLIP, Attention, Shown, describe_object, point_margins, read_points

PASSES, BATCH = 3, 1
BETAS = (0.5, 0.999)
RATES = {"eyes.keys": 5e-4, "eyes.project.": 1e-4, "eyes.project_views": 5e-4, "reader": 5e-3}


@dataclass(frozen=True, slots=True)
class LabelledViews:
    """Labelled scans to learn from.

    Args:
        views: uint8 [n, 9, 224, 224].
        index: int32 [n, 9, h, w].
        masks: bool [n, h, w]: where the defect is; none of a good part.
        words: what the scans show.
        word_of: int64 [n], which of these each shows.

    """

    views: NDArray[np.uint8]
    index: NDArray[np.int32]
    masks: NDArray[np.bool_]
    words: Sequence[str]
    word_of: NDArray[np.int64]


def fit_mvp_pclip(
    clip: CLIP,
    labelled: LabelledViews,
    *,
    seed: int,
    attention: Attention = "causal",
    passes: int = PASSES,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> MVPPCLIP:
    """Train prompts and projections.

    Args:
        clip: for pictures of 224 pixels.
        labelled: what to learn from.
        seed: fixes the result, on one thread to the bit.
        attention: of the text tower.
        passes: over all scans.
        batch: scans of a step.
        progress: called with (what, done, of).

    Raises:
        FitError: the training diverged.

    """
    sentences = describe_object(clip, labelled.words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MVPPCLIP(clip, attention).train()
        groups: list[dict[str, Any]] = [
            {
                "params": [
                    each for name, each in model.named_parameters() if name.startswith(start) and each.requires_grad
                ]
            }
            | {"lr": rate}
            for start, rate in RATES.items()
        ]
        optimiser = torch.optim.Adam(groups, betas=BETAS)

        def loss(chosen: list[int]) -> Tensor:
            views, index, masks = (
                torch.from_numpy(np.asarray(each[chosen])).to(device())
                for each in (labelled.views, labelled.index, labelled.masks)
            )
            words = torch.from_numpy(labelled.word_of[chosen])
            own = Sentences(sentences.tokens[words].to(device()), sentences.ends[words].to(device()))
            return objective(model.eyes(views), index, masks, model.reader(own))

        count = len(labelled.views)
        steps = passes * math.ceil(count / batch)
        order = batches(count, min(batch, count), seed)
        descend(model, optimiser, ConstantLR(optimiser, 1.0), order, loss, steps=steps, what="adapt", progress=progress)
    return model.eval().requires_grad_(requires_grad=False)


def objective(shown: Shown, index: Tensor, masks: Tensor, table: Tensor) -> Tensor:
    """What the views show, int32 index [B, 9, h, w], bool masks [B, h, w] and tables [B, D, 2], to a scalar.

    Points that no view shows do not count.
    """
    features, views = read_points(shown.patches, index.flatten(2))
    margin, wanted, there = point_margins(features, table), masks.flatten(1).float(), (views > 0).float()
    odd = margin.sigmoid()
    plain = -torch.where(wanted > 0, odd, 1 - odd).log()  # of a probability that is far from 0 and 1
    points = (plain * (odd - wanted).abs().pow(FOCUS) * there).sum() / there.sum().clamp(min=1)
    both, either = (odd * wanted * there).sum(1), ((odd + wanted) * there).sum(1)
    overlap = (1 - (2 * both + 1) / (either + 1)).mean()
    return points + overlap + focal(margins(shown.whole, table), masks.flatten(1).any(1).float()[:, None].expand(-1, 9))
