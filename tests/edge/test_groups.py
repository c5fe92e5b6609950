"""Farthest points, groups and the way back to points, against slow exact versions and Open3D."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.organised_scan.groups import farthest_points, group, nearest_centres

Points = NDArray[np.float32]


def cloud(count: int = 700) -> Points:
    rng = np.random.default_rng(5)
    return (rng.normal(size=(count, 3)) * [40, 25, 6] + [3, -8, 500]).astype(np.float32)


def slowly(points: Points, count: int, first: int) -> list[int]:
    """In float64: the point that is farthest from the nearest of those chosen."""
    apart = np.linalg.norm(points[:, None].astype(float) - points[None], axis=2)
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(apart[:, chosen].min(axis=1).argmax()))
    return chosen


@pytest.mark.parametrize("seed", [0, 3, 703])
def test_farthest_points_are_those_of_the_slow_way(seed: int) -> None:
    points = cloud()
    assert farthest_points(points, 128, seed).tolist() == slowly(points, 128, seed % 700)


def test_farthest_points_are_open3ds() -> None:
    open3d = pytest.importorskip("open3d", reason="no wheel of Open3D for this machine")
    points = cloud(4000)
    theirs = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
    theirs = np.asarray(theirs.farthest_point_down_sample(256).points)
    mine = points[farthest_points(points, 256)]
    np.testing.assert_array_equal(np.sort(mine, axis=0), np.sort(theirs.astype(np.float32), axis=0))


def test_groups_are_the_nearest_points_minus_their_centre() -> None:
    points = cloud()
    found = group(points, 64, 16, seed=2)
    assert (found.groups.shape, found.groups.dtype) == ((64, 16, 3), np.float32)
    np.testing.assert_array_equal(found.centres, points[farthest_points(points, 64, 2)])
    np.testing.assert_array_equal(found.groups, points[found.members] - found.centres[:, None])
    apart = np.sort(np.linalg.norm(points[None].astype(float) - found.centres[:, None], axis=2), axis=1)
    np.testing.assert_allclose(np.linalg.norm(found.groups, axis=2), apart[:, :16], rtol=1e-5, atol=1e-5)
    assert (found.groups[:, 0] == 0).all(), "the centre's own point comes first"
    again = group(points, 64, 16, seed=2)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_few_points_groups_and_neighbours_come_again(count: int) -> None:
    points = cloud(count)
    found = group(points, 12, 8)
    assert (found.groups.shape, found.members.shape) == ((12, 8, 3), (12, 8))
    assert np.isfinite(found.groups).all()
    np.testing.assert_array_equal(found.centres[:count], found.centres[count : 2 * count])
    assert (np.sort(found.members[:, :count], axis=1) == np.arange(count)).all()
    np.testing.assert_array_equal(found.members[:, count:], found.members[:, np.arange(count, 8) % count])


def test_points_in_one_place_are_one_place() -> None:
    points = np.repeat(cloud(3), 4, axis=0)
    chosen = farthest_points(points, 7)
    assert chosen[0] == 0
    assert len(np.unique(points[chosen[:3]], axis=0)) == 3
    np.testing.assert_array_equal(chosen[3:6], chosen[:3])


def test_places_have_their_three_nearest_centres() -> None:
    scan = cloud(600).reshape(20, 30, 3)
    known = np.random.default_rng(1).random((20, 30)) < 0.7
    centres = group(scan[known], 40, 8).centres
    numbers, weights = nearest_centres(scan, known, centres)
    squares = np.square(scan[known][:, None].astype(float) - centres).sum(axis=2)
    nearest = np.argsort(squares, axis=1)[:, :3]
    np.testing.assert_array_equal(numbers[known], nearest)
    shares = 1 / (np.take_along_axis(squares, nearest, axis=1) + 1e-8)
    np.testing.assert_allclose(weights[known], shares / shares.sum(axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=2), known, atol=1e-6)
    assert not numbers[~known].any()


@pytest.mark.parametrize("count", [1, 2])
def test_with_fewer_than_three_centres_the_others_weigh_nothing(count: int) -> None:
    scan = cloud(4)[None]
    numbers, weights = nearest_centres(scan, np.ones((1, 4), bool), cloud(count))
    assert numbers.max() < count
    assert (weights[..., count:] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-6)


@pytest.mark.parametrize("points", [np.zeros((0, 3), np.float32), np.full((4, 3), np.nan, np.float32)])
def test_nothing_and_no_numbers_are_refused(points: Points) -> None:
    with pytest.raises(FrameError, match="cannot be grouped"):
        group(points, 4, 4)
