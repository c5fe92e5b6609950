"""Point-MAE's masked pre-training, on a customer's good scans where no checkpoint is given (arXiv 2203.06604).

The paper's, by its public code as read: six tenths of the groups are hidden at random; the encoder sees the others; a
decoder of four blocks tells the points of each hidden group from a learned token and where it lies; loss is Chamfer's
distance, squared, both ways; AdamW at 1e-3 with a decay of 0.05 and a cosine. On ShapeNet: 64 groups of 32, batches of
128, 300 passes. Ours: few scans instead of ShapeNet, groups as they will be used, no stochastic depth, and one scale
for all clouds, so that what is large stays larger. It is long, and resumable as every fit is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from compile.job import Progress
from compile.methods import FitError
from compile.methods.descent import batches, descend, device, one_cycle
from compile.methods.point_mae import DEPTH, GROUPS, HEADS, NEIGHBOURS, WIDTH, Blocks, PointEncoder, position
from edge.organised_scan.groups import Field, group

HIDDEN = 0.6  # of the groups
DECODER = 4  # blocks
STEPS, BATCH, RATE, DECAY = 3000, 8, 1e-3, 0.05


class MaskedAutoencoder(nn.Module):
    """An encoder with the decoder that teaches it.

    Args:
        encoder: what is kept.
        neighbours: points of a group.
        decoder: blocks.

    """

    def __init__(self, encoder: PointEncoder, neighbours: int = NEIGHBOURS, decoder: int = DECODER) -> None:
        super().__init__()
        width, heads = encoder.norm.normalized_shape[0], encoder.blocks.heads
        self.MAE_encoder = encoder
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.decoder_pos_embed = position(width)
        self.MAE_decoder = Blocks(width, decoder, heads)
        self.decoder_norm = nn.LayerNorm(width)
        self.increase_dim = nn.Linear(width, 3 * neighbours)

    def forward(self, groups: Tensor, centres: Tensor, order: Tensor) -> Tensor:
        """Loss of hiding some groups.

        Args:
            groups: [B, G, K, 3].
            centres: [B, G, 3].
            order: int64 [B, G], a permutation of each cloud's groups; the last ones are hidden.

        """
        encoder, shown = self.MAE_encoder, order.shape[1] - int(HIDDEN * order.shape[1])
        seen, hidden = order[:, :shown], order[:, shown:]
        tokens = _take(encoder.encoder(groups), seen)
        tokens = encoder.norm(encoder.blocks(tokens, encoder.pos_embed(_take(centres, seen)))[-1])
        asked = self.mask_token.expand(len(groups), hidden.shape[1], -1)
        found = self.MAE_decoder(torch.cat([tokens, asked], 1), self.decoder_pos_embed(_take(centres, order)))[-1]
        told = self.increase_dim(self.decoder_norm(found[:, shown:]))
        return chamfer(told.reshape(-1, groups.shape[2], 3), _take(groups, hidden).flatten(0, 1))


def _take(values: Tensor, rows: Tensor) -> Tensor:
    return values[torch.arange(len(values), device=values.device)[:, None], rows]


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of the points [n, K, 3] of either to the nearest of the other, both ways together."""
    apart = (a[:, :, None] - b[:, None]).square().sum(3)
    return apart.amin(2).mean() + apart.amin(1).mean()


def pretrain(
    clouds: Sequence[Field],
    *,
    seed: int,
    steps: int = STEPS,
    width: int = WIDTH,
    depth: int = DEPTH,
    heads: int = HEADS,
    groups: int = GROUPS,
    neighbours: int = NEIGHBOURS,
    progress: Progress | None = None,
) -> tuple[PointEncoder, float]:
    """Teach an encoder on clouds of good parts.

    Args:
        clouds: [n_i, 3] each, finite, centred, in any unit.
        seed: fixes the result, on one thread to the bit.
        steps: of the optimiser.
        width: of a token.
        depth: blocks.
        heads: of attention.
        groups: of a cloud.
        neighbours: of a group.
        progress: called with (what, done, of).

    Returns:
        the encoder, in eval mode; and the length that clouds are divided by before they are grouped for it.

    Raises:
        FitError: there is no cloud, or the fit diverged.

    """
    if not clouds:
        raise FitError("no cloud to pre-train on. Give scans of good parts.")
    scale = float(np.mean([np.linalg.norm(each, axis=1).max() for each in clouds]))
    found = [group(each / np.float32(scale), groups, neighbours) for each in clouds]
    shapes, centres = (torch.from_numpy(np.stack(each)) for each in list(zip(*found, strict=True))[:2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedAutoencoder(PointEncoder(width, depth, heads), neighbours)

        def objective(rows: list[int]) -> Tensor:
            order = torch.rand(len(rows), groups).argsort(1)
            loss: Tensor = model(*(each.to(device()) for each in (shapes[rows], centres[rows], order)))
            return loss

        optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
        order = batches(len(clouds), min(BATCH, len(clouds)), seed)
        schedule = one_cycle(optimiser, RATE, steps)
        descend(model, optimiser, schedule, order, objective, steps=steps, what="pre-train", progress=progress)
    return model.MAE_encoder.eval().requires_grad_(requires_grad=False), scale
