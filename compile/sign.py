"""`beltline sign`: put a signature into a bundle, which keeps its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from compile.bundle_writer import replacing
from edge.bundle import Bundle, read_bundle
from edge.console import console
from edge.keys import Private, name_of, read_private
from edge.signature import short, signer
from edge.signature import sign as signature_of


def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle to sign, an archive or a folder.")],
    key: Annotated[Path, typer.Option("--key", help="The private key, as `beltline keys new` makes it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Sign a bundle, in place of a signature that it may have. Its id stays."""
    signed = sign_bundle(bundle, read_private(key))
    name = signer(signed) or ""
    if as_json:
        console().out(json.dumps({"bundle": str(bundle), "id": signed.id, "key": name}))
    else:
        console().print(f"{bundle}: id {signed.id[:12]}, signed by key {short(name)}", markup=False)


def sign_bundle(path: Path, private: Private) -> Bundle:
    """Sign the bundle at `path`; the file is replaced at once, or left as it was.

    Raises:
        BundleError: it is no sound bundle.
        BundleWriteError: the disk.

    """
    bundle = read_bundle(path)
    signature = signature_of(bundle.id, private)
    place, data = (path / "signature", signature) if path.is_dir() else (path, bundle.archive(signature))
    with replacing(place, data) as unfinished:
        if not path.is_dir():
            assert signer(read_bundle(unfinished)) == name_of(private)
    return read_bundle(path)
