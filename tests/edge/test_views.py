"""The renderer against Open3D's camera mathematics, and against scenes of which is known what hides what."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.organised_scan.views import INTRINSICS, SIDE, TILTS, Views, render

Points = NDArray[np.float32]
TOWARDS = np.array([[0, 0, -1]], np.float32)


def sheet(side: float, step: float, z: float, x: float = 0) -> Points:
    across = np.arange(-side / 2, side / 2 + step / 2, step)
    columns, rows = np.meshgrid(across + x, across)
    return np.column_stack([columns.ravel(), rows.ravel(), np.full(rows.size, z)]).astype(np.float32)


def wave(step: float = 0.9) -> Points:
    points = sheet(100, step, 0)
    points[:, 2] = 500 + 2 * np.sin(points[:, 0] / 9) + 1.5 * np.cos(points[:, 1] / 7) + 0.1 * points[:, 0]
    return points


def draw(points: Points) -> Views:
    return render(points, np.repeat(TOWARDS, len(points), axis=0))


def project(points: Points, extrinsic: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """In float64, pixel by pixel as the book has it: columns and rows [n, 2], and depths [n]."""
    seen = points.astype(np.float64) @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    image = seen @ INTRINSICS.T
    return image[:, :2] / image[:, 2:], seen[:, 2]


@pytest.fixture
def open3d() -> ModuleType:
    return pytest.importorskip("open3d", reason="no wheel of Open3D for this machine")


def test_every_shown_point_lies_within_half_a_pixel_of_its_pixel_in_all_views() -> None:
    points = wave()
    views = draw(points)
    for view in range(9):
        position, depth = project(points, views.extrinsics[view])
        assert (np.abs(position - (SIDE - 1) / 2) <= 0.9 * SIDE / 2 + 1e-3).all(), "the camera sees all of it"
        seen = views.pixels[view] >= 0
        assert seen.mean() > 0.99
        pixel = np.column_stack([views.pixels[view] % SIDE, views.pixels[view] // SIDE])
        assert np.abs(position - pixel)[seen].max() <= 0.5 + 1e-3
        drawn = views.points[view] >= 0
        np.testing.assert_allclose(views.depths[view][drawn], depth[views.points[view][drawn]], rtol=1e-6)
        np.testing.assert_array_equal(views.depths[view] > 0, drawn)
        np.testing.assert_array_equal(views.pictures[view] < 255, drawn)


def test_pixels_go_back_to_their_points_by_open3ds_camera(open3d: ModuleType) -> None:
    points = wave()
    views = draw(points)
    camera = open3d.camera.PinholeCameraParameters()
    camera.intrinsic = open3d.camera.PinholeCameraIntrinsic(SIDE, SIDE, INTRINSICS)
    for view in range(9):
        camera.extrinsic = views.extrinsics[view]
        image = open3d.geometry.Image(views.depths[view])
        cloud = open3d.geometry.PointCloud.create_from_depth_image(image, camera.intrinsic, camera.extrinsic, 1.0, 1e6)
        back = np.asarray(cloud.points)
        shown = views.points[view][views.depths[view] > 0]
        own = views.pixels[view][shown] == np.flatnonzero(views.depths[view] > 0)
        assert own.mean() > 0.3
        apart = (
            np.linalg.norm(back - points[shown], axis=1)
            * INTRINSICS[0, 0]
            / project(points, camera.extrinsic)[1][shown]
        )
        assert apart[own].max() <= 0.5**0.5 + 1e-2, "half a pixel across and half a pixel down"
        assert apart.max() <= 1.5 * 2**0.5 + 1e-2, "a neighbour that fills a gap"


def test_the_z_buffer_is_open3ds_where_no_surface_hides_another(open3d: ModuleType) -> None:
    points = wave()
    views = draw(points)
    cloud = open3d.t.geometry.PointCloud(open3d.core.Tensor(points))
    for view in range(9):
        theirs = np.asarray(
            cloud.project_to_depth_image(
                SIDE, SIDE, open3d.core.Tensor(INTRINSICS), open3d.core.Tensor(views.extrinsics[view]), 1.0, 1e6
            )
        )[..., 0]
        both = theirs > 0
        assert (views.depths[view][both] > 0).all()
        same = np.abs(views.depths[view] - theirs)[both] < 1e-3
        assert same.mean() > 0.97, "but for what is hidden, and positions half-way between two pixels"


def test_views_are_turned_as_open3d_turns_the_flipped_cloud(open3d: ModuleType) -> None:
    flip = np.diag([1.0, -1.0, -1.0])
    angles = [(x, y, 0) for x in TILTS for y in TILTS]
    for extrinsic, angle in zip(draw(wave()).extrinsics, angles, strict=True):
        theirs = open3d.geometry.get_rotation_matrix_from_xyz(np.deg2rad(angle))
        np.testing.assert_allclose(extrinsic[:3, :3], flip @ theirs @ flip, atol=1e-12)


@pytest.mark.parametrize("step", [0.25, 0.8, 3.0], ids=["dense", "as pixels", "sparse"])
def test_a_sheet_behind_another_is_hidden_and_one_beside_it_is_not(step: float) -> None:
    front, behind, beside = sheet(60, step, 480), sheet(20, step, 500), sheet(20, step, 500, x=60)
    views = draw(np.concatenate([front, behind, beside]))
    seen = views.pixels >= 0
    assert seen[:, : len(front)].mean() > 0.99
    assert not seen[:, len(front) : len(front) + len(behind)].any()
    assert seen[:, -len(beside) :].all()
    drawn = set(views.points[views.points >= 0].tolist())
    assert not drawn & set(range(len(front), len(front) + len(behind)))


@pytest.mark.parametrize("step", [0.3, 1.0, 2.5])
def test_a_surface_has_no_holes_however_dense_its_points(step: float) -> None:
    views = draw(sheet(100, step, 500))
    shown = views.points[0] >= 0
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert 0.85 * SIDE > len(rows) > 0.6 * SIDE


def test_a_shallow_dent_is_seen_and_the_unit_is_not() -> None:
    points = sheet(100, 0.5, 500)
    slope = np.where(np.hypot(points[:, 0], points[:, 1]) < 10, 0.1, 0) * np.where(points[:, 1] < 0, -1, 1)
    normals = np.column_stack([np.zeros_like(slope), slope, -np.ones_like(slope)])
    normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
    views = render(points, normals)
    flat, dent = np.median(views.pictures[0][points_near(views, points, 20, 40)]), points_near(views, points, 2, 8)
    assert np.abs(views.pictures[0][dent] - flat).min() >= 8
    larger = render(points * np.float32(4), normals)
    np.testing.assert_array_equal(larger.pictures, views.pictures)
    np.testing.assert_array_equal(larger.pixels, views.pixels)


def points_near(views: Views, points: Points, low: float, high: float) -> NDArray[np.bool_]:
    apart = np.append(np.hypot(points[:, 0], points[:, 1]), np.inf)[views.points[0]]
    return (apart > low) & (apart < high)


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.full((5, 3), 7.0), [[0, 0, 1], [0, 0, 900]]])
def test_few_points_in_one_place_or_on_one_line_are_drawn(points: object) -> None:
    cloud = np.array(points, np.float32)
    views = render(cloud, np.zeros_like(cloud))
    assert (views.points >= 0).any(axis=(1, 2)).all()
    assert (views.pixels >= 0).any(axis=1).all()
    assert np.isfinite(views.depths).all()
    assert views.pictures.min() < 200, "a point without a normal faces the sensor"


def test_no_points_are_refused() -> None:
    with pytest.raises(FrameError, match="0 points to draw"):
        draw(np.zeros((0, 3), np.float32))
