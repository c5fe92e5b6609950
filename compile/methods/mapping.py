"""Crossmodal mapping of CFM (arXiv 2312.04521): one modality's features told from the other's, and how far it is off.

The paper's, by its public code as read, none of it copied: three linear layers with GELU between (seven in the big
variant), hidden width 960; the loss one minus the mean cosine of both directions; the distance between told and seen,
both of length 1, which is sqrt(2 - 2 cos). With DINO ViT-B/8 (768) and Point-MAE (1152) a pair has 5.54 million
parameters. Ours: a place in the first layer for a mentor, which adds nothing where there is none.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, LAYERS, BIG = 960, 3, 7


class Mapping(nn.Module):
    """Features [..., source] and, where it was made for one, a mentor [..., mentor] to features [..., target].

    Args:
        source: numbers that it is given.
        target: numbers that it tells.
        hidden: width of all layers between.
        layers: linear ones.
        mentor: numbers of the mentor; 0 for CFM.

    """

    def __init__(self, source: int, target: int, hidden: int = HIDDEN, layers: int = LAYERS, mentor: int = 0) -> None:
        super().__init__()
        widths = [source, *[hidden] * (layers - 1), target]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.guide = nn.Linear(mentor, hidden, bias=False) if mentor else None

    def forward(self, seen: Tensor, mentor: Tensor | None = None) -> Tensor:
        first, *others = self.layers
        told = first(seen)
        if self.guide is not None and mentor is not None:
            told = told + self.guide(mentor)
        for layer in others:
            told = layer(functional.gelu(told))
        return cast(Tensor, told)


def distance(told: Tensor, seen: Tensor) -> Tensor:
    """Distance [...] of two features [..., C] of any length, on the unit sphere: sqrt(2 - 2 cos), from 0 to 2."""
    apart = functional.normalize(told, dim=-1) - functional.normalize(seen, dim=-1)
    found: Tensor = torch.linalg.vector_norm(apart, dim=-1)
    return found


def loss(told: Tensor, seen: Tensor) -> Tensor:
    """One minus the mean cosine of features [n, C]; a scalar."""
    return 1 - functional.cosine_similarity(told, seen, dim=-1).mean()
