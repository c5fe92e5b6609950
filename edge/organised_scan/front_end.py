"""Front end `organised_scan`, version 1: a scan becomes tensors of the graph. The same function compiles and inspects.

Check it against the bundle's source; measure the sensor's noise; fit the plane of the belt (`background: belt`) or of
the surface as a whole (`none`); on a belt take the plane away and keep the one part; bring what is left to the graph's
grid; measure normals, curvature and roughness there, and fast point feature histograms on a coarser grid. NumPy, SciPy
and OpenCV alone, no network, nothing random, and no NaN leaves it.

Ours: the order, and every tolerance being a multiple of the noise that was measured, where published code (M3DM, BTF)
has 4, 5 and 6 mm. Theirs: removing the plane, keeping the largest cluster, and sampling by the nearest point.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.bundle import ScanInput
from edge.front_end import FrameError, check_size
from edge.organised_scan.fpfh import WIDTH, fpfh
from edge.organised_scan.noise import measure_noise
from edge.organised_scan.part import find_part
from edge.organised_scan.plane import Plane, fit_belt, fit_surface
from edge.organised_scan.resample import Grid, resample
from edge.organised_scan.surface import measure_surface

LEAST_KNOWN = 0.05  # of the scan's places
OTHER_DISTANCE = 2.0  # times further or nearer than any scan before is another unit or another set-up
GEOMETRY = 7


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the front end makes of one scan, finite throughout.

    `scan` float32 [H, W, 3]: mm from `centre`, the mean of the points that count. `known` float32 [H, W]: 1 where
    there is a point that counts; all tensors are 0 elsewhere. `geometry` float32 [H, W, 7]: height over the plane (mm),
    normal (x, y, z, towards the sensor), largest and least curvature (1/mm), roughness (mm). `fpfh` float32 [c, c, 33],
    in percent, c by the bundle; of no cells where it asks for none. `noise` is of the sensor, mm.
    """

    scan: NDArray[np.float32]
    known: NDArray[np.float32]
    geometry: NDArray[np.float32]
    fpfh: NDArray[np.float32]
    centre: NDArray[np.float32]
    noise: float


def organised_scan(points: NDArray[np.float32], spec: ScanInput) -> Prepared:
    """Turn a scan into the graph's tensors.

    Args:
        points: [H, W, 3] in mm, NaN in all three where there is no return; z grows away from the sensor.
        spec: of the manifest.

    Raises:
        FrameError: another size or distance than the bundle's, hardly any return, and on a belt: a plane only, two
            parts in view.

    """
    known = _check(points, spec)
    noise = measure_noise(points[..., 2])
    belt = spec.background == "belt"
    plane = (fit_belt if belt else fit_surface)(points, noise)
    if plane is None:
        raise FrameError("all points of the scan lie on one line")
    if belt:
        known = find_part(plane.distance(points), plane.spread)
    grid = resample(points, known, spec.height, spec.width, noise)
    if not grid.known.any():
        raise FrameError(f"the part is smaller than a place of the graph's grid of {spec.width}x{spec.height}")
    mask = grid.known.view(np.uint8)
    centre = np.array(cv2.mean(grid.points, mask))  # four numbers: a scalar of OpenCV
    geometry = _geometry(grid, plane, noise)
    scan = np.zeros_like(grid.points)
    cv2.subtract(grid.points, centre, scan, mask)
    described = _fpfh(scan, geometry[..., 1:4], spec)
    return Prepared(scan, grid.known.astype(np.float32), geometry, described, centre[:3].astype(np.float32), noise)


def _check(points: NDArray[np.float32], spec: ScanInput) -> NDArray[np.bool_]:
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype != np.float32:
        raise FrameError(f"{points.dtype} of shape {points.shape} is no scan; float32 [H, W, 3] is expected")
    check_size(points.shape[:2], spec.source.height, spec.source.width, "points")
    known = ~np.isnan(points[..., 2])
    if (share := float(known.mean())) < LEAST_KNOWN:
        raise FrameError(f"only {share:.1%} of the scan has a return, at least {LEAST_KNOWN:.0%} is needed")
    distance = float(np.median(points[::4, ::4, 2][known[::4, ::4]])) if known[::4, ::4].any() else np.nan
    low, high = spec.source.distance_mm
    if not low / OTHER_DISTANCE <= distance <= high * OTHER_DISTANCE:
        raise FrameError(
            f"the scan lies {distance:.4g} mm away, the bundle was made from {low:.4g} to {high:.4g} mm: another unit "
            f"than {spec.source.unit}, or another set-up"
        )
    return known


def _geometry(grid: Grid, plane: Plane, noise: float) -> NDArray[np.float32]:
    left, top, width, height = cv2.boundingRect(grid.known.view(np.uint8))
    window = slice(top, top + height), slice(left, left + width)
    points, known = grid.points[window], grid.known[window]
    found = np.zeros((*grid.known.shape, GEOMETRY), np.float32)
    found[window][..., 0] = plane.distance(points) * known
    found[window][..., 1:] = measure_surface(points, known, noise, grid.pitch)
    return found


def _fpfh(scan: NDArray[np.float32], normals: NDArray[np.float32], spec: ScanInput) -> NDArray[np.float32]:
    """Describe the middle point of each cell of the coarser grid, where it has a normal."""
    size = (spec.fpfh_cells, spec.fpfh_cells)
    found = np.zeros((*size, WIDTH), np.float32)
    if spec.fpfh_cells:
        points, directions = (
            np.asarray(cv2.resize(each, size, interpolation=cv2.INTER_NEAREST_EXACT), np.float32)
            for each in (scan, np.ascontiguousarray(normals))
        )
        there = directions[..., 2] < 0
        found[there] = fpfh(points[there], directions[there], spec.fpfh_neighbours)
    return found
