"""The files of a folder that may be data, and what was skipped and why."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class Skipped(NamedTuple):
    path: Path
    reason: str


def list_files(folder: Path, suffixes: Collection[str], *, deep: bool) -> tuple[list[Path], list[Skipped]]:
    """Give the files with one of these suffixes, sorted; hidden ones are passed over."""
    files, skipped = [], []
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if path.is_dir() or path.name.startswith("."):
            continue
        if not path.is_file():  # opening a pipe would wait for ever
            skipped.append(Skipped(path, "a broken link" if path.is_symlink() else "not a regular file"))
        elif path.suffix.lower() in suffixes:
            files.append(path)
        else:
            skipped.append(Skipped(path, f"not an image file ({path.suffix or 'no suffix'})"))
    return files, skipped
