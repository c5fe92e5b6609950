"""`beltline sign`, and the option of `beltline compile`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from compile.sign import sign_bundle
from edge.bundle import read_bundle
from edge.cli import main
from edge.keys import new_key, read_private, read_public
from edge.signature import accepted, signer


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    new_key(tmp_path / "keys" / "workshop.key")
    return tmp_path / "keys" / "workshop.key"


def test_signing_keeps_the_id_and_the_other_bytes(
    make_bundle: Callable[..., Path], tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bundle()
    before = read_bundle(path)
    assert main(["sign", str(path), "--key", str(key), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    signed = read_bundle(path)
    assert told == {"bundle": str(path), "id": before.id, "key": read_public(key.with_suffix(".pub"))}
    assert signed.archive(None) == before.archive(None)
    assert accepted(signed, tmp_path / "keys") == "signed by workshop"
    once = path.read_bytes()
    sign_bundle(path, read_private(key))
    assert path.read_bytes() == once


def test_another_key_takes_the_place_of_the_first(make_bundle: Callable[..., Path], tmp_path: Path, key: Path) -> None:
    path = make_bundle()
    sign_bundle(path, read_private(key))
    _, other = new_key(tmp_path / "other.key")
    assert signer(sign_bundle(path, read_private(tmp_path / "other.key"))) == other


def test_a_folder_is_signed_as_well(tiny: SimpleNamespace, tmp_path: Path, key: Path) -> None:
    folder = tiny.folder(tmp_path / "folder", tiny.files())
    sign_bundle(folder, read_private(key))
    assert accepted(read_bundle(folder), tmp_path / "keys") == "signed by workshop"
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith(".")) == []


def test_a_damaged_bundle_is_not_signed(
    make_bundle: Callable[..., Path], key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bundle()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert main(["sign", str(path), "--key", str(key)]) == 1
    assert "damaged" in capsys.readouterr().err
    assert path.read_bytes() == raw


def test_compile_looks_at_the_key_before_the_work(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key.chmod(0o644)
    assert main(["compile", str(tmp_path / "no parts"), "-o", str(tmp_path / "x.bundle"), "--sign", str(key)]) == 1
    assert "others may read it" in capsys.readouterr().err
