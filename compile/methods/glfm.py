"""GLFM, light: one model for all classes, whose objects are told apart before their patches are (arXiv 2505.07375).

The paper's: pseudo-anomalies (`stretching`) adapt the extractor of point features; patches are described by its first
two blocks, side by side, and each by the mean of its neighbourhood; an object by the mean of its patches; the object's
nearest global entry chooses the bank that its patches are compared with (`glfm_banks`); the map's maximum is the score.
Theirs is Point-MAE on 1024 groups of 128 points (`glfm_points`).

Ours, so that it can be a graph on a box: groups are the cells of the organised grid, whose neighbours are known
beforehand; a group is described by `cells.describe_surface` and two small blocks without attention; an object by the
mean of its groups before they are whitened, as whitening makes little of where classes differ; and also by its size,
which a mean does not tell: how far its points lie from their middle, in what is usual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compile.methods.cells import around, describe_surface
from compile.methods.glfm_banks import Banks

CELL = 8  # points a side
BLOCKS = 2
GROUP = 3  # cells a side, whose mean describes a patch


class Extractor(nn.Module):
    """Descriptions of cells [..., S], whitened, through small blocks; their outputs side by side are a patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whiten = nn.Linear(width, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(BLOCKS))
        self.judge = nn.Linear(width, 2)  # for the adaptation alone

    def taps(self, raw: Tensor) -> list[Tensor]:
        """What each block gives, [..., S]."""
        found = [self.whiten(raw)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found[1:]

    def forward(self, raw: Tensor) -> Tensor:
        return torch.cat(self.taps(raw), -1)


class _Block(nn.Module):
    """Nothing but its input before it is adapted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.out = nn.Linear(2 * width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.out(self.inner(x))
        return found


class GLFM(nn.Module):
    """`scan` [B, H, W, 3] and `geometry` [B, G, H, W] of the front end to one map [B, H / 8, W / 8] of distances.

    Args:
        extractor: of patches.
        size: H and W, multiples of 8.

    """

    middle: Tensor
    spread: Tensor
    banks: Banks

    def __init__(self, extractor: Extractor, size: tuple[int, int]) -> None:
        super().__init__()
        if size[0] % CELL or size[1] % CELL:
            raise ValueError(f"a grid of {size} points does not divide into cells of {CELL}")
        self.grid = (size[0] // CELL, size[1] // CELL)
        self.extractor = extractor
        width = extractor.whiten.in_features + 1
        self.register_buffer("middle", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def describe(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Patches [B, L, C]; where they have points [B, L], 0 or 1; and their objects [B, S + 1]."""
        scan, geometry = features
        raw, known = describe_surface(geometry, self.grid)
        local = self.extractor(raw).transpose(1, 2)
        local = local.reshape(-1, local.shape[1], *self.grid)
        local = around(local, known.reshape(-1, 1, *self.grid), GROUP).flatten(2).transpose(1, 2)
        mean = (raw * known[..., None]).sum(1) / known.sum(1, keepdim=True).clamp(min=1)
        whole = torch.cat([mean, object_size(scan)[:, None]], 1)
        return local, known, (whole - self.middle) / self.spread

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        local, known, whole = self.describe(features)
        return ((self.banks(local, self.banks.route(whole)) * known).reshape(-1, *self.grid),)

    def route(self, features: Sequence[Tensor]) -> Tensor:
        """Entry int64 [B] that each object is routed to."""
        return self.banks.route(self.describe(features)[2])


def object_size(scan: Tensor) -> Tensor:
    """Root mean square distance of the points of `scan` [B, H, W, 3] from their middle, 0; 0 where none is: [B]."""
    squares = scan.square().sum(3).flatten(1)
    return (squares.sum(1) / (squares > 0).float().sum(1).clamp(min=1)).sqrt()
