"""Where the frames of a Motion JPEG AVI file lie.

Format: RIFF, little-endian. A chunk is an id of four letters, a length, that many bytes, and one more to an even place;
the chunks RIFF and LIST hold four letters and further chunks. `hdrl` describes the streams, one `strh` each; `movi`
holds the data, where `00dc` (or `00db`) is one frame of stream 0, a whole JPEG file. Files over 1 GB continue in
further RIFF chunks.

Failure modes: a damaged chunk header, after which a player finds some later frame and takes it for the next one; a file
cut short; a recording that was never ended. Strategy: no resynchronising. Frame n is certain only while every chunk
before it follows exactly on its predecessor and is of a kind that belongs there; from the first that is not, the rest
is lost. Where nothing was broken, the number of frames has to be the one that the header states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

LISTS = (b"RIFF", b"LIST")
STREAM_HEADER = 56  # bytes
DEEPEST = 8  # lists in lists


class AviError(Exception):
    """The file is no Motion JPEG AVI, or which frame is which cannot be told. The message is the reason."""


class Frames(NamedTuple):
    found: list[tuple[int, int]]  # (offset, length) of each frame's JPEG, bytes
    stated: int  # frames that the header tells of; more than were found in a file that is broken or cut
    broken_at: int | None  # byte, or None for a whole file


class _BrokenError(Exception):
    def __init__(self, at: int) -> None:
        self.at = at


class _Chunk(NamedTuple):
    kind: bytes
    start: int  # of the content
    length: int
    within: bytes  # the innermost list


def find_frames(path: Path) -> Frames:
    """Walk over the chunk headers of a file.

    Raises:
        AviError: not an AVI, not Motion JPEG, no frames, or another number of them than the header states.
        OSError: the file cannot be read.

    """
    streams: list[bytes] = []
    found: list[tuple[int, int]] = []
    broken_at: int | None = None
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"AVI ":
            raise AviError("not an AVI file")
        try:
            for chunk in _walk(file, 0, size, b"", 0):
                if chunk.kind == b"strh" and chunk.length >= STREAM_HEADER - 8:
                    file.seek(chunk.start)
                    streams.append(file.read(36))
                elif chunk.within in (b"movi", b"rec "):
                    if re.fullmatch(_frame_id(streams), chunk.kind):
                        found.append((chunk.start, chunk.length))
                    elif not _belongs(chunk.kind, len(streams)):
                        raise _BrokenError(chunk.start - 8)
        except _BrokenError as broken:
            broken_at = broken.at
    if not found:
        raise AviError("contains no frames")
    stated = int.from_bytes(streams[_video(streams)][32:36], "little")
    if (broken_at is None and len(found) != stated) or len(found) > stated or stated > size // 8:
        raise AviError(f"the header states {stated} frames, {len(found)} are there: which is which cannot be told")
    return Frames(found, stated, None if len(found) == stated else broken_at)


def _walk(file: BinaryIO, start: int, end: int, within: bytes, depth: int) -> Iterator[_Chunk]:
    """Each chunk that holds no others, in order, down to the first that cannot be one."""
    while start < end:
        file.seek(start)
        header = file.read(12)
        kind, length = header[:4], int.from_bytes(header[4:8], "little")
        content = start + 8
        whole = content + length <= end
        if kind in LISTS and len(header) == 12 and length >= 4 and depth < DEEPEST:  # its part that is there
            yield from _walk(file, content + 4, min(content + length, end), header[8:], depth + 1)
        elif whole and re.fullmatch(rb"[ -~]{4}", kind) and kind not in LISTS:
            yield _Chunk(kind, content, length, within)
        else:
            raise _BrokenError(start)
        if not whole:
            raise _BrokenError(end)
        start = content + length + length % 2


def _video(streams: list[bytes]) -> int:
    for number, header in enumerate(streams):
        if header[:4] == b"vids":
            if header[4:8].upper() != b"MJPG":
                raise AviError(f"its frames are {header[4:8].decode('ascii', 'replace')!r}, not Motion JPEG")
            return number
    raise AviError("contains no frames")


def _frame_id(streams: list[bytes]) -> bytes:
    return b"%02d(dc|db)" % _video(streams)


def _belongs(kind: bytes, streams: int) -> bool:
    """Other streams' data, the OpenDML index and filling."""
    other = re.fullmatch(rb"(?:ix)?([0-9]{2})(?:ix|wb|tx|pc|dc|db)?", kind)
    return kind == b"JUNK" or (other is not None and int(other[1]) < streams)
