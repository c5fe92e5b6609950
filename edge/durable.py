"""Writing so that a power cut leaves the old or the new, never a half: beside the place, to the disk, then renamed.

What is not finished has the suffix `.new`; it is worth nothing, and the next writer of the same place replaces it.
"""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".new"


def write_file(file: Path, data: bytes) -> None:
    """Replace `file`. Raises OSError when the disk refuses."""
    fresh = _beside(file)
    with fresh.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    sync_folder(file.parent)


def write_link(link: Path, target: str) -> None:
    """Make `link` point to `target`. Raises OSError when the disk refuses."""
    fresh = _beside(link)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """See to it that what was renamed, made or removed in a folder stays so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(file: Path) -> Path:
    return file.with_name(file.name + UNFINISHED)
