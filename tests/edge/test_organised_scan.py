"""The front end for scans, step by step, against what is known of synthetic scenes and against Open3D."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.bundle import ScanInput, ScanSource
from edge.front_end import FrameError
from edge.organised_scan.fpfh import fpfh
from edge.organised_scan.front_end import Prepared, organised_scan
from edge.organised_scan.noise import measure_noise
from edge.organised_scan.plane import fit_belt, fit_surface
from edge.organised_scan.resample import resample
from edge.organised_scan.surface import measure_surface

HEIGHT, WIDTH, NOISE = 120, 160, 0.15
Points = NDArray[np.float32]
Scene = Callable[..., Points]
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
X, Y = (COLUMNS - WIDTH / 2).astype(float), (ROWS - HEIGHT / 2).astype(float)  # a place is a millimetre
TILT = 0.1 * X + 0.05 * Y


def scan(z: NDArray[np.float64], noise: float = NOISE, missing: float = 0.02) -> Points:
    rng = np.random.default_rng(3)
    points = np.stack([X, Y, z + rng.normal(0, noise, z.shape)], axis=2).astype(np.float32)
    points[rng.random(z.shape) < missing] = np.nan
    return points


def dome(radius: float = 35, height: float = 25, x: float = 0, y: float = 0) -> NDArray[np.float64]:
    apart = np.hypot(X - x, Y - y) / radius
    return np.where(apart < 1, 4 + height * np.sqrt(np.maximum(0, 1 - apart**2)), 0)


BELT = scan(500 + TILT - dome())


def spec(background: str = "belt", grid: int = 80, cells: int = 20) -> ScanInput:
    source = ScanSource(height=(HEIGHT, HEIGHT), width=(WIDTH, WIDTH), unit="mm", distance_mm=(480, 520))
    return ScanInput(height=grid, width=grid, background=background, source=source, fpfh_cells=cells)


def finite(found: Prepared) -> bool:
    return all(np.isfinite(each).all() for each in (found.scan, found.known, found.geometry, found.fpfh, found.centre))


@pytest.mark.parametrize("noise", [0.02, 0.15, 2.0])
def test_the_noise_is_measured_on_a_tilted_plane_with_a_part(noise: float) -> None:
    assert measure_noise(scan(500 + TILT, noise)[..., 2]) == pytest.approx(noise, rel=0.1)
    assert 0.9 < measure_noise(scan(500 + TILT - dome(), noise)[..., 2]) / noise < 1.5, "a part bends, too"


def test_noise_that_neighbours_share_and_steps_of_samples_are_noise() -> None:
    smooth = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, X.shape), (0, 0), 2)
    z = (500 + smooth / smooth.std() * 0.3).astype(np.float32)
    assert measure_noise(z) == pytest.approx(0.3, rel=0.5)
    assert measure_noise(np.full(X.shape, 500, np.float32)) > 0
    steps = np.round(500 + TILT).astype(np.float32)
    assert 1 / 12**0.5 <= measure_noise(steps) < 0.7


@pytest.mark.parametrize("part", [dome(), np.where(np.hypot(X, Y) < 68, 20.0, 0.0)], ids=["dome", "larger than belt"])
def test_the_belt_is_found_behind_the_part(part: NDArray[np.float64]) -> None:
    plane = fit_belt(scan(500 + TILT - part), NOISE)
    assert plane is not None
    expected = np.array([0.1, 0.05, -1]) / np.linalg.norm([0.1, 0.05, -1])
    np.testing.assert_allclose(plane.normal, expected, atol=2e-3)
    height = plane.distance(scan(500 + TILT - part, noise=0, missing=0)) * np.linalg.norm([0.1, 0.05, -1])
    np.testing.assert_allclose(height, part, atol=0.2)
    assert plane.spread == pytest.approx(NOISE, rel=0.2)


def test_a_dented_rough_surface_has_the_plane_of_its_larger_part() -> None:
    rough = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 8, X.shape), (0, 0), 3)
    plane = fit_surface(scan(500 + TILT + rough + 2 * dome()), NOISE)
    assert plane is not None
    np.testing.assert_allclose(plane.normal, np.array([0.1, 0.05, -1]) / 1.00623, atol=0.03)


@pytest.mark.parametrize("scale", [0.1, 1, 30])
def test_the_part_is_kept_and_the_belt_is_not_at_any_scale(scale: float) -> None:
    source = ScanSource(
        height=(HEIGHT, HEIGHT), width=(WIDTH, WIDTH), unit="mm", distance_mm=(400 * scale, 600 * scale)
    )
    found = organised_scan(BELT * np.float32(scale), spec().model_copy(update={"source": source}))
    expected = cv2.resize((dome() > 0).astype(np.uint8), (80, 80), interpolation=cv2.INTER_NEAREST_EXACT) > 0
    known = found.known > 0
    assert (known & expected).sum() / (known | expected).sum() > 0.95
    assert not (known & ~expected).any()
    assert found.noise == pytest.approx(NOISE * scale, rel=0.25)


def test_tensors_are_relative_finite_and_the_same_each_time() -> None:
    found, again = organised_scan(BELT, spec()), organised_scan(BELT.copy(), spec())
    assert finite(found)
    for name in ("scan", "known", "geometry", "fpfh", "centre"):
        assert getattr(found, name).tobytes() == getattr(again, name).tobytes(), name
        assert getattr(found, name).dtype == np.float32
    assert (found.scan.shape, found.geometry.shape, found.fpfh.shape) == ((80, 80, 3), (80, 80, 7), (20, 20, 33))
    hidden = found.known == 0
    assert not found.scan[hidden].any()
    assert not found.geometry[hidden].any()
    place = 40, 40
    middle = BELT[60:62, 80:82].reshape(-1, 3)
    np.testing.assert_allclose(found.scan[place] + found.centre, np.nanmean(middle, axis=0), atol=1.5)
    assert found.geometry[place][0] == pytest.approx(29 / 1.00623, abs=0.3)


def test_a_part_that_moved_on_the_belt_looks_alike() -> None:
    here, there = (organised_scan(scan(500 - dome(x=x)), spec(cells=0)) for x in (-20, 20))
    np.testing.assert_allclose(here.scan[:, 10:40][here.known[:, 10:40] > 0].std(axis=0),
                               there.scan[:, 30:60][there.known[:, 30:60] > 0].std(axis=0), rtol=0.25)  # fmt: skip
    assert np.abs(here.centre - there.centre)[0] == pytest.approx(40, abs=3)


def test_without_a_belt_all_of_the_surface_is_kept() -> None:
    found = organised_scan(scan(500 + TILT + 0.5 * dome()), spec("none"))
    assert found.known.mean() > 0.97
    assert found.fpfh.any(axis=2).mean() > 0.9


REFUSED: dict[str, tuple[Points, str, str]] = {
    "a plane only": (scan(500 + TILT), "belt", "a plane only: nothing of 19 points or more stands 0.7"),
    "two parts": (scan(500 - dome(20, x=-40) - dome(20, x=40)), "belt", r"two parts in view, of 12\d\d and 12\d\d"),
    "heights, not distances": (scan(500 + dome()), "belt", "points behind it: z must grow away from the sensor"),
    "metres": (BELT / np.float32(1000), "belt", r"the scan lies 0\.49\d* mm away, .* from 480 to 520 mm: another unit"),
    "another size": (BELT[:100], "none", "160x100 points, the bundle was made from 160x120"),
    "no returns": (scan(500 + TILT, missing=0.97), "none", r"only [23]\.\d% of the scan has a return"),
    "a line": (np.where((X == 0)[..., None] | (np.abs(X) < 9)[..., None], BELT * (0, 1, 0) + (0, 0, 500), np.nan)
               .astype(np.float32), "none", "all points of the scan lie on one line"),
    "a picture": (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "none", "uint8 of shape .* is no scan"),  # type: ignore[dict-item]
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_judged_has_one_clear_message(what: str) -> None:
    points, background, message = REFUSED[what]
    with pytest.raises(FrameError, match=message):
        organised_scan(points, spec(background))


def test_dirt_beside_the_part_is_no_second_part() -> None:
    found = organised_scan(scan(500 - dome() - dome(6, 5, x=60, y=40)), spec())
    assert not found.known[:, 65:].any()


def test_no_point_is_invented_over_an_edge_of_depth() -> None:
    step = np.where(X < 7, 400.0, 500.0)
    points = scan(step, noise=0.1)
    grid = resample(points, ~np.isnan(points[..., 2]), 50, 50, 0.1)
    z = grid.points[grid.known, 2]
    assert (np.minimum(np.abs(z - 400), np.abs(z - 500)) < 3).all()
    exact = np.where(np.isin(X, (6, 7))[..., None], np.nan, scan(step, noise=0)).astype(np.float32)
    nearest = resample(exact, ~np.isnan(exact[..., 2]), 240, 320, 0.0)
    assert np.isin(nearest.points[nearest.known, 2], (400, 500)).all()
    assert not nearest.points[~nearest.known].any()


def test_a_mean_takes_off_noise() -> None:
    points = scan(np.full(X.shape, 500.0), noise=0.3, missing=0)
    grid = resample(points, np.ones(X.shape, bool), HEIGHT // 4, WIDTH // 4, 0.3)
    assert grid.points[..., 2].std() < 0.3 / 3
    assert grid.pitch == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("hollow", [False, True])
def test_a_sphere_has_its_normals_and_its_curvature(hollow: bool) -> None:
    radius = 90.0
    sign = -1 if hollow else 1
    z = 500 - sign * np.sqrt(radius**2 - X**2 - Y**2, where=X**2 + Y**2 < 70**2, out=np.full(X.shape, np.nan))
    points = scan(z, noise=0.002, missing=0)
    known = np.hypot(X, Y) < 50
    found = measure_surface(np.nan_to_num(points), ~np.isnan(points[..., 2]), 0.002, 1.0)
    outward = np.stack([X, Y, z - 500], axis=2) / radius * sign
    cosine = (found[..., :3] * outward).sum(axis=2)[known]
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1
    for curvature in np.moveaxis(found[known], 1, 0)[3:5]:
        assert np.median(curvature) * radius == pytest.approx(sign, rel=0.1)
    assert np.median(found[known][:, 5]) < 0.05


def test_normals_agree_with_open3d(open3d: ModuleType) -> None:
    points = scan(500 + 3 * np.sin(X / 15) + 2 * np.cos(Y / 11), noise=0.05, missing=0)
    found = measure_surface(points, np.ones(X.shape, bool), 0.05, 1.0)[..., :3]
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.reshape(-1, 3).astype(float)))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(13))
    theirs = np.asarray(cloud.normals).reshape(found.shape)
    angles = np.degrees(np.arccos(np.clip(np.abs((found * theirs).sum(axis=2)), -1, 1)))[3:-3, 3:-3]
    assert np.median(angles) < 1.5
    assert np.quantile(angles, 0.99) < 5


def test_an_edge_of_depth_bends_no_normal() -> None:
    points = scan(np.where(X < 0, 460.0, 500.0), noise=0.01, missing=0)
    assert measure_surface(points, np.ones(X.shape, bool), 0.01, 1.0)[..., 2].max() < -0.999


@pytest.fixture(scope="module")
def open3d() -> ModuleType:
    return pytest.importorskip("open3d", reason="no wheel of Open3D for this machine")


def cloud_of_a_part() -> tuple[Points, Points]:
    found = organised_scan(BELT, spec(grid=60, cells=0))
    there = found.geometry[..., 3] < 0
    return found.scan[there], found.geometry[..., 1:4][there]


@pytest.mark.parametrize("neighbours", [8, 32])
def test_fpfh_is_open3ds(neighbours: int, open3d: ModuleType) -> None:
    points, normals = cloud_of_a_part()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
    cloud.normals = open3d.utility.Vector3dVector(normals.astype(float))
    search = open3d.geometry.KDTreeSearchParamKNN(neighbours + 1)  # with the point itself
    theirs = np.asarray(open3d.pipelines.registration.compute_fpfh_feature(cloud, search).data).T
    ours = fpfh(points, normals, neighbours)
    same = np.abs(ours - theirs).max(axis=1) < 1e-2
    assert len(points) > 500
    assert same.mean() > 0.97, "but for ties of distance and values on the edge of a bin"
    assert np.abs(ours - theirs).mean() < 0.02


def test_fpfh_rows_sum_to_600_and_do_not_turn_with_the_part() -> None:
    points, normals = cloud_of_a_part()
    found = fpfh(points, normals, 16)
    np.testing.assert_allclose(found.sum(axis=1), 600, rtol=1e-5)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    turned = fpfh(points @ turn.T, normals @ turn.T, 16)
    assert (np.abs(turned - found).max(axis=1) < 1e-2).mean() > 0.95


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_fpfh_of_few_points_and_of_points_in_one_place_is_finite(count: int) -> None:
    normals = np.tile(np.array([[0, 0, -1]], np.float32), (count, 1))
    found = fpfh(np.zeros((count, 3), np.float32), normals, 8)
    assert found.shape == (count, 33)
    assert np.isfinite(found).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["belt", "none"]), st.floats(0, 0.9), st.floats(0, 50))
def test_whatever_comes_nothing_but_numbers_leave(seed: int, background: str, missing: float, rough: float) -> None:
    rng = np.random.default_rng(seed)
    points = np.stack([X, Y, 500 - dome() + rng.normal(0, rough, X.shape)], axis=2).astype(np.float32)
    points[rng.random(X.shape) < missing] = np.nan
    top, left = rng.integers(0, 60, 2)
    points[top : top + 40, left : left + 60] = np.nan
    try:
        assert finite(organised_scan(points, spec(background, grid=64, cells=16)))
    except FrameError:
        assert background == "belt", "a surface is never refused for its shape"
