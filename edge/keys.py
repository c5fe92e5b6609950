"""Key files: a private ed25519 key that signs bundles, and the public keys whose bundles a box accepts.

Both are PEM as `openssl genpkey -algorithm ed25519` writes it: PKCS #8 without a password, and SubjectPublicKeyInfo.
The private one stays where bundles are made and may be read by its owner alone. The public ones lie in a box's key
folder, each as `NAME.pub`; other files there (the broker's certificates) are no keys to this module. Nothing of a
private key is ever part of a message.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge.errors import BeltlineError

LARGEST = 10_000  # bytes; an ed25519 key has some hundred
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Private = Ed25519PrivateKey


class KeyFileError(BeltlineError):
    """A key file cannot be made, read or trusted. The message names the file and the next step, never the key."""


class Listed(NamedTuple):
    """A `.pub` file of a key folder."""

    name: str  # of the file, without `.pub`
    key: str  # 32 bytes as hex; empty where the file holds no usable key
    problem: str = ""


def new_key(file: Path) -> tuple[Path, str]:
    """Make a pair: the private key at `file`, mode 0600, and the public one beside it with the suffix `.pub`.

    Returns:
        The public key's file, and the key itself as hex.

    Raises:
        KeyFileError: a file of that name is there, or the folder cannot be written.

    """
    public_file = file.with_suffix(".pub")
    if not NAME.fullmatch(file.name) or public_file == file:
        raise KeyFileError(f"{file}: no name for a private key. Take letters, digits, '.', '_', '-': workshop.key.")
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    public = private.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    made: list[Path] = []
    try:
        for place, data, mode in ((file, secret, 0o600), (public_file, public, 0o644)):
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(place)
            with open(descriptor, "wb") as stream:  # noqa: PTH123 - a descriptor
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
    except FileExistsError as error:
        _remove(made)
        raise KeyFileError(f"{error.filename}: is there already, and keys are not overwritten. Name another.") from None
    except OSError as error:
        _remove(made)
        raise KeyFileError(f"{file}: not written ({error.strerror}). Name a file in a folder of yours.") from None
    return public_file, name_of(private)


def name_of(private: Ed25519PrivateKey) -> str:
    """The public key of a pair as hex, which is what signatures call it."""
    return private.public_key().public_bytes_raw().hex()


def read_private(file: Path) -> Ed25519PrivateKey:
    """The private key in `file`.

    Raises:
        KeyFileError: it is missing, readable by others, damaged, encrypted, or of another kind.

    """
    data = _read(file, forbidden=0o077)
    try:
        key = pem.load_pem_private_key(data, None)
    except TypeError:
        raise KeyFileError(
            f"{file}: protected by a password, which beltline cannot ask for. Give a plain key."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{file}: {_what(data)}. Make one with `beltline keys new`.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{file}: a private key, but not ed25519. Make one with `beltline keys new`.")
    return key


def read_public(file: Path) -> str:
    """The public key in `file`, as hex.

    Raises:
        KeyFileError: it is missing, may be changed by everyone, damaged, or of another kind.

    """
    data = _read(file, forbidden=0o002)
    try:
        key = pem.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{file}: {_what(data, public=True)}. Copy the .pub file of the signer again.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{file}: a public key, but not ed25519. Copy the .pub file of the signer.")
    return key.public_bytes_raw().hex()


def listed_keys(folder: Path) -> list[Listed]:
    """Every `.pub` file of a key folder, by name; none where there is no such folder.

    Raises:
        KeyFileError: the folder cannot be read, or everyone may add a key.

    """
    try:
        if folder.stat().st_mode & 0o002:
            raise KeyFileError(f"{folder}: everyone may add keys. Take the right away: chmod o-w {folder}")
        files = sorted(file for file in folder.iterdir() if file.suffix == ".pub")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror}. Correct [bundle] keys, or its permissions.") from None
    found = []
    for file in files:
        try:
            found.append(Listed(file.stem, read_public(file)))
        except KeyFileError as error:  # noqa: PERF203 - some files
            found.append(Listed(file.stem, "", str(error)))
    return found


def _read(file: Path, *, forbidden: int) -> bytes:
    """The content of a regular file that others have no `forbidden` rights to."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{file}: no file. Give the path of a key.")
        if status.st_mode & forbidden:
            wrong, right = ("read", "600") if forbidden == 0o077 else ("change", "644")
            raise KeyFileError(f"{file}: others may {wrong} it. Take the right away: chmod {right} {file}")
        with file.open("rb") as stream:
            return stream.read(LARGEST)
    except OSError as error:
        raise KeyFileError(
            f"{file}: {error.strerror}. Give the path of a key, `beltline keys new` makes one."
        ) from None


def _what(data: bytes, *, public: bool = False) -> str:
    """For people: what a file that holds no key of the wanted kind looks like."""
    if not data:
        return "empty"
    if public and b"PRIVATE KEY" in data:
        return "a private key, which must never lie on a box"
    if not public and b"PUBLIC KEY" in data:
        return "a public key, where the private one is needed"
    return "truncated, damaged, or no key in PEM"


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink()
