"""TIFF: organised clouds [H, W, 3] as MVTec 3D-AD has them, and depth images [H, W].

OpenCV decodes, which knows every compression and predictor of libtiff and finds damage where the compression has a
checksum. But it shows only the first of several pages, mixes up separate planes, says nothing where there are two
channels, and allocates whatever a header asks for: so the first directory is read before. It is a list of entries (tag,
type, count, value or its place), 12 bytes each, or 20 in BigTIFF.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.picture import opencv_decoded
from edge.scans.grid import check_grid

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
WIDTH, HEIGHT, BITS, SAMPLES, PLANES, FORMAT = 256, 257, 258, 277, 284, 339
TYPES = {3: "H", 4: "I", 16: "Q"}  # SHORT, LONG, LONG8
UNSIGNED, FLOAT = 1, 3
SEPARATE = 2
MOST_ENTRIES = 1000


class _Directory(NamedTuple):
    entries: dict[int, int]  # tag -> first value
    more: bool  # another page follows


def decode_tiff(data: bytes) -> NDArray[Any]:
    """Decode a TIFF of one page: [H, W, 3] float32 or float64, or [H, W] float32, float64 or uint16.

    Raises:
        FrameError: truncated, damaged, of other channels or samples, of several pages or planes, or too large.

    """
    directory = _first_directory(data)
    get = directory.entries.get
    samples, bits, kind = get(SAMPLES, 1), get(BITS, 1), get(FORMAT, UNSIGNED)
    check_grid(get(HEIGHT, 0), get(WIDTH, 0))
    if samples not in (1, 3):
        raise FrameError(f"a TIFF of {samples} channels; three (x, y, z) or one (depth) are read")
    if samples == 3 and get(PLANES) == SEPARATE:
        raise FrameError("a TIFF with x, y and z in separate planes; write them interleaved (planar configuration 1)")
    if directory.more:
        raise FrameError("a TIFF of several pages; write x, y and z as the three channels of one page")
    if (kind, bits) not in {(FLOAT, 32), (FLOAT, 64)} and (samples, kind, bits) != (1, UNSIGNED, 16):
        raise FrameError(f"TIFF samples of {bits} bits, {_KINDS.get(kind, 'unknown')}; float of 32 or 64 bits is read")
    image = opencv_decoded(data, "truncated or damaged TIFF")
    return image[..., ::-1] if samples == 3 else image  # OpenCV takes three channels for RGB and reverses them


_KINDS = {UNSIGNED: "unsigned", 2: "signed", FLOAT: "float"}


def is_float(data: bytes) -> bool:
    """Tell whether the samples are floats, as those of scans are and those of pictures are not.

    Raises:
        FrameError: no TIFF, or a truncated one.

    """
    if not data.startswith(MAGIC):
        raise FrameError("no TIFF")
    return _first_directory(data).entries.get(FORMAT, UNSIGNED) == FLOAT


def _first_directory(data: bytes) -> _Directory:
    try:
        return _read_directory(data)
    except struct.error as error:
        raise FrameError("truncated TIFF: its directory is missing") from error


def _read_directory(data: bytes) -> _Directory:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\x00", b"\x00+")
    at = int(struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0])
    count = int(struct.unpack_from(order + ("Q" if big else "H"), data, at)[0])
    if count > MOST_ENTRIES:
        raise FrameError(f"damaged TIFF: a directory of {count} entries")
    at += 8 if big else 2
    size = 20 if big else 12
    entries = {}
    for start in range(at, at + count * size, size):
        tag, kind = struct.unpack_from(order + "HH", data, start)
        values = int(struct.unpack_from(order + ("Q" if big else "I"), data, start + 4)[0])
        if kind not in TYPES:
            continue
        place, room = (start + 12, 8) if big else (start + 8, 4)
        if values * struct.calcsize("=" + TYPES[kind]) > room:
            place = int(struct.unpack_from(order + ("Q" if big else "I"), data, place)[0])
        entries[tag] = int(struct.unpack_from(order + TYPES[kind], data, place)[0])
    following = int(struct.unpack_from(order + ("Q" if big else "I"), data, at + count * size)[0])
    return _Directory(entries, following != 0)
