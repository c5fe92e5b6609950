"""The graph that a bundle carries: trunk and head under one contract, ready for export.

`image` uint8 [B, H, W, 3] RGB and `mask` float32 [B, h, w] in; `score` float32 [B] and `map` float32 [B, h, w] out.
Normalisation, smoothing and the score's top-k are inside, the threshold never is. Trunk and head are modules of their
own, so that each exports alone: the trunk may be quantised, the scan of the head stays in float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

MAP_LIMIT = 256  # pixels a side
TOP_LIMIT = 3840  # of TensorRT's TopK


class AnomalyHead(nn.Module):
    """Trunk maps and mask to score and map.

    Args:
        model: trunk maps to one smooth, non-negative discrepancy map [B, h_i, w_i] per hierarchy.
        grids: their sizes.
        map_size: height and width of the output map and of the mask.
        top: share of the map's pixels whose mean is the score.

    """

    def __init__(
        self,
        model: nn.Module,
        grids: Sequence[tuple[int, int]],
        map_size: tuple[int, int],
        *,
        top: float = 0.01,
    ) -> None:
        super().__init__()
        if max(map_size) > MAP_LIMIT:
            raise ValueError(f"map of {map_size}: at most {MAP_LIMIT} a side")
        self.model = model
        self.map_size = map_size
        self.top = max(1, min(round(top * math.prod(map_size)), TOP_LIMIT))
        for i, (height, width) in enumerate(grids):
            self.register_buffer(f"rows_{i}", _interpolation(height, map_size[0]), persistent=False)
            self.register_buffer(f"columns_{i}", _interpolation(width, map_size[1]).T.contiguous(), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs: the trunk's maps, then the mask."""
        *features, mask = inputs
        parts = [
            getattr(self, f"rows_{i}") @ each @ getattr(self, f"columns_{i}")
            for i, each in enumerate(self.model(features))
        ]
        heat = torch.stack(parts).mean(0) * mask
        score = heat.flatten(1).topk(self.top, 1).values.mean(1)
        return score, heat


class AnomalyGraph(nn.Module):
    """image uint8 [B, H, W, 3], mask float32 [B, h, w] -> score float32 [B], map float32 [B, h, w]."""

    def __init__(self, trunk: nn.Module, head: AnomalyHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.eval()

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self.head(*self.trunk(image), mask))


def _interpolation(cells: int, pixels: int) -> Tensor:
    """[pixels, cells]: linear interpolation between cell centres, constant beyond the outer ones.

    Evenly padded strides put the centre of cell i on the left edge of its span, at i / cells of the picture.
    """
    at = (np.arange(pixels) + 0.5) * cells / pixels
    distance = np.abs(np.clip(at, 0, cells - 1)[:, None] - np.arange(cells))
    return torch.from_numpy(np.maximum(1 - distance, 0)).float()
