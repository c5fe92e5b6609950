"""NPY: a header of ASCII and the samples as they lie in memory. Nothing is unpickled, and no header is evaluated."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError
from edge.scans.grid import check_grid

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    rb"\{'descr': '([^']{1,40})', 'fortran_order': (True|False), 'shape': \((\d{1,9}(?:, \d{1,9})*),?\), \}\s*"
)
SAMPLES = {f"{order}{kind}" for order in "<>" for kind in ("f4", "f8", "u2")}


def decode_npy(data: bytes) -> NDArray[Any]:
    """Decode an array [H, W, 3] or [H, W] as `numpy.save` writes it: float32, float64 or uint16.

    Raises:
        FrameError: truncated, damaged, of another shape or sample type (objects among them), or too large.

    """
    wide = data[6:7] in (b"\x02", b"\x03")  # versions 2 and 3 have four bytes of length
    start = 12 if wide else 10
    end = start + int.from_bytes(data[8:start], "little")
    header = HEADER.fullmatch(data[start:end])
    if header is None:
        raise FrameError("damaged NPY: its header is not one of a plain array")
    kind, fortran, sizes = header[1].decode("ascii", "replace"), header[2] == b"True", header[3].split(b",")
    if kind not in SAMPLES:
        raise FrameError(f"NPY samples of type {kind!r}; float32, float64 or uint16 are read")
    shape = tuple(int(size) for size in sizes)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise FrameError(f"an NPY of shape {shape}; [H, W, 3] (x, y, z) or [H, W] (depth) is read")
    check_grid(*shape[:2])
    if len(data) - end != math.prod(shape) * np.dtype(kind).itemsize:
        raise FrameError(f"truncated or damaged NPY: {len(data) - end} bytes are no array of shape {shape}")
    return np.frombuffer(data, kind, offset=end).reshape(shape, order="F" if fortran else "C")
