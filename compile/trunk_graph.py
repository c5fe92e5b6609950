"""The frozen trunk as an ONNX graph of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch

from compile.backbone import Trunk
from compile.backbones.choice import Level
from compile.backbones.dinov2 import DINOv2
from compile.export import export


def map_names(levels: Sequence[Level]) -> list[str]:
    """Names of the trunk's outputs: `maps_8`, `maps_2_3_4_5` of the mean of some blocks, `maps_whole` of none."""
    names = ["_".join(map(str, level if isinstance(level, tuple) else (level,))) for level in levels]
    return [f"maps_{name or 'whole'}" for name in names]


def export_trunk(trunk: Trunk | DINOv2, side: int) -> onnx.ModelProto:
    """Export it for pictures of `side` pixels a side."""
    return export(trunk, (torch.zeros(2, side, side, 3, dtype=torch.uint8),), ["image"], map_names(trunk.levels))
