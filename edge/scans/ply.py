"""PLY: a header of text that names elements and their properties, then the elements as text or packed bytes.

PLY itself knows no grid. Organised scans say theirs in two lines of the header, `obj_info num_cols W` and `obj_info
num_rows H` (or `comment` in place of `obj_info`), with one vertex for each place, row by row; the vertices must come
first. Anything else is an unorganised cloud. Colours, normals and faces are ignored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.scans.grid import MOST_COLUMNS, MOST_POINTS, check_grid, refuse_unorganised
from edge.scans.table import check_columns, rows_of_bytes, rows_of_text

MAGIC = b"ply"
LONGEST_HEADER = 1 << 16
FORMATS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}


def decode_ply(data: bytes) -> NDArray[np.float32]:
    """Decode an organised PLY: float32 [H, W, 3].

    Raises:
        FrameError: truncated, damaged, unorganised, without x, y and z, or too large.

    """
    end = data.find(b"end_header", 0, LONGEST_HEADER)
    start = data.find(b"\n", end, end + 12) + 1
    if end < 0 or not start:
        raise FrameError("truncated PLY: its header has no end")
    form, count, row, grid = _read_header(data[:end].decode("ascii", "replace").splitlines())
    check_columns("PLY", row)
    if count < 1:
        raise FrameError("an empty scan: a PLY of no points")
    if count > MOST_POINTS:
        raise FrameError(f"a PLY of {count} points; at most {MOST_POINTS} are read")
    width, height = grid.get("num_cols", 0), grid.get("num_rows", 0)
    if width * height != count:
        refuse_unorganised("PLY", count, "with `obj_info num_cols` and `obj_info num_rows` in the header")
    check_grid(height, width)
    rows = rows_of_text if form == "ascii" else rows_of_bytes
    return rows("PLY", data, start, row, count).reshape(height, width, 3)


def _read_header(lines: list[str]) -> tuple[str, int, np.dtype[np.void], dict[str, int]]:
    """Give the format, the number of vertices, the columns of each, and what is said about the grid."""
    form, element, count = "", "", -1
    columns: dict[str, str] = {}
    grid: dict[str, int] = {}
    for line in lines:
        words = line.split()
        if words[:1] == ["format"] and len(words) == 3:
            form = words[1]
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isdecimal():
            if not element and words[1] != "vertex":
                raise FrameError(f"a PLY that begins with the element {words[1]!r}; write its vertices first")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in TYPES or words[2] in columns or len(columns) == MOST_COLUMNS:
                raise FrameError(f"damaged PLY: {line[:60]!r} is no property of a point")
            columns[words[2]] = TYPES[words[1]]
        elif words[:1] in (["obj_info"], ["comment"]) and len(words) == 3 and words[2].isdecimal():
            grid[words[1]] = int(words[2])
    if form not in FORMATS or count < 0:
        raise FrameError("damaged PLY: its header names no known format, or no vertices")
    return form, count, np.dtype([(name, FORMATS[form] + kind) for name, kind in columns.items()]), grid
