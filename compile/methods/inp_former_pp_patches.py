"""INP-Former++ (arXiv 2506.03660) on a vision transformer: nearer to its paper than `inp_former_pp`.

From descriptions of the paper, which has no public code, all unverified: INP-Former's published model, fitted by
`inp_former_fit.PLUS_PLUS`; a head of two transposed convolutions and one plain one that sees the residual alone; the
map `SUM`, 0.5 (M_rec + M_seg), M_rec being half the cosine distance and half the length of the error, mean over groups,
and M_seg the head's probability; the mean of the map's largest hundredth as the score. Widths and kernels of the head
are those of a third-party implementation.

Ours: how the two maps are balanced is not known, and M_rec has no bound. Here it is counted in the largest error of a
usual good picture, so that it says about 1 where a head is sure; the residual is counted in its size on good pictures,
channel by channel, for layers differ in theirs. `fuse_by_product` is the fusion of `inp_former_pp`. Maps of 256 pixels
a side in place of 392. Neither fusion was measured with published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import interpolation
from compile.methods.inp_former import INPFormer, distance_map, mean, residual, to_tokens
from compile.methods.inp_former_pp import OWN_LEVEL, SOFTNESS

WIDTHS = (256, 64)  # channels of the head after either doubling
FINER = 4  # cells of the head's map to a patch, a side
PATCH_CENTRE = 0.5  # in patches

Fusion = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


class PatchReconstruction(nn.Module):
    """Group maps [B, C, h, w] to M_rec [B, h, w] and the residual [B, C, h, w] that the head sees."""

    def __init__(self, model: INPFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        groups = to_tokens(features)
        fused = mean(groups)
        rebuilt = self.model.rebuild(fused, self.model.prototypes(fused))
        lengths = mean([(e - d).square().sum(2).sqrt() for e, d in zip(groups, rebuilt, strict=True)])
        error = 0.5 * (distance_map(groups, rebuilt) + lengths)
        seen = residual(groups, rebuilt).transpose(1, 2)
        return error.reshape(-1, *features[0].shape[2:]), seen.reshape(features[0].shape)


class PatchHead(nn.Module):
    """Residual [B, C, h, w] to a logit [B, 4h, 4w].

    Args:
        usual: size of the residual on good pictures, [C].

    """

    usual: Tensor

    def __init__(self, usual: Tensor) -> None:
        super().__init__()
        self.register_buffer("usual", usual[:, None, None])
        first, second = WIDTHS
        self.first = nn.ConvTranspose2d(len(usual), first, 4, 2, 1)
        self.second = nn.ConvTranspose2d(first, second, 4, 2, 1)
        self.leave = nn.Conv2d(second, 1, 3, padding=1)

    def forward(self, seen: Tensor) -> Tensor:
        x = functional.relu(self.second(functional.relu(self.first(seen / self.usual))))
        logit: Tensor = self.leave(x)
        return logit[:, 0]


class PatchINPFormerPP(nn.Module):
    """Group maps [B, C, h, w] to one map [B, 4h, 4w], at least 0.

    Args:
        reconstruction: fitted.
        head: fitted on its residual.
        grid: h and w.
        usual: largest error of a usual good picture, a scalar.
        fuse: `fuse_by_sum` or `fuse_by_product`.

    """

    usual: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        reconstruction: PatchReconstruction,
        head: PatchHead,
        grid: tuple[int, int],
        usual: Tensor,
        fuse: Fusion,
    ) -> None:
        super().__init__()
        self.reconstruction, self.head, self.fuse = reconstruction, head, fuse
        rows, columns = (interpolation(cells, FINER * cells, PATCH_CENTRE) for cells in grid)
        self.register_buffer("usual", usual)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns.T.contiguous(), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        error, seen = self.reconstruction(features)
        return (self.fuse(error / self.usual, self.head(seen), self._raise),)

    def _raise(self, found: Tensor) -> Tensor:
        return self.rows @ found @ self.columns


def fuse_by_sum(error: Tensor, logit: Tensor, finer: Callable[[Tensor], Tensor]) -> Tensor:
    """Descriptions of the paper: the mean of M_rec [B, h, w], raised to the grid of the logit, and M_seg."""
    return 0.5 * (finer(error) + logit.sigmoid())


def fuse_by_product(error: Tensor, logit: Tensor, finer: Callable[[Tensor], Tensor]) -> Tensor:
    """Ours: the error above half of the picture's mean, times the head's softened probability."""
    above = (error - OWN_LEVEL * error.mean((1, 2), keepdim=True)).clamp(min=0)
    return finer(above) * (logit / SOFTNESS).sigmoid()
