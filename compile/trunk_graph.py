"""The frozen trunk as an ONNX graph of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch

from compile.backbone import Trunk
from compile.export import export


def map_names(strides: Sequence[int]) -> list[str]:
    """Names of the trunk's outputs."""
    return [f"maps_{stride}" for stride in strides]


def export_trunk(trunk: Trunk, side: int) -> onnx.ModelProto:
    """Export it for pictures of `side` pixels a side."""
    return export(trunk, (torch.zeros(2, side, side, 3, dtype=torch.uint8),), ["image"], map_names(trunk.strides))
