from __future__ import annotations

import io
import json
import os
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest

from compile.bundle_writer import BundleWriteError, check_writable, replacing, to_json, write_bundle
from compile.features import ScratchError, on_disk
from compile.pipeline import Compiled
from edge.archive import pack
from edge.bundle import read_bundle
from edge.scorer import ScorerError


def contents(compiled: Compiled) -> dict[str, bytes]:
    manifest = compiled.bundle.manifest
    return {name: compiled.bundle.read(name) for name in manifest.files}


def test_the_tar_is_deterministic_and_plain() -> None:
    files = {"b": b"2", "a/c": b"3"}
    packed = pack(files)
    assert packed == pack(files)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
        entries = archive.getmembers()
        assert [(entry.name, entry.mtime, entry.uid, entry.uname) for entry in entries] == [
            ("b", 0, 0, ""),
            ("a/c", 0, 0, ""),
        ]


@pytest.mark.slow
def test_the_same_files_give_the_same_bundle(compiled: Compiled, tmp_path: Path) -> None:
    files = contents(compiled)
    for name in ("one", "two"):
        written = write_bundle(tmp_path / name, compiled.bundle.manifest, files)
        assert written.id == compiled.bundle.id
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.slow
def test_a_bundle_that_does_not_give_its_golden_answers_is_not_written(compiled: Compiled, tmp_path: Path) -> None:
    files = contents(compiled)
    golden = json.loads(files["golden/golden.json"])
    golden["samples"][0]["scores"]["float"] *= 1.01
    files["golden/golden.json"] = to_json(golden)
    with pytest.raises(ScorerError, match=r"golden/0\.png"):
        write_bundle(tmp_path / "x.bundle", compiled.bundle.manifest, files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_bundle_alone(compiled: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(b"the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(BundleWriteError, match=r"x\.bundle: not written \(File too large\)"):
            write_bundle(path, compiled.bundle.manifest, contents(compiled))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.bundle"]


@pytest.mark.slow
def test_a_bundle_above_the_budget_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    files = contents(compiled) | {"ballast": bytes(21 * 2**20)}
    with pytest.raises(BundleWriteError, match=r"the budget is 20 MB; the largest file is ballast\. Choose a smaller"):
        write_bundle(tmp_path / "x.bundle", compiled.bundle.manifest, files)
    with pytest.raises(BundleWriteError, match=r"the largest file is ballast\. Throw it out\."):
        write_bundle(tmp_path / "x.bundle", compiled.bundle.manifest, files, smaller="Throw it out.")


def test_places_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BundleWriteError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(BundleWriteError, match="does not exist"):
        check_writable(tmp_path / "nowhere" / "x.bundle")
    with pytest.raises(BundleWriteError, match="cannot write there"):
        check_writable(Path("/proc/x.bundle"))
    with pytest.raises(BundleWriteError, match=r"\.report\.html: cannot write there \(File name too long\)"):
        check_writable(tmp_path / f"{'x' * 234}.bundle")
    check_writable(tmp_path / "x.bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_the_report_belongs_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "x.report.html").mkdir()
    with pytest.raises(BundleWriteError, match=r"x\.report\.html: is no file"):
        check_writable(tmp_path / "x.bundle")


@pytest.mark.parametrize("content", [b"", b"not a bundle", pack({"photo.png": b"1"})])
def test_only_a_bundle_is_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(BundleWriteError, match=r"photo\.png: exists and is no bundle, so it is not overwritten"):
        check_writable(path)
    assert path.read_bytes() == content
    path.write_bytes(pack({"manifest.json": b"of another version"}))
    check_writable(path)


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.bundle")
    with pytest.raises(BundleWriteError, match="is no bundle"):
        check_writable(tmp_path / "x.bundle")


def test_a_file_is_replaced_only_where_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "x.report.html"
    path.write_bytes(b"old")
    with pytest.raises(ScorerError), replacing(path, b"new"):
        raise ScorerError("the bundle beside it failed")
    assert path.read_bytes() == b"old"
    with replacing(path, b"new"):
        pass
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_none_never_reach_a_file() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        to_json({"score": float("nan")})


def test_scratch_without_room_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ScratchError, match=r"no room for 4 MB.*Free some space on that disk"):
            on_disk(tmp_path / "maps", np.dtype(np.float32), (1024, 1024))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_what_was_written_reads_back(compiled: Compiled) -> None:
    again = read_bundle(compiled.bundle.path)
    assert again.id == compiled.bundle.id
    assert compiled.bundle.path.stat().st_size < 20 * 2**20
