"""PatchCore (Roth et al. 2022): the baseline that every accuracy table shows next to our models.

Patches of good pictures, as features of the frozen trunk, are kept in a memory bank; a patch is as anomalous as its
distance to the nearest one in the bank, a picture as its worst patch, weighted by how close the bank's own vectors lie
around that nearest one (eq. 7). Features of both strides are averaged over 3x3 neighbours, brought to the finer grid
and concatenated. The bank is a greedy k-centre selection (each next vector is
the one farthest from all chosen so far), made on a random projection and, where there are very many patches, on a
random part of them. The trunk, its taps and the picture size are the same as for the model it is compared with, and
nothing is tuned on test pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.backbone import Trunk

BANK = 10_000  # vectors
POOL = 100_000  # patches that the selection looks at
PROJECTED = 32  # dimensions of the random projection
NEIGHBOURS = 9  # b of eq. 7: vectors of the bank around the nearest one, itself included
BLUR_SIGMA = 4.0  # pixels of the map, as in the paper
CHUNK = 2048  # patches compared at once
Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PatchCore:
    """A fitted baseline."""

    trunk: Trunk
    bank: Tensor  # [m, C] float32

    def score(self, images: Iterable[Images], side: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score batches of pictures.

        Args:
            images: batches, uint8 [B, H, W, 3] RGB, all of one size.
            side: height and width of the maps.

        Returns:
            scores float32 [n], maps float32 [n, *side].

        """
        scores, maps = [], []
        for batch in images:
            features, (height, width) = patch_features(self.trunk, batch)
            distances = torch.cat([nearest(chunk, self.bank) for chunk in torch.split(features, CHUNK)])
            grid = distances.reshape(len(batch), 1, height, width)
            worst = distances.reshape(len(batch), -1).argmax(1) + torch.arange(len(batch)) * height * width
            scores.append(picture_scores(features[worst], self.bank))
            full = functional.interpolate(grid, side, mode="bilinear", align_corners=False)
            maps.append(_blur(full)[:, 0])
        return torch.cat(scores).numpy(), torch.cat(maps).numpy()


def fit_patchcore(trunk: Trunk, images: Iterable[Images], seed: int, bank: int = BANK) -> PatchCore:
    """Fit on batches of good pictures, uint8 [B, H, W, 3] RGB, all of one size."""
    features = torch.cat([patch_features(trunk, batch)[0] for batch in images])
    return PatchCore(trunk, features[greedy_coreset(features, bank, seed)])


@torch.inference_mode()
def patch_features(trunk: Trunk, batch: Images) -> tuple[Tensor, tuple[int, int]]:
    """Give the features [B*h*w, C] of a batch in row order, and the grid (h, w)."""
    maps = [
        functional.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
        for level in trunk(torch.from_numpy(np.ascontiguousarray(batch)))
    ]
    height, width = maps[0].shape[2:]
    raised = [functional.interpolate(m, (height, width), mode="bilinear", align_corners=False) for m in maps[1:]]
    joined = torch.cat([maps[0], *raised], dim=1)
    return joined.permute(0, 2, 3, 1).flatten(0, 2), (height, width)


@torch.inference_mode()
def greedy_coreset(features: Tensor, count: int = BANK, seed: int = 0) -> Tensor:
    """Choose `count` rows of features [n, C] by greedy k-centre; int64 [min(count, n)]."""
    if len(features) <= count:
        return torch.arange(len(features))
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randperm(len(features), generator=generator)[: max(POOL, count)]
    points = features[pool]
    if points.shape[1] > PROJECTED:
        points = points @ (torch.randn(points.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5)
    squares = points.square().sum(1)
    nearest_yet = torch.full((len(points),), torch.inf)
    chosen = torch.empty(count, dtype=torch.int64)
    current = 0  # the pool is shuffled: any start is random
    for step in range(count):
        chosen[step] = current
        distance = (points @ points[current]).mul_(-2).add_(squares).add_(squares[current])
        torch.minimum(nearest_yet, distance, out=nearest_yet)
        current = int(nearest_yet.argmax())
    return pool[chosen]


def nearest(features: Tensor, bank: Tensor) -> Tensor:
    """Give the Euclidean distance [n] of each row of features [n, C] to the nearest of bank [m, C]."""
    squared = torch.addmm(bank.square().sum(1), features, bank.T, alpha=-2).amin(1) + features.square().sum(1)
    return squared.clamp_min_(0).sqrt_()


@torch.inference_mode()
def picture_scores(worst: Tensor, bank: Tensor) -> Tensor:
    """Weight the distance of each picture's worst patch [n, C] to the bank [m, C] by eq. 7; [n].

    The weight is one minus the share that the nearest vector has of the exponentials of the distances to its own
    neighbours in the bank: a patch near a rare vector is rarer than its distance says.
    """
    apart = torch.cdist(worst, bank)
    found, index = apart.min(1)
    around = torch.cdist(bank[index], bank).topk(min(NEIGHBOURS, len(bank)), largest=False).indices
    share = torch.exp(found - torch.logsumexp(apart.gather(1, around), 1))
    return (1 - share) * found


def batches(images: Iterable[NDArray[np.uint8]], size: int = 8) -> Iterator[Images]:
    """Stack pictures [H, W, 3] into batches."""
    waiting: list[NDArray[np.uint8]] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def _blur(maps: Tensor) -> Tensor:
    reach = int(4 * BLUR_SIGMA + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / BLUR_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    padded = functional.pad(maps, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.transpose(2, 3))
