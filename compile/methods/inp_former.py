"""INP-Former (Luo et al., CVPR 2025, arXiv 2503.02424): a picture rebuilt from its own few normal prototypes.

The published model as its public code has it, where the two differ: a few learned query tokens attend to the features
of one picture and become its intrinsic normal prototypes (INPs); a decoder rebuilds the features while its attention
reads those few vectors alone and has no skip around it, so that what is odd cannot pass; the cosine distance between
features and their reconstruction is the map. Taps are averaged, not summed; one LayerNorm serves queries, keys and
values of a block; decoder attention is the ReLU of cosines times a learned scale per head, without softmax; its output
replaces the token, only the MLP keeps its skip; decoder blocks are grouped in reverse order, the last rebuild the first
layers.

The trunk's groups of layers are given, as maps of one grid and width: of a vision transformer
(`compile.backbones.dinov2`), or any other. Ours: the eps of normalisations is 1e-6 where the code has 1e-8, which
half precision cannot hold; sizes other than the published ones; the soft form of the zero-shot map. INP-Former++
(arXiv 2506.03660) has no public code; what of it stands here (`soft_coherence`, `residual`) follows descriptions of
its paper and is unverified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of the model; the defaults are the published ones, for ViT-B."""

    width: int = 768  # C, of the maps too
    heads: int = 12
    prototypes: int = 6
    blocks: int = 8  # of the decoder
    groups: int = 2
    ratio: int = 4  # of the MLPs' hidden width to C
    keys: int = 0  # pads the decoder's attention without effect on its values; 8 may suit tensor cores, no gain on CPUs

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads")
        if self.blocks % self.groups:
            raise ValueError(f"{self.blocks} decoder blocks do not split into {self.groups} equal groups")


class Mlp(nn.Sequential):
    """Linear, GELU, Linear; no dropout."""

    def __init__(self, size: Size) -> None:
        hidden = size.width * size.ratio
        super().__init__(nn.Linear(size.width, hidden), nn.GELU(), nn.Linear(hidden, size.width))


class CrossAttention(nn.Module):
    """What both kinds of block share: one normalisation, projections to heads, and an MLP with its skip."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm = nn.LayerNorm(size.width, EPS)
        self.query = nn.Linear(size.width, size.width)
        self.key_value = nn.Linear(size.width, 2 * size.width)
        self.out = nn.Linear(size.width, size.width)
        self.norm_mlp = nn.LayerNorm(size.width, EPS)
        self.mlp = Mlp(size)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, N, C] and what they attend to [B, K, C] to q, k, v [B, heads, N or K, C / heads]."""
        key, value = self.key_value(self.norm(context)).chunk(2, 2)
        query, key, value = (
            v.reshape(v.shape[0], -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)
            for v in (self.query(self.norm(x)), key, value)
        )
        return query, key, value

    def join(self, attended: Tensor) -> Tensor:
        """Heads [B, heads, N, C / heads] to tokens [B, N, C]."""
        joined: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return joined

    def widen(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class Extractor(CrossAttention):
    """INP tokens [B, M, C] and features [B, N, C] to the prototypes [B, M, C] of each picture."""

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        query, key, value = self.project(tokens, features)
        weights = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3)
        return self.widen(tokens + self.join(weights @ value))


class GuidedBlock(CrossAttention):
    """Tokens [B, N, C] rebuilt from prototypes [B, M, C]: their attention's output replaces them."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.scale = nn.Parameter(torch.ones(size.heads, 1, 1))
        self.keys = size.keys

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        query, key, value = self.project(x, prototypes)
        query, key = unit(query), unit(key)
        if self.keys > key.shape[2]:  # padded after the projection, whose bias would make something of zero tokens
            key, value = (functional.pad(v, (0, 0, 0, self.keys - v.shape[2])) for v in (key, value))
        weights = (query @ key.transpose(2, 3) * self.scale).relu()
        return self.widen(self.join(weights @ value))


class INPFormer(nn.Module):
    """Group maps [B, C, h, w] to one map [B, h, w] of cosine distances, 0 to 2. Starts as published."""

    def __init__(self, size: Size | None = None) -> None:
        super().__init__()
        self.size = size = Size() if size is None else size
        self.tokens = nn.Parameter(torch.randn(size.prototypes, size.width))
        self.extractor = Extractor(size)
        self.bottleneck = Mlp(size)
        self.decoder = nn.ModuleList(GuidedBlock(size) for _ in range(size.blocks))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
                nn.init.zeros_(module.bias)

    def prototypes(self, fused: Tensor) -> Tensor:
        """Features [B, N, C] to the prototypes [B, M, C] of each picture."""
        found: Tensor = self.extractor(self.tokens.expand(fused.shape[0], -1, -1), fused)
        return found

    def rebuild(self, fused: Tensor, prototypes: Tensor) -> list[Tensor]:
        """Features [B, N, C] rebuilt from prototypes, one [B, N, C] per group of the trunk and in its order."""
        x = self.bottleneck(fused)
        outputs: list[Tensor] = []
        for block in self.decoder:
            x = block(x, prototypes)
            outputs.insert(0, x)
        each = len(outputs) // self.size.groups
        return [mean(outputs[i : i + each]) for i in range(0, len(outputs), each)]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        groups = to_tokens(features)
        fused = mean(groups)
        rebuilt = self.rebuild(fused, self.prototypes(fused))
        return (distance_map(groups, rebuilt).reshape(-1, *features[0].shape[2:]),)


class ZeroShot(nn.Module):
    """The distance to the picture's own prototypes as the map: encoder and extractor alone.

    Args:
        model: fitted on other products.
        soft: the distance to the softly assigned prototype in place of the nearest one. Which of the two INP-Former++
            uses is not known.

    """

    def __init__(self, model: INPFormer, *, soft: bool = False) -> None:
        super().__init__()
        self.model, self.soft = model, soft

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        fused = mean(to_tokens(features))
        prototypes = self.model.prototypes(fused)
        found = cosine_distance(fused, assigned(fused, prototypes)) if self.soft else nearest(fused, prototypes)
        return (found.reshape(-1, *features[0].shape[2:]),)


def zero_shot(model: nn.Module) -> ZeroShot:
    """Turn a fitted `INPFormer` to pictures of a product that it was not fitted on."""
    assert isinstance(model, INPFormer)
    return ZeroShot(model).eval()


def to_tokens(features: Sequence[Tensor]) -> list[Tensor]:
    """Maps [B, C, h, w] of one grid to tokens [B, h*w, C]."""
    return [feature.flatten(2).transpose(1, 2) for feature in features]


def mean(parts: Sequence[Tensor]) -> Tensor:
    total: Tensor = sum(parts[1:], parts[0])
    return total * (1.0 / len(parts))


def unit(x: Tensor) -> Tensor:
    """Divide by the length along the last axis; zeros stay zeros."""
    divided: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=EPS)
    return divided


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine along the last axis."""
    return 1 - (unit(a) * unit(b)).sum(-1)


def nearest(fused: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distance [B, N] of each feature to the nearest prototype."""
    return 1 - (unit(fused) @ unit(prototypes).transpose(1, 2)).amax(2)


def assigned(fused: Tensor, prototypes: Tensor) -> Tensor:
    """Prototypes as each feature weighs them, by the softmax of its cosines to them: [B, N, C] (INP-Former++)."""
    return (unit(fused) @ unit(prototypes).transpose(1, 2)).softmax(2) @ prototypes


def distance_map(groups: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """Cosine distance [B, N] of features and reconstruction, mean over groups."""
    return mean([cosine_distance(e, d) for e, d in zip(groups, rebuilt, strict=True)])


def residual(groups: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """What the head of INP-Former++ sees: [B, N, C], absolute error times the distance map, and no gradient.

    The error is its mean over groups: the descriptions leave that open.
    """
    error = mean([(e - d).abs() for e, d in zip(groups, rebuilt, strict=True)])
    return (error * distance_map(groups, rebuilt).unsqueeze(2)).detach()
