"""Every format gives the same cloud, what is no scan has one clear message, and damage never does anything else."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.scans.read import read_points
from edge.scans.unit import choose_unit, in_millimetres, measure_extent

HEIGHT, WIDTH, FOCAL = 24, 32, 40.0
Points = NDArray[np.float32]


@pytest.fixture(scope="module")
def cloud() -> Points:
    """A rough plane, 600 mm away, as a camera sees it; NaN in a corner."""
    z = 600 + np.random.default_rng(2).normal(0, 0.2, (HEIGHT, WIDTH))
    z[2:5, 3:7] = np.nan
    x = z * (np.arange(WIDTH) - WIDTH / 2) / FOCAL
    y = z * (np.arange(HEIGHT)[:, None] - HEIGHT / 2) / FOCAL
    return np.stack([x, y, z], axis=2).astype(np.float32)


def as_tiff(points: NDArray[Any], *parameters: int) -> bytes:
    order = points[..., ::-1] if points.ndim == 3 else points
    return cv2.imencode(".tiff", order, parameters)[1].tobytes()


def as_npy(points: NDArray[Any], path: Path) -> bytes:
    np.save(path / "x.npy", points)
    return (path / "x.npy").read_bytes()


def as_ply(points: Points, form: str = "binary_little_endian", *, grid: bool = True, name: str = "obj_info") -> bytes:
    height, width = points.shape[:2]
    rows = np.zeros(height * width, [(a, ("<" if "little" in form else ">") + "f4") for a in "xyz"] + [("red", "u1")])
    for i, axis in enumerate("xyz"):
        rows[axis] = points[..., i].ravel()
    lines = ["ply", f"format {form} 1.0", "comment made by a test"]
    lines += [f"{name} num_cols {width}", f"{name} num_rows {height}"] if grid else []
    lines += [f"element vertex {len(rows)}", *(f"property float {a}" for a in "xyz"), "property uchar red"]
    head = "\n".join([*lines, "end_header", ""]).encode()
    text = "\n".join(" ".join(map(str, row)) for row in rows.tolist()).encode()
    return head + (text if form == "ascii" else rows.tobytes())


def as_pcd(points: Points, form: str = "binary", height: int | None = None) -> bytes:
    rows = points.reshape(-1, 3)
    high = points.shape[0] if height is None else height
    head = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z _\nSIZE 4 4 4 1\nTYPE F F F U\n"
        f"COUNT 1 1 1 4\nWIDTH {len(rows) // high}\nHEIGHT {high}\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(rows)}\n"
        f"DATA {form}\n"
    ).encode()
    if form == "ascii":
        return head + "\n".join(" ".join(map(repr, map(float, row))) + " 0 0 0 0" for row in rows).encode()
    return head + np.pad(np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(-1, 12), ((0, 0), (0, 4))).tobytes()


FORMATS: dict[str, Callable[[Points, Path], bytes]] = {
    "tiff": lambda points, _: as_tiff(points),
    "tiff, deflate": lambda points, _: as_tiff(points, cv2.IMWRITE_TIFF_COMPRESSION, 8),
    "tiff, lzw": lambda points, _: as_tiff(points, cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "tiff, float64": lambda points, _: as_tiff(points.astype(np.float64)),
    "npy": as_npy,
    "npy, fortran": lambda points, path: as_npy(np.asfortranarray(points), path),
    "npy, big end": lambda points, path: as_npy(points.astype(">f8"), path),
    "ply": lambda points, _: as_ply(points),
    "ply, big end": lambda points, _: as_ply(points, "binary_big_endian", name="comment"),
    "ply, text": lambda points, _: as_ply(points, "ascii"),
    "pcd": lambda points, _: as_pcd(points),
    "pcd, text": lambda points, _: as_pcd(points, "ascii"),
}


def read(path: Path, data: bytes) -> Points:
    (path / "scan").write_bytes(data)
    return read_points(path / "scan")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_cloud(form: str, cloud: Points, tmp_path: Path) -> None:
    found = read(tmp_path, FORMATS[form](cloud, tmp_path))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, cloud)


@pytest.mark.parametrize("missing", [0.0, np.inf, -1e9])
def test_missing_returns_are_nan_in_all_three(missing: float, cloud: Points, tmp_path: Path) -> None:
    points = cloud.copy()
    points[10, 10] = missing
    found = read(tmp_path, as_tiff(points))
    assert np.isnan(found[10, 10]).all()
    assert np.isnan(found).sum() == 3 * (12 + 1)


def test_a_point_on_the_axis_is_no_missing_return(cloud: Points, tmp_path: Path) -> None:
    assert (cloud[:, WIDTH // 2, 0] == 0).all()
    assert np.isfinite(read(tmp_path, as_tiff(cloud))[:, WIDTH // 2]).all()


REFUSED: dict[str, tuple[Callable[[Points], bytes], str]] = {
    "empty file": (lambda _: b"", "empty file"),
    "another format": (lambda _: b"\x7fELF" + bytes(100), "no scan: organised TIFF, NPY, PLY, PCD"),
    "two channels": (lambda p: two_channels(p[..., :2]), "a TIFF of 2 channels; three"),
    "pages": (lambda p: chained(as_tiff(p)), "several pages"),
    "bytes": (lambda p: as_tiff(np.full((24, 32, 3), 7, np.uint8)), "samples of 8 bits, unsigned; float"),
    "huge": (lambda p: as_tiff(p).replace(entry(256, 3, 32), entry(256, 4, 1 << 30)), "1073741824x24 points; a scan"),
    "all NaN": (lambda p: as_tiff(np.full_like(p, np.nan)), "an empty scan: no point has a return, of 768"),
    "all zero": (lambda p: as_tiff(np.zeros_like(p)), "no point has a return"),
    "hardly any": (lambda p: as_tiff(np.where(np.arange(WIDTH)[:, None] < 1, p, np.nan)), "only 24 points"),
    "small": (lambda p: as_tiff(p[:10]), "32x10 points, at least 16 a side"),
    "axes": (lambda p: as_tiff(p[..., ::-1]), "swapped axes: the grid spreads over y and z, so x is the distance"),
    "unorganised ply": (lambda p: as_ply(p, grid=False), "an unorganised PLY of 768 points: which are neighbours is"),
    "unorganised pcd": (lambda p: as_pcd(p, height=1), "an unorganised PCD of 768 points"),
    "cut ply": (lambda p: as_ply(p)[:-1], "truncated PLY: 9983 bytes of points, its header promises 9984"),
    "cut text": (lambda p: as_ply(p, "ascii")[:-500], "truncated PLY: .* numbers, its header promises 3072"),
    "ply, header cut": (lambda p: as_ply(p)[:80], "truncated PLY: its header has no end"),
    "words": (lambda p: as_ply(p, "ascii").replace(b"600.", b"six", 1), "something that is no number"),
    "no z": (lambda p: as_ply(p).replace(b"float z", b"float w"), "a PLY without one value of z for each point"),
    "empty ply": (lambda p: as_ply(p).replace(b"vertex 768", b"vertex 0"), "an empty scan: a PLY of no points"),
    "huge ply": (lambda p: as_ply(p).replace(b"vertex 768", b"vertex 99999999"), "a PLY of 99999999 points; at most"),
    "cut pcd": (lambda p: as_pcd(p)[:-1], "truncated PCD"),
    "cut tiff": (lambda p: as_tiff(p)[: HEIGHT * WIDTH * 6], "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_scan_has_one_clear_message(what: str, cloud: Points, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    with pytest.raises(FrameError, match=message):
        read(tmp_path, make(cloud))


def entry(tag: int, kind: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, kind, 1, value)


def two_channels(points: Points) -> bytes:
    """An uncompressed TIFF of two channels, made by hand: OpenCV writes none."""
    samples = np.ascontiguousarray(points, "<f4").tobytes()
    entries = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 32), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 2)]
    entries += [(278, 3, HEIGHT), (279, 4, len(samples)), (284, 3, 1), (339, 3, 3)]
    packed = b"".join(entry(*each) for each in entries)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + struct.pack("<H", len(entries)) + packed + bytes(4)
    )


def chained(tiff: bytes) -> bytes:
    """Let the first page name another, here itself."""
    at = struct.unpack_from("<I", tiff, 4)[0]
    end = at + 2 + 12 * struct.unpack_from("<H", tiff, at)[0]
    return tiff[:end] + struct.pack("<I", at) + tiff[end + 4 :]


def test_a_pickle_is_never_loaded(cloud: Points, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "x.npy", np.array([[Trap()] * WIDTH] * HEIGHT, object), allow_pickle=True)
    with pytest.raises(FrameError, match=r"NPY samples of type '\|O'; float32"):
        read_points(tmp_path / "x.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("form", ["tiff, deflate", "npy", "ply", "ply, text", "pcd", "pcd, text", "lzf", "depth"])
def test_damage_is_refused_or_harmless(
    form: str, cloud: Points, tmp_path: Path, camera: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(zlib.crc32(form.encode()))
    packed = {"lzf": lambda: lzf_pcd(cloud), "depth": cv2.imencode(".png", depth_counts(cloud))[1].tobytes}
    whole = packed[form]() if form in packed else FORMATS[form](cloud, tmp_path)
    refused = []
    for turn in range(150):
        data = bytearray(whole)
        if turn % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        else:
            reach = 300 if turn % 3 == 1 else len(data)  # headers deserve more
            for at in rng.integers(0, min(reach, len(data)), 1 + turn % 4):
                data[at] = rng.integers(256)
        try:
            found = read(tmp_path, bytes(data))
        except FrameError as error:
            refused.append(str(error))
        else:
            assert found.shape[2] == 3
            assert np.isfinite(found[~np.isnan(found[..., 2])]).all()
    assert len(refused) >= 50, "a file that is cut is never read"
    assert all(5 < len(message) < 400 for message in refused)
    assert capfd.readouterr().err == ""


def lzf_pcd(points: Points) -> bytes:
    """A compressed PCD whose z are all alike but for NaN: literals and copies that run into themselves."""
    blocks = np.ascontiguousarray(points.reshape(-1, 3).T, "<f4").tobytes()
    literal, out, at = len(blocks) * 2 // 3, bytearray(), 0
    while at < literal:
        piece = blocks[at : min(at + 32, literal)]
        out += bytes([len(piece) - 1]) + piece
        at += len(piece)
    out += bytes([3]) + struct.pack("<f", 600)
    left = HEIGHT * WIDTH * 4 - 4
    while left:
        length = min(left, 264)
        out += bytes([7 << 5, length - 9, 3]) if length > 8 else bytes([length - 2 << 5, 3])
        left -= length
    head = as_pcd(points).replace(b"x y z _", b"x y z").replace(b"4 4 4 1", b"4 4 4").replace(b"F F F U", b"F F F")
    head = head.replace(b"1 1 1 4", b"1 1 1").replace(b"DATA binary", b"DATA binary_compressed")
    return head[: head.index(b"compressed\n") + 11] + struct.pack("<II", len(out), len(blocks)) + out


def test_a_compressed_pcd_is_unpacked(cloud: Points, tmp_path: Path) -> None:
    expected = cloud.copy()
    expected[..., 2] = 600
    expected[np.isnan(cloud[..., 0])] = np.nan
    np.testing.assert_array_equal(read(tmp_path, lzf_pcd(cloud)), expected)


@pytest.fixture(scope="module")
def open3d() -> ModuleType:
    return pytest.importorskip("open3d", reason="no wheel of Open3D for this machine")


@pytest.mark.parametrize("form", ["pcd, compressed", "pcd", "pcd, text", "ply", "ply, text"])
def test_what_open3d_writes_is_read(form: str, cloud: Points, tmp_path: Path, open3d: ModuleType) -> None:
    """Open3D knows no grid: it is put into its header."""
    full = np.nan_to_num(cloud, nan=600)
    written = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(full.reshape(-1, 3).astype(np.float64)))
    file = tmp_path / f"x.{form[:3]}"
    assert open3d.io.write_point_cloud(str(file), written, write_ascii="text" in form, compressed="comp" in form)
    data = file.read_bytes()
    data = data.replace(b"WIDTH 768\nHEIGHT 1\n", b"WIDTH 32\nHEIGHT 24\n")
    data = data.replace(b"element vertex", b"obj_info num_cols 32\nobj_info num_rows 24\nelement vertex")
    np.testing.assert_allclose(read(tmp_path, data), full, atol=1e-3)


@pytest.mark.parametrize("form", ["pcd", "pcd, text", "lzf", "ply", "ply, big end", "ply, text"])
def test_open3d_reads_what_these_tests_write(form: str, cloud: Points, tmp_path: Path, open3d: ModuleType) -> None:
    data = lzf_pcd(cloud) if form == "lzf" else FORMATS[form](cloud, tmp_path)
    file = tmp_path / f"x.{'pcd' if form == 'lzf' else form[:3]}"
    file.write_bytes(data)
    found = np.asarray(open3d.io.read_point_cloud(str(file), remove_nan_points=False).points).reshape(cloud.shape)
    expected = read_points(file)
    known = ~np.isnan(expected[..., 0])
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-6)


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    about = {"width": WIDTH, "height": HEIGHT, "fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    (tmp_path / "intrinsics.json").write_text(json.dumps({**about, "depth_scale": 0.05}))
    return tmp_path


def depth_counts(cloud: Points) -> NDArray[np.uint16]:
    return np.nan_to_num(cloud[..., 2] / 0.05).round().astype(np.uint16)


def test_depth_becomes_points_by_the_camera_above(cloud: Points, camera: Path) -> None:
    file = camera / "train" / "good" / "1.png"
    file.parent.mkdir(parents=True)
    cv2.imwrite(str(file), depth_counts(cloud))
    found = read_points(file)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(cloud))
    np.testing.assert_allclose(found[~np.isnan(cloud)], cloud[~np.isnan(cloud)], atol=0.04)


@pytest.mark.parametrize("suffix", ["npy", "tiff"])
def test_depth_of_floats_is_read_too(cloud: Points, camera: Path, suffix: str) -> None:
    depth = cloud[..., 2] / np.float32(0.05)
    data = as_npy(depth, camera) if suffix == "npy" else as_tiff(depth)
    np.testing.assert_allclose(read(camera, data), cloud, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["normalization:\n  max: {high}\n  min: {low}\n", "min: {low}\nmax: {high}\n"])
def test_eyecandies_depth_has_its_range_in_a_file(layout: str, cloud: Points, camera: Path) -> None:
    metres = np.nan_to_num(cloud[..., 2], nan=599) / 1000
    low, high = metres.min(), metres.max()
    cv2.imwrite(str(camera / "007_depth.png"), ((metres - low) / (high - low) * 65535).round().astype(np.uint16))
    (camera / "007_info_depth.yaml").write_text(layout.format(low=low, high=high))
    found = read_points(camera / "007_depth.png")
    np.testing.assert_allclose(found[..., 2], metres, atol=1e-6)
    assert np.isfinite(found).all(), "the least depth is no missing return"
    (camera / "007_info_depth.yaml").write_text("max: 1.0\n")
    with pytest.raises(FrameError, match=r"007_info_depth\.yaml: no `min` and `max`"):
        read_points(camera / "007_depth.png")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, r"a depth image, but no intrinsics\.json"),
        ({"width": 33}, r"a depth image of 32x24 pixels, intrinsics\.json is for 33x24"),
        ({"fx": 0}, r"intrinsics\.json: fx: input should be greater than 0"),
        ({"k1": 0.1}, r"intrinsics\.json: k1: extra inputs are not permitted"),
    ],
)
def test_a_camera_that_is_unknown_or_another_is_said(
    about: dict[str, float] | None, message: str, cloud: Points, camera: Path
) -> None:
    file = camera / "intrinsics.json"
    if about is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | about))
    with pytest.raises(FrameError, match=message):
        read(camera, as_tiff(cloud[..., 2]))


@pytest.mark.parametrize("unit", ["m", "mm"])
def test_the_unit_follows_from_the_extent(unit: str, cloud: Points) -> None:
    points = cloud / np.float32(1000) if unit == "m" else cloud
    assert choose_unit([measure_extent(points)] * 2 + [0.0]) == unit
    np.testing.assert_allclose(in_millimetres(points, unit), cloud, rtol=1e-6)


def test_the_wrong_unit_is_detected_and_said(cloud: Points) -> None:
    with pytest.raises(FrameError, match=r"spans 4\.\d+e\+05 mm if its unit is m, .* its unit is probably mm"):
        in_millimetres(cloud, "m")
    with pytest.raises(FrameError, match=r"spans 0\.4\d+ mm if its unit is mm, .* its unit is probably m$"):
        in_millimetres(cloud / np.float32(1000), "mm")


def test_a_folder_and_a_missing_file_are_no_scans(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="Is a directory"):
        read_points(tmp_path)
    with pytest.raises(FrameError, match="No such file"):
        read_points(tmp_path / "x.tiff")
