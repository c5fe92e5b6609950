"""INP-Former++ (arXiv 2506.03660) on the embedded trunk: what cannot be rebuilt, and what a head has learned to see.

From descriptions of the paper, which has no public code: the reconstruction of INP-Former with soft coherence and a
second mined term (`inp_former_fit.PLUS_PLUS`); the residual, absolute error times cosine distance, without gradient,
into a segmentation head of transposed and plain convolutions, fitted with a Dice term on painted defects; the map as a
sum of reconstruction error and head.

Ours, each measured (docs/methods.md): the head sees the trunk's maps beside the residual, which alone is too poor on a
light trunk; a focal term, and good pictures too; the mean logit of several heads, for one alone depends on its seed;
the error's length without the cosine, which ranks worst here, less half of the picture's mean, for light and surface
move the whole picture; error times the head's softened probability in place of their sum; the maximum as the score.
Deviations of good parts at each place would rank a little better where parts lie still, and ruin it where they turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import finer, interpolation
from compile.methods.inp_former import INPFormer, mean, residual, to_tokens
from compile.methods.lite_groups import LiteGroups

WIDTH, FINE_WIDTH = 128, 32  # channels of the head, before and after its last doubling
SOFTNESS = 6.0  # divides the head's logit: a head that is sure weighs no more than the error
OWN_LEVEL = 0.5  # share of the picture's mean error that is taken from it


class Reconstruction(nn.Module):
    """Trunk maps to the length of the error [B, h, w] of what the prototypes cannot rebuild."""

    def __init__(self, groups: LiteGroups, model: INPFormer) -> None:
        super().__init__()
        self.groups, self.model = groups, model

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.explain(features)[:1]

    def explain(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Length of the error [B, h, w], and the residual [B, C, h, w] that the head sees."""
        maps = self.groups(features)
        groups = to_tokens(maps)
        fused = mean(groups)
        rebuilt = self.model.rebuild(fused, self.model.prototypes(fused))
        lengths = [(e - d).square().sum(2).sqrt() for e, d in zip(groups, rebuilt, strict=True)]
        seen = residual(groups, rebuilt).transpose(1, 2)
        return mean(lengths).reshape(-1, *maps[0].shape[2:]), seen.reshape(maps[0].shape)


class SegmentationHead(nn.Module):
    """Trunk maps of strides 8, 16 and 32 and the residual to a logit [B, 4h, 4w] at stride 4, h and w at stride 16.

    Args:
        shapes: channels, height and width of each input.

    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        fine = shapes[0]
        for i, (channels, height, width) in enumerate(shapes):
            self.register_buffer(f"mean_{i}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"deviation_{i}", torch.ones(channels, 1, 1))
            self.register_buffer(f"rows_{i}", interpolation(height, fine[1]), persistent=False)
            self.register_buffer(f"columns_{i}", interpolation(width, fine[2]).T.contiguous(), persistent=False)
        self.enter = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels, *_ in shapes)
        self.around = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.narrow = nn.Conv2d(WIDTH, WIDTH // 2, 1)
        self.upsample = nn.ConvTranspose2d(WIDTH // 2, FINE_WIDTH, 4, 2, 1)
        self.leave = nn.Conv2d(FINE_WIDTH, 1, 3, padding=1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        x = self._entered(0, inputs[0])
        for i in range(1, len(inputs)):
            x = x + getattr(self, f"rows_{i}") @ self._entered(i, inputs[i]) @ getattr(self, f"columns_{i}")
        x = functional.relu(x)
        x = functional.relu(self.narrow(x + functional.relu(self.around(x))))
        logit: Tensor = self.leave(functional.relu(self.upsample(x)))
        return logit[:, 0]

    def _entered(self, i: int, x: Tensor) -> Tensor:
        entered: Tensor = self.enter[i]((x - getattr(self, f"mean_{i}")) / getattr(self, f"deviation_{i}"))
        return entered


class INPFormerPP(nn.Module):
    """Trunk maps to one map [B, 4h, 4w] at stride 4, at least 0: the error times what the heads make of it.

    Args:
        reconstruction: of the trunk's maps, h and w at stride 16.
        grid: h and w.
        usual: its mean error on good pictures, in which errors are counted.
        heads: fitted on it, at least one.

    """

    usual: Tensor

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        reconstruction: Reconstruction,
        grid: tuple[int, int],
        usual: Tensor,
        heads: Sequence[SegmentationHead],
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.register_buffer("usual", usual)
        self.heads = nn.ModuleList(heads)
        height, width = grid
        self.register_buffer("rows", finer(height, 4), persistent=False)
        self.register_buffer("columns", finer(width, 4).T.contiguous(), persistent=False)

    def tokens(self, features: Sequence[Tensor]) -> Tensor:
        """The residual [B, C, h, w], for a student."""
        return self.reconstruction.explain(features)[1]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        error, seen = self.reconstruction.explain(features)
        logit = mean([head([*features, seen]) for head in self.heads])
        error = error / self.usual
        above = (error - OWN_LEVEL * error.mean((1, 2), keepdim=True)).clamp(min=0)
        return ((self.rows @ above @ self.columns) * (logit / SOFTNESS).sigmoid(),)
