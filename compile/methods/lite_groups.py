"""Maps of a convolutional trunk as the two token groups that INP-Former wants: one grid, one width.

A vision transformer's layers share grid and width; EfficientNet-Lite0's do not. The shallow group is stride 8, its 2x2
cells stacked; the deep one is stride 16 with stride 32 raised to its grid. Each is projected on its principal
components, to a mean variance of one but not whitened (whitened maps are rebuilt worst where they say least), and the
groups occupy channels of their own, zero in the other's: the mean of the groups, on which INP-Former works, is then
their concatenation and mixes nothing. Ours; no paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import interpolation

STRIDES = (8, 16, 32)
GROUPS = (slice(0, 1), slice(1, 3))  # of the strides, what each group is made of
COMPONENTS = 64  # per group; 128 gained nothing and cost four times the time
PICTURES = 200  # that the components are measured on, at most


class LiteGroups(nn.Module):
    """Maps [B, 40, 2h, 2w], [B, 112, h, w], [B, 320, h/2, w/2] to two groups [B, 2 * components, h, w]."""

    rows: Tensor
    columns: Tensor

    def __init__(self, shapes: Sequence[tuple[int, ...]], components: int = COMPONENTS) -> None:
        super().__init__()
        (c_8, *_), (c_16, height, width), (c_32, *small) = shapes
        self.components = components
        self.register_buffer("rows", interpolation(small[0], height), persistent=False)
        self.register_buffer("columns", interpolation(small[1], width).T.contiguous(), persistent=False)
        self.shallow = nn.Conv2d(4 * c_8, 2 * components, 1)
        self.deep = nn.Conv2d(c_16 + c_32, 2 * components, 1)

    def stack(self, group: int, features: Sequence[Tensor]) -> Tensor:
        """One group before its projection, from the maps of its own strides."""
        if group == 0:
            return functional.pixel_unshuffle(features[0], 2)
        middle, coarse = features
        return torch.cat([middle, self.rows @ coarse @ self.columns], 1)

    def project(self, group: int, features: Sequence[Tensor]) -> Tensor:
        """One group from the maps of its own strides."""
        found: Tensor = (self.shallow, self.deep)[group](self.stack(group, features))
        return found

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.project(i, features[own]) for i, own in enumerate(GROUPS)]


@torch.no_grad()
def fit_groups(features: Sequence[NDArray[Any]], components: int = COMPONENTS) -> LiteGroups:
    """Measure the principal components of good pictures' maps [n, C, h, w], one array per stride of `STRIDES`."""
    groups = LiteGroups([each.shape[1:] for each in features], components)
    chosen = np.unique(np.linspace(0, features[0].shape[0] - 1, PICTURES).astype(int))
    for turn, (project, own) in enumerate(zip((groups.shallow, groups.deep), GROUPS, strict=True)):
        maps = groups.stack(turn, [torch.from_numpy(np.asarray(each[chosen], np.float32)) for each in features[own]])
        tokens = maps.transpose(0, 1).flatten(1).double()
        mean, deviation = tokens.mean(1), tokens.std(1) + 1e-3
        tokens = (tokens - mean[:, None]) / deviation[:, None]
        size, vectors = torch.linalg.eigh(tokens @ tokens.T / tokens.shape[1])
        size, vectors = size[-components:], vectors[:, -components:]
        sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # a vector's own is any
        vectors = vectors * sign
        weight = torch.zeros(2 * components, len(mean), dtype=torch.float64)
        weight[turn * components : (turn + 1) * components] = (vectors / size.mean().sqrt()).T / deviation
        project.weight = nn.Parameter(weight[:, :, None, None].float())
        project.bias = nn.Parameter((-weight @ mean).float())
    return groups.eval().requires_grad_(requires_grad=False)


class Grouped:
    """One group of pictures' maps, computed when rows are asked for: [n, 2 * components, h, w]."""

    def __init__(self, groups: LiteGroups, features: Sequence[NDArray[Any]], group: int) -> None:
        self._groups, self._own, self._group = groups, features[GROUPS[group]], group
        count, _, height, width = features[1].shape
        self.shape = (count, 2 * groups.components, height, width)

    @torch.no_grad()
    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        chosen = [torch.from_numpy(np.asarray(each[rows], np.float32)) for each in self._own]
        found: NDArray[np.float32] = self._groups.project(self._group, chosen).numpy()
        return found
