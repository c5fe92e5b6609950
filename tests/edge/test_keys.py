"""Key files: what is written, and every file that is no key."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa

from edge.cli import main
from edge.keys import KeyFileError, listed_keys, name_of, new_key, read_private, read_public


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "workshop.key")
    return tmp_path / "workshop.key"


def secrets(key: Path) -> list[str]:
    """What must never be told: the base64 of the private key, and its bytes as hex."""
    private = read_private(key)
    raw = private.private_bytes_raw().hex()
    return [*key.read_text().splitlines()[1:-1], raw, raw[:16]]


def test_a_new_pair(tmp_path: Path, key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert read_public(tmp_path / "workshop.pub") == name_of(read_private(key))
    assert "PRIVATE" not in (tmp_path / "workshop.pub").read_text()


def test_openssl_reads_both(tmp_path: Path, key: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    for options in (["-in", key], ["-pubin", "-in", tmp_path / "workshop.pub"]):
        shown = subprocess.run(
            ["openssl", "pkey", "-noout", "-text", *options], capture_output=True, text=True, check=True
        )
        assert "ED25519" in shown.stdout


def test_a_key_is_not_overwritten_and_half_a_pair_is_not_left(tmp_path: Path, key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(KeyFileError, match=r"workshop\.key: is there already"):
        new_key(key)
    assert key.read_bytes() == before
    (tmp_path / "other.pub").touch()
    with pytest.raises(KeyFileError, match=r"other\.pub: is there already"):
        new_key(tmp_path / "other.key")
    assert not (tmp_path / "other.key").exists()


@pytest.mark.parametrize("name", ["x.pub", ".key", "a b.key"])
def test_a_name_that_a_key_cannot_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="no name for a private key"):
        new_key(tmp_path / name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file or directory"):
        new_key(tmp_path / "nowhere" / "x.key")


def private_pem(key: ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey, word: bytes = b"") -> bytes:
    lock = pem.BestAvailableEncryption(word) if word else pem.NoEncryption()
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, lock)


def public_pem(key: ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"", "empty"),
        (lambda data: data[:60], "truncated, damaged, or no key"),
        (lambda data: data.replace(b"MC4CAQ", b"MC4CAA"), "truncated, damaged, or no key"),
        (lambda data: b"\0" * 100_000, "truncated, damaged, or no key"),
        (lambda data: private_pem(rsa.generate_private_key(65537, 2048)), "not ed25519"),
        (lambda data: private_pem(ed448.Ed448PrivateKey.generate()), "not ed25519"),
        (lambda data: private_pem(ed25519.Ed25519PrivateKey.generate(), b"word"), "protected by a password"),
        (
            lambda data: public_pem(ed25519.Ed25519PrivateKey.generate()),
            "a public key, where the private one is needed",
        ),
    ],
)
def test_a_file_that_is_no_private_key(
    key: Path, tiny_bundle: Path, change: Callable[[bytes], bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = secrets(key)
    key.write_bytes(change(key.read_bytes()))
    before = tiny_bundle.read_bytes()
    assert main(["sign", str(tiny_bundle), "--key", str(key), "--json"]) == 1
    out, err = capsys.readouterr()
    assert says in err
    assert err.count("\n") == 1
    assert says in json.loads(out)["error"]
    assert not [secret for secret in hidden if secret in out + err]
    assert tiny_bundle.read_bytes() == before


@pytest.fixture
def tiny_bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_private_key_that_others_may_read_signs_nothing(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(KeyFileError, match=f"others may read it. Take the right away: chmod 600 {key}"):
        read_private(key)


def test_a_key_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="no file"):
        read_private(tmp_path)
    with pytest.raises(KeyFileError, match="No such file"):
        read_private(tmp_path / "x.key")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA", "truncated, damaged, or no key"),
        (public_pem(rsa.generate_private_key(65537, 2048)), "not ed25519"),
        (private_pem(ed25519.Ed25519PrivateKey.generate()), "a private key, which must never lie on a box"),
    ],
)
def test_a_key_folder_with_a_file_that_is_no_key(
    tmp_path: Path, key: Path, data: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.pub").write_bytes(data)
    (tmp_path / "ca.pem").write_bytes(b"the broker's")
    bad, good = listed_keys(tmp_path)
    assert (bad.name, bad.key, good.name, good.problem) == ("bad", "", "workshop", "")
    assert says in bad.problem
    assert main(["keys", "list", str(tmp_path), "--json"]) == 1
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["bad", "workshop"]


def test_a_key_or_a_folder_that_everyone_may_change_is_not_trusted(tmp_path: Path, key: Path) -> None:
    (tmp_path / "workshop.pub").chmod(0o666)
    assert "others may change it" in listed_keys(tmp_path)[0].problem
    (tmp_path / "workshop.pub").chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(KeyFileError, match="everyone may add keys"):
        listed_keys(tmp_path)
    assert listed_keys(tmp_path / "nowhere") == []


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "line.key"
    assert main(["keys", "new", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["key"] == read_public(Path(told["public"]))
    assert not [secret for secret in secrets(file) if secret in out + err]
    assert main(["keys", "list", str(tmp_path)]) == 0
    assert told["key"] in capsys.readouterr().out
    assert main(["keys", "new", str(file)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["keys", "fly"]) == 2
