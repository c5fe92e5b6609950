"""Count a model's maps in standard deviations from what good parts give at each place.

Borders and structured places are less predictable than others, whatever the method: without this they would set the
threshold for all. Where parts are few the maps should be those of parts that the model was not fitted on, for it is
surprised less by the ones it knows: each fold of a cross-fit measures its own held-out ones, and the sums of the folds
together serve the model of all. Ours; no paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

BASE = 5.0  # the map's value where a part is as good parts are on average; each unit more is one standard deviation
SHRINK = 0.1  # of each cell's variance, taken from the mean of all cells: few parts, flat backgrounds


@dataclass(frozen=True, slots=True)
class Spread:
    """Sums of the maps of good pictures and of their squares: one float64 [h, w] per hierarchy."""

    pictures: int
    sums: list[Tensor]
    squares: list[Tensor]


class Standardised(nn.Module):
    """Trunk maps to one map [B, h, w] per hierarchy: BASE plus standard deviations, at least 0.

    Args:
        model: trunk maps to one map [B, h, w] per hierarchy, the higher the odder.
        measured: spreads of good pictures, taken together; mean and deviation of a cell include the cells around it.

    """

    def __init__(self, model: nn.Module, measured: Sequence[Spread]) -> None:
        super().__init__()
        self.model = model
        self.hierarchies = len(measured[0].sums)
        pictures = sum(spread.pictures for spread in measured)
        for i in range(self.hierarchies):
            mean = _around(torch.stack([spread.sums[i] for spread in measured]).sum(0) / pictures)
            square = _around(torch.stack([spread.squares[i] for spread in measured]).sum(0) / pictures)
            variance = (square - mean.square()).clamp(min=0)
            deviation = (torch.lerp(variance, variance.mean(), SHRINK) + 1e-12).sqrt()
            self.register_buffer(f"mean_{i}", mean.float())
            self.register_buffer(f"deviation_{i}", deviation.float())

    def mean(self, hierarchy: int) -> Tensor:
        found: Tensor = getattr(self, f"mean_{hierarchy}")
        return found

    def deviation(self, hierarchy: int) -> Tensor:
        found: Tensor = getattr(self, f"deviation_{hierarchy}")
        return found

    def count(self, hierarchy: int, found: Tensor) -> Tensor:
        """Count a map of the model's in deviations."""
        return ((found - self.mean(hierarchy)) / self.deviation(hierarchy) + BASE).clamp(min=0)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.count(i, found) for i, found in enumerate(self.model(features)))


@torch.no_grad()
def measure_spread(model: nn.Module, features: Sequence[NDArray[Any]]) -> Spread:
    """Measure the maps of good pictures, given as one array [n, C, h, w] of trunk maps per hierarchy."""
    count = features[0].shape[0]
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    for start in range(0, count, 16):
        chunk = [torch.from_numpy(np.asarray(f[start : start + 16], np.float32)) for f in features]
        found = [each.double() for each in model(chunk)]
        nothing = [torch.zeros(1, dtype=torch.float64)] * len(found)
        sums = [before + each.sum(0) for before, each in zip(sums or nothing, found, strict=True)]
        squares = [before + each.square().sum(0) for before, each in zip(squares or nothing, found, strict=True)]
    return Spread(count, sums, squares)


def _around(values: Tensor) -> Tensor:
    """Mean over each cell's 3x3 neighbourhood."""
    return functional.avg_pool2d(functional.pad(values[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]
