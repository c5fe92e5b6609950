"""Splits by physical part: pictures of one part never stand on both sides.

Where nobody says which pictures show the same part, near-duplicates are found from the pictures. Good parts of one
product all look alike, so likeness as such proves nothing: what counts is the fine structure (grain, scratches) that
is left when the lighting and what all pictures share are taken away. Thumbnails are reduced to local contrast of their
logarithm (an exposure becomes an offset and vanishes), the mean of all is subtracted, and two pictures are compared by
their largest correlation over small shifts. Different parts then give a narrow background of low correlations. A pair
is a near-duplicate when its correlation is at least 0.5 and stands 6 sigma clear of its own data set's background, or
when it is at least 0.95: periodic surfaces have a broad background.

Limits: parts turned by more than a few degrees between two pictures are not recognised; name the groups instead. And
pictures that are all of one single part look like a product without variation: nothing is left to compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from calibration.threshold import CalibrationError

SIDE = 48  # pixels of a thumbnail
SHIFT = 3  # pixels of a thumbnail: pictures of one part may be displaced by 1/16 of their size
DETAIL_SIGMA = 2.0  # pixels: coarser structure is lighting or the shape that all parts share
CONTRAST_FLOOR = 0.02  # contrast below 2 % is sensor noise and is not amplified
BACKGROUND_SIGMAS = 6.0
SMALLEST_CORRELATION = 0.5
CERTAIN_CORRELATION = 0.95  # a near-duplicate against any background


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Which pictures show the same part."""

    groups: NDArray[np.int64]  # [n], 0, 1, ... in order of appearance
    pairs: list[tuple[int, int, float]]  # (earlier, later, correlation), most alike first
    threshold: float  # smallest correlation of a pair

    def across(self, held_out: NDArray[np.int64]) -> list[tuple[int, int, float]]:
        """Give the near-duplicate pairs with one picture in `held_out` (indices) and one outside."""
        inside = set(held_out.tolist())
        return [pair for pair in self.pairs if (pair[0] in inside) != (pair[1] in inside)]


def thumbnail(image: NDArray[Any]) -> NDArray[np.float32]:
    """Reduce a picture (HxW or HxWx3, uint8 or uint16) to float32 [48, 48] of local contrast."""
    picture = image.astype(np.float32) * (255.0 / np.iinfo(image.dtype).max)
    if picture.ndim == 3:
        picture = picture.mean(axis=2)
    small = np.log1p(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    detail = small - cv2.GaussianBlur(small, (0, 0), DETAIL_SIGMA)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 2 * DETAIL_SIGMA))
    local: NDArray[np.float32] = (detail / (contrast + CONTRAST_FLOOR)).astype(np.float32)
    return local


def near_duplicates(thumbnails: NDArray[np.float32]) -> NearDuplicates:
    """Group pictures of the same part by their thumbnails [n, 48, 48]. Work grows with n squared: 2 s at 758."""
    n = len(thumbnails)
    alike = correlation(thumbnails)
    first, second = np.triu_indices(n, 1)
    values = alike[first, second]
    threshold = SMALLEST_CORRELATION
    if n > 2:
        middle, upper = np.quantile(values, [0.5, 0.9])  # bears up to a tenth of the pairs being duplicates
        clear = float(middle + BACKGROUND_SIGMAS * (upper - middle) / 1.2816)
        threshold = min(max(threshold, clear), CERTAIN_CORRELATION)
    near = np.flatnonzero(values >= threshold)
    near = near[np.argsort(-values[near], kind="stable")]
    edges = (np.ones(near.size, dtype=np.int8), (first[near], second[near]))
    _, labels = connected_components(coo_matrix(edges, shape=(n, n)), directed=False)
    pairs = [(int(first[i]), int(second[i]), float(values[i])) for i in near]
    return NearDuplicates(_by_appearance(labels), pairs, threshold)


def correlation(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give [n, n], the largest correlation of every two thumbnails over shifts of up to 3 pixels."""
    n = len(thumbnails)
    flat = _unit(thumbnails.reshape(n, -1))
    if n > 2:  # the mean of two says nothing
        flat = _unit(flat - flat.mean(axis=0))
    maps = flat.reshape(thumbnails.shape)
    inner = SIDE - 2 * SHIFT
    centre = _unit(maps[:, SHIFT:-SHIFT, SHIFT:-SHIFT].reshape(n, -1))
    best = np.full((n, n), -1, dtype=np.float32)
    for down in range(2 * SHIFT + 1):
        for right in range(2 * SHIFT + 1):
            window = _unit(maps[:, down : down + inner, right : right + inner].reshape(n, -1))
            np.maximum(best, centre @ window.T, out=best)
    mirrored: NDArray[np.float32] = np.maximum(best, best.T)
    return mirrored


def kfold(groups: Sequence[Any] | NDArray[Any], k: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split pictures into k folds of about equal size, each part in one fold.

    Args:
        groups: [n], the physical part of each picture.
        k: number of folds, at least 2 and at most the number of parts.
        seed: of the shuffle; the same seed gives the same folds.

    Returns:
        k pairs (indices to train on, indices held out), ascending.

    """
    members = _members(groups)
    if not 2 <= k <= len(members):
        raise CalibrationError(f"{k} folds of {len(members)} parts: at least 2 folds and one part in each are needed")
    folds: list[list[int]] = [[] for _ in range(k)]
    for part in _shuffled_largest_first(members, seed):
        min(folds, key=len).extend(part)
    everything = np.arange(len(groups))
    return [(np.setdiff1d(everything, fold), np.sort(np.array(fold, dtype=np.int64))) for fold in folds]


def hold_out(
    groups: Sequence[Any] | NDArray[Any], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out whole parts, about `fraction` of the parts and at least one. Returns (to train on, held out)."""
    members = _members(groups)
    count = max(1, round(fraction * len(members)))
    if not 0 < fraction < 1 or count >= len(members):
        raise CalibrationError(f"cannot hold out {fraction} of {len(members)} parts: none would be left on one side")
    chosen = np.random.default_rng(seed).permutation(len(members))[:count]
    held = np.sort(np.array([picture for part in chosen for picture in members[part]], dtype=np.int64))
    return np.setdiff1d(np.arange(len(groups)), held), held


def _members(groups: Sequence[Any] | NDArray[Any]) -> list[list[int]]:
    parts: dict[Any, list[int]] = defaultdict(list)
    for picture, group in enumerate(groups):
        parts[group].append(picture)
    return list(parts.values())


def _shuffled_largest_first(members: list[list[int]], seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(len(members))
    return sorted((members[i] for i in order), key=len, reverse=True)


def _by_appearance(labels: NDArray[Any]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    renamed: NDArray[np.int64] = np.argsort(np.argsort(first))[inverse].astype(np.int64)
    return renamed


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: NDArray[np.float32] = centred / np.maximum(length, 1e-6)
    return unit
