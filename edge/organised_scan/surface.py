"""The surface around each point of a grid: its normal, how it curves, and how rough it is. No network, no tree.

Normals: z is regressed on x and y over the point and its eight neighbours two places away, those on the same surface.
Curvature: in each of four directions the heights of two opposite neighbours over the plane through the point are half
of the curvature times their distance squared; the largest and the least of the four stand for the principal ones. All
of it is sums of shifted arrays, so that it costs the same for every scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

RING = ((0, 2), (2, 0), (2, 2), (2, -2))  # places down and right; the opposite ones follow
STEEPEST = 2.8  # rise over run of what still is the same surface (70 degrees)
WITHIN = 4.0  # times the noise
FEWEST = 3  # neighbours that span a plane with the point
FLATTEST = 1e-3  # of what a square of the neighbours' places spans: less is a line
BLOCK = 112  # rows at once: larger arrays are given back to the system and claimed again at each step
HALO = 2  # rows around them that neighbours lie in
FAR = np.float32(1e6)  # mm; where there is no point: on nothing's surface
Field = NDArray[np.float32]
Window = tuple[slice, slice]


class _Pair(NamedTuple):
    """Two windows onto the grid; from each point of the first to its neighbour in the second: x, y, z; 0 where the two
    are not on the same surface (`same`: 1 or 0).
    """

    first: Window
    second: Window
    x: Field
    y: Field
    z: Field
    same: Field


def measure_surface(points: Field, known: NDArray[np.bool_], noise: float, pitch: float) -> Field:
    """Measure the surface around each point.

    Args:
        points: [H, W, 3], mm.
        known: [H, W], where there are points.
        noise: of z, mm.
        pitch: distance of neighbours, mm.

    Returns:
        float32 [H, W, 6], 0 where neighbours span no plane: x, y and z of the normal, which has length 1 and points to
        the sensor; the largest and the least curvature, 1/mm, above zero on a hill as seen from the sensor; and the
        roughness, mm, how far the neighbours lie from the plane through them (root mean square).

    """
    found = np.empty((*known.shape, 6), np.float32)
    limits = np.float32(WITHIN * noise), np.float32(STEEPEST * pitch)
    for top in range(0, len(known), BLOCK):
        first, bottom = max(0, top - HALO), min(len(known), top + BLOCK)
        window = slice(first, bottom + HALO)
        found[top:bottom] = _measure(points[window], known[window], limits)[top - first : bottom - first]
    return found


def _measure(points: Field, known: NDArray[np.bool_], limits: tuple[np.float32, np.float32]) -> Field:
    x, y, z = (np.asarray(each, np.float32) for each in cv2.split(points))
    z[~known] = FAR
    pairs = list(_pairs((x, y, z), limits))
    a, b, roughness, spanned = _regress(pairs, z.shape)
    spanned &= known
    length = np.float32(-1) / np.sqrt(1 + a * a + b * b) * spanned
    normal = (-a * length, -b * length, length)
    return np.asarray(cv2.merge([*normal, *_curvature(pairs, normal), roughness * spanned]), np.float32)


def _pairs(points: tuple[Field, Field, Field], limits: tuple[np.float32, np.float32]) -> Iterator[_Pair]:
    x, y, z = points
    noise, steepest = limits
    for down, right in RING:
        if down >= len(z) or abs(right) >= z.shape[1]:
            continue
        columns = slice(None, -right or None), slice(right, None)
        if right < 0:
            columns = slice(-right, None), slice(None, right)
        first, second = (slice(None, -down or None), columns[0]), (slice(down, None), columns[1])
        rise = z[second] - z[first]
        same = (np.abs(rise) <= noise + steepest * np.float32((down * down + right * right) ** 0.5)).astype(np.float32)
        rise *= same
        yield _Pair(first, second, (x[second] - x[first]) * same, (y[second] - y[first]) * same, rise, same)


def _regress(pairs: list[_Pair], size: tuple[int, ...]) -> tuple[Field, Field, Field, NDArray[np.bool_]]:
    """Regress z on x and y: both slopes, root mean square of what is left, and where neighbours span a plane."""
    n, sx, sy, sz, sxx, sxy, syy, sxz, syz, szz = np.zeros((10, *size), np.float32)
    for first, second, x, y, z, same in pairs:
        for total, part in ((sx, x), (sy, y), (sz, z)):
            total[first] += part
            total[second] -= part
        squares = (n, same), (sxx, x * x), (sxy, x * y), (syy, y * y), (sxz, x * z), (syz, y * z), (szz, z * z)
        for total, part in squares:
            total[first] += part
            total[second] += part
    share = 1 / (n + 1)  # the point itself is at 0, 0, 0
    xx, xy, yy = sxx - sx * sx * share, sxy - sx * sy * share, syy - sy * sy * share
    xz, yz, zz = sxz - sx * sz * share, syz - sy * sz * share, szz - sz * sz * share
    area = xx * yy - xy * xy
    spanned = (n >= FEWEST) & (area > FLATTEST * np.square(xx + yy))
    area = 1 / np.where(spanned, area, np.float32(1))
    a, b = (xz * yy - yz * xy) * area, (yz * xx - xz * xy) * area
    return a, b, np.sqrt(np.maximum(zz - a * xz - b * yz, 0) * share), spanned


def _curvature(pairs: list[_Pair], normal: tuple[Field, Field, Field]) -> tuple[Field, Field]:
    nx, ny, nz = normal
    bends = []
    for first, second, x, y, z, same in pairs:
        bend, sides = np.zeros_like(nz), np.zeros_like(nz)
        inverse = same / np.maximum(x * x + y * y + z * z, np.float32(1e-12))
        bend[first] -= (nx[first] * x + ny[first] * y + nz[first] * z) * inverse
        bend[second] += (nx[second] * x + ny[second] * y + nz[second] * z) * inverse
        sides[first] += same
        sides[second] += same
        bends.append(bend * (sides == 2))
    return np.maximum.reduce(bends), np.minimum.reduce(bends)
