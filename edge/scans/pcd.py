"""PCD of the Point Cloud Library: lines of text (FIELDS, SIZE, TYPE, COUNT, WIDTH, HEIGHT, POINTS, DATA), then points.

A HEIGHT of 1 is an unorganised cloud. DATA is `ascii`, `binary` (packed rows, little-endian) or `binary_compressed`:
two lengths, then LZF, in which each field stands as a block of its own.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.scans.grid import MOST_COLUMNS, MOST_POINTS, check_grid, refuse_unorganised
from edge.scans.lzf import decompress
from edge.scans.table import check_columns, rows_of_bytes, rows_of_text

MAGIC = (b"# .PCD", b"VERSION")
DATA = re.compile(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", re.MULTILINE)
LONGEST_HEADER = 1 << 16
TYPES = {(kind, str(size)) for kind in "IU" for size in (1, 2, 4, 8)} | {("F", "4"), ("F", "8")}


def decode_pcd(data: bytes) -> NDArray[np.float32]:
    """Decode an organised PCD: float32 [H, W, 3].

    Raises:
        FrameError: truncated, damaged, unorganised, without x, y and z, or too large.

    """
    found = DATA.search(data, 0, LONGEST_HEADER)
    if found is None:
        raise FrameError("truncated PCD: its header has no end")
    lines = [line.split() for line in data[: found.start()].decode("ascii", "replace").splitlines()]
    header = {words[0]: words[1:] for words in lines if words}
    width, height, row = _number(header, "WIDTH"), _number(header, "HEIGHT"), _row(header)
    check_columns("PCD", row)
    if height == 1 and width > 1:
        refuse_unorganised("PCD", width, "a HEIGHT above 1")
    check_grid(height, width)
    form, count = found[1].decode("ascii", "replace"), width * height
    if form == "ascii":
        points = rows_of_text("PCD", data, found.end(), row, count)
    elif form == "binary":
        points = rows_of_bytes("PCD", data, found.end(), row, count)
    elif form == "binary_compressed":
        points = _compressed(data[found.end() :], row, count)
    else:
        raise FrameError(f"damaged PCD: DATA {form[:20]!r}; ascii, binary and binary_compressed are read")
    return points.reshape(height, width, 3)


def _number(header: dict[str, list[str]], key: str) -> int:
    words = header.get(key, [])
    if len(words) != 1 or not words[0].isdecimal() or int(words[0]) > MOST_POINTS:
        raise FrameError(f"damaged PCD: {key} {' '.join(words)[:40]!r}; a number up to {MOST_POINTS} is expected")
    return int(words[0])


def _row(header: dict[str, list[str]]) -> np.dtype[np.void]:
    names, sizes, kinds = (header.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = header.get("COUNT", ["1"] * len(names))
    if not len(names) == len(sizes) == len(kinds) == len(counts) <= MOST_COLUMNS:
        raise FrameError("damaged PCD: FIELDS, SIZE, TYPE and COUNT are of different lengths")
    columns: list[tuple[str, str, tuple[int, ...]]] = []
    for place, (name, size, kind, count) in enumerate(zip(names, sizes, kinds, counts, strict=True)):
        if (kind, size) not in TYPES or not count.isdecimal() or not 0 < int(count) <= MOST_COLUMNS:
            raise FrameError(
                f"damaged PCD: field {name[:40]!r} has SIZE {size[:9]}, TYPE {kind[:9]}, COUNT {count[:9]}"
            )
        padding = name == "_" or name in names[:place]  # PCL fills up with fields that are all called `_`
        shape = () if count == "1" else (int(count),)
        columns.append((f" {place}" if padding else name, f"<{kind.lower()}{size}", shape))
    return np.dtype(columns)


def _compressed(data: bytes, row: np.dtype[np.void], count: int) -> NDArray[np.float32]:
    packed, size = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    if size != count * row.itemsize or len(data) < 8 + packed:
        raise FrameError(f"truncated or damaged PCD: {size} bytes unpacked, {count} points have {count * row.itemsize}")
    blocks = decompress(data[8 : 8 + packed], size)
    found, start = {}, 0
    for name in row.names or ():
        if name in ("x", "y", "z"):
            found[name] = np.frombuffer(blocks, row[name], count, start).astype(np.float32)
        start += count * row[name].itemsize
    return np.stack([found[name] for name in "xyz"], axis=1)
