"""PNPT-style: rebuild a picture's features from what its class normally looks like. Several classes, one model.

The paper's (IEEE TII 2024, arXiv 2406.11507), as its abstract and second-hand accounts tell it: a model that
rebuilds features may learn to copy them, defects included; so a normality prompt of the class goes in beside the
sample, in two streams.

    pool      class-specific normality prompting: per class the mean of the trunk's maps of its good pictures
    embedding hierarchical patches: every scale gives the same number of tokens, as a finer one takes larger patches
    encoder   semantic alignment and coupling: both streams attend to themselves and to each other
    decoder   contextual semantic conditional: queries of the prompt's stream, keys and values of the sample's
    loss      sum over the scales of the mean cosine distance between the maps and the rebuilt ones

No code and no constant of it is public. Every size, the attention's form, the optimiser and the score are ours; this is
no reproduction. Ours too: channels are standardised first, or their common part would rule every cosine; the token
sequences of all scales are summed into one; and the sizes, which are for a fit on a processor.

The class is given, or (`select="nearest"`) is that of the template whose spatial mean has the highest cosine with the
sample's. Nothing but attention leads from the sample to the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

EPS = 1e-6
SIGMA = 4 / 256  # of the picture's side: the Gaussian over each scale's map
Select = Literal["given", "nearest"]


@dataclass(frozen=True, slots=True)
class Size:
    width: int = 128
    heads: int = 4
    encoder: int = 2  # layers
    decoder: int = 2


def unfold(maps: Tensor, patch: int) -> Tensor:
    """Maps [B, C, h, w] to tokens [B, L, C * patch^2] of patch x patch cells, in row order."""
    batch, channels, height, width = maps.shape
    cells = maps.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def fold(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Invert `unfold`: tokens to maps [B, C, *grid]."""
    rows, columns = grid[0] // patch, grid[1] // patch
    cells = tokens.reshape(tokens.shape[0], rows, columns, -1, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine along axis 1 of float32 [B, C, h, w]: [B, h, w] in 0..2."""
    sizes = (a.square().sum(1) * b.square().sum(1)).clamp(min=EPS).sqrt()
    return (1 - (a * b).sum(1) / sizes).clamp(min=0)


class Attention(nn.Module):
    """Queries [B, L, D] look at tokens [B, L', D]. No residual of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = self._split(self.query(queries)), self._split(self.key(tokens)), self._split(self.value(tokens))
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)
        return cast(Tensor, self.out((weights @ v).transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Stream(nn.Module):
    """One stream's part of a layer: attention to itself, attention to the other stream, and a perceptron."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.itself, self.other = Attention(width, size.heads), Attention(width, size.heads)
        self.norm_itself, self.norm_other, self.norm_last = (nn.LayerNorm(width, EPS) for _ in range(3))
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def look_inward(self, tokens: Tensor) -> Tensor:
        normed = self.norm_itself(tokens)
        return cast(Tensor, tokens + self.itself(normed, normed))

    def look_across(self, tokens: Tensor, others: Tensor) -> Tensor:
        tokens = tokens + self.other(self.norm_other(tokens), others)
        return cast(Tensor, tokens + self.perceptron(self.norm_last(tokens)))


class Coupling(nn.Module):
    """One layer of the encoder: both streams look at themselves, then at each other."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.sample, self.prompt = Stream(size), Stream(size)

    def forward(self, sample: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        sample, prompt = self.sample.look_inward(sample), self.prompt.look_inward(prompt)
        return (
            self.sample.look_across(sample, self.sample.norm_other(prompt)),
            self.prompt.look_across(prompt, self.prompt.norm_other(sample)),
        )


class PNPT(nn.Module):
    """The trunk's maps, float32 [B, C_i, h_i, w_i], to one map of cosine distances [B, h_i, w_i] each.

    Args:
        channels: of the trunk's maps.
        grids: their heights and widths, each a multiple of the coarsest.
        classes: how many.
        size: of the transformer.
        select: whether the class is given to `forward` or found by the nearest template.

    """

    def __init__(
        self,
        channels: Sequence[int],
        grids: Sequence[tuple[int, int]],
        classes: int,
        size: Size | None = None,
        select: Select = "given",
    ) -> None:
        super().__init__()
        size = size or Size()
        coarsest = min(grids)
        self.grids, self.select = list(grids), select
        self.patches = [height // coarsest[0] for height, _ in grids]
        for grid, patch in zip(grids, self.patches, strict=True):
            if (coarsest[0] * patch, coarsest[1] * patch) != tuple(grid):
                raise ValueError(f"trunk map of {grid} cells is no multiple of {coarsest}: use a picture size that is")
        for i, (count, (height, width)) in enumerate(zip(channels, grids, strict=True)):
            self.register_buffer(f"centre_{i}", torch.zeros(count, 1, 1))
            self.register_buffer(f"spread_{i}", torch.ones(count, 1, 1))
            self.register_buffer(f"template_{i}", torch.zeros(classes, count, height, width))
            self.register_buffer(f"rows_{i}", _blur(height), persistent=False)
            self.register_buffer(f"columns_{i}", _blur(width), persistent=False)
        length = coarsest[0] * coarsest[1]
        tokens = [count * patch**2 for count, patch in zip(channels, self.patches, strict=True)]
        self.embed = nn.ModuleList([nn.Linear(each, size.width) for each in tokens])
        self.places = nn.ParameterList([torch.randn(length, size.width) * 0.02 for _ in tokens])
        self.encoder = nn.ModuleList([Coupling(size) for _ in range(size.encoder)])
        self.norm_sample = nn.LayerNorm(size.width, EPS)
        self.decoder = nn.ModuleList([Stream(size) for _ in range(size.decoder)])
        self.norm_out = nn.LayerNorm(size.width, EPS)
        self.heads = nn.ModuleList([nn.Linear(size.width, each) for each in tokens])

    def forward(self, features: Sequence[Tensor], classes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Classes: int64 [B]; wanted if `select` is "given", ignored if it is "nearest".

        Raises:
            ValueError: no classes, though wanted.

        """
        maps = self.standardise(features)
        if self.select == "nearest":
            classes = self.nearest(maps)
        elif classes is None:
            raise ValueError('no classes: give their int64 ids [B], or make the model with select="nearest"')
        found = map(cosine_distance, maps, self.rebuild(maps, classes))
        return tuple(
            getattr(self, f"rows_{i}") @ each @ getattr(self, f"columns_{i}").T for i, each in enumerate(found)
        )

    @property
    def takes_class(self) -> bool:
        return self.select == "given"

    def standardise(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [(each - getattr(self, f"centre_{i}")) / getattr(self, f"spread_{i}") for i, each in enumerate(features)]

    def templates(self, classes: Tensor) -> list[Tensor]:
        """Standardised prompts of classes [B]: one map [B, C_i, h_i, w_i] per scale."""
        pool = [getattr(self, f"template_{i}").index_select(0, classes) for i in range(len(self.grids))]
        return self.standardise(pool)

    def nearest(self, maps: Sequence[Tensor]) -> Tensor:
        """Class int64 [B] of the template most like standardised maps, each by its spatial mean."""
        known = self.standardise([getattr(self, f"template_{i}") for i in range(len(self.grids))])
        sample, pool = (torch.cat([each.mean((2, 3)) for each in group], 1) for group in (maps, known))
        sizes = (pool.square().sum(1) + EPS).sqrt()
        return (sample @ (pool / sizes[:, None]).T).argmax(1)

    def embedded(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Hierarchical patch embedding: [B, L, D] per scale, L the same for all."""
        parts = zip(maps, self.patches, self.embed, self.places, strict=True)
        return [embed(unfold(each, patch)) + place for each, patch, embed, place in parts]

    def rebuild(self, maps: Sequence[Tensor], classes: Tensor) -> list[Tensor]:
        """Standardised maps, rebuilt from the prompt of their classes and from what attention takes of them."""
        sample = torch.stack(self.embedded(maps)).sum(0)
        prompt = torch.stack(self.embedded(self.templates(classes))).sum(0)
        for layer in self.encoder:
            sample, prompt = layer(sample, prompt)
        sample = self.norm_sample(sample)
        for block in self.decoder:
            assert isinstance(block, Stream)
            prompt = block.look_across(block.look_inward(prompt), sample)
        prompt = self.norm_out(prompt)
        parts = zip(self.heads, self.patches, self.grids, strict=True)
        return [fold(head(prompt), patch, grid) for head, patch, grid in parts]


def _blur(cells: int) -> Tensor:
    """[cells, cells]: a Gaussian over a line of cells, each row summing to one."""
    at = torch.arange(cells, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / (SIGMA * cells)) ** 2)
    return (kernel / kernel.sum(1, keepdim=True)).float()
