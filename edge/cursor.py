"""The publisher's memory: up to which row of which journal the broker has acknowledged everything.

One small JSON object `{"journal": identity, "id": row, "dropped": count, "check": crc32}` in a file beside the journal,
replaced by write, fsync, rename and fsync of the folder, so that a power cut leaves the old text or the new. Anything
that does not read back whole (truncated, flipped, of another journal) is as if it were not there: publishing starts
again at the journal's first row, and receivers know repeated parts by their id. Doubt repeats; it never skips.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from edge.durable import write_file


@dataclass(frozen=True, slots=True)
class Cursor:
    journal: str  # identity of the journal file
    id: int  # highest row such that it and all before it are acknowledged or dropped
    dropped: int = 0  # rows that were never published, in all


def read_cursor(file: Path) -> Cursor | None:
    """The cursor in `file`; None when there is none.

    Raises:
        ValueError: there is a file, and it holds no valid cursor.

    """
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(raw)
        check = fields.pop("check")
        cursor = Cursor(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not a cursor ({error})") from error
    sound = isinstance(cursor.journal, str) and type(cursor.id) is int and type(cursor.dropped) is int
    if not sound or cursor.id < 0 or cursor.dropped < 0 or check != _check(cursor):
        raise ValueError(f"{file} is damaged: its check value does not fit")
    return cursor


def write_cursor(file: Path, cursor: Cursor) -> None:
    """Replace `file` so that it survives a power cut. Raises OSError when the disk refuses."""
    text = json.dumps({"journal": cursor.journal, "id": cursor.id, "dropped": cursor.dropped, "check": _check(cursor)})
    write_file(file, text.encode("ascii"))


def _check(cursor: Cursor) -> int:
    return zlib.crc32(f"{cursor.journal} {cursor.id} {cursor.dropped}".encode("utf-8", "surrogatepass"))
