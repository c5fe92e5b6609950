"""The archive reader against archives that nobody's `pack` wrote: an error or the very same files, nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.archive import MOST_FILES, pack, read_files
from edge.bundle import read_bundle
from edge.errors import BundleError

NAMES = st.from_regex(r"([a-z0-9][a-z._-]{0,8}/)?[a-z0-9][a-z._-]{0,20}", fullmatch=True)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def ended(raw: bytes) -> bytes:
    return raw + bytes(-(len(raw) + 1024) % 10240 + 1024)


def with_sum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=8))
@FUZZ
def test_what_was_packed_is_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "a").write_bytes(pack(files))
    assert list(read_files(tmp_path / "a").items()) == list(files.items())


@given(st.data())
@FUZZ
def test_headers_that_are_changed_with_their_sum(tmp_path: Path, tiny: SimpleNamespace, data: st.DataObject) -> None:
    """Whoever can write checksums gets an error, or what they changed means nothing (times, owners)."""
    raw = bytearray(pack(tiny.files()))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        starts = [entry.offset for entry in archive]
    at = data.draw(st.sampled_from(starts))
    header = raw[at : at + 512]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.sampled_from([0, 100, 124, 136, 156, 157, 257, 265, 345, data.draw(st.integers(0, 500))]))
        header[start : start + 12] = data.draw(st.binary(min_size=1, max_size=12)).ljust(12, b"\0")
    raw[at : at + 512] = with_sum(header[:512])
    (tmp_path / "b.bundle").write_bytes(raw)
    with contextlib.suppress(BundleError):
        assert read_bundle(tmp_path / "b.bundle").archive(None) == pack(tiny.files())


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=90), st.binary(max_size=600), st.sampled_from("01234567xgLKSV")))
)
@FUZZ
def test_archives_of_anything(tmp_path: Path, parts: list[tuple[bytes, bytes, str]]) -> None:
    raw = b""
    for name, content, kind in parts:
        header = bytearray(member("x", content)[:512])
        header[:100], header[156] = name.ljust(100, b"\0"), ord(kind)
        raw += with_sum(header) + content + bytes(-len(content) % 512)
    (tmp_path / "c.bundle").write_bytes(ended(raw))
    with pytest.raises(BundleError, match=r"c\.bundle"):
        read_bundle(tmp_path / "c.bundle")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "golden/../../evil",
        "/etc/passwd",
        "./manifest.json",
        "golden//0",
        "a/b/c",
        "..",
        ".hidden",
        "a\nb",
        "a\\b",
    ],
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.bundle").write_bytes(ended(member(name, b"x")))
    with pytest.raises(BundleError, match="leads out of it"):
        read_files(tmp_path / "d.bundle")
    (tmp_path / "d.bundle").write_bytes(ended(member("../out", kind=tarfile.DIRTYPE)))
    with pytest.raises(BundleError, match="leads out of it"):
        read_files(tmp_path / "d.bundle")


@pytest.mark.parametrize("kind", [*b"1234675xgLKSDV"])
def test_links_devices_and_extended_headers_are_refused(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "e.bundle"
    path.write_bytes(ended(member("passwd", b"x" * (kind == ord("5")), bytes([kind]), linkname="/etc/passwd")))
    with pytest.raises(BundleError, match="passwd"):
        read_files(path)


def test_headers_that_nest_without_end_are_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "f.bundle").write_bytes(ended(member("././@LongLink", kind=b"L") * 5000))
    with pytest.raises(BundleError, match="LongLink"):
        read_files(tmp_path / "f.bundle")


def test_more_files_than_any_bundle_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.bundle").write_bytes(ended(b"".join(member(f"f{n}") for n in range(MOST_FILES + 1))))
    with pytest.raises(BundleError, match="more than 1000 files"):
        read_files(tmp_path / "g.bundle")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json").touch()
    for number in range(MOST_FILES):
        (folder / f"f{number}").touch()
    with pytest.raises(BundleError, match="more than 1000 files"):
        read_files(folder)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"00000000 10\0"])
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, size: bytes) -> None:
    header = bytearray(member("model.onnx"))
    header[124:136] = size
    (tmp_path / "h.bundle").write_bytes(ended(with_sum(header)))
    with pytest.raises(BundleError, match=r"truncated|damaged"):
        read_files(tmp_path / "h.bundle")


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BundleError, match="no file"):
            read_files(path)
