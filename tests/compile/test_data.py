from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from compile.data import DataError, read_data, read_image
from compile.features import load_pictures
from edge.bundle import Input


@pytest.fixture
def flat(tmp_path: Path, photographs, write) -> Path:
    for i, image in enumerate(photographs[:24]):
        write(tmp_path / "good" / f"part-{i:02}.png", image)
    return tmp_path / "good"


def reasons(found) -> dict[str, str]:
    return {item.path.name: item.reason for item in found.skipped}


def test_a_flat_folder_is_read_in_rgb_order(flat: Path, photographs) -> None:
    found = read_data(flat)
    assert (found.layout, len(found.good), found.parts, found.skipped) == ("flat", 24, 24, [])
    assert found.source.channels == 3
    assert found.source.white == 255
    assert found.source.height == (144, 144)
    np.testing.assert_array_equal(read_image(found.good[3]), photographs[3])


@pytest.mark.timeout(20)
def test_a_pipe_is_skipped_and_named(flat: Path) -> None:
    os.mkfifo(flat / "z.png")
    found = read_data(flat)
    assert len(found.good) == 24
    assert reasons(found) == {"z.png": "not a regular file"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff"])
def test_each_file_format_is_read(flat: Path, photographs, write, suffix: str) -> None:
    path = write(flat / f"x{suffix}", photographs[30])
    assert path in read_data(flat).good
    assert np.abs(read_image(path).astype(int) - photographs[30]).mean() < 3


def test_what_cannot_be_used_is_named_with_its_reason(flat: Path, photographs, write) -> None:
    (flat / "words.png").write_text("no picture")
    (flat / "empty.jpg").write_bytes(b"")
    (flat / "notes.txt").write_text("made on Monday")
    (flat / "dangling.png").symlink_to(flat / "nowhere.png")
    for name in ("short.png", "short.jpg", "short.bmp", "short.tiff"):
        whole = write(flat / name, photographs[0]).read_bytes()
        (flat / name).write_bytes(whole[: len(whole) // 2])
    write(flat / "black.png", np.zeros((144, 144, 3), np.uint8))
    found = read_data(flat)
    why = reasons(found)
    assert set(why) == {
        *("words.png", "empty.jpg", "notes.txt", "dangling.png", "black.png"),
        *("short.png", "short.jpg", "short.bmp", "short.tiff"),
    }
    assert "damaged JPEG" in why["short.jpg"]
    assert "truncated PNG" in why["short.png"]
    assert "truncated BMP" in why["short.bmp"]
    assert "empty" in why["empty.jpg"]
    assert "blank" in why["black.png"]
    assert len(found.good) == 24


def test_three_images_are_too_few(tmp_path: Path, photographs, write) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", photographs[i])
    with pytest.raises(DataError, match=r"3 usable good image\(s\) among 3 file\(s\), at least 20"):
        read_data(tmp_path)


def test_nothing_readable_is_said_with_the_reasons(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match=r"0 usable.*30 x damaged JPEG.*\(0\.jpg, 1\.jpg, 10\.jpg, \.\.\.\)"):
        read_data(tmp_path)


def test_a_missing_folder_and_a_missing_train_good_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_data(tmp_path / "nowhere")
    (tmp_path / "train" / "ok").mkdir(parents=True)
    with pytest.raises(DataError, match="train/good"):
        read_data(tmp_path)


def test_mvtec_layout_pairs_masks_by_name(tmp_path: Path, photographs, write) -> None:
    for i, image in enumerate(photographs[:22]):
        write(tmp_path / "train" / "good" / f"{i}.png", image)
    write(tmp_path / "test" / "good" / "a.png", photographs[30])
    write(tmp_path / "test" / "hole" / "b.png", photographs[31])
    write(tmp_path / "test" / "hole" / "c.png", photographs[32])
    write(tmp_path / "ground_truth" / "hole" / "c_mask.png", np.eye(144, dtype=np.uint8) * 255)
    found = read_data(tmp_path)
    assert found.layout == "mvtec"
    assert [(image.path.name, image.kind, image.mask is not None) for image in found.test] == [
        ("a.png", "good", False),
        ("b.png", "hole", False),
        ("c.png", "hole", True),
    ]
    assert not {image.path for image in found.test} & set(found.good)


def test_a_mask_of_another_size_is_no_mask_of_its_picture(mvtec: Path, write) -> None:
    path = write(mvtec / "ground_truth" / "hole" / "4_mask.png", np.full((72, 144), 255, np.uint8))
    with pytest.raises(DataError, match=rf"{path}: the mask has 144x72 pixels, its picture .*/4\.png has 144x144"):
        read_data(mvtec)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{path}: not a readable mask"):
        read_data(mvtec)


def test_sixteen_bit_white_is_decided_once_for_the_set(tmp_path: Path, photographs, write) -> None:
    for i, image in enumerate(photographs[:24]):
        grey = image[..., 0].astype(np.uint16) * 8  # 12-bit camera, at most 2040
        write(tmp_path / f"{i}.png", grey // (4 if i else 1))
    found = read_data(tmp_path)
    assert (found.source.white, found.source.channels) == (4095, 1)
    assert any("white was taken to be 4095" in remark for remark in found.remarks)
    assert read_image(found.good[1]).dtype == np.uint16


def test_alpha_that_hides_nothing_is_dropped_and_a_cut_out_is_skipped(tmp_path: Path, photographs, write) -> None:
    for i, image in enumerate(photographs[:21]):
        alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
        alpha[:36] -= np.uint8(i == 20)
        write(tmp_path / f"{i:02}.png", np.concatenate([image, alpha], axis=2))
    found = read_data(tmp_path)
    assert found.source.channels == 3
    (cut_out,) = found.skipped
    assert cut_out.path.name == "20.png"
    assert cut_out.reason == "transparent in 25.00% of its pixels; save it without alpha, as the camera saw it"
    np.testing.assert_array_equal(read_image(found.good[2]), photographs[2])


def test_mixed_formats_are_decided_by_the_larger_part_and_said(flat: Path, photographs, write) -> None:
    write(flat / "grey.png", photographs[30][..., 0])
    write(flat / "deep.png", photographs[31].astype(np.uint16) * 257)
    found = read_data(flat)
    assert set(reasons(found)) == {"grey.png", "deep.png"}
    assert found.source.channels == 3
    assert any("mixes formats" in remark for remark in found.remarks)


def test_sizes_that_vary_widen_what_is_inspected(flat: Path, photographs, write) -> None:
    write(flat / "small.png", photographs[30][:100, :120])
    found = read_data(flat)
    assert found.source.height == (75, 180)
    assert found.source.width == (90, 180)
    assert found.longer_side == 144


@pytest.mark.parametrize(("height", "width"), [(20, 3000), (700, 700), (144, 400), (60, 60)])
def test_one_picture_of_another_size_is_skipped_and_widens_nothing(
    flat: Path, photographs, write, height: int, width: int
) -> None:
    write(flat / "odd.png", cv2.resize(photographs[30], (width, height)))
    found = read_data(flat)
    assert reasons(found) == {"odd.png": f"{width}x{height} pixels, far from the 144x144 in the middle of the set"}
    assert found.source.height == found.source.width == (144, 144)
    assert found.longer_side == 144
    assert found.remarks == []


def test_crops_of_many_sizes_are_all_kept(tmp_path: Path, photographs, write) -> None:
    for i, image in enumerate(photographs):
        write(tmp_path / f"{i:02}.png", image[: 60 + 2 * i, : 138 - 2 * i])  # aspect ratios from 1:2.3 to 1:0.4
    found = read_data(tmp_path)
    assert len(found.good) == 40
    assert found.skipped == []


def test_pictures_of_a_few_pixels_are_skipped_and_named(flat: Path, photographs, write) -> None:
    write(flat / "dot.png", photographs[30][:1, :1])
    write(flat / "line.png", photographs[30][:15, :])
    write(flat / "enough.png", photographs[30][:16, :16])
    why = reasons(read_data(flat))
    assert why["dot.png"] == "1x1 pixels, at least 16 a side are needed"
    assert why["line.png"] == "144x15 pixels, at least 16 a side are needed"
    assert "far from the 144x144" in why["enough.png"]


def test_test_pictures_of_other_sizes_are_skipped_and_named(tmp_path: Path, photographs, write) -> None:
    for i, image in enumerate(photographs[:22]):
        write(tmp_path / "train" / "good" / f"{i}.png", image)
    write(tmp_path / "test" / "hole" / "dot.png", photographs[31][:1, :1])
    write(tmp_path / "test" / "hole" / "strip.png", cv2.resize(photographs[32], (3000, 20)))
    found = read_data(tmp_path)
    spec = Input(height=144, width=144, source=found.source)
    _, kept, skipped = load_pictures([image.path for image in found.test], spec, tmp_path / "p.bin")
    assert kept.size == 0
    assert {item.path.name: item.reason for item in skipped} == {
        "dot.png": "1x1 pixels, at least 16 a side are needed",
        "strip.png": "3000x20 pixels, the bundle was made from 144x144",
    }


def test_damaged_files_are_named_and_the_terminal_stays_clean(
    flat: Path, photographs, write, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("cut.jpg", "hole.jpg", "hole.png"):
        whole = write(flat / name, photographs[30]).read_bytes()
        middle = len(whole) // 2
        rest = b"\xff\xd9" if name == "cut.jpg" else whole[middle + 400 :]
        (flat / name).write_bytes(whole[:middle] + rest)
    why = reasons(read_data(flat))
    assert {name: reason.split(" (")[0].split(":")[0] for name, reason in why.items()} == {
        "cut.jpg": "damaged JPEG",
        "hole.jpg": "damaged JPEG",
        "hole.png": "damaged PNG",
    }
    assert capfd.readouterr().err == ""


def test_a_test_picture_of_a_training_part_is_reported(tmp_path: Path, write) -> None:
    moon = data.moon()
    pieces = [moon[y : y + 96, x : x + 96] for y in range(0, 400, 100) for x in range(0, 500, 100)]
    for i, piece in enumerate(pieces):
        write(tmp_path / "train" / "good" / f"{i:02}.png", piece)
    write(tmp_path / "test" / "good" / "fresh.png", moon[400:496, :96])
    assert read_data(tmp_path).remarks == []
    write(tmp_path / "test" / "good" / "leaked.png", (np.roll(pieces[3], 2, axis=1) * 0.9).astype(np.uint8))
    [remark] = read_data(tmp_path).remarks
    assert "1 of 2 test images" in remark
    assert "leaked.png like 03.png" in remark


def test_pictures_of_one_part_form_one_group(tmp_path: Path, write) -> None:
    moon = data.moon()
    for i in range(24):
        y, x = divmod(i, 5)
        write(tmp_path / f"part-{i:02}.png", moon[y * 100 : y * 100 + 96, x * 100 : x * 100 + 96])
    write(tmp_path / "part-00-again.png", (np.roll(moon[:96, :96], 2, axis=1) * 0.9).astype(np.uint8))
    found = read_data(tmp_path)
    names = [path.name for path in found.good]
    same = found.groups == found.groups[names.index("part-00.png")]
    assert [name for name, one in zip(names, same, strict=True) if one] == ["part-00-again.png", "part-00.png"]
    told = read_data(tmp_path, r"(.*)\.png")
    assert told.parts == 25
    assert any("part-00-again.png and part-00.png" in remark for remark in told.remarks)


def test_parts_by_expression_and_by_folder(flat: Path, tmp_path: Path) -> None:
    assert read_data(flat, r"part-(\d)").parts == 3
    with pytest.raises(DataError, match=r"does not match part-00\.png"):
        read_data(flat, r"serial-(\d)")
    for i, path in enumerate(sorted(flat.iterdir())):
        (tmp_path / "by" / f"p{i % 12}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "by" / f"p{i % 12}")
    assert read_data(tmp_path / "by", "folder").parts == 12


def test_pictures_go_through_the_front_end_of_the_box(flat: Path, tmp_path: Path, photographs, write) -> None:
    source = read_data(flat).source
    other = write(flat / "other.png", photographs[0][:, :, 0])
    paths = [flat / "part-00.png", other, flat / "part-01.png"]
    pictures, kept, skipped = load_pictures(paths, Input(height=144, width=144, source=source), tmp_path / "p.bin")
    assert kept.tolist() == [0, 2]
    np.testing.assert_array_equal(pictures, photographs[:2])
    assert "1 channel(s)" in skipped[0].reason
