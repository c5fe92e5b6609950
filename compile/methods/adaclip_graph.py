"""AdaCLIP for the box: a trunk that gives what the prompted tower sees, and a head with the text as a constant table.

The published map: the mean of the stages' logits, to the picture's size (corners on corners), softmax, and a Gaussian
of 4 pixels; its abnormal half. Ours: the Gaussian follows on the map's 256 pixels; the score is the margin of the
softmax, brought to 0 to 1: it ranks pictures as the published probability does, but does not saturate near 1; the mask
hides patches from fusion. The picture's own embedding still sees all of it: a defect outside of the mask can raise the
score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.backbones.adapted import TABLE, Adapted, fill
from compile.backbones.clip import load_clip
from compile.methods.adaclip import SHARPNESS, Eyes, margins
from compile.methods.adaclip_fuse import Fusion, fuse
from compile.methods.inp_former_map import corners

SIGMA = 4 / 518  # of the Gaussian, in sides of the picture
WHOLE = ()  # the level of the picture's embedding


class AdaTrunk(nn.Module):
    """image uint8 [B, H, W, 3] -> the embedding, float32 [B, D, 1, 1], and patches of stages [B, D, h, w].

    All of them have length 1 along the channels.

    Args:
        eyes: trained.
        levels: none for the embedding, or the block that ends a stage; by default the embedding, then all stages.

    """

    def __init__(self, eyes: Eyes, levels: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.eyes = eyes
        self._known = (WHOLE, *((stage,) for stage in eyes.tower.stages))
        self.levels = tuple(levels) or self._known
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        seen = self.eyes(image)
        side = self.eyes.tower.grid
        stages = [each.transpose(1, 2).reshape(each.shape[0], -1, side, side) for each in seen.patches.unbind(1)]
        found = dict(zip(self._known, (seen.whole[..., None, None], *stages), strict=True))
        return tuple(found[level] for level in self.levels)


def build_adaclip(source: Adapted, levels: Sequence[tuple[int, ...]], side: int) -> AdaTrunk:
    """Load the trunk of an adapted CLIP for pictures of `side` pixels a side; levels are those of `AdaTrunk`.

    Raises:
        BackboneError: CLIP or what was learned cannot be read, or do not fit each other.

    """
    clip = load_clip(source.clip, side)
    eyes = Eyes(clip.image, clip.width, dynamic=source.record.prompting == "image")
    fill(eyes, source.read_learned(), "eyes.", source.folder)
    return AdaTrunk(eyes, levels)


def read_head(source: Adapted, grid: int) -> AdaHead:
    """Give the head of an adapted CLIP for maps of `grid` cells a side."""
    table: Tensor = source.read_learned()[TABLE]
    return AdaHead(table, grid, grid * source.patch).eval()


class AdaHead(nn.Module):
    """The trunk's maps to the probability of a defect, one map [B, side, side].

    Args:
        table: float32 [D, 2], the text.
        grid: patches a side.
        side: of the picture, pixels.
        fusion: in a graph `mean` or `none`; the others need clusters, which no graph has.

    """

    table: Tensor
    finer: Tensor

    def __init__(self, table: Tensor, grid: int, side: int, fusion: Fusion = "mean") -> None:
        super().__init__()
        self.fusion: Fusion = fusion
        self.patch = side // grid
        self.register_buffer("table", table)
        self.register_buffer("finer", corners(grid, side), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        margin = self._margin(features).reshape(-1, *features[1].shape[2:])
        return ((self.finer @ margin @ self.finer.T).sigmoid(),)

    def image_score(self, features: Sequence[Tensor], _: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        """Half of the margin's cosine, plus a half: 0 to 1."""
        shown = functional.max_pool2d(seen[0][:, None], self.patch).flatten(1)
        whole = fuse(features[0].flatten(1), _patches(features), self._margin(features), self.fusion, shown)
        margin: Tensor = margins(whole[:, None], self.table[None])[:, 0]
        return margin / (4 * SHARPNESS) + 0.5

    def _margin(self, features: Sequence[Tensor]) -> Tensor:
        """[B, N], the mean of the stages."""
        return margins(_patches(features), self.table[None]).mean(1)


def _patches(features: Sequence[Tensor]) -> Tensor:
    """[B, S, N, D]."""
    return torch.stack([each.flatten(2).transpose(1, 2) for each in features[1:]], 1)
