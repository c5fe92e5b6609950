"""Hybrid semantic fusion of AdaCLIP: patches that look abnormal have a say in the picture's embedding.

`code`, as its public code has it: the 100 most abnormal patches, their stages side by side, into 20 clusters; the mean
of the clusters' means. `paper`, as the paper has it: all patches, their stages' mean, into 20 clusters; the mean of the
one that is most abnormal. Neither can be in a graph. `mean`, ours, can: the mean of the 100, which is what `code` comes
to. `none` leaves the embedding as it is. Ours, too: clusters start from the most abnormal patch and from those furthest
from all before, so that nothing is drawn by chance.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from compile.methods.adaclip import unit

CLUSTERS = 20
CHOSEN = 5 * CLUSTERS  # patches
WEIGHT = 0.2  # of the patches in the picture's embedding
ROUNDS = 20
Fusion = Literal["mean", "code", "paper", "none"]


def fuse(whole: Tensor, patches: Tensor, margin: Tensor, how: Fusion, seen: Tensor | None = None) -> Tensor:
    """Give the fused embedding, [B, D] of length 1.

    Args:
        whole: [B, D], of length 1.
        patches: [B, S, N, D], of length 1.
        margin: [B, N], the higher the more abnormal.
        how: see above.
        seen: [B, N], 0 for patches that have no say; for `mean` alone.

    """
    if how == "none":
        return whole
    if how == "mean":
        of_patches = _mean(patches, margin, seen)
    else:
        one = _of_clusters if how == "code" else _of_worst_cluster
        of_patches = torch.stack([one(each, own) for each, own in zip(patches, margin, strict=True)])
    return unit(WEIGHT * unit(of_patches) + (1 - WEIGHT) * whole)


def _mean(patches: Tensor, margin: Tensor, seen: Tensor | None) -> Tensor:
    """Mean of the patches that reach the margin of the hundredth: [B, D]. Equal ones count alike."""
    ranked = margin if seen is None else torch.where(seen > 0, margin, torch.full_like(margin, -1e4))
    last = ranked.topk(min(CHOSEN, margin.shape[1]), 1).values[:, -1:]
    chosen = (ranked >= last).float()
    chosen = chosen if seen is None else chosen * seen
    return (chosen[:, None] @ patches.sum(1))[:, 0] / (patches.shape[1] * chosen.sum(1, keepdim=True)).clamp(min=1)


def _of_clusters(patches: Tensor, margin: Tensor) -> Tensor:
    """Of one picture: patches [S, N, D] to [D]."""
    top = margin.topk(min(CHOSEN, len(margin))).indices
    chosen = patches[:, top]
    labels = cluster(chosen.transpose(0, 1).flatten(1))
    means = [chosen[:, labels == label].mean((0, 1)) for label in torch.unique(labels)]
    return torch.stack(means).mean(0)


def _of_worst_cluster(patches: Tensor, margin: Tensor) -> Tensor:
    points, odd = patches.mean(0), margin.sigmoid()
    labels = cluster(points[margin.argsort(descending=True)])
    labels = labels[margin.argsort(descending=True).argsort()]
    worst = max(torch.unique(labels).tolist(), key=lambda label: float(odd[labels == label].mean()))
    return points[labels == worst].mean(0)


@torch.no_grad()
def cluster(points: Tensor) -> Tensor:
    """K-means: the cluster of each point [n, C], int64 [n]. The first point is the first centre."""
    centres = points[:1]
    while len(centres) < min(CLUSTERS, len(points)):
        centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
    labels = torch.cdist(points, centres).argmin(1)
    for _ in range(ROUNDS):
        filled = torch.unique(labels)
        centres = torch.stack([points[labels == label].mean(0) for label in filled])
        before, labels = labels, filled[torch.cdist(points, centres).argmin(1)]
        if torch.equal(before, labels):
            break
    return labels
