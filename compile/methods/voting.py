"""Voting of Mentor3AD: three opinions about each cell, brought to one scale and put together. The formula is ours.

Known of the paper is only that a voting module merges several scores. Here they are: how far the picture is from what
the surface tells of it, how far the surface is from what the picture tells, each counted in deviations of good parts in
every direction (Mahalanobis' distance of the residual), and how little the two modalities' aligned features agree. What
good scans give on which nothing was fitted sets the scale: median and median deviation. A vote that is not above the
median counts nothing, and the length of the three together is the map: no vote can outvote another, and none needs
labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

USUAL = 1.4826  # median deviations in a standard deviation of a Gaussian
RIDGE = 1e-2  # of a residual's mean variance
VOTES = 3


class Deviation(nn.Module):
    """Residuals [..., C] to Mahalanobis' distance [...] from those of good parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whiten = nn.Linear(width, width)

    def forward(self, residual: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(self.whiten(residual), dim=-1)
        return found

    @torch.no_grad()
    def measure(self, good: Tensor) -> None:
        """Learn from residuals [n, C]."""
        rows = good.double()
        mean = rows.mean(0)
        spread = (rows - mean).T @ (rows - mean) / len(rows)
        spread = spread + (RIDGE * spread.diagonal().mean() + 1e-12) * torch.eye(len(spread), dtype=torch.float64)
        weight = torch.linalg.cholesky(torch.linalg.inv(spread)).T
        self.whiten.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.whiten.bias = nn.Parameter((-weight @ mean).float(), requires_grad=False)


class Voting(nn.Module):
    """Votes [..., VOTES], the higher the odder, to one value [...]: 0 where none is above what is usual."""

    usual: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(VOTES))
        self.register_buffer("spread", torch.ones(VOTES))

    def forward(self, votes: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(((votes - self.usual) / self.spread).clamp(min=0), dim=-1)
        return found

    @torch.no_grad()
    def measure(self, good: Tensor) -> None:
        """Learn the scale from votes [n, VOTES] on good scans that nothing was fitted on."""
        self.usual = good.median(0).values
        self.spread = USUAL * (good - self.usual).abs().median(0).values + 1e-6
