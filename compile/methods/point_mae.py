"""Point-MAE's encoder (Pang et al., arXiv 2203.06604), as M3DM and GLFM take it: groups of points to tokens.

Structure, names and counts are those of its public code as read (MIT): a small PointNet makes a token of each group of
K points minus its centre; a network of the centre is added before every block; blocks are pre-norm, of width 384, 6
heads, four times as wide inside, no bias of queries, keys and values; and one last norm serves every block whose output
is taken. 1024 groups of 128 there; mini-PointNet 494,464 parameters, position 50,048, a block 1,773,312, all
21,825,024. GLFM takes blocks 1 and 2: 4.09 million without the other ten.

Its checkpoint holds `base_model`: the encoder's tensors under `MAE_encoder.`, with `module.` before it where several
GPUs wrote it, and a decoder's, which are left. It is read without unpickling code. No published weights were run here.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.methods import FitError
from edge.organised_scan.groups import Field, group, nearest_centres

WIDTH, DEPTH, HEADS = 384, 12, 6
TAPS = (1, 2)  # GLFM's blocks, counted from 1; M3DM and CFM take 4, 8 and 12
GROUPS, NEIGHBOURS = 1024, 128
PREFIX = "MAE_encoder."


class PointEncoder(nn.Module):
    """Groups float32 [B, G, K, 3] and their centres [B, G, 3] to tokens.

    Args:
        width: of a token.
        depth: blocks.
        heads: of attention.

    """

    def __init__(self, width: int = WIDTH, depth: int = DEPTH, heads: int = HEADS) -> None:
        super().__init__()
        self.encoder = GroupEncoder(width)
        self.pos_embed = position(width)
        self.blocks = Blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, groups: Tensor, centres: Tensor, taps: Sequence[int] = TAPS) -> Tensor:
        """Outputs of these blocks, side by side: [B, G, width * len(taps)]."""
        found = self.blocks(self.encoder(groups), self.pos_embed(centres), max(taps))
        return torch.cat([self.norm(found[each - 1]) for each in taps], -1)


class GroupEncoder(nn.Module):
    """The small PointNet: groups [B, G, K, 3] to [B, G, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_conv = _shared(3, 128, 256)
        self.second_conv = _shared(512, 512, width)

    def forward(self, groups: Tensor) -> Tensor:
        points = self.first_conv(groups.flatten(0, 1).transpose(1, 2))
        whole = points.amax(2, keepdim=True).expand_as(points)
        found: Tensor = self.second_conv(torch.cat([whole, points], 1)).amax(2)
        return found.reshape(*groups.shape[:2], -1)


def _shared(start: int, inner: int, end: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(start, inner, 1), nn.BatchNorm1d(inner), nn.ReLU(), nn.Conv1d(inner, end, 1))


def position(width: int) -> nn.Sequential:
    """Centres [..., 3] to [..., width]."""
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))


class Blocks(nn.Module):
    """Tokens and their positions [B, N, width], which are added before every block, to each block's output."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))

    def forward(self, tokens: Tensor, places: Tensor, depth: int | None = None) -> list[Tensor]:
        found = [tokens]
        for block in self.blocks[:depth]:
            found.append(block(found[-1] + places))
        return found[1:]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.mlp = _Inner(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found: Tensor = self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return found


class _Inner(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return found


def load_point_mae(path: Path, encoder: PointEncoder) -> PointEncoder:
    """Give an encoder the tensors of a published checkpoint.

    Raises:
        FitError: the file is not there, holds more than tensors and plain values, or another structure.

    """
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FitError(
            f"{path}: no checkpoint that can be read safely ({type(error).__name__}). Point-MAE's pretrain.pth is "
            "expected; where its file holds objects beside tensors, save its base_model alone with torch.save."
        ) from error
    state = found.get("base_model") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise FitError(f"{path}: no base_model in it, so it is not Point-MAE's. Give its pretrain.pth.")
    plain = {name.removeprefix("module."): each for name, each in state.items()}
    own = {name.removeprefix(PREFIX): each for name, each in plain.items() if name.startswith(PREFIX)}
    try:
        encoder.load_state_dict(own)
    except RuntimeError as error:
        raise FitError(f"{path}: its encoder is not of this structure: {error}") from error
    return encoder.eval()


@torch.no_grad()
def describe_patches(
    encoder: PointEncoder, points: Field, *, groups: int = GROUPS, neighbours: int = NEIGHBOURS, seed: int = 0
) -> Tensor:
    """Describe a cloud's groups as GLFM does: tokens to points by the three nearest centres, and their means by group.

    Args:
        encoder: in eval mode.
        points: [n, 3], finite, in the encoder's unit.
        groups: of the cloud.
        neighbours: of a group.
        seed: see `edge.organised_scan.groups`.

    Returns:
        float32 [groups, width * len(TAPS)].

    """
    found = group(points, groups, neighbours, seed)
    tokens = encoder(torch.from_numpy(found.groups)[None], torch.from_numpy(found.centres)[None])[0]
    patches: Tensor = to_points(tokens, points, found.centres)[torch.from_numpy(found.members)].mean(1)
    return patches


def to_points(values: Tensor, points: Field, centres: Field) -> Tensor:
    """Values [G, C] of groups to points [n, 3], by their three nearest centres [G, 3]: [n, C]."""
    numbers, weights = nearest_centres(points[None], np.ones((1, len(points)), np.bool_), centres)
    near = values[torch.from_numpy(numbers[0]).to(values.device)]
    return (near * torch.from_numpy(weights[0]).to(values.device)[..., None]).sum(1)
