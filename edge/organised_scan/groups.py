"""Groups of points as Point-MAE's and GLFM's: farthest points as centres, and the nearest neighbours of each.

Theirs (Pang et al., arXiv 2203.06604; GLFM, arXiv 2505.07375): farthest point sampling to G centres, the K nearest
points of each minus the centre (1024 groups of 128), and from groups back to points by the three nearest centres,
weighted by one over the squared distance plus 1e-8. Ours: what happens where points are few, and NumPy and SciPy
instead of CUDA. The published 1e-8 is of square metres; in millimetres, too, it only keeps a point at a centre finite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from edge.front_end import FrameError

NEAREST = 3
LEAST_SQUARE = 1e-8
Field = NDArray[np.float32]


class Groups(NamedTuple):
    """`groups` float32 [G, K, 3], points minus their centre, the nearest first; `centres` float32 [G, 3]; `members`
    int64 [G, K], which points they are, for means of their features.
    """

    groups: Field
    centres: Field
    members: NDArray[np.int64]


def farthest_points(points: Field, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose points, each the farthest from all before it (of several the first one).

    Args:
        points: [n, 3], finite.
        count: how many. Where there are fewer places than that, those found come again in the same order.
        seed: modulo n the number of the first point: the same choice on every machine and with every NumPy.

    Returns:
        int64 [count].

    Raises:
        FrameError: no points, or some that are not finite.

    """
    if not len(points) or not np.isfinite(points).all():
        raise FrameError(f"{len(points)} points cannot be grouped: at least one is needed, and all must be finite")
    axes = np.ascontiguousarray(points.T)
    nearest = np.full(len(points), np.inf, np.float32)
    square, along = np.empty((2, len(points)), np.float32)
    chosen = [seed % len(points)]
    while len(chosen) < min(count, len(points)):
        x, y, z = axes[:, chosen[-1]]
        # In place, axis by axis: this loop is all of the cost.
        np.square(np.subtract(axes[0], x, out=square), out=square)
        np.square(np.subtract(axes[1], y, out=along), out=along)
        square += along
        np.square(np.subtract(axes[2], z, out=along), out=along)
        square += along
        np.minimum(nearest, square, out=nearest)
        farthest = int(nearest.argmax())
        if nearest[farthest] == 0:
            break
        chosen.append(farthest)
    return np.resize(np.array(chosen, np.int64), count)


def group(points: Field, groups: int, neighbours: int, seed: int = 0) -> Groups:
    """Group points around farthest points.

    Args:
        points: [n, 3], finite.
        groups: G; with fewer points some groups come again, see `farthest_points`.
        neighbours: K, the centre's own point among them; with fewer points each group repeats its own from the nearest.
        seed: see `farthest_points`.

    Raises:
        FrameError: no points, or some that are not finite.

    """
    centres = points[farthest_points(points, groups, seed)]
    found = cKDTree(points).query(centres, range(1, min(neighbours, len(points)) + 1))[1]
    members = found[:, np.arange(neighbours) % found.shape[1]].astype(np.int64)
    return Groups(points[members] - centres[:, None], centres, members)


def nearest_centres(scan: Field, known: NDArray[np.bool_], centres: Field) -> tuple[NDArray[np.int64], Field]:
    """Say how the features of groups become features of places: as a mean of the three nearest centres'.

    Args:
        scan: [H, W, 3], finite.
        known: [H, W], where there are points.
        centres: [G, 3].

    Returns:
        int64 [H, W, 3], numbers of centres, and float32 [H, W, 3], their weights, which sum to 1. With fewer than three
        centres the missing ones weigh 0. Where no point is known all numbers and weights are 0.

    """
    distances, found = cKDTree(centres).query(scan[known], range(1, NEAREST + 1))
    shares = 1 / (np.square(distances) + LEAST_SQUARE)  # a missing centre is infinitely far away
    numbers, weights = np.zeros((*known.shape, NEAREST), np.int64), np.zeros((*known.shape, NEAREST), np.float32)
    numbers[known] = np.minimum(found, len(centres) - 1)
    weights[known] = shares / shares.sum(axis=1, keepdims=True)
    return numbers, weights
