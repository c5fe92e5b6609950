"""The plane of a belt, or of a surface as a whole, by RANSAC in multiples of the measured noise."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.organised_scan.noise import TO_SIGMA

SAMPLE = 1000  # points that are looked at
HYPOTHESES = 128  # planes through three points, half of them through three near the border: a belt shows there
BORDER = 0.1  # of the sides
WITHIN = 4.0  # times the noise: a point on the plane
BEHIND = 4  # points on the belt that one behind outweighs: a flat part may be five times what shows of the belt
ROUNDS = 3
SEED = 20220310


class Plane(NamedTuple):
    """`normal` points to the sensor (z below 0); `offset` makes distances positive on its side; `spread` is how far
    points on the plane lie from it (standard deviation), which holds its waviness and texture too. Millimetres.
    """

    normal: NDArray[np.float32]  # [3]
    offset: float
    spread: float

    def distance(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """[H, W, 3] to [H, W]: towards the sensor above zero."""
        found = cv2.transform(points, np.append(self.normal, np.float32(self.offset))[None])
        return np.asarray(found, np.float32)


def fit_belt(points: NDArray[np.float32], noise: float) -> Plane | None:
    """Fit the plane that most points [H, W, 3] (NaN: none) lie on and fewest lie behind; None where none is spanned.

    Nothing lies behind a belt: so the top of a flat part, larger than what shows of the belt, is not taken for it.
    """
    sample, away = _hypotheses(points)
    if not away.size:
        return None
    near, behind = np.abs(away) < WITHIN * noise, away < -WITHIN * noise
    best = int((near.sum(axis=0) - BEHIND * behind.sum(axis=0)).argmax())
    return _refine(sample, away[:, best], noise, noise)


def fit_surface(points: NDArray[np.float32], noise: float) -> Plane | None:
    """Fit the plane that half of the points [H, W, 3] (NaN: none) lie nearest to; None where none is spanned.

    Least median of squares (Rousseeuw 1984): a surface may be far rougher than its sensor's noise, and less than half
    of it be dented.
    """
    sample, away = _hypotheses(points)
    if not away.size:
        return None
    medians = np.median(np.abs(away[::4]), axis=0)
    best = int(medians.argmin())
    return _refine(sample, away[:, best], noise, max(noise, TO_SIGMA * float(medians[best])))


def _hypotheses(points: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Points [n, 3], and their distances [n, planes] to planes through three of them."""
    step = max(1, int((points.shape[0] * points.shape[1] / SAMPLE) ** 0.5))
    coarse = points[step // 2 :: step, step // 2 :: step]
    known = ~np.isnan(coarse[..., 2])
    inner = [slice(int(side * BORDER), side - int(side * BORDER)) for side in known.shape]
    border = known.copy()
    border[inner[0], inner[1]] = False
    sample = coarse[known].astype(np.float64)
    middle = sample.mean(axis=0) if len(sample) else 0  # single precision is enough from there
    outside = np.flatnonzero(border[known])
    rng = np.random.default_rng(SEED)
    if len(sample) < 3:
        return sample, np.zeros((len(sample), 0), np.float32)
    chosen = rng.integers(0, len(sample), (HYPOTHESES, 3))
    if len(outside) >= 3:
        chosen[::2] = rng.choice(outside, (HYPOTHESES // 2, 3))
    corners = sample[chosen] - middle
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    spanned = lengths > 0
    corners, normals = corners[spanned, 0], normals[spanned] / lengths[spanned, None]
    normals[normals[:, 2] > 0] *= -1
    away = np.tile((-corners * normals).sum(axis=1).astype(np.float32), (len(sample), 1))
    for axis in range(3):  # no matrix product: one this small wakes threads for longer than it takes
        away += (sample - middle)[:, axis, None].astype(np.float32) * normals[:, axis].astype(np.float32)
    return sample, away


def _refine(sample: NDArray[np.float64], distance: NDArray[np.floating], noise: float, spread: float) -> Plane:
    """Fit the points near the plane by least squares, and measure how far they lie from it, in turn."""
    for _ in range(ROUNDS):
        near = np.abs(distance) <= max(WITHIN * spread, float(np.partition(np.abs(distance), 2)[2]))  # three at least
        middle = sample[near].mean(axis=0)
        offsets = sample[near] - middle
        normal = np.linalg.eigh(np.einsum("ni,nj->ij", offsets, offsets))[1][:, 0]
        normal = -normal if normal[2] > 0 else normal
        distance = (sample - middle) @ normal
        spread = max(noise / 4, TO_SIGMA * float(np.median(np.abs(distance[near]))))
    return Plane(normal.astype(np.float32), -float(middle @ normal), spread)
