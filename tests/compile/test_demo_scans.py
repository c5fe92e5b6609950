from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from compile.demo_parts import read_parts
from compile.demo_scans import HEIGHT, KINDS, PLACE, WIDTH, make_demo_scans, read_scan_mark, scan_bun
from edge.scans.read import read_points
from edge.scans.unit import choose_unit, measure_extent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo_scans(folder, train=2, line_good=4, line_defective=4, seed=7)
    return folder


def test_each_scan_carries_its_number_and_is_one_for_the_box(demo: Path) -> None:
    parts = read_parts(demo)
    assert [part.id for part in parts] == list(range(1, 9))
    assert sorted(part.kind for part in parts if part.defective) == sorted([*KINDS, KINDS[0]])
    for part in parts:
        assert read_scan_mark(cv2.imread(str(demo / part.picture), cv2.IMREAD_UNCHANGED)) == part.id
        points = read_points(demo / part.picture)
        assert points.shape == (HEIGHT, WIDTH, 3)
        assert choose_unit([measure_extent(points)]) == "mm"
        assert np.nanmedian(points[..., 2]) == pytest.approx(395, abs=10)
        on_belt = part.on_belt(demo)
        assert (on_belt.picture, on_belt.scan) == ("", str(demo / part.picture))
    assert read_scan_mark(np.zeros((HEIGHT, WIDTH), np.uint16)) is None


def test_the_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    make_demo_scans(tmp_path, train=2, line_good=4, line_defective=4, seed=7)
    for file in demo.rglob("*.png"):
        assert (tmp_path / file.relative_to(demo)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_lies_on_the_bun_and_is_as_large_as_stated(kind: str) -> None:
    """The draws before the defect are the same for a good part and a bad one."""
    good, none = scan_bun(np.random.default_rng(5))
    bad, size = scan_bun(np.random.default_rng(5), kind)
    assert (none, size > 0) == (0, True)
    heights = [cv2.medianBlur(each, 5).astype(np.float32) / 100 for each in (good, bad)]
    changed = np.abs(heights[1] - heights[0]) > 0.15 * size * PLACE * (0.5 if kind == "cut" else 1)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(changed.astype(np.uint8))
    changed = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())  # elsewhere returns are missing
    v, u = np.nonzero(changed)
    assert len(v) > 20
    assert max(np.ptp(v), np.ptp(u)) <= 1.1 * size
    assert (heights[0][changed] < 395).mean() > 0.9, "on the bun, not on the belt"
