"""Who signed a bundle, and whether this box accepts it.

A signature is the file `signature` of the bundle, one line: `ed25519 KEY SIGNATURE`, the public key (32 bytes) and the
signature (64 bytes) in lower-case hex. It is made over `beltline bundle ID`, where ID is the sha256 of the manifest,
which lists the sha256 of every other file. It stands outside the manifest, so signing changes no id.

A box accepts a bundle that is signed by a key of its key folder. One without a signature is accepted only where
`[bundle] allow_unsigned` says so; one whose signature is damaged, or by a key that is not listed, never is.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge.bundle import Bundle
from edge.errors import BundleError
from edge.keys import KeyFileError, Private, listed_keys, name_of

FORMAT = re.compile(rb"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")
KEY_FOLDER = Path("/etc/beltline/keys")


class SignatureError(BundleError):
    """The bundle is not signed by somebody whom this box trusts."""


def sign(identity: str, private: Private) -> bytes:
    """The content of the file `signature` for the bundle of this id."""
    return f"ed25519 {name_of(private)} {private.sign(_message(identity)).hex()}\n".encode()


def signer(bundle: Bundle) -> str | None:
    """The public key that signed a bundle, as hex, whoever that is; None for an unsigned one.

    Raises:
        SignatureError: what stands there is no signature of this bundle.

    """
    if bundle.signature is None:
        return None
    if not (parts := FORMAT.fullmatch(bundle.signature)):
        raise SignatureError(f"{bundle.path}: its signature is damaged or of another kind. Copy or sign it again.")
    key, signature = (bytes.fromhex(part.decode()) for part in parts.groups())
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _message(bundle.id))
    except InvalidSignature:
        raise SignatureError(
            f"{bundle.path}: its signature is damaged, or was made for another bundle. Copy or sign it again."
        ) from None
    return key.hex()


def accepted(bundle: Bundle, keys: Path, *, allow_unsigned: bool = False) -> str:
    """Why this box accepts a bundle, for people: "signed by workshop", or "unsigned".

    Args:
        bundle: verified by `read_bundle`, so that its id stands for every byte of it.
        keys: folder of the accepted public keys.
        allow_unsigned: accept a bundle without any signature.

    Raises:
        SignatureError: it does not accept it.

    """
    key = signer(bundle)
    if key is None:
        if allow_unsigned:
            return "unsigned"
        raise SignatureError(
            f"{bundle.path}: unsigned. Sign it with `beltline sign`, or set allow_unsigned = true in [bundle]."
        )
    try:
        listed = listed_keys(keys)
    except KeyFileError as error:
        raise SignatureError(f"{bundle.path}: signed by key {short(key)}, but no key can be trusted: {error}") from None
    for name, known, _ in listed:
        if known == key:
            return f"signed by {name}"
    usable = ", ".join(f"{name} ({short(known)})" for name, known, problem in listed if not problem) or "none"
    problems = "".join(f" Not usable: {problem}" for *_, problem in listed if problem)
    raise SignatureError(
        f"{bundle.path}: signed by key {short(key)}, which this box does not list. {keys} has: {usable}. "
        f"Copy the signer's .pub file there, as root.{problems}"
    )


def short(key: str) -> str:
    """Enough of a key for people to tell it from others."""
    return key[:16]


def _message(identity: str) -> bytes:
    return f"beltline bundle {identity}".encode()
