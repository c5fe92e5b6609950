from __future__ import annotations

import os
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from calibration.split import SIDE, hold_out, kfold, near_duplicates, thumbnail
from calibration.threshold import CalibrationError

groupings = st.lists(st.integers(0, 12), min_size=4, max_size=80).filter(lambda g: len(set(g)) >= 4)


@given(groupings, st.integers(2, 4), st.integers(0, 2**31))
def test_folds_cover_everything_once_and_never_split_a_part(groups: list[int], k: int, seed: int) -> None:
    folds = kfold(groups, k, seed)
    held = np.concatenate([test for _, test in folds])
    assert sorted(held.tolist()) == list(range(len(groups)))
    for train, test in folds:
        assert len(test)
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert len(train) + len(test) == len(groups)
    again = kfold(groups, k, seed)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))


def test_folds_of_single_pictures_are_balanced() -> None:
    assert sorted(len(test) for _, test in kfold(list(range(103)), 5, 0)) == [20, 20, 21, 21, 21]


@given(groupings, st.floats(0.1, 0.6), st.integers(0, 2**31))
def test_hold_out_keeps_parts_whole(groups: list[int], fraction: float, seed: int) -> None:
    train, held = hold_out(groups, fraction, seed)
    assert len(train)
    assert len(held)
    assert not {groups[i] for i in train} & {groups[i] for i in held}
    assert len({groups[i] for i in held}) == max(1, round(fraction * len(set(groups))))


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(CalibrationError, match="5 folds of 3 parts"):
        kfold([0, 1, 2, 2], 5, 0)
    with pytest.raises(CalibrationError, match="hold out"):
        hold_out([0, 0, 0], 0.5, 0)


def parts(count: int, views: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut parts from a photographed surface, each seen several times: displaced, darker or brighter, noisy."""
    surface = cv2.resize(data.gravel(), (1536, 1536), interpolation=cv2.INTER_CUBIC)
    pictures = []
    for part in range(count):
        y, x = 8 + 240 * (part // 6), 8 + 240 * (part % 6)
        for _ in range(views):
            dy, dx = rng.integers(-6, 7, 2)
            cut = surface[y + dy : y + dy + 192, x + dx : x + dx + 192].astype(np.float32)
            cut = cut * rng.uniform(0.4, 1.1) * np.linspace(1, rng.uniform(0.7, 1.3), 192)
            pictures.append(np.clip(cut + rng.normal(0, 3, cut.shape), 0, 255).astype(np.uint8))
    return pictures


def test_several_exposures_of_a_part_are_one_group_and_parts_stay_apart() -> None:
    rng = np.random.default_rng(0)
    found = near_duplicates(np.stack([thumbnail(p) for p in parts(30, 4, rng)]))
    assert np.array_equal(found.groups, np.repeat(np.arange(30), 4))


def test_parts_with_a_common_print_are_not_merged() -> None:
    rng = np.random.default_rng(1)
    logo = cv2.resize(data.coins(), (192, 192)).astype(np.float32)
    pictures = [np.clip(0.5 * p + 0.5 * logo, 0, 255).astype(np.uint8) for p in parts(30, 1, rng)]
    found = near_duplicates(np.stack([thumbnail(p) for p in pictures]))
    assert found.groups.max() == 29


def test_a_repeated_picture_of_a_periodic_surface_is_found() -> None:
    surface = data.brick()
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 512 - 192, (60, 2))
    crops = [surface[y : y + 192, x : x + 192] for y, x in corners]
    found = near_duplicates(np.stack([thumbnail(crop) for crop in [*crops, crops[7]]]))
    assert found.groups[60] == found.groups[7]


def test_near_duplicates_across_a_split_are_reported() -> None:
    found = near_duplicates(np.stack([thumbnail(p) for p in parts(20, 2, np.random.default_rng(2))]))
    leaks = found.across(np.array([0, 2, 3]))
    assert [(a, b) for a, b, _ in leaks] == [(0, 1)]
    assert found.across(np.array([0, 1])) == []


def test_exposure_bit_depth_and_colour_do_not_matter() -> None:
    grey = data.brick()
    reference = thumbnail(grey)
    for other in (
        cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB),
        grey.astype(np.uint16) * 257,
        (grey * 0.5).astype(np.uint8),
    ):
        assert np.corrcoef(reference.ravel(), thumbnail(other).ravel())[0, 1] > 0.95


def test_few_or_featureless_pictures_do_not_fail() -> None:
    assert near_duplicates(np.zeros((1, SIDE, SIDE), np.float32)).groups.tolist() == [0]
    assert near_duplicates(np.zeros((5, SIDE, SIDE), np.float32)).groups.tolist() == [0, 1, 2, 3, 4]


def test_a_thousand_pictures_take_seconds() -> None:
    thumbnails = np.random.default_rng(0).normal(size=(1000, SIDE, SIDE)).astype(np.float32)
    started = time.process_time()
    assert near_duplicates(thumbnails).groups.max() == 999
    assert time.process_time() - started < 60  # about 5 on one core


@pytest.mark.slow
def test_exposures_of_magnetic_tiles_are_grouped_and_tiles_are_not() -> None:
    root = Path(os.environ.get("BELTLINE_DATA", "")) / "magnetic_tile" / "train" / "good"
    if not root.is_dir():
        pytest.skip("BELTLINE_DATA names no folder with magnetic_tile")
    files = sorted(root.iterdir())
    found = near_duplicates(np.stack([thumbnail(cv2.imread(str(f), cv2.IMREAD_UNCHANGED)) for f in files]))
    exposure = [re.findall(r"exp(\d)", f.name)[0] for f in files]
    sizes = np.bincount(found.groups)
    assert np.sum(sizes == 6) >= 0.7 * len(sizes)  # six exposures of a tile were taken
    assert sizes.max() <= 18  # some tiles were photographed twice or thrice
    repeated = sum(sizes[g] - len({exposure[i] for i in np.flatnonzero(found.groups == g)}) for g in range(len(sizes)))
    assert repeated <= 0.08 * len(files)
