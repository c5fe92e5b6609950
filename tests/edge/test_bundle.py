"""The bundle reader: whatever is changed, missing, surplus or not finite is refused with a message."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.bundle import read_bundle
from edge.errors import BundleError


def rehash(files: dict[str, bytes]) -> dict[str, bytes]:
    """List the files anew and hash the manifest, as someone would who knows the format."""
    manifest = json.loads(files["manifest.json"])
    outside = {"manifest.json", "manifest.sha256", "signature"}
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name not in outside}
    text = json.dumps(manifest).encode()
    return files | {"manifest.json": text, "manifest.sha256": hashlib.sha256(text).hexdigest().encode()}


def test_archive_and_folder_are_the_same_bundle(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    archive = read_bundle(tiny.archive(tmp_path / "a.bundle", files))
    folder = read_bundle(tiny.folder(tmp_path / "folder", files))
    assert archive.id == folder.id == hashlib.sha256(files["manifest.json"]).hexdigest()
    assert archive.read("model.onnx") == files["model.onnx"]
    assert archive.thresholds[0]["float"].value == 0.5
    assert archive.signature is None


def test_a_signature_changes_no_identity(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    signed = read_bundle(tiny.archive(tmp_path / "s.bundle", files | {"signature": b"64 bytes"}))
    assert signed.signature == b"64 bytes"
    assert signed.id == read_bundle(tiny.archive(tmp_path / "u.bundle", files)).id


def test_every_flipped_byte_of_every_file_is_noticed(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    for name, data in files.items():
        step = max(1, len(data) // 40)
        for at in [*range(0, len(data), step), len(data) - 1]:
            if name == "manifest.sha256" and at >= 64:
                continue  # the line's end
            damaged = bytearray(data)
            damaged[at] ^= 0x01
            folder = tiny.folder(tmp_path / "damaged", files | {name: bytes(damaged)})
            with pytest.raises(BundleError, match=r"damaged|match|JSON|schema|manifest"):
                read_bundle(folder)


def test_where_the_stated_hash_differs_is_shown(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    right = files["manifest.sha256"].decode()
    wrong = right[:40] + ("0" if right[40] != "0" else "1") + right[41:]
    folder = tiny.folder(tmp_path / "b", files | {"manifest.sha256": wrong.encode()})
    with pytest.raises(BundleError, match=f"from digit 41 on '{right[40:52]}' found, '{wrong[40:52]}' stated"):
        read_bundle(folder)


def test_a_wrong_value_has_its_next_step(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    files["threshold.json"] = files["threshold.json"].replace(b'"value": 0.5', b'"value": NaN')
    with pytest.raises(
        BundleError, match=r"threshold\.json: float\.value: .* \(got nan\)\. Compile the bundle again\."
    ):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_the_archive_is_always_noticed(
    tmp_path: Path, tiny: SimpleNamespace, data: st.DataObject
) -> None:
    path = tmp_path / "b.bundle"
    if not path.exists():
        tiny.archive(path, tiny.files())
        (tmp_path / "original").write_bytes(path.read_bytes())
    raw = bytearray((tmp_path / "original").read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"b\.bundle"):
        read_bundle(path)


def test_every_byte_of_a_header_counts(tmp_path: Path, tiny: SimpleNamespace) -> None:
    path = tiny.archive(tmp_path / "b.bundle", tiny.files())
    whole = path.read_bytes()
    for at in range(512):
        damaged = bytearray(whole)
        damaged[at] ^= 0x20
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"b\.bundle"):
            read_bundle(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_noise_is_refused(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "noise.bundle").write_bytes(noise)
    with pytest.raises(BundleError):
        read_bundle(tmp_path / "noise.bundle")


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 5000, -1, -2, -512, -1024, -5000])
def test_a_truncated_archive_is_refused(tmp_path: Path, tiny: SimpleNamespace, cut: int) -> None:
    path = tiny.archive(tmp_path / "b.bundle", tiny.files())
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(BundleError, match=r"b\.bundle"):
        read_bundle(path)


def test_an_archive_with_something_behind_it_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    path = tiny.archive(tmp_path / "b.bundle", tiny.files())
    path.write_bytes(path.read_bytes() + bytes(10240))
    with pytest.raises(BundleError, match="after its last file"):
        read_bundle(path)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "model.onnx", "threshold.json", "golden/0.png"])
def test_a_missing_file_is_named(tmp_path: Path, tiny: SimpleNamespace, name: str) -> None:
    files = tiny.files()
    del files[name]
    with pytest.raises(BundleError, match=name):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


@pytest.mark.parametrize("name", ["model.onnx", "threshold.json", "golden/golden.json"])
def test_a_file_missing_from_the_manifest_as_well_is_an_error(tmp_path: Path, tiny: SimpleNamespace, name: str) -> None:
    files = tiny.files()
    del files[name]
    with pytest.raises(BundleError, match=name):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


def test_a_surplus_file_is_named(tmp_path: Path, tiny: SimpleNamespace) -> None:
    with pytest.raises(BundleError, match=r"surprise\.txt"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", tiny.files() | {"surprise.txt": b""}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_not_finite_is_refused(tmp_path: Path, tiny: SimpleNamespace, value: float) -> None:
    with pytest.raises(BundleError, match=r"threshold\.json.*finite"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", tiny.files(threshold=value)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("value", value) for value in ("9.5", True, 1e300, -1e300, None)),
        *(("parts", value) for value in (True, "3", 2.5)),
        ("interval", [-0.1, 0.5]),
        ("interval", [0.1, 1.5]),
        ("approximate", 1),
    ],
)
def test_a_threshold_of_another_type_or_out_of_bounds_is_refused(
    tmp_path: Path, tiny: SimpleNamespace, key: str, value: Any
) -> None:
    files = tiny.files()
    thresholds = json.loads(files["threshold.json"])
    thresholds["float"][key] = value
    files["threshold.json"] = json.dumps(thresholds).encode()
    with pytest.raises(BundleError, match=rf"threshold\.json: float\.{key}"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("white", value) for value in (0, -1, 254, 65536, "255", True)),
        *(("width", value) for value in ([-5, -9], [0, 9], [9, 5], [1, 70000], [5], ["5", "9"])),
    ],
)
def test_frames_that_cannot_be_are_refused(tmp_path: Path, tiny: SimpleNamespace, key: str, value: Any) -> None:
    files = tiny.files(change=lambda manifest: manifest["input"]["source"].update({key: value}))
    with pytest.raises(BundleError, match=rf"manifest\.json: input\.source\.{key}"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


@pytest.mark.parametrize("name", ["threshold.json", "golden/golden.json"])
def test_json_that_is_nested_without_end_is_refused(tmp_path: Path, tiny: SimpleNamespace, name: str) -> None:
    files = rehash(tiny.files() | {name: b"[" * 100_000 + b"]" * 100_000})
    with pytest.raises(BundleError, match=name):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"float": null}', b"nonsense", b'{"float": {"value": "0.5"}}'])
def test_a_threshold_file_that_says_nothing_is_refused(tmp_path: Path, tiny: SimpleNamespace, text: bytes) -> None:
    files = rehash(tiny.files() | {"threshold.json": text})
    with pytest.raises(BundleError, match="threshold"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


@pytest.mark.parametrize("version", [0, 3, None, "1", True])
def test_another_schema_version_is_refused(tmp_path: Path, tiny: SimpleNamespace, version: Any) -> None:
    files = tiny.files(change=lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(BundleError, match=f"schema version {version!r}"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


def test_an_unknown_key_of_the_manifest_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files(change=lambda manifest: manifest.update(colour="blue"))
    with pytest.raises(BundleError, match="colour"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, tiny: SimpleNamespace, kind: bytes) -> None:
    path = tiny.archive(tmp_path / "b.bundle", tiny.files())
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("passwd")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(BundleError, match="passwd"):
        read_bundle(path)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    path = tiny.archive(tmp_path / "b.bundle", tiny.files())
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("model.onnx")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(BundleError, match="twice"):
        read_bundle(path)


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("which", ["score_tolerance", "map_tolerance"])
def test_a_tolerance_that_would_allow_anything_is_refused(
    tmp_path: Path, tiny: SimpleNamespace, which: str, tolerance: float
) -> None:
    files = tiny.files()
    golden = json.loads(files["golden/golden.json"])
    golden["samples"][0][which] = {"float": tolerance}
    files["golden/golden.json"] = json.dumps(golden).encode()
    with pytest.raises(BundleError, match=which):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


def test_a_score_tolerance_that_proves_nothing_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    golden = json.loads(files["golden/golden.json"])
    golden["samples"][0]["score_tolerance"] = {"float": 1e308}
    files["golden/golden.json"] = json.dumps(golden).encode()
    with pytest.raises(BundleError, match="would let anything pass"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


@pytest.mark.parametrize(
    "words", [{"GNU.sparse.map": "a,b"}, {"size": "x"}, {"GNU.sparse.size": "-1"}, {"mtime": "1e999"}]
)
def test_headers_that_the_tar_reader_chokes_on_are_refused(
    tmp_path: Path, tiny: SimpleNamespace, words: dict[str, str]
) -> None:
    path = tiny.archive(tmp_path / "b.bundle", tiny.files())
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("extra")
        member.pax_headers = words
        archive.addfile(member)
    with pytest.raises(BundleError):
        read_bundle(path)


def test_a_folder_that_is_no_bundle_or_too_large_is_refused_unread(
    tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        read_bundle(Path("/"))
    folder = tiny.folder(tmp_path / "folder", tiny.files())
    with (folder / "film.mp4").open("wb") as film:
        film.truncate(2**40)  # a hole: it takes no room, and reading it would take all memory
    with pytest.raises(BundleError, match="more than the limit"):
        read_bundle(folder)


def test_links_in_a_folder_do_not_count_as_files(tmp_path: Path, tiny: SimpleNamespace) -> None:
    folder = tiny.folder(tmp_path / "folder", tiny.files())
    (tmp_path / "elsewhere.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        read_bundle(folder)


def test_golden_files_that_are_not_there_are_named(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    del files["golden/0.npy"]
    with pytest.raises(BundleError, match=r"golden/0\.npy"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


def test_a_graph_without_golden_values_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files()
    golden = json.loads(files["golden/golden.json"])
    golden["samples"][0]["maps"] = {}
    files["golden/golden.json"] = json.dumps(golden).encode()
    with pytest.raises(BundleError, match="golden"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


def saved(array: NDArray[Any], save: Callable[..., None] = np.save) -> bytes:
    stream = io.BytesIO()
    save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x01\x00\x78\x00" + b"(" * 120,
        saved(np.zeros((16, 16), np.float32), np.savez),
        saved(np.zeros((16, 16), np.float64)),
        saved(np.zeros((16, 16), object)),
        saved(np.zeros((16, 17), np.float32)),
        saved(np.zeros((16, 16), np.float32))[:-1],
        saved(np.zeros((16, 16), np.float32)) + b"\0",
        saved(np.full((16, 16), np.nan, np.float32)),
    ],
)
def test_a_golden_map_that_is_no_array_is_an_error(tmp_path: Path, tiny: SimpleNamespace, data: bytes) -> None:
    files = rehash(tiny.files() | {"golden/0.npy": data})
    bundle = read_bundle(tiny.archive(tmp_path / "b.bundle", files))
    with pytest.raises(BundleError, match=r"golden/0\.npy"):
        bundle.array("golden/0.npy")


def test_nothing_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        read_bundle(tmp_path / "nowhere.bundle")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        read_bundle(tmp_path)
