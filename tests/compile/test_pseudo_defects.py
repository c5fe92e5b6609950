"""Pictures to learn from: plainly changed where the mask says so, and nowhere far from it."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from compile import pseudo_defects
from compile.pseudo_defects import STRIDE, paint_pictures, wanted
from compile.synthesis import SMALLEST_CHANGE

SIDE = 96


@pytest.fixture
def good(photographs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([cv2.resize(each, (SIDE, SIDE)) for each in photographs[:4]])


def painted(good: NDArray[np.uint8], count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    into = np.zeros((count, *good.shape[1:]), np.uint8)
    return into, paint_pictures(good, into, seed)[0]


def test_a_picture_tells_all_good_ones_that_it_shows(good: NDArray[np.uint8]) -> None:
    into = np.zeros((12, *good.shape[1:]), np.uint8)
    _, sources = paint_pictures(good, into, 0)
    assert sources[:, 0].tolist() == [0, 1, 2, 3] * 3
    assert (sources[:, 1] >= 0).all()
    assert 0 < (sources[:, 2] >= 0).sum() < 12
    for lost in range(4):  # what a picture does not name it does not show
        others = good.copy()
        others[lost] = 0
        again = np.zeros_like(into)
        paint_pictures(others, again, 0)
        same = ~(sources == lost).any(1)
        assert same.any()
        assert np.array_equal(again[same], into[same])


def test_where_more_are_good_than_are_painted_the_last_have_their_share(good: NDArray[np.uint8]) -> None:
    many = np.concatenate([good] * 3)
    _, sources = paint_pictures(many, np.zeros((6, *good.shape[1:]), np.uint8), 0)
    assert sources[:, 0].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("regions", [0.0, 1.0])
def test_the_change_lies_where_the_mask_says(good: NDArray[np.uint8], regions: float, monkeypatch) -> None:
    monkeypatch.setattr(pseudo_defects, "REGIONS", regions)
    pictures, covered = painted(good, 40)
    assert covered.shape == (40, SIDE // STRIDE, SIDE // STRIDE)
    assert covered.min() >= 0
    assert covered.max() <= 1
    for i, (picture, cells) in enumerate(zip(pictures, covered, strict=True)):
        change = np.abs(picture.astype(float) - good[i % len(good)]).mean(2)
        raised = cv2.resize(cells, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        raised = np.roll(raised, -STRIDE // 2, (0, 1))  # cells are centred on the upper left edge of their span
        if (raised > 0.5).any():  # a speck may fill no cell by half
            assert change[raised > 0.5].mean() > 0.5 * SMALLEST_CHANGE
        far = cv2.dilate((raised > 0).astype(np.uint8), np.ones((33, 33), np.uint8)) == 0
        assert change[far].mean() < 1 if far.any() else True


def test_sizes_reach_from_specks_to_a_third_of_the_picture(good: NDArray[np.uint8]) -> None:
    shares = painted(good, 200)[1].mean((1, 2))
    assert shares.min() < 0.005
    assert 0.25 < shares.max() < 0.6


def test_cells_lie_where_the_trunks_maps_have_theirs() -> None:
    mask = np.zeros((32, 32), bool)
    mask[14:18, 6:10] = True  # centred on 16 and 8: cells 4 and 2 of stride 4
    expected = np.zeros((8, 8))
    expected[4, 2] = 1
    assert np.array_equal(pseudo_defects.cells(mask), expected)


def test_a_seed_gives_the_same_pictures(good: NDArray[np.uint8]) -> None:
    (first, where), (again, there), (other, _) = painted(good, 6), painted(good, 6), painted(good, 6, seed=1)
    assert np.array_equal(first, again)
    assert np.array_equal(where, there)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("good_pictures", "count"), [(1, 400), (300, 600), (5000, 1500)])
def test_many_good_pictures_do_not_mean_endless_painting(good_pictures: int, count: int) -> None:
    assert wanted(good_pictures) == count


def test_a_small_part_on_a_wide_table_is_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_defects, "REGIONS", 0.0)
    table = np.full((1, 160, 160, 3), 190, np.uint8)
    table[0, 70:90, 40:120] = np.random.default_rng(0).integers(40, 160, (20, 80, 3))
    shares = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(pseudo_defects, "ON_STRUCTURE", share)
        _, covered = painted(table, 60)
        shares.append((covered[:, 17:23, 10:30].max((1, 2)) > 0.5).mean())
    assert shares[0] < 0.5
    assert shares[1] > 0.9


def test_a_picture_without_structure_is_painted_anywhere() -> None:
    assert (painted(np.full((1, 64, 64, 3), 100, np.uint8), 8)[1].max((1, 2)) > 0).all()
