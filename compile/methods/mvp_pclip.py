"""MVP-PCLIP (IEEE TSMC 2025, arXiv 2409.13162): a scan seen from nine sides by a frozen CLIP, with learned prompts.

The paper's, in the form of its public code: one token that is appended at the last block of each of four stages and cut
right after it; a projection of patches per stage, one of the embedding per view; two texts, "perfect" and "damaged",
behind 16 shared and 8 tokens of their own; a point's feature is the mean of what its pixels show in all views and
stages, bilinear with corners on corners; its probability a softmax without temperature, between 0.12 and 0.88; the
object's the mean of the views' softmaxes at 100.

Faults of that code that are not taken over: the embedding's projections enter no loss (here they do); saving undoes the
trained tokens (`compile.backbones.adapted` saves what learned alone); hidden points read the surface before them (here
a view counts where it shows the point); training and test read the same folder. Its text tower runs without the causal
mask that CLIP was trained with: `unmasked` does so, too, with zeros up to CLIP's 77 tokens; `causal`, the default, has
the mask. The pictures are of our renderer (`edge.organised_scan.views`), the points those of the graph's grid.

Ours: stages are summed before pixels are read, which gives the same and a fourth of the work; a running sum over views.
The object's probability sees all of the views, whatever the mask hides. Unverified: every published figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from compile.anomaly_graph import AnomalyHead
from compile.backbones.adapted import TABLE, Adapted, fill
from compile.backbones.clip import CLIP, STAGES, ImageTower, Sentences, TextTower, load_clip
from compile.methods.adaclip import margins, unit

VIEWS = 9
PIXELS = 224  # a side of a view
SHARED, OWN = 16, 8  # tokens before the words of both texts, and of one
KEY_DEVIATION, TEXT_DEVIATION = 0.2, 0.02  # at the start
STATES = ("perfect {}.", "damaged {}.")
Attention = Literal["causal", "unmasked"]


class Shown(NamedTuple):
    """`patches` float32 [B, 9, N, D]: of each view, the stages' mean; `whole` float32 [B, 9, D], of length 1."""

    patches: Tensor
    whole: Tensor


class ViewEyes(nn.Module):
    """views uint8 [B, 9, 224, 224] -> `Shown`."""

    def __init__(self, tower: ImageTower, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.keys = nn.ParameterList(KEY_DEVIATION * torch.randn(1, tower.width) for _ in range(STAGES))
        self.project = nn.ModuleList(nn.Linear(tower.width, width) for _ in range(STAGES))
        self.project_views = nn.ModuleList(nn.Linear(width, width) for _ in range(VIEWS))

    def forward(self, views: Tensor) -> Shown:
        x = self.tower.embed(views.float().flatten(0, 1)[..., None].expand(-1, -1, -1, 3))
        plain = x.shape[1]
        stages: list[Tensor] = []
        for i, block in enumerate(self.tower.blocks):
            if i in self.tower.stages:
                key, project = self.keys[len(stages)], self.project[len(stages)]
                x = block(torch.cat([x, key.expand(x.shape[0], 1, -1)], 1))[:, :plain]
                stages.append(unit(project(x[:, 1:])))
            else:
                x = block(x)
        mean: Tensor = sum(stages[1:], stages[0]) * (1.0 / STAGES)
        whole = self.tower.finish(x).reshape(views.shape[0], VIEWS, -1)
        views_of = [unit(project(whole[:, i])) for i, project in enumerate(self.project_views)]
        return Shown(mean.reshape(views.shape[0], VIEWS, *mean.shape[1:]), torch.stack(views_of, 1))


class PromptReader(nn.Module):
    """Words int64 [G, 2, L] (perfect, damaged) to a table [G, D, 2], of length 1.

    The learned tokens go between the first token and the words.
    """

    def __init__(self, tower: TextTower, attention: Attention = "causal") -> None:
        super().__init__()
        self.tower, self.attention = tower, attention
        self.shared = nn.Parameter(TEXT_DEVIATION * torch.randn(SHARED, tower.width))
        self.own = nn.Parameter(TEXT_DEVIATION * torch.randn(2, OWN, tower.width))

    def forward(self, sentences: Sentences) -> Tensor:
        tokens, learned = sentences.tokens, SHARED + OWN
        if self.attention == "unmasked":
            room = self.tower.longest - learned - tokens.shape[2]
            tokens = torch.cat([tokens, torch.zeros_like(tokens[..., :1]).expand(-1, -1, room)], 2)
        words = self.tower.token(tokens)
        prompts = torch.cat([self.shared.expand(2, -1, -1), self.own], 1).expand(words.shape[0], -1, -1, -1)
        x = torch.cat([words[:, :, :1], prompts, words[:, :, 1:]], 2).flatten(0, 1)
        x = x + self.tower.places[: x.shape[1]]
        mask = self.tower.causal(x.shape[1]) if self.attention == "causal" else None
        for block in self.tower.blocks:
            x = block(x, mask)
        found = unit(self.tower.finish(x, sentences.ends.flatten() + learned))
        return found.reshape(words.shape[0], 2, -1).transpose(1, 2)


class MVPPCLIP(nn.Module):
    """Both sides of it around a frozen CLIP for pictures of 224 pixels."""

    def __init__(self, clip: CLIP, attention: Attention = "causal") -> None:
        super().__init__()
        self.eyes = ViewEyes(clip.image, clip.width)
        self.reader = PromptReader(clip.text, attention)

    def learned(self) -> dict[str, Tensor]:
        """Give what was learned, by name; nothing of CLIP."""
        return {name: each for name, each in self.state_dict().items() if ".tower." not in name}


def describe_object(clip: CLIP, words: Sequence[str]) -> Sentences:
    """Texts of each word: tokens [G, 2, L] and ends [G, 2]. Underscores and hyphens become spaces."""
    plain = [" ".join(word.replace("_", " ").replace("-", " ").split()) for word in words]
    found = clip.sentences([state.format(word) for word in plain for state in STATES])
    return Sentences(found.tokens.reshape(len(words), 2, -1), found.ends.reshape(len(words), 2))


def read_points(patches: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Bring views back to points.

    Args:
        patches: float32 [B, V, N, D].
        index: int32 [B, V, P], the pixel of each point in each view, -1 where it is hidden.

    Returns:
        float32 [B, P, D], the mean over the views that show the point, of length 1 (0 where none does); float32 [B, P],
        how many do.

    """
    count, views, cells = index.shape[0], patches.shape[1], patches.shape[2]
    side = math.isqrt(cells)
    first = torch.arange(count, device=index.device)[:, None] * views + torch.arange(views, device=index.device)
    pixel = index.float()
    seen = (pixel >= 0).float()
    row = ((pixel + 0.5) * (1.0 / PIXELS)).floor().clamp(min=0)
    column = (pixel - PIXELS * row).clamp(min=0)
    (top, down), (left, right) = (_between(at * ((side - 1) / (PIXELS - 1)), side) for at in (row, column))
    corner = first[..., None] * cells + (top * side + left).long()
    around = [corner, corner + 1, corner + side, corner + side + 1]
    weights = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    flat, total = patches.flatten(0, 2), torch.zeros(1, device=patches.device)
    for cell, weight in zip(around, weights, strict=True):
        shown = (weight * seen)[..., None]
        for v in range(views):
            found = flat.index_select(0, cell[:, v].flatten()).reshape(*cell.shape[::2], -1)
            total = total + found * shown[:, v]
    return unit(total), seen.sum(1)


def _between(at: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The cell before a position, and how far behind it that lies: 0 to 1."""
    before = at.floor().clamp(max=side - 2)
    return before, at - before


class ViewModel(nn.Module):
    """Views and index to the probability of a defect at each cell [B, h, w], with the text as a constant table.

    Args:
        eyes: trained.
        table: float32 [D, 2].

    """

    table: Tensor

    def __init__(self, eyes: ViewEyes, table: Tensor) -> None:
        super().__init__()
        self.eyes = eyes
        self.register_buffer("table", table)
        self.eval().requires_grad_(requires_grad=False)

    def points(self, shown: Shown, index: Tensor) -> Tensor:
        """[B, h, w]; 0 where no view shows the cell."""
        features, views = read_points(shown.patches, index.flatten(2))
        odd = point_margins(features, self.table[None]).sigmoid() * (views > 0)
        return odd.reshape(-1, *index.shape[2:])

    def whole(self, shown: Shown) -> Tensor:
        """Probability that the object has a defect, [B]."""
        return margins(shown.whole, self.table[None]).sigmoid().mean(1)


def build_mvp_pclip(source: Adapted) -> ViewModel:
    """Load the model of an adapted CLIP.

    Raises:
        BackboneError: CLIP or what was learned cannot be read, or do not fit each other.

    """
    clip, learned = load_clip(source.clip, PIXELS), source.read_learned()
    eyes = ViewEyes(clip.image, clip.width)
    fill(eyes, learned, "eyes.", source.folder)
    return ViewModel(eyes, learned[TABLE])


class ViewHead(AnomalyHead):
    """views uint8 [B, 9, 224, 224], view_index int32 [B, 9, h, w] and mask to score and map; holds the image tower."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        views, index, mask = inputs
        model = cast(ViewModel, self.model)
        shown = model.eyes(views)
        heat = self.get_buffer("rows_0") @ model.points(shown, index) @ self.get_buffer("columns_0") * mask
        return model.whole(shown), heat


def point_margins(features: Tensor, table: Tensor) -> Tensor:
    """Cosine with "damaged" less that with "perfect": features [B, P, D], table [B or 1, D, 2] to [B, P]."""
    return (features @ (table[..., 1] - table[..., 0])[..., None])[..., 0]
