"""Folders of scans: every layout gives the same set, and what cannot be used is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from compile.data import DataError, DataSet, read_data
from compile.job import Settings
from compile.work import work_key
from edge.cli import main

SIDE, GOOD = 48, 22
Points = NDArray[np.float32]
Write = Callable[[Path, NDArray[np.uint8]], Path]


def scan(seed: int, size: int = SIDE) -> Points:
    """A rough surface, 500 mm away and as wide as `size`."""
    rng = np.random.default_rng(seed)
    z = 500 + cv2.GaussianBlur(rng.normal(0, 20, (size, size)), (0, 0), 2)
    z[5:7, 5:9] = np.nan
    y, x = np.mgrid[:size, :size] - size / 2
    return np.stack([x, y, z], axis=2).astype(np.float32)


def picture(seed: int, size: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def write_tiff(path: Path, points: Points) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.nan_to_num(points[..., ::-1]))
    return path


@pytest.fixture
def mvtec3d(tmp_path: Path, write: Write) -> Path:
    """MVTec 3D-AD style, in metres as that set is."""
    root = tmp_path / "bagel"
    for part, count, first in (("train/good", GOOD, 0), ("test/good", 3, 100), ("test/crack", 2, 200)):
        for i in range(count):
            write_tiff(root / part / "xyz" / f"{i:03}.tiff", scan(first + i) / 1000)
            write(root / part / "rgb" / f"{i:03}.png", picture(first + i))
            if part != "train/good":
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[20:30, 20:30] = 255 * (part == "test/crack")
                write(root / part / "gt" / f"{i:03}.png", mask)
    return root


def reasons(found: DataSet) -> dict[str, str]:
    return {item.path.name: item.reason for item in found.skipped}


def test_the_layout_of_mvtec_3d_ad_is_read(mvtec3d: Path) -> None:
    found = read_data(mvtec3d)
    assert (found.layout, len(found.good), found.parts, found.skipped) == ("mvtec", GOOD, GOOD, [])
    assert [(each.kind, each.mask is not None) for each in found.test] == [("crack", True)] * 2 + [("good", False)] * 3
    assert found.test[0].mask == mvtec3d / "test" / "crack" / "gt" / "000.png"
    assert found.source is not None
    assert (found.source.channels, found.source.height, found.longer_side) == (3, (SIDE, SIDE), SIDE)
    assert found.scans is not None
    for image in [*found.good, *(each.path for each in found.test)]:
        assert image.parent.name == "rgb"
        assert found.scans.of[image] == image.parent.parent / "xyz" / f"{image.stem}.tiff"
    source = found.scans.source(found.good)
    assert (source.unit, source.height, source.width) == ("m", (SIDE, SIDE), (SIDE, SIDE))
    assert 480 < source.distance_mm[0] < 500 < source.distance_mm[1] < 520
    assert found.remarks == ["The unit of the scans is m, decided on; the middle one spans 0.047 m."]


def test_scans_alone_are_a_set_without_pictures(mvtec3d: Path) -> None:
    for folder in mvtec3d.glob("*/*/rgb"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    write_tiff(mvtec3d / "train" / "good" / "xyz" / "again.tiff", scan(3) / 1000)
    found = read_data(mvtec3d)
    assert (len(found.good), found.parts) == (GOOD + 1, GOOD), "one part was scanned twice"
    assert found.good[0] == mvtec3d / "train" / "good" / "xyz" / "000.tiff"
    assert found.source is None
    with pytest.raises(DataError, match="bagel: holds scans without pictures, and this method looks at pictures"):
        _ = found.pictures


@pytest.mark.parametrize("command", [["compile", "-o", "x.bundle", "--method", "varad"], ["bench", "-o", "out"]])
def test_methods_of_pictures_refuse_scans_alone(
    command: list[str], mvtec3d: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mvtec3d.parent)
    for folder in mvtec3d.glob("*/*/rgb"):
        folder.rename(folder.parent / "grey")
    code = main([command[0], str(mvtec3d), *command[1:]])
    assert code == 1
    assert "holds scans without pictures" in " ".join(capsys.readouterr().err.split())


def test_a_flat_folder_with_pictures_beside_is_read(tmp_path: Path, write: Write) -> None:
    for i in range(GOOD):
        np.save(tmp_path / f"{i}.npy", scan(i))
        write(tmp_path / f"{i}.png", picture(i))
    np.save(tmp_path / "alone.npy", scan(77))
    write(tmp_path / "other.png", picture(78))
    found = read_data(tmp_path)
    assert (found.layout, len(found.good)) == ("flat", GOOD)
    assert reasons(found) == {
        "alone.npy": "a scan without its picture, which others have",
        "other.png": "a picture without its scan",
    }


def test_scans_in_place_of_pictures_are_read_with_masks(tmp_path: Path, write: Write) -> None:
    for part, count in (("train/good", GOOD), ("test/dent", 2)):
        for i in range(count):
            write_tiff(tmp_path / part / f"{i}.tiff", scan(i + 50 * len(part)))
    mask = write(tmp_path / "ground_truth" / "dent" / "1_mask.png", np.full((SIDE, SIDE), 255, np.uint8))
    found = read_data(tmp_path)
    assert len(found.good) == GOOD
    assert [each.mask for each in found.test] == [None, mask]
    assert found.scans is not None
    assert (found.scans.pictured, found.scans.unit) == (False, "mm")


def test_eyecandies_is_read_as_it_comes(tmp_path: Path, write: Write) -> None:
    about = {"width": SIDE, "height": SIDE, "fx": 711.11, "fy": 711.11, "cx": SIDE / 2, "cy": SIDE / 2}
    (tmp_path / "intrinsics.json").write_text(json.dumps(about))
    for i in range(GOOD):
        z = np.nan_to_num(scan(i)[..., 2], nan=500) / 1000
        counts = ((z - z.min()) / (z.max() - z.min()) * 65535).astype(np.uint16)
        assert cv2.imwrite(str(tmp_path / f"{i:03}_depth.png"), counts)
        (tmp_path / f"{i:03}_info_depth.yaml").write_text(f"normalization:\n  max: {z.max()}\n  min: {z.min()}\n")
        write(tmp_path / f"{i:03}_image_4.png", picture(i))
    found = read_data(tmp_path)
    assert [path.name for path in found.good] == [f"{i:03}_image_4.png" for i in range(GOOD)]
    assert found.skipped == []
    assert found.scans is not None
    assert found.scans.unit == "m"
    assert found.scans.source(found.good).distance_mm == pytest.approx((500, 500), abs=3)


def test_what_cannot_be_used_is_named_with_its_reason(mvtec3d: Path, write: Write) -> None:
    good, bad = mvtec3d / "train" / "good", mvtec3d / "test" / "crack"
    for name, points in (("wide", scan(60, 64) / 1000), ("far", scan(61)), ("empty", np.full_like(scan(0), np.nan))):
        write_tiff(good / "xyz" / f"{name}.tiff", points)
        write(good / "rgb" / f"{name}.png", picture(60 + len(name)))
    (bad / "xyz" / "001.tiff").write_bytes((bad / "xyz" / "001.tiff").read_bytes()[:2000])
    found = read_data(mvtec3d)
    assert len(found.good) == GOOD
    assert len(found.test) == 4
    why = reasons(found)
    assert why["wide.png"] == (
        "a picture of 48x48 pixels, its scan has 64x64 points: give pictures that are aligned with the scan, place by "
        "place"
    )
    assert why["far.png"].startswith("scan: the scan spans 4.7e+04 mm if its unit is m")
    assert why["empty.png"] == "scan: an empty scan: no point has a return, of 2304"
    assert "TIFF" in why["001.png"]


def test_a_wrong_unit_is_said(mvtec3d: Path) -> None:
    with pytest.raises(DataError, match=r"0 usable good image.*22 x scan: the scan spans 0\.0\d+ mm.* probably m"):
        read_data(mvtec3d, unit="mm")
    assert "is m, as --unit says; the" in read_data(mvtec3d, unit="m").remarks[0]


def test_pictures_that_are_tiffs_are_no_scans(tmp_path: Path, write: Write) -> None:
    for i in range(GOOD):
        write(tmp_path / f"{i}.tiff", picture(i))
    found = read_data(tmp_path)
    assert (found.scans, len(found.good)) == (None, GOOD)


def test_the_key_of_the_work_follows_the_scans(mvtec3d: Path) -> None:
    from compile.backbones.choice import DEFAULT

    found = read_data(mvtec3d)
    wanted = Settings(mvtec3d, mvtec3d / "x.bundle")
    before = work_key(wanted, [found], DEFAULT, 256, "this")
    assert found.scans is not None
    file = found.scans.of[found.good[0]]
    file.write_bytes(file.read_bytes() + b"\n")
    assert work_key(wanted, [found], DEFAULT, 256, "this") != before
