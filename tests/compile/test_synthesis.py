from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from compile.synthesis import KINDS, SMALLEST_CHANGE, SynthesisError, fractal_noise, paint, paint_many


def good(name: str = "gravel") -> np.ndarray:
    return cv2.cvtColor(cv2.resize(getattr(data, name)(), (192, 160)), cv2.COLOR_GRAY2RGB)


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(6, 80),
    surface=st.sampled_from(["brick", "gravel", "flat", "black", "white"]),
)
@settings(deadline=None, max_examples=25)
def test_a_defect_is_visible_where_its_mask_is_and_nowhere_else(kind: str, seed: int, size: int, surface: str) -> None:
    tones = {"flat": 128, "black": 0, "white": 255}
    image = np.full((160, 192, 3), tones[surface], np.uint8) if surface in tones else good(surface)
    untouched = image.copy()
    defect = paint(image, kind, size, np.random.default_rng(seed))
    assert np.array_equal(image, untouched)
    assert defect.image.dtype == np.uint8
    assert defect.image.shape == image.shape
    assert defect.mask.dtype == np.bool_
    assert defect.mask.any()
    rows, columns = np.nonzero(defect.mask)
    assert np.ptp(rows) < size
    assert np.ptp(columns) < size
    change = np.abs(defect.image.astype(int) - image).max(axis=2)
    assert change[defect.mask].mean() >= 0.5 * SMALLEST_CHANGE
    outside = cv2.dilate(defect.mask.astype(np.uint8), np.ones((2 * size + 1, 2 * size + 1), np.uint8)) == 0
    assert change[outside].max(initial=0) == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_masks_fill_the_stated_size(kind: str) -> None:
    extents = []
    for seed in range(20):
        mask = paint(good(), kind, 48, np.random.default_rng(seed)).mask
        _, radius = cv2.minEnclosingCircle(np.argwhere(mask).astype(np.float32))
        extents.append(2 * radius)
    assert max(extents) <= 51
    assert np.median(extents) >= 0.6 * 48


def test_a_seed_gives_the_same_defects() -> None:
    a, b = (paint_many([good(), good("brick")], 12, seed=3) for _ in range(2))
    assert all(np.array_equal(x.image, y.image) and np.array_equal(x.mask, y.mask) for x, y in zip(a, b, strict=True))
    c = paint_many([good(), good("brick")], 12, seed=4)
    assert not all(np.array_equal(x.image, y.image) for x, y in zip(a, c, strict=True))
    assert {d.kind for d in a} == set(KINDS)
    assert all(10 <= d.size_px <= 32 for d in a)


def test_many_keep_to_the_sizes_asked_for() -> None:
    assert all(20 <= d.size_px <= 25 for d in paint_many([good()], 12, 0, smallest_px=20, largest_px=25))


def test_the_centre_stays_in_the_region() -> None:
    region = np.zeros((160, 192), bool)
    region[40:60, 100:130] = True
    for seed in range(20):
        rows, columns = np.nonzero(paint(good(), "chip", 20, np.random.default_rng(seed), region=region).mask)
        assert 40 - 11 <= rows.mean() <= 60 + 11
        assert 100 - 11 <= columns.mean() <= 130 + 11


def test_impossible_wishes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SynthesisError, match="no defect of kind 'hole'"):
        paint(good(), "hole", 20, rng)
    for size in (5, 81):
        with pytest.raises(SynthesisError, match=r"possible are 6\.\.80"):
            paint(good(), "chip", size, rng)
    with pytest.raises(SynthesisError, match="expected uint8 HxWx3"):
        paint(good()[..., 0], "chip", 20, rng)
    with pytest.raises(SynthesisError, match="no place"):
        paint(good(), "chip", 20, rng, region=np.zeros((160, 192), bool))
    with pytest.raises(SynthesisError, match="no good pictures"):
        paint_many([], 3, 0)


def test_noise_is_standardised_and_smooth() -> None:
    noise = fractal_noise(64, 4, np.random.default_rng(0))
    assert noise.mean() == pytest.approx(0, abs=1e-5)
    assert noise.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.5
