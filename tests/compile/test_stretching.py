"""Pseudo-anomalies of clouds: the same in any unit, at their point, and drawn by one generator."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from compile.methods.stretching import stretch, stretch_geometry
from edge.bundle import ScanInput, ScanSource
from edge.organised_scan.front_end import Prepared, organised_scan

Cloud = tuple[NDArray[np.float32], NDArray[np.float32]]
SIDE = 64


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    """A dome of 110 mm, 600 mm away, and its normals."""
    flat = np.random.default_rng(0).uniform(-55, 55, (4000, 2))
    slope = flat / 200
    points = np.column_stack([flat, 600 + (flat**2).sum(1) / 400])
    normals = np.column_stack([slope, -np.ones(len(flat))])
    return points.astype(np.float32), (normals / np.linalg.norm(normals, axis=1)[:, None]).astype(np.float32)


def drawn(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("scale", [1e-3, 25.4])
def test_a_bump_does_not_hang_on_the_unit(cloud: Cloud, scale: float) -> None:
    points, normals = cloud
    found, other = stretch(points, normals, drawn(3)), stretch(points * np.float32(scale), normals, drawn(3))
    assert np.mean(other.moved == found.moved) > 0.999  # places that are equally far may change their turn
    by = np.linalg.norm(found.points - points, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(other.points / scale - points, axis=1).max() / by.max(), 1, rtol=1e-3, atol=0
    )


def test_the_published_rule_does_hang_on_it(cloud: Cloud) -> None:
    """Its peak is 100 k rho: a square of a length."""
    points, normals = cloud
    rho = np.square(cKDTree(points).query(points[::2], 2)[0][:, 1]).mean()
    found = stretch(points, normals, drawn(3), "published")
    peak = np.linalg.norm(found.points - points, axis=1).max()
    assert peak == pytest.approx(100 * found.moved.sum() * rho, rel=1e-3)
    metres = stretch(points / np.float32(1000), normals, drawn(3), "published")
    assert np.linalg.norm(metres.points * 1000 - points, axis=1).max() == pytest.approx(peak / 1000, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_bump_lies_at_its_point_and_falls_off_around_it(cloud: Cloud, seed: int) -> None:
    points, normals = cloud
    found = stretch(points, normals, drawn(seed))
    by = np.linalg.norm(found.points - points, axis=1)
    assert int(by.argmax()) == found.peak
    spacing = cKDTree(points).query(points, 2)[0][:, 1].mean()
    radius = spacing * found.moved.sum() ** 0.5
    middle = (points * by[:, None]).sum(0) / by.sum()
    inner = np.abs(points[found.peak, :2]).max() < 55 - radius
    assert not inner or np.linalg.norm(middle - points[found.peak]) < 1.5 * spacing
    assert 0.15 <= by.max() / radius <= 0.35
    assert len(points) / 100 <= found.moved.sum() <= len(points) / 50
    np.testing.assert_array_equal(by > 1e-4 * by.max(), found.moved)


def test_a_seed_says_it_all(cloud: Cloud) -> None:
    first, again, other = (stretch(*cloud, drawn(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.points, again.points)
    assert not np.array_equal(first.moved, other.moved)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    z = 500 + 0.1 * x + 2 * np.sin(x / 9) * np.cos(y / 7) + drawn(0).normal(0, 0.02, x.shape)
    points = np.dstack([x, y, z]).astype(np.float32)
    points[10:13, 40:44] = np.nan
    source = ScanSource(height=(SIDE, SIDE), width=(SIDE, SIDE), unit="mm", distance_mm=(500, 510))
    return organised_scan(points, ScanInput(height=SIDE, width=SIDE, background="none", source=source))


def test_a_stretched_scan_is_measured_as_the_front_end_does(prepared: Prepared) -> None:
    geometry = np.moveaxis(prepared.geometry, 2, 0)
    found, moved = stretch_geometry(prepared.scan, geometry, drawn(4))
    assert 0.009 < moved.mean() < 0.021
    near = np.zeros_like(moved)
    for y, x in np.argwhere(moved):
        near[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = True
    assert (np.abs(found - geometry).max(0)[~near] < 1e-3).mean() > 0.97  # noise is measured anew
    rise = np.abs(found[0] - geometry[0])
    assert rise[moved].max() > 1
    assert rise[~moved].max() < 1e-3
    assert np.isfinite(found).all()


def test_hardly_a_point_is_left_alone() -> None:
    scan, geometry = np.zeros((8, 8, 3), np.float32), np.zeros((7, 8, 8), np.float32)
    found, moved = stretch_geometry(scan, geometry, drawn(0))
    assert found is geometry
    assert not moved.any()
