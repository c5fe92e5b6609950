"""Fast point feature histograms (Rusu et al. 2009, "Fast Point Feature Histograms (FPFH) for 3D registration").

A pair of points with normals has three angles (alpha, phi, theta; eqs. 1 to 3) in a frame fixed to the one whose normal
makes the smaller angle with the line between them. A point's simplified histogram (SPFH) counts the angles to its
neighbours in 11 bins each; its FPFH adds the mean of its neighbours' SPFHs, weighted by one over their distance. As
in the Point Cloud Library and Open3D the weight is one over the distance squared, the neighbours' part is scaled to the
sum of one SPFH, and each histogram is in percent: rows sum to 600.

Neighbours are the k nearest, whatever their distance (BTF's radii never bite). All pairs are computed at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

BINS = 11
WIDTH = 3 * BINS


def fpfh(points: NDArray[np.float32], normals: NDArray[np.float32], neighbours: int) -> NDArray[np.float32]:
    """Describe the surface around each point.

    Args:
        points: [n, 3], finite.
        normals: [n, 3] of length 1, oriented alike: the angles depend on their sign.
        neighbours: k, without the point itself; fewer where there are fewer points.

    Returns:
        float32 [n, 33]; each row sums to 600. Zeros where there is one point alone.

    """
    count, k = len(points), min(neighbours, len(points) - 1)
    if k < 1:
        return np.zeros((count, WIDTH), np.float32)
    # One more than wanted: the point itself is taken out, wherever it stands among points in the same place.
    found = cKDTree(points).query(points, k + 1)[1].astype(np.int64)
    own = found == np.arange(count)[:, None]
    own[~own.any(axis=1), -1] = True
    near = found[~own].reshape(count, k)
    bins, squares = _pair_angles(points, normals, near)
    rows = np.arange(count)[:, None] * WIDTH
    spfh = np.bincount((rows[..., None] + bins).ravel(), minlength=count * WIDTH).reshape(count, WIDTH)
    spfh = spfh * np.float32(100 / k)
    weights = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1), 0)
    around = csr_array((weights.ravel(), near.ravel(), np.arange(count + 1) * k), shape=(count, count)) @ spfh
    sums = around.reshape(count, 3, BINS).sum(axis=2, keepdims=True)
    scaled = around.reshape(count, 3, BINS) * (100 / np.where(sums > 0, sums, 1))
    both: NDArray[np.float64] = scaled.reshape(count, WIDTH) + spfh
    return both.astype(np.float32)


def _pair_angles(
    points: NDArray[np.float32], normals: NDArray[np.float32], near: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Bins [n, k, 3] (of theta, alpha and phi, numbered through) and squared distances [n, k] to the neighbours."""
    line = [points[near, axis] - points[:, None, axis] for axis in range(3)]
    there = [normals[near, axis] for axis in range(3)]
    here = [np.broadcast_to(normals[:, None, axis], near.shape) for axis in range(3)]
    squares = _dot(line, line)
    scale = (1 / np.sqrt(np.maximum(squares, np.float32(1e-30)))).astype(np.float32)
    line = [part * scale for part in line]
    phi_here, phi_there = _dot(here, line), _dot(there, line)
    turned = np.abs(phi_here) < np.abs(phi_there)  # the other point's normal makes the smaller angle with the line
    phi = np.where(turned, -phi_there, phi_here)
    u = [np.where(turned, b, a) for a, b in zip(here, there, strict=True)]
    other = [np.where(turned, a, b) for a, b in zip(here, there, strict=True)]
    line = [np.where(turned, -part, part) for part in line]
    v = _cross(line, u)
    length = np.sqrt(_dot(v, v))
    aligned = length < np.float32(1e-6)
    v = [part / np.where(aligned, np.float32(1), length) for part in v]
    w = _cross(u, v)
    alpha = _dot(v, other)
    theta = np.arctan2(_dot(w, other), _dot(u, other))
    angles = (theta / np.float32(np.pi), alpha, phi)
    bins = np.empty((*near.shape, 3), np.int64)
    for i, angle in enumerate(angles):
        value = np.where(aligned | (squares == 0), np.float32(0), angle)
        bins[..., i] = np.clip(np.floor((value + 1) * np.float32(BINS / 2)), 0, BINS - 1) + i * BINS
    return bins, squares


def _dot(a: list[NDArray[np.floating]], b: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    product: NDArray[np.floating] = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _cross(a: list[NDArray[np.floating]], b: list[NDArray[np.floating]]) -> list[NDArray[np.floating]]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
