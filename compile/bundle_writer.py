"""Write a bundle: hash, pack, read it back as the box will, and only then give it its name.

The tar is deterministic: the same files give the same bytes (sorted names, no times, no owners). Bundle and report are
written beside their destinations and renamed when everything held, so that a full disk or a failed self-check leaves
neither, and older ones untouched.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.archive import pack
from edge.bundle import Bundle, Manifest, read_bundle
from edge.errors import BeltlineError
from edge.scorer import Scorer

SIZE_BUDGET = 20 * 1024 * 1024  # bytes


class BundleWriteError(BeltlineError):
    """The bundle was not written. The message says why and what to do."""


def to_json(value: object) -> bytes:
    """Serialise, with sorted keys and without NaN."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def to_npy(array: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return stream.getvalue()


def report_path(path: Path) -> Path:
    """Give where the report of the bundle at `path` lies."""
    return path.with_name(f"{path.stem}.report.html")


def check_writable(path: Path) -> None:
    """Find out before the work whether a bundle can be written at `path`, and its report beside it.

    Raises:
        BundleWriteError: no such folder, no permission, or something that is no bundle is in the way.

    """
    if path.is_dir():
        raise BundleWriteError(f"{path}: is a folder. Name a file, for example {path / 'product.bundle'}.")
    if path.exists() and not (path.is_file() and _looks_like_a_bundle(path)):
        raise BundleWriteError(f"{path}: exists and is no bundle, so it is not overwritten. Choose another -o.")
    report = report_path(path)
    if report.exists() and not report.is_file():
        raise BundleWriteError(f"{report}: is no file, but the report would lie there. Move it, or choose another -o.")
    if not path.parent.is_dir():
        raise BundleWriteError(f"{path}: the folder {path.parent} does not exist. Make it first.")
    for each in (path, report):
        probe = _unfinished(each)
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise BundleWriteError(f"{each}: cannot write there ({error.strerror}). Choose another -o.") from error


def write_bundle(
    path: Path,
    manifest: Manifest,
    files: dict[str, bytes],
    *,
    budget: int = SIZE_BUDGET,
    smaller: str = "Choose a smaller --size.",
) -> Bundle:
    """Write and self-check a bundle.

    Args:
        path: the `.bundle` to make.
        manifest: its `files` is filled in here.
        files: name -> content of everything but the manifest and its hash.
        budget: bytes, at most.
        smaller: for people: what to do about a bundle over the size budget.

    Raises:
        BundleWriteError: the disk, the size budget, or the self-check.
        BundleError, ScorerError: what was written does not hold.

    """
    listed = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    whole = manifest.model_copy(update={"files": listed})
    optional = ("class_input", "class_sources", "input", "scan", "tensors")
    unused = {name for name in optional if not getattr(whole, name)}  # older boxes refuse them
    head = to_json(whole.model_dump(mode="json", exclude=unused))
    everything = {
        "manifest.json": head,
        "manifest.sha256": hashlib.sha256(head).hexdigest().encode() + b"\n",
        **dict(sorted(files.items())),
    }
    packed = pack(everything)
    if len(packed) > budget:
        largest = max(everything, key=lambda name: len(everything[name]))
        raise BundleWriteError(
            f"{path}: {len(packed) / 2**20:.1f} MB, the budget is {budget / 2**20:.0f} MB; "
            f"the largest file is {largest}. {smaller}"
        )
    with replacing(path, packed) as unfinished:
        self_check(read_bundle(unfinished))
    return read_bundle(path)


@contextmanager
def replacing(path: Path, data: bytes) -> Iterator[Path]:
    """Give a file with `data` that becomes `path` once the block has ended well, and vanishes otherwise.

    Raises:
        BundleWriteError: the disk.

    """
    unfinished = _unfinished(path)
    try:
        try:
            with unfinished.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise BundleWriteError(
                f"{path}: not written ({error.strerror}). Free some space or choose another -o."
            ) from error
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.part"


def self_check(bundle: Bundle) -> None:
    """Load every graph as the box does, which scores the golden set.

    Raises:
        ScorerError: a graph does not give its golden answers.

    """
    for name, graph in bundle.manifest.graphs.items():
        if graph.runtime == "onnxruntime":
            Scorer(bundle, name)


def _looks_like_a_bundle(path: Path) -> bool:
    """Whether `path` is an archive that begins as bundles do, be it of another version or damaged further on."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            first = archive.next()
    except (OSError, tarfile.TarError):
        return False
    return first is not None and first.name == "manifest.json"
