from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.split import near_duplicates, thumbnail
from compile.demo_parts import (
    KINDS,
    LARGEST_DEFECT,
    SIDE,
    SMALLEST_DEFECT,
    DemoError,
    make_demo,
    read_mark,
    read_parts,
    write_mark,
)


def read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder, train=40, line_good=30, line_defective=10, seed=7)
    return folder


def test_parts_are_what_the_list_says(demo: Path) -> None:
    parts = read_parts(demo)
    assert [p.id for p in parts] == list(range(1, 41))
    assert sum(p.defective for p in parts) == 10
    assert {p.kind for p in parts if p.defective} == set(KINDS)
    assert all(SMALLEST_DEFECT <= p.size_px <= LARGEST_DEFECT for p in parts if p.defective)
    assert all((p.kind, p.size_px) == ("", 0) for p in parts if not p.defective)
    assert sorted(f.name for f in (demo / "train").iterdir()) == [f"{i:04d}.png" for i in range(1, 41)]
    assert [f"line/{f.name}" for f in sorted((demo / "line").iterdir())] == [p.picture for p in parts]


def test_each_picture_proves_its_part(demo: Path) -> None:
    for part in read_parts(demo):
        picture = read(demo / part.picture)
        assert picture.shape == (SIDE, SIDE, 3)
        assert read_mark(picture) == part.id
        assert read_mark(picture[::-1]) is None
        assert read_mark(picture[..., ::-1]) is None  # swapped channels carry no mark
        assert read_mark(cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)) is None


def test_every_part_is_a_new_one(demo: Path) -> None:
    files = sorted((demo / "train").iterdir()) + sorted((demo / "line").iterdir())
    found = near_duplicates(np.stack([thumbnail(read(f)) for f in files]))
    assert found.pairs == []


def test_the_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path, train=40, line_good=30, line_defective=10, seed=7)
    for name in ("parts.jsonl", "train/0003.png", "line/0001.bmp", "line/0040.bmp"):
        assert (tmp_path / name).read_bytes() == (demo / name).read_bytes()
    make_demo(tmp_path, train=2, line_good=1, line_defective=1, seed=8)
    assert (tmp_path / "line/0001.bmp").read_bytes() != (demo / "line/0001.bmp").read_bytes()


def test_training_and_line_are_drawn_alike(demo: Path) -> None:
    """Exchangeable parts: brightness and contrast of both have the same spread."""
    parts = [p for p in read_parts(demo) if not p.defective]
    for measure in (np.mean, np.std):
        train = np.array([measure(read(f)) for f in (demo / "train").iterdir()])
        line = np.array([measure(read(demo / p.picture)) for p in parts])
        error = np.hypot(train.std() / np.sqrt(len(train)), line.std() / np.sqrt(len(line)))
        assert abs(train.mean() - line.mean()) < 4 * error


def test_parts_are_coloured(demo: Path) -> None:
    red, green, blue = read(demo / "train" / "0001.png").mean(axis=(0, 1))
    assert red > 1.15 * green > 1.15 * blue


def test_more_parts_than_the_photograph_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="room for about"):
        make_demo(tmp_path, train=5000, line_good=1, line_defective=0)


@given(st.integers(0, 2**32 - 1), hnp.arrays(np.uint8, (3, 90, 3)))
def test_marks_survive_and_change_next_to_nothing(number: int, image: np.ndarray) -> None:
    marked = write_mark(image, number)
    assert read_mark(marked) == number
    assert np.abs(marked.astype(int) - image).max() <= 1
    assert np.array_equal(marked[1:], image[1:])


@given(hnp.arrays(np.uint8, (2, 90, 3)), st.integers(0, 79))
def test_a_damaged_mark_is_no_mark(image: np.ndarray, bit: int) -> None:
    marked = write_mark(image, 12345)
    marked[0, bit, 0] ^= 1
    assert read_mark(marked) is None


def test_a_narrow_picture_takes_no_mark() -> None:
    with pytest.raises(DemoError, match="79 px wide"):
        write_mark(np.zeros((4, 79, 3), np.uint8), 1)
    assert read_mark(np.zeros((4, 79, 3), np.uint8)) is None
