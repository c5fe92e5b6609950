"""The files of a bundle, from its archive or its folder and back, without ever unpacking one to disk.

The archive is an uncompressed tar: for each file one header block of 512 bytes (name, size, kind, the sum of the
block's bytes), then its data filled up with zeros to whole blocks, at the end zeros up to a whole record of 10,240
bytes. It is read here, not by `tarfile`, which understands far more: links, devices, sparse files, extended headers
that nest until the stack is full. A bundle has none of these, so each is refused, as are a name that is there twice or
leads out of the bundle, more or larger files than any bundle has, and any byte between or behind the files. Packing is
deterministic: the same files give the same bytes (no times, no owners).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE

from edge.errors import BundleError

SIZE_LIMIT = 2 * 1024**3  # bytes; a larger archive is refused unread
MOST_FILES = 1000  # a bundle has a dozen
NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")  # a file, or one in a folder
SIZE = re.compile(rb"[0-7]{11}[\0 ]")
FILE, FOLDER = (b"0", b"\0"), b"5"


def read_files(path: Path) -> dict[str, bytes]:
    """Every file by its name, in the order of the archive. Nothing is verified but the archive itself.

    Raises:
        BundleError: it cannot be read, or is no archive as `pack` writes it.

    """
    try:
        files = _read_folder(path) if path.is_dir() else _unpack(path, _read_archive(path))
    except FileNotFoundError:
        raise BundleError(f"{path}: no such bundle. Give the path that `beltline compile -o` wrote.") from None
    except PermissionError:
        raise BundleError(f"{path}: this user may not read it. Copy it to where the user may.") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a readable bundle ({error}). Copy it again.") from error
    for name in files:
        _check_name(path, name)
    return files


def pack(files: Mapping[str, bytes]) -> bytes:
    """The archive of these files, in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _read_folder(path: Path) -> dict[str, bytes]:
    if not (path / "manifest.json").is_file():  # before a walk through whatever folder this is
        raise BundleError(f"{path}: manifest.json is missing: incomplete, or no bundle at all. Copy it again.")
    found = list(islice((file for file in path.rglob("*") if file.is_file() and not file.is_symlink()), MOST_FILES + 1))
    _check_count(path, len(found))
    _check_size(path, sum(file.stat().st_size for file in found))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(found)}


def _read_archive(path: Path) -> bytes:
    status = path.stat()
    if not path.is_file():  # a pipe or a device might never end
        raise BundleError(f"{path}: no file. Give the path that `beltline compile -o` wrote.")
    _check_size(path, status.st_size)
    return path.read_bytes()


def _unpack(path: Path, raw: bytes) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    end = members = 0
    while any(header := raw[end : end + BLOCKSIZE]):
        name, kind = _name(header), header[156:157]
        if not _whole(header):
            raise BundleError(f"{path}: damaged around {name!r}, or not written by beltline. Copy it again.")
        if kind not in (*FILE, FOLDER) or name in files:
            raise BundleError(f"{path}: {name!r} is a link, a device or there twice. Copy it again.")
        size, start = int(header[124:135], 8), end + BLOCKSIZE
        end = start + _up(size, BLOCKSIZE)
        if any(raw[start + size : end]) or (kind == FOLDER and size):
            raise BundleError(f"{path}: damaged around {name!r}, or not written by beltline. Copy it again.")
        if kind == FOLDER:
            _check_name(path, name.removesuffix("/"))
        else:
            files[name] = raw[start : start + size]
        _check_count(path, members := members + 1)
    if any(raw[end:]) or len(raw) != _up(end + 2 * BLOCKSIZE, RECORDSIZE):
        raise BundleError(f"{path}: truncated, or damaged after its last file. Copy it again.")
    return files


def _whole(header: bytes) -> bool:
    """One block whose sum is written as tar programs do: readers let some changed bytes of that field pass."""
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    return len(header) == BLOCKSIZE and header[148:156] == b"%06o\0 " % total and bool(SIZE.fullmatch(header[124:136]))


def _name(header: bytes) -> str:
    prefix, name = (field.partition(b"\0")[0].decode("latin-1") for field in (header[345:500], header[:100]))
    return f"{prefix}/{name}" if prefix else name


def _check_name(path: Path, name: str) -> None:
    if not NAME.fullmatch(name):
        raise BundleError(f"{path}: {name!r} is no name of a bundle's file, or leads out of it. Copy it again.")


def _check_count(path: Path, count: int) -> None:
    if count > MOST_FILES:
        raise BundleError(f"{path}: more than {MOST_FILES} files: not a beltline bundle. Correct the path.")


def _check_size(path: Path, size: int) -> None:
    if size > SIZE_LIMIT:
        raise BundleError(
            f"{path}: {size} bytes, more than the limit of {SIZE_LIMIT}: not a beltline bundle. Correct the path."
        )


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
