"""INP-Former's published map and score as one head: the map's steps are a constant matrix on either side.

Published: the distances of 28x28 patches go to the crop's 392 pixels (bilinear, corners on corners), to 256 (bilinear,
pixel centres), and through a 5x5 Gaussian of sigma 4, nearly a box, whose zero padding darkens the rim: the outermost
row keeps 0.606 of its value, the next 0.812. The score is the mean of the 655 largest of the 65,536 pixels. All of it
is linear and separable: K m K^T. Ours, and the default: the Gaussian repeats the rim instead, so that a defect there
counts as much as elsewhere; oblong pictures and other sizes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.anomaly_graph import AnomalyHead

PIXELS = 256  # a side of the map
TAPS, SIGMA = 5, 4.0  # of the Gaussian, in pixels of the map
SHARE = 0.01  # of the map's pixels whose mean is the score
PATCH = 14  # pixels a side
Padding = Literal["replicate", "zero"]


def published_head(
    model: nn.Module,
    grid: tuple[int, int],
    map_size: tuple[int, int] = (PIXELS, PIXELS),
    *,
    padding: Padding = "replicate",
    patch: int = PATCH,
) -> AnomalyHead:
    """Give score and map as published.

    Args:
        model: group maps of `grid` to one map.
        grid: patches, height and width.
        map_size: of the map; the published one is 256 a side.
        padding: "zero" is the published one.
        patch: pixels a side.

    """
    head = AnomalyHead(model, [grid], map_size, top=SHARE)
    rows, columns = (
        map_operator(cells, cells * patch, pixels, padding=padding)
        for cells, pixels in zip(grid, map_size, strict=True)
    )
    head.rows_0, head.columns_0 = rows, columns.T.contiguous()
    return head


def map_operator(cells: int, crop: int, pixels: int, *, padding: Padding = "replicate") -> Tensor:
    """K, float32 [pixels, cells]: from patches to the crop's pixels, to the map's, through the Gaussian."""
    centres = (np.arange(pixels) + 0.5) * crop / pixels - 0.5
    joined = _gaussian(pixels, padding) @ _linear(centres, crop) @ _corners(cells, crop)
    return torch.from_numpy(joined).float()


def corners(cells: int, crop: int) -> Tensor:
    """Float32 [crop, cells]: linear interpolation of cells to pixels, corners on corners."""
    return torch.from_numpy(_corners(cells, crop)).float()


def _corners(cells: int, crop: int) -> NDArray[np.float64]:
    return _linear(np.arange(crop) * (cells - 1) / (crop - 1), cells)


def _linear(at: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """[len(at), cells]: linear interpolation between cells at 0, 1, ..., constant beyond them."""
    distance = np.abs(np.clip(at, 0, cells - 1)[:, None] - np.arange(cells))
    weights: NDArray[np.float64] = np.maximum(1 - distance, 0)
    return weights


def _gaussian(pixels: int, padding: Padding) -> NDArray[np.float64]:
    """[pixels, pixels]: TAPS weights around the diagonal; beyond the rim they are dropped, or count for its pixel."""
    offsets = np.arange(TAPS) - TAPS // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    matrix = np.zeros((pixels, pixels))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        at = np.arange(pixels) + offset
        inside = (at >= 0) & (at < pixels) if padding == "zero" else np.full(pixels, fill_value=True)
        np.add.at(matrix, (np.arange(pixels)[inside], at.clip(0, pixels - 1)[inside]), weight)
    return matrix
