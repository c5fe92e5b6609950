"""Labelled defects that are drawn to learn from: gone from the test with their parts, and given to the head."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from compile.data import DataError, DataSet, LabelledImage, read_data
from compile.learned_defects import SHARE, draw_defects, load_defects, shows_same_part, weigh
from compile.methods.method import Method, Samples
from compile.methods.registry import METHODS
from edge.bundle import Input, Source, read_bundle
from edge.cli import OK, main

SOURCE = Source(height=(64, 64), width=(64, 64), channels=3, white=255)


@pytest.fixture
def labelled(tmp_path: Path, write) -> Path:
    """Two kinds of defect; each part with a hole was photographed again, moved and darker, and once before the hole."""
    moon = data.moon()
    parts = [moon[y : y + 84, x : x + 84] for y in range(0, 500, 85) for x in range(0, 500, 85)]
    folder = tmp_path / "moon"
    for i, part in enumerate(parts[:20]):
        write(folder / "train" / "good" / f"{i:02}.png", part)
    for kind, few, rows in (("cut", parts[20:24], slice(40, 44)), ("hole", parts[24:30], slice(38, 44))):
        mask = np.zeros((84, 84), np.uint8)
        mask[rows, 36:44] = 255
        for i, part in enumerate(few):
            odd = np.where(mask > 0, np.uint8(5), part)
            write(folder / "test" / kind / f"{i}.png", odd)
            write(folder / "ground_truth" / kind / f"{i}_mask.png", mask)
            if kind == "hole":
                again = (np.roll(odd, 2, axis=1) * 0.9).astype(np.uint8)
                write(folder / "test" / kind / f"{i} again.png", again)
                write(folder / "test" / "good" / f"{i}.png", part)
    for i, part in enumerate(parts[30:]):
        write(folder / "test" / "good" / f"other {i}.png", part)
    return folder


def names(images: list[LabelledImage]) -> list[str]:
    return [f"{each.kind}/{each.path.name}" for each in images]


def test_what_is_drawn_leaves_the_test_with_every_picture_of_its_part(labelled: Path) -> None:
    found = read_data(labelled)
    drawn = draw_defects(found, 4, seed=0)
    learned = names(drawn.learned)
    assert sorted(name.split("/")[0] for name in learned) == ["cut", "cut", "hole", "hole"]
    holes = [name for name in learned if name.startswith("hole")]
    same = {other for name in holes for other in (name.replace("hole", "good"), name.replace(".", " again."))}
    assert set(names(drawn.test)) == set(names(found.test)) - {*learned, *same}
    assert len(drawn.test) == len(found.test) - 8
    assert "4 labelled defect(s)" in drawn.remarks[-1]
    assert "4 other picture(s) of the same parts" in drawn.remarks[-1]
    assert all(name in drawn.remarks[-1] for name in learned)
    assert len(found.test) == 28  # as it was


def test_the_seed_fixes_the_draw_and_a_smaller_one_is_its_beginning(labelled: Path) -> None:
    found = read_data(labelled)
    first = names(draw_defects(found, 6, seed=3).learned)
    assert first == names(draw_defects(read_data(labelled), 6, seed=3).learned)
    assert first[:2] == names(draw_defects(found, 2, seed=3).learned)
    assert len({tuple(names(draw_defects(found, 6, seed=seed).learned)) for seed in range(4)}) > 1
    assert len(set(names(draw_defects(found, 10, seed=3).learned))) == 10


def test_names_and_folders_tell_parts_that_looks_do_not() -> None:
    paths = [
        Path(each) for each in ("test/hole/p1_a.png", "test/hole/p1_b.png", "test/good/p2.png", "train/good/x.png")
    ]
    found = DataSet(Path(), "mvtec", [], np.arange(0), [], SOURCE, 64)
    image = LabelledImage(paths[0], "hole", None)
    assert shows_same_part(found, image, paths).tolist() == [True, False, False, False]
    assert shows_same_part(found, image, paths, r"p(\d)").tolist() == [True, True, False, False]
    assert shows_same_part(found, image, paths, "folder").tolist() == [True, False, False, False]
    inside = [Path("test/hole/p1/a.png"), Path("test/hole/p1/b.png"), Path("test/hole/p2/a.png")]
    assert shows_same_part(found, replace(image, path=inside[0]), inside, "folder").tolist() == [True, True, False]
    others = [
        Path("test/good/p1/x.png"),
        Path("train/good/p1/y.png"),
        Path("test/cut/p2/a.png"),
        Path("test/hole/a.png"),
    ]
    assert shows_same_part(found, replace(image, path=inside[0]), others, "folder").tolist() == [
        True,
        True,
        False,
        False,
    ]
    other_class = replace(found, folder=Path("cap"))
    lid = [Path("cap/test/hole/p1/a.png"), Path("lid/train/good/p1/a.png")]
    for group_by in ("folder", r"(a)\.png"):
        assert shows_same_part(other_class, replace(image, path=lid[0]), lid, group_by).tolist() == [True, False]


def test_a_draw_that_leaves_nothing_to_measure_on_says_so(labelled: Path) -> None:
    found = read_data(labelled)
    assert "is left" not in draw_defects(found, 4, seed=0).remarks[-1]
    holes = replace(found, test=[image for image in found.test if image.kind != "cut"])
    for count in range(1, 12):
        drawn = draw_defects(holes, count, seed=0)
        if not any(image.defective for image in drawn.test):
            break
    assert drawn.remarks[-2:] == [
        "No test picture of hole is left: what is learned is not measured on that.",
        "Of the test pictures good ones alone are left: nothing can be measured on them. Draw fewer.",
    ]


def test_more_than_there_are_with_a_mask_that_can_be_used_is_refused(labelled: Path, write) -> None:
    masks = labelled / "ground_truth" / "hole"
    (masks / "0_mask.png").unlink()
    write(masks / "1_mask.png", np.zeros((84, 84), np.uint8))
    found = read_data(labelled)
    assert len(draw_defects(found, 8, seed=0).learned) == 8
    with pytest.raises(DataError, match=r"--learn-defects 9: 8 of the test pictures have .* Ask for 8 at most"):
        draw_defects(found, 9, seed=0)
    bare = replace(found, test=[replace(image, mask=None) for image in found.test])
    with pytest.raises(DataError, match=r"0 of the test pictures have .* Put some into test/<kind>, masks into"):
        draw_defects(bare, 1, seed=0)


def test_masks_become_cells_where_the_defect_lies(tmp_path: Path, write) -> None:
    picture = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3))
    scratch, blob = np.zeros((2, 64, 64), np.uint8)
    scratch[20, 8:40] = 255  # a row of pixels: no cell of 4 by 4 is covered by half
    blob[30:46, 14:30] = 1
    images = [
        LabelledImage(write(tmp_path / f"{i}.png", picture), "odd", write(tmp_path / f"{i}_mask.png", mask))
        for i, mask in enumerate((scratch, blob))
    ]
    pictures, covered = load_defects(images, Input(height=64, width=64, source=SOURCE), tmp_path / "p.bin")
    assert np.array_equal(pictures[0], picture)
    assert covered.shape == (2, 16, 16)
    expected = np.zeros((16, 16), bool)
    expected[8:12, 4:8] = True  # cells are centred on the upper left edge of their span
    assert np.array_equal(covered[1] == 1, expected)
    assert np.argwhere(covered[0] == 1)[:, 0].tolist() == [5] * 7
    other = Input(height=64, width=64, source=SOURCE.model_copy(update={"height": (32, 32)}))
    with pytest.raises(DataError, match=r"0\.png: was drawn to learn from, and cannot be: .*64"):
        load_defects(images, other, tmp_path / "p.bin")


@pytest.mark.parametrize(("painted", "learned"), [(400, 10), (400, 7), (400, 1), (1500, 3), (5, 90)])
def test_real_defects_weigh_as_much_however_many_are_painted(painted: int, learned: int) -> None:
    rows = weigh(np.arange(painted), painted + np.arange(learned))
    assert np.array_equal(np.unique(rows), np.arange(painted + learned))
    share = np.mean(rows >= painted)
    assert share >= SHARE
    assert share <= max(SHARE + 0.02, learned / (painted + learned)) + (learned / painted)
    times = np.bincount(rows)
    assert set(times[:painted]) == {1}
    assert len(set(times[painted:])) == 1
    assert np.array_equal(weigh(np.arange(painted), np.arange(0)), np.arange(painted))


class Oddness(nn.Module):
    """How far each cell's features lie from their mean over the good pictures."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, features: list[Tensor]) -> tuple[Tensor]:
        return ((features[0] - self.mean).abs().mean(1),)


@pytest.mark.slow
def test_a_bundle_learns_from_drawn_defects_and_is_not_judged_on_them(
    labelled: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    given = []

    def fit(samples: Samples, *_: object) -> nn.Module:
        given.append(samples)
        good = samples.good[0][np.arange(samples.good[0].shape[0])]
        return Oddness(torch.from_numpy(good.mean(0, keepdims=True)))

    monkeypatch.setitem(METHODS, "learning", Method("learning", fit, levels=(16,), painted=True))
    monkeypatch.setattr("compile.proof.PAINTED", 8)
    monkeypatch.setattr("compile.model.wanted", lambda good: good)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # one process: the fit is this one
    wishes = ["--method", "learning", "--size", "128", "--learn-defects", "4", "--json"]
    assert main(["compile", str(labelled), "-o", str(tmp_path / "moon.bundle"), *wishes]) == OK
    told = json.loads(capsys.readouterr().out)
    assert told["parity"]["test"][0]["defective"] == 16 - 6
    assert told["parity"]["test"][0]["good"] == 12 - 2
    assert any("4 labelled defect(s) were drawn" in remark for remark in told["remarks"])
    assert len(given) == 6
    for samples in given:
        renderings = 3
        good, odd = samples.good[0].shape[0] // renderings, len(samples.covered)
        painted_alone = range(1, good + 1)  # fewer than good ones: some show a part that the fold holds out
        assert odd in {painted + 4 * math.ceil(painted / 2 / 4) for painted in painted_alone}
        assert samples.painted[0].shape[0] == renderings * odd
    assert len(read_bundle(tmp_path / "moon.bundle").manifest.provenance["learned_defects"]) == 4
