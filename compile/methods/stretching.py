"""GLFM's pseudo-anomalies: neighbours of a point, pulled out or pushed in along its normal (arXiv 2505.07375).

The paper's, by its public code as read: one point is drawn, k of n/100 to n/50 neighbours around it are found with each
axis stretched by 0.8 to 1.2, and the i-th moves by s (k - i) rho 100 along the point's normal, rho being the mean
squared distance to the nearest neighbour and s a random side. That is sane in metres alone: what is a length must grow
with the unit, and a square does not. The axes are stretched about the camera there, so that the bump lies centimetres
away from its point; and it is drawn by the clock, alike in all workers.

Ours: the peak is a share of the patch's own diameter, h sqrt(k), h being the mean distance to the nearest neighbour, so
that a bump has the same shape in any unit; axes are stretched about the point; and one generator draws everything.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from edge.organised_scan.noise import measure_noise
from edge.organised_scan.surface import measure_surface

SHARES = (1 / 100, 1 / 50)  # of the points
AXES = (0.8, 1.2)
PEAKS = (0.15, 0.35)  # of h sqrt(k), about the patch's diameter
SAMPLE = 2000  # points that h is measured on
Field = NDArray[np.float32]


class Stretched(NamedTuple):
    """`points` float32 [n, 3], the `moved` ones of them bool [n], and the number of the point that moved most."""

    points: Field
    moved: NDArray[np.bool_]
    peak: int


def stretch(
    points: Field, normals: Field, rng: np.random.Generator, rule: Literal["ours", "published"] = "ours"
) -> Stretched:
    """Pull one bump out of a cloud, or push it in.

    Args:
        points: [n, 3], n of at least 2, in any unit.
        normals: [n, 3] of length 1.
        rng: draws place, size, form, height and side.
        rule: what the height follows; `published` is for points in metres.

    """
    count = len(points)
    k = int(rng.integers(max(1, count // 100), max(1, count // 50) + 1))
    peak, side = int(rng.integers(count)), rng.choice((-1.0, 1.0))
    apart = (points - points[peak]).astype(np.float64) * rng.uniform(*AXES, 3)
    near = np.argsort(np.square(apart).sum(1), kind="stable")[:k]
    share = rng.uniform(*PEAKS)
    spacing = cKDTree(points).query(points[:: max(1, count // SAMPLE)], 2)[0][:, 1]
    height = share * spacing.mean() * k**0.5 if rule == "ours" else 100 * k * np.square(spacing).mean()
    changed, moved = points.copy(), np.zeros(count, np.bool_)
    fall = 1 - np.arange(k) / k
    changed[near] += (side * height * fall[:, None] * normals[peak]).astype(np.float32)
    moved[near] = True
    return Stretched(changed, moved, peak)


def stretch_geometry(scan: Field, geometry: Field, rng: np.random.Generator) -> tuple[Field, NDArray[np.bool_]]:
    """Stretch a prepared scan, and measure its surface anew as the front end does.

    Args:
        scan: [H, W, 3] of `edge.organised_scan.front_end`.
        geometry: [7, H, W] of the same scan.
        rng: of `stretch`.

    Returns:
        the geometry float32 [7, H, W], and which places moved [H, W]: none where there is hardly a point.

    """
    known, normal = np.asarray(scan.any(2)), np.moveaxis(geometry[1:4], 0, 2)
    there = np.flatnonzero(known & (normal[..., 2] < 0))
    moved = np.zeros(known.shape, np.bool_)
    if len(there) < 2:
        return geometry, moved
    points = scan.reshape(-1, 3)
    found = stretch(points[there], normal.reshape(-1, 3)[there], rng)
    changed = points.copy()
    changed[there], moved.flat[there] = found.points, found.moved
    changed = changed.reshape(scan.shape)
    steps = np.hypot(*np.moveaxis(np.diff(scan[..., :2], axis=1)[known[:, 1:] & known[:, :-1]], 1, 0))
    noise = measure_noise(np.where(known, scan[..., 2], np.float32(np.nan)))
    surface = measure_surface(changed, known, noise, float(np.median(steps)) if len(steps) else 0.0)
    height = geometry[:1] + ((changed - scan) @ _upwards(points[there], geometry[0].flat[there]))[None]
    return np.concatenate([height, np.moveaxis(surface, 2, 0)]).astype(np.float32), moved


def _upwards(points: Field, heights: Field) -> NDArray[np.float64]:
    """Give the normal [3] of the plane over which points [n, 3] have these heights [n]."""
    few = slice(None, None, max(1, len(points) // SAMPLE))
    terms = np.column_stack([points[few], np.ones(len(points[few]))]).astype(np.float64)
    return np.asarray(np.linalg.lstsq(terms, heights[few].astype(np.float64), rcond=None)[0][:3], np.float64)
