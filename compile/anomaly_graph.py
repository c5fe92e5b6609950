"""The graph that a bundle carries: trunk and head under one contract, ready for export.

`image` uint8 [B, H, W, 3] RGB and `mask` float32 [B, h, w] in, maps of a scan float32 [B, C, h_i, w_i] beside the image
or in its place, and `class` int64 [B] for a model that must be told it;
`score` float32 [B] and `map` float32 [B, h, w] out.
Normalisation, smoothing and the score's top-k are inside, the threshold never is. Trunk and head are modules of their
own, so that each exports alone: the trunk may be quantised, the scan of the head stays in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAP_LIMIT = 256  # pixels a side
TOP_LIMIT = 3840  # of TensorRT's TopK


def top_count(map_size: tuple[int, int], share: float) -> int:
    """Pixels of a map that are its top share: rounded down as in INP-Former's code, at least 1."""
    return max(1, min(int(share * math.prod(map_size)), TOP_LIMIT))


class AnomalyHead(nn.Module):
    """Trunk maps and mask to score and map.

    Args:
        model: trunk maps to one non-negative discrepancy map [B, h_i, w_i] per hierarchy. Where it has a method
            `image_score(features, maps, seen) -> [B]`, that is the score in place of the mean of the map's top: `maps`
            is what the model gave, `seen` float32 [B, h_i, w_i] per hierarchy is 1 where the mask shows some of a cell.
            Where its `takes_class` is true it is called with the classes int64 [B], too.
        grids: sizes of the discrepancy maps.
        map_size: height and width of the output map and of the mask.
        top: share of the map's pixels whose mean is the score; 0 for the maximum.
        smoothing: standard deviation of a Gaussian over the map, pixels of the map.
        centre: of the first cell of each discrepancy map, in cells from the picture's edge.

    """

    def __init__(
        self,
        model: nn.Module,
        grids: Sequence[tuple[int, int]],
        map_size: tuple[int, int],
        *,
        top: float = 0.01,
        smoothing: float = 0.0,
        centre: float = 0.0,
    ) -> None:
        super().__init__()
        if max(map_size) > MAP_LIMIT:
            raise ValueError(f"map of {map_size}: at most {MAP_LIMIT} a side")
        self.model = model
        self.map_size = map_size
        self.top = top_count(map_size, top)
        self.takes_class = bool(getattr(model, "takes_class", False))
        self.image_score: Callable[..., Tensor] | None = getattr(model, "image_score", None)
        for i, grid in enumerate(grids):
            for name, cells, pixels in zip(("rows", "columns"), grid, map_size, strict=True):
                raised = _smoother(pixels, smoothing) @ interpolation(cells, pixels, centre)
                self._constant(f"{name}_{i}", raised if name == "rows" else raised.T)
                if self.image_score is not None:
                    near = _nearest(cells, pixels, centre)
                    self._constant(f"{name}_seen_{i}", near if name == "rows" else near.T)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.contiguous(), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs: the trunk's maps, then the mask, then the classes for a model that takes them."""
        *features, mask = inputs[: len(inputs) - self.takes_class]
        maps = self.model(features, inputs[-1]) if self.takes_class else self.model(features)
        parts = [getattr(self, f"rows_{i}") @ each @ getattr(self, f"columns_{i}") for i, each in enumerate(maps)]
        heat = torch.stack(parts).mean(0) * mask
        if self.image_score is None:
            return heat.flatten(1).topk(self.top, 1).values.mean(1), heat
        seen = [
            (getattr(self, f"rows_seen_{i}") @ mask @ getattr(self, f"columns_seen_{i}") > 0).float()
            for i in range(len(maps))
        ]
        return self.image_score(features, maps, seen), heat


class AnomalyGraph(nn.Module):
    """image uint8 [B, H, W, 3], mask float32 [B, h, w] -> score float32 [B], map float32 [B, h, w].

    Maps of scans stand before the mask, and before all where there is no trunk and so no image. A model that takes the
    class is given it as the last input, int64 [B].
    """

    def __init__(self, trunk: nn.Module | None, head: AnomalyHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.trunk is not None:
            inputs = (*self.trunk(inputs[0]), *inputs[1:])
        return cast(tuple[Tensor, Tensor], self.head(*inputs))


def interpolation(cells: int, pixels: int, centre: float = 0.0) -> Tensor:
    """[pixels, cells]: linear interpolation between cell centres, constant beyond the outer ones.

    Evenly padded strides put the centre of cell i on the left edge of its span, at i / cells of the picture; patches of
    a vision transformer have theirs in the middle, at (i + 0.5) / cells.
    """
    return torch.from_numpy(np.maximum(1 - _distance(cells, pixels, centre), 0)).float()


def finer(cells: int, factor: int) -> Tensor:
    """[factor * cells, cells]: linear interpolation to a finer stride; cell factor * i lies where cell i lies."""
    at = (torch.arange(factor * cells) / factor).clamp(max=cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _nearest(cells: int, pixels: int, centre: float) -> Tensor:
    """[cells, pixels]: 1 where a pixel lies nearest to a cell."""
    nearest = _distance(cells, pixels, centre).argmin(1)
    return torch.from_numpy(nearest == np.arange(cells)[:, None]).float()


def _distance(cells: int, pixels: int, centre: float) -> NDArray[np.float64]:
    at = (np.arange(pixels) + 0.5) * cells / pixels - centre
    return np.abs(np.clip(at, 0, cells - 1)[:, None] - np.arange(cells))


def _smoother(pixels: int, sigma: float) -> Tensor:
    """[pixels, pixels]: a Gaussian as a product; rows sum to one at the borders too."""
    at = torch.arange(pixels, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / max(sigma, 1e-9)) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float()
