"""Whose bundles a box accepts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.bundle import Bundle, read_bundle
from edge.errors import BundleError
from edge.keys import Private, new_key, read_private
from edge.signature import SignatureError, accepted, sign, signer


@pytest.fixture
def private(tmp_path: Path) -> Private:
    (tmp_path / "keys").mkdir()
    new_key(tmp_path / "keys" / "workshop.key")
    return read_private(tmp_path / "keys" / "workshop.key")


def bundle_of(path: Path, tiny: SimpleNamespace, files: dict[str, bytes]) -> Bundle:
    return read_bundle(tiny.archive(path, files))


def signed(tmp_path: Path, tiny: SimpleNamespace, private: Private) -> dict[str, bytes]:
    files: dict[str, bytes] = tiny.files()
    identity = bundle_of(tmp_path / "unsigned.bundle", tiny, files).id
    return files | {"signature": sign(identity, private)}


def test_a_listed_key_is_accepted_by_its_name(tmp_path: Path, tiny: SimpleNamespace, private: Private) -> None:
    bundle = bundle_of(tmp_path / "b.bundle", tiny, signed(tmp_path, tiny, private))
    assert accepted(bundle, tmp_path / "keys") == "signed by workshop"
    assert bundle.id == read_bundle(tmp_path / "unsigned.bundle").id


def test_a_flipped_bit_of_any_file_is_refused(tmp_path: Path, tiny: SimpleNamespace, private: Private) -> None:
    files = signed(tmp_path, tiny, private)
    path = tmp_path / "b.bundle"
    for name, data in files.items():
        ends = len(data) if name == "signature" else 1  # every byte of the signature, three of each other file
        for at in {*range(ends), len(data) // 2, len(data) - 1}:
            if name == "manifest.sha256" and at >= 64:
                continue  # the line's end
            for bit in (0x01, 0x20):
                damaged = bytearray(data)
                damaged[at] ^= bit
                with pytest.raises(BundleError, match=r"b\.bundle"):
                    accepted(
                        bundle_of(path, tiny, files | {name: bytes(damaged)}), tmp_path / "keys", allow_unsigned=True
                    )


@pytest.mark.parametrize("change", [b"", b"64 bytes", b"ed25519 " + b"12" * 32 + b" " + b"34" * 64 + b"\n"])
def test_what_is_no_signature_is_refused_even_where_unsigned_is_allowed(
    tmp_path: Path, tiny: SimpleNamespace, private: Private, change: bytes
) -> None:
    bundle = bundle_of(tmp_path / "b.bundle", tiny, signed(tmp_path, tiny, private) | {"signature": change})
    with pytest.raises(SignatureError, match="its signature is damaged"):
        accepted(bundle, tmp_path / "keys", allow_unsigned=True)


@pytest.mark.parametrize("tail", [b"\n", b" ", b"\0"])
def test_there_is_one_way_to_write_a_signature(
    tmp_path: Path, tiny: SimpleNamespace, private: Private, tail: bytes
) -> None:
    files = signed(tmp_path, tiny, private)
    for other in (files["signature"] + tail, files["signature"].upper(), files["signature"].rstrip()):
        with pytest.raises(SignatureError, match="damaged or of another kind"):
            signer(bundle_of(tmp_path / "b.bundle", tiny, files | {"signature": other}))


def test_a_signature_of_another_bundle_is_refused(tmp_path: Path, tiny: SimpleNamespace, private: Private) -> None:
    other = signed(tmp_path, tiny, private)["signature"]
    bundle = bundle_of(tmp_path / "b.bundle", tiny, tiny.files(threshold=0.9) | {"signature": other})
    with pytest.raises(SignatureError, match="made for another bundle"):
        accepted(bundle, tmp_path / "keys")


def test_an_unknown_key_is_refused_with_what_is_known(tmp_path: Path, tiny: SimpleNamespace, private: Private) -> None:
    new_key(tmp_path / "stranger.key")
    files = signed(tmp_path, tiny, read_private(tmp_path / "stranger.key"))
    bundle = bundle_of(tmp_path / "b.bundle", tiny, files)
    (tmp_path / "keys" / "broken.pub").write_bytes(b"")
    for allow in (False, True):
        with pytest.raises(SignatureError) as refused:
            accepted(bundle, tmp_path / "keys", allow_unsigned=allow)
        assert f"signed by key {(signer(bundle) or '')[:16]}, which this box does not list" in str(refused.value)
        assert "has: workshop (" in str(refused.value)
        assert "broken.pub: empty" in str(refused.value)
    with pytest.raises(SignatureError, match="has: none"):
        accepted(bundle, tmp_path / "nowhere")
    (tmp_path / "keys" / "stranger.pub").write_bytes((tmp_path / "stranger.pub").read_bytes())
    assert accepted(bundle, tmp_path / "keys") == "signed by stranger"


def test_a_key_folder_that_everyone_may_write_to_accepts_nobody(
    tmp_path: Path, tiny: SimpleNamespace, private: Private
) -> None:
    bundle = bundle_of(tmp_path / "b.bundle", tiny, signed(tmp_path, tiny, private))
    (tmp_path / "keys").chmod(0o777)
    with pytest.raises(SignatureError, match="everyone may add keys"):
        accepted(bundle, tmp_path / "keys")


def test_unsigned_needs_the_setting(tmp_path: Path, tiny: SimpleNamespace) -> None:
    bundle = bundle_of(tmp_path / "b.bundle", tiny, tiny.files())
    assert accepted(bundle, tmp_path, allow_unsigned=True) == "unsigned"
    with pytest.raises(SignatureError, match=r"unsigned\. Sign it with `beltline sign`, or set allow_unsigned = true"):
        accepted(bundle, tmp_path)
