"""DINOv2 with registers as a frozen trunk, through `transformers`: pictures to one map per group of layers.

What INP-Former's public code does, and this follows: taps are the residual stream as blocks put it out, without
DINOv2's last normalisation; CLS and registers are dropped; a group is the mean of its taps; blocks after the last tap
are not run; the position table is resized once, bicubic with an offset of 0.1 and without antialiasing. DINOv2's own
hub entry and `transformers` resize it otherwise (no offset, antialiased), so maps differ slightly from theirs at sizes
other than the table's own. Oblong pictures are ours; the public code is square only.

Weights are read from safetensors alone, never unpickled. Tested here with small random models against the forward of
`transformers`; no published weights have been run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.backbones import BackboneError
from compile.backbones.dinov2_config import Config, read_config
from compile.backbones.folder import INSTALL, find_folder
from compile.backbones.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import Dinov2WithRegistersModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in [0, 1]
OFFSET = 0.1  # of the published position table, in cells


@dataclass(frozen=True, slots=True)
class ViT:
    """Sizes of a published vision transformer, and the blocks (from 0) that INP-Former taps."""

    width: int
    blocks: int
    heads: int
    taps: tuple[int, ...]
    patch: int = 14
    registers: int = 4
    table: int = 37  # cells a side of the position table

    @property
    def used(self) -> int:
        """Blocks that are run."""
        return self.taps[-1] + 1


SMALL = ViT(384, 12, 6, tuple(range(2, 10)))
BASE = ViT(768, 12, 12, tuple(range(2, 10)))
LARGE = ViT(1024, 24, 16, tuple(range(4, 19, 2)))
PUBLISHED = {
    "facebook/dinov2-with-registers-small": SMALL,
    "facebook/dinov2-with-registers-base": BASE,
    "facebook/dinov2-with-registers-large": LARGE,
}


class DINOv2(nn.Module):
    """image uint8 [B, H, W, 3] RGB -> one float32 map [B, C, H/14, W/14] per group of taps.

    Args:
        model: of `transformers`, with weights.
        size: height and width of the picture.
        groups: blocks (from 0) whose outputs are averaged, one tuple per map.

    Attributes:
        levels: the groups.
        channels: C of each map.
        grids: height and width of each map.

    """

    def __init__(self, model: Dinov2WithRegistersModel, size: tuple[int, int], groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        config, embeddings = model.config, model.embeddings
        taps = [tap for group in groups for tap in group]
        if not taps or not all(groups) or not set(taps) <= set(range(config.num_hidden_layers)):
            raise BackboneError(
                f"taps {groups}: name blocks from 0 to {config.num_hidden_layers - 1}, some in each group"
            )
        if any(side < config.patch_size or side % config.patch_size for side in size):
            raise BackboneError(f"pictures of {size[0]}x{size[1]}: give multiples of the patch, {config.patch_size}")
        self.levels = tuple(tuple(group) for group in groups)
        self.grid = (size[0] // config.patch_size, size[1] // config.patch_size)
        self.channels = (int(config.hidden_size),) * len(groups)
        self.grids = (self.grid,) * len(groups)
        self.patches = embeddings.patch_embeddings.projection
        self.blocks = nn.ModuleList(list(model.encoder.layer)[: max(taps) + 1])
        table = embeddings.position_embeddings.detach()
        cls = embeddings.cls_token.detach() + table[:, :1]
        self.register_buffer("first", torch.cat([cls, embeddings.register_tokens.detach()], 1))
        self.register_buffer("places", resize_table(table[:, 1:], self.grid))
        self.register_buffer("mean", 255 * torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(STD).reshape(3, 1, 1)), persistent=False)
        self.eval().requires_grad_(requires_grad=False)

    first: Tensor  # [1, 1 + registers, C]: what comes before the patches
    places: Tensor  # [1, h*w, C]
    mean: Tensor
    scale: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pixels = (image.float().permute(0, 3, 1, 2) - self.mean) * self.scale  # cast first: TensorRT moves no bytes
        x = self.patches(pixels).flatten(2).transpose(1, 2) + self.places
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        outputs: list[Tensor] = []
        for block in self.blocks:
            found = block(x)
            x = found[0] if isinstance(found, tuple) else found  # transformers 4 puts out tuples
            outputs.append(x)
        return tuple(self._map([outputs[tap] for tap in group]) for group in self.levels)

    def _map(self, taps: list[Tensor]) -> Tensor:
        mean: Tensor = sum(taps[1:], taps[0]) * (1.0 / len(taps))
        return mean[:, self.first.shape[1] :].transpose(1, 2).reshape(-1, self.channels[0], *self.grid)


def resize_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize the places of a square position table [1, n*n, C] to [1, h*w, C] as INP-Former's public code does."""
    side = math.isqrt(table.shape[1])
    if grid == (side, side):
        return table.clone()
    square = table.float().transpose(1, 2).reshape(1, -1, side, side)
    factors = [(cells + OFFSET) / side for cells in grid]
    resized = functional.interpolate(square, scale_factor=factors, mode="bicubic", antialias=False)
    return resized[:, :, : grid[0], : grid[1]].flatten(2).transpose(1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a trunk's weights lie, and what its configuration says of it."""

    folder: Path
    config: Config

    @property
    def width(self) -> int:
        """Of its maps."""
        return self.config.hidden_size

    @property
    def blocks(self) -> int:
        """How many it has."""
        return self.config.num_hidden_layers

    @property
    def patch(self) -> int:
        """Side of one, pixels."""
        return self.config.patch_size

    @property
    def weights(self) -> tuple[Path, ...]:
        """Their files."""
        return tuple(sorted(self.folder.glob("*.safetensors")))

    @property
    def taps(self) -> tuple[int, ...]:
        """Blocks that INP-Former's code taps in a model of this depth."""
        for vit in PUBLISHED.values():
            if self.blocks == vit.blocks:
                return vit.taps
        known = sorted({vit.blocks for vit in PUBLISHED.values()})
        raise BackboneError(
            f"{self.folder}: {self.blocks} blocks, and no taps are published for so many, only for {known}. Give taps."
        )


def find_dinov2(source: str | Path) -> Source:
    """Find a model in a folder, or fetch it from the hub, and read its configuration; its weights are not read yet.

    Args:
        source: a folder with config.json and safetensors, or a name on the Hugging Face hub (`PUBLISHED`).

    Raises:
        BackboneError: no such folder or name, another kind of model, pickled weights, `transformers` not installed.

    """
    folder = find_folder(source)
    config = read_config(folder)
    if find_spec("transformers") is None:
        raise BackboneError(f"{source}: {INSTALL}")
    return Source(folder, config)


def runs(taps: Sequence[int], groups: int) -> tuple[tuple[int, ...], ...]:
    """Split taps into equal groups, one map each.

    Raises:
        BackboneError: they do not split.

    """
    if groups < 1 or not taps or len(taps) % groups:
        raise BackboneError(f"{len(taps)} taps in {groups} groups: give equal groups, one tap at least in each")
    each = len(taps) // groups
    return tuple(tuple(taps[i : i + each]) for i in range(0, len(taps), each))


def load_dinov2(
    source: str | Path, size: int | tuple[int, int], *, taps: Sequence[int] | None = None, groups: int = 2
) -> DINOv2:
    """Load a trunk for pictures of one size.

    Args:
        source: as for `find_dinov2`.
        size: height and width of the picture, or its side.
        taps: blocks, from 0; by default those of section "Encoder" of INP-Former's code for ViT-S, B and L.
        groups: equal runs of taps, one map each.

    Raises:
        BackboneError: no such folder or name, another kind of model, pickled weights, weights that do not fit the
            configuration, taps unknown, size no multiple of the patch.

    """
    found = find_dinov2(source)
    return build_dinov2(found, size, runs(found.taps if taps is None else taps, groups))


def build_dinov2(source: Source, size: int | tuple[int, int], groups: Sequence[Sequence[int]]) -> DINOv2:
    """Load a trunk whose groups of blocks are known; raises as `load_dinov2` does."""
    return DINOv2(_load(source), (size, size) if isinstance(size, int) else size, groups)


def _load(source: Source) -> Dinov2WithRegistersModel:
    import transformers  # noqa: PLC0415 - slow to import

    config = transformers.Dinov2WithRegistersConfig(**source.config.model_dump())
    model: Dinov2WithRegistersModel = load_pretrained(
        transformers.Dinov2WithRegistersModel, config, source.folder, beside=("classifier.",)
    )
    return model
