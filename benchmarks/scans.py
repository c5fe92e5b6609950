"""How long scans take on one core: the front end step by step for 640x480 points, views and groups, and whole scores.

python -m benchmarks.scans

Processor time of all threads together, so that neither a second core nor other programs flatter or spoil it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Record, budgets, median
from benchmarks.scan_graphs import SIDE, scan_scores
from edge.bundle import ScanInput, ScanSource
from edge.organised_scan.fpfh import fpfh
from edge.organised_scan.front_end import organised_scan
from edge.organised_scan.groups import farthest_points, group, nearest_centres
from edge.organised_scan.noise import measure_noise
from edge.organised_scan.part import find_part
from edge.organised_scan.plane import fit_belt, fit_surface
from edge.organised_scan.resample import resample
from edge.organised_scan.surface import measure_surface
from edge.organised_scan.views import render

HEIGHT, WIDTH, GRID, CELLS, NEIGHBOURS = 480, 640, 224, 56, 32
ROUNDS = 30
POINTS, FEWER = 50_000, 12_500
GROUPS, MEMBERS = 1024, 128


def main() -> int:
    limits = budgets("scan")
    cv2.setNumThreads(1)
    surface, belt = _scenes()
    record = Record("scans")
    bare = {"none": _spec("none", 0), "belt": _spec("belt", 0)}
    whole = {"none": _spec("none", CELLS), "belt": _spec("belt", CELLS)}
    grid = organised_scan(surface, bare["none"])
    points, normals = (each.reshape(-1, 3)[:POINTS] for each in (grid.scan, grid.geometry[..., 1:4]))
    times = _processor_ms(
        {
            "surface": lambda: organised_scan(surface, bare["none"]),
            "part on a belt": lambda: organised_scan(belt, bare["belt"]),
            "surface, FPFH": lambda: organised_scan(surface, whole["none"]),
            "part on a belt, FPFH": lambda: organised_scan(belt, whole["belt"]),
            "views": lambda: render(points, normals),
            **_steps(surface, belt),
            **_groups(points),
        }
    )
    for what in ("surface", "part on a belt"):
        record.figure(f"{what}, {WIDTH}x{HEIGHT} to {GRID}x{GRID}", median(times[what]), "ms", limits["front_end_ms"])
        with_fpfh = median(times[f"{what}, FPFH"])
        record.figure(f"{what}, with FPFH on {CELLS}x{CELLS}", with_fpfh, "ms", limits["front_end_fpfh_ms"])
    record.figure(f"nine views of {POINTS} points", median(times["views"]), "ms", limits["views_ms"])
    scores = dict(scan_scores(surface, "none", (450, 550)))
    for name, taken in _processor_ms(scores).items():
        record.figure(f"{name}, front end and graph at {SIDE} points", median(taken), "ms", limits["score_ms"])
    for name in times:
        if name.startswith("  "):
            record.figure(name, median(times[name]), "ms")
    return record.finish()


def _steps(surface: NDArray[np.float32], belt: NDArray[np.float32]) -> dict[str, Callable[[], Any]]:
    noise = measure_noise(surface[..., 2])
    known = ~np.isnan(surface[..., 2])
    grid = resample(surface, known, GRID, GRID, noise)
    plane = fit_belt(belt, noise)
    assert plane is not None
    height = plane.distance(belt)
    whole = organised_scan(surface, _spec("none", 0))
    step = GRID // CELLS
    points = whole.scan[::step, ::step].reshape(-1, 3)
    normals = whole.geometry[::step, ::step, 1:4].reshape(-1, 3)
    points, normals = points[normals[:, 2] < 0], normals[normals[:, 2] < 0]
    steps: dict[str, Callable[[], Any]] = {
        "  noise": lambda: measure_noise(surface[..., 2]),
        "  plane of a belt": lambda: fit_belt(belt, noise),
        "  plane of a surface": lambda: fit_surface(surface, noise),
        "  largest part": lambda: find_part(height, plane.spread),
        "  resampling": lambda: resample(surface, known, GRID, GRID, noise),
        "  normals and curvature": lambda: measure_surface(grid.points, grid.known, noise, grid.pitch),
        f"  FPFH of {len(points)} points, {NEIGHBOURS} neighbours": lambda: fpfh(points, normals, NEIGHBOURS),
    }
    if find_spec("open3d"):
        steps["  the same by Open3D, one core"] = _open3d(points, normals)
    return steps


def _groups(points: NDArray[np.float32]) -> dict[str, Callable[[], Any]]:
    """Four times the points, to show how the cost grows."""
    steps: dict[str, Callable[[], Any]] = {}
    for count in (FEWER, POINTS):
        some = np.ascontiguousarray(points[:: len(points) // count][:count])
        centres, known = some[farthest_points(some, GROUPS)], np.ones((1, count), bool)
        steps[f"  {GROUPS} farthest of {count} points"] = partial(farthest_points, some, GROUPS)
        steps[f"  the same, and groups of {MEMBERS} of {count}"] = partial(group, some, GROUPS, MEMBERS)
        steps[f"  nearest centres of {count} points"] = partial(nearest_centres, some[None], known, centres)
    return steps


def _open3d(points: NDArray[np.float32], normals: NDArray[np.float32]) -> Callable[[], Any]:
    import open3d  # noqa: PLC0415 - not on every machine

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
    cloud.normals = open3d.utility.Vector3dVector(normals.astype(float))
    search = open3d.geometry.KDTreeSearchParamKNN(NEIGHBOURS + 1)
    return lambda: open3d.pipelines.registration.compute_fpfh_feature(cloud, search)  # type: ignore[call-arg]


def _scenes() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A wavy surface, and a dome on a tilted belt: noise of 0.15 mm, and 2 % of the returns missing."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] * 0.5 - np.array([HEIGHT, WIDTH])[:, None, None] / 4
    hill = np.clip(1 - np.hypot(x, y) ** 2 / 80**2, 0, None) ** 0.5
    scenes = []
    for z in (500 + 3 * np.sin(x / 20), 500 + 0.05 * x - np.where(hill > 0, 10 + 40 * hill, 0)):
        points = np.stack([x, y, z + rng.normal(0, 0.15, z.shape)], axis=2).astype(np.float32)
        points[rng.random(z.shape) < 0.02] = np.nan
        scenes.append(points)
    return scenes[0], scenes[1]


def _spec(background: Any, cells: int) -> ScanInput:
    source = ScanSource(height=(HEIGHT, HEIGHT), width=(WIDTH, WIDTH), unit="mm", distance_mm=(450, 550))
    return ScanInput(
        height=GRID,
        width=GRID,
        background=background,
        fpfh_cells=cells,
        fpfh_neighbours=NEIGHBOURS,
        source=source,
    )


def _processor_ms(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Take each in turn, round after round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 3):
        for name, call in calls.items():
            start_ns = time.process_time_ns()
            call()
            if number >= 3:
                times[name].append((time.process_time_ns() - start_ns) / 1e6)
    return times


if __name__ == "__main__":
    sys.exit(main())
