"""The training of AdaCLIP on labelled pictures of other things than will be inspected.

The public code's: AdamW at 0.01 with betas of 0.5 and 0.999, five passes; focal loss of the picture and of each stage's
map, which is softmaxed by itself at the picture's size, and Dice of its abnormal and normal halves. Not taken over:
four pictures in one whose label stays that of the first, which is often wrong; and the choice of the best pass by the
test set. Ours: batches of several pictures, gradients clipped, the focal loss of logits without smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR

from compile.backbones.clip import CLIP, Sentences
from compile.job import Progress
from compile.methods.adaclip import AdaCLIP, Prompting, margins
from compile.methods.adaclip_fuse import Fusion, fuse
from compile.methods.clip_states import describe
from compile.methods.descent import batches, descend, device

PASSES, BATCH = 5, 4
RATE, BETAS = 0.01, (0.5, 0.999)
FOCUS = 2.0  # exponent of how wrong a place is


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """Labelled pictures to learn from.

    Args:
        pictures: uint8 [n, H, W, 3] RGB, square.
        masks: bool [n, H, W]: where the defect is; none of a good picture.
        words: what the pictures show.
        word_of: int64 [n], which of these each shows.

    """

    pictures: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    words: Sequence[str]
    word_of: NDArray[np.int64]


def fit_adaclip(
    clip: CLIP,
    auxiliary: Auxiliary,
    *,
    seed: int,
    prompting: Prompting = "static",
    fusion: Fusion = "mean",
    passes: int = PASSES,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> AdaCLIP:
    """Train prompts and projections.

    Args:
        clip: for pictures of this size.
        auxiliary: what to learn from.
        seed: fixes the result, on one thread to the bit.
        prompting: see `AdaCLIP`.
        fusion: of the picture's embedding.
        passes: over all pictures.
        batch: pictures of a step.
        progress: called with (what, done, of).

    Raises:
        FitError: the training diverged.

    """
    sentences = tokens_of(clip, auxiliary.words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AdaCLIP(clip, prompting).train()
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, BETAS)

        def loss(chosen: list[int]) -> Tensor:
            pictures, masks = (
                torch.from_numpy(np.asarray(each[chosen])).to(device())
                for each in (auxiliary.pictures, auxiliary.masks)
            )
            words = torch.from_numpy(auxiliary.word_of[chosen]).to(device())
            seen, table = model(pictures, Sentences(*(each.to(device()) for each in sentences)), words)
            by_stage = margins(seen.patches, table)
            whole = fuse(seen.whole, seen.patches, by_stage.mean(1), fusion)
            return objective(by_stage, margins(whole[:, None], table)[:, 0], masks)

        count = len(auxiliary.pictures)
        steps = passes * math.ceil(count / batch)
        schedule = ConstantLR(optimiser, factor=1.0)
        order = batches(count, min(batch, count), seed)
        descend(model, optimiser, schedule, order, loss, steps=steps, what="adapt", progress=progress)
    return model.eval().requires_grad_(requires_grad=False)


def tokens_of(clip: CLIP, words: Sequence[str]) -> Sentences:
    """Sentences of each word: tokens [W, 48, L] and ends [W, 48]."""
    texts = [text for word in words for text in describe(word)]
    found = clip.sentences(texts)
    shape = (len(words), len(texts) // len(words))
    return Sentences(found.tokens.reshape(*shape, -1), found.ends.reshape(shape))


def objective(by_stage: Tensor, whole: Tensor, masks: Tensor) -> Tensor:
    """Margins [B, S, N] of patches and [B] of pictures, and bool masks [B, H, W], to a scalar."""
    side = math.isqrt(by_stage.shape[2])
    maps = by_stage.reshape(*by_stage.shape[:2], side, side)
    maps = functional.interpolate(maps, masks.shape[1:], mode="bilinear", align_corners=True)
    wanted = masks.float()
    total = focal(whole, masks.flatten(1).any(1).float())
    for stage in maps.unbind(1):
        odd = stage.sigmoid()
        total = total + focal(stage, wanted) + dice(odd, wanted) + dice(1 - odd, 1 - wanted)
    return total


def focal(margin: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy that looks at what is wrong, of logits and 0 or 1 of the same shape."""
    plain = functional.binary_cross_entropy_with_logits(margin, wanted, reduction="none")
    return (plain * (margin.sigmoid() - wanted).abs().pow(FOCUS)).mean()


def dice(found: Tensor, wanted: Tensor) -> Tensor:
    """One less the overlap, the mean over the first axis of [B, H, W]."""
    both, either = (found * wanted).sum((1, 2)), (found + wanted).sum((1, 2))
    return (1 - (2 * both + 1) / (either + 1)).mean()
