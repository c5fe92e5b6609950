"""The rendered screws: each defect is where its mask says, and they read as a labelled set."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.screws import DEFECTS, SIDE, make_screws, photograph


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_lies_on_the_screw(kind: str) -> None:
    image, mask = photograph(kind, np.random.default_rng(5))
    assert image.shape == mask.shape == (SIDE, SIDE)
    assert 40 < mask.sum() < 6000
    around = cv2.dilate(mask.astype(np.uint8), np.ones((121, 121), np.uint8)) > 0
    assert (np.abs(image[around] - np.median(image).astype(float)) > 40).mean() > 0.05  # metal is near
    assert image[mask].std() > 4  # and no flat patch was cut out


def test_a_seed_fixes_the_picture() -> None:
    good, _ = photograph("", np.random.default_rng(9))
    generator = np.random.default_rng(9)
    odd, mask = photograph("", generator)
    assert np.array_equal(odd, good)
    assert not mask.any()
    assert not np.array_equal(photograph("", generator)[0], good)


def test_a_folder_is_laid_out_as_a_labelled_set(tmp_path: Path) -> None:
    make_screws(tmp_path, train=2, good=1, defective=5, seed=3)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    odd = {f"test/{kind}/000.png" for kind in DEFECTS} | {f"ground_truth/{kind}/000_mask.png" for kind in DEFECTS}
    assert found == {"train/good/000.png", "train/good/001.png", "test/good/000.png"} | odd
