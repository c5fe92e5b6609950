"""The points of PLY and PCD files: rows of named columns, as text or as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError


def check_columns(kind: str, row: np.dtype[Any]) -> None:
    """Refuse rows without x, y and z of one value each."""
    for name in "xyz":
        if name not in (row.names or ()) or row[name].shape:
            raise FrameError(
                f"a {kind} without one value of {name} for each point; it has {', '.join(row.names or ())}"
            )


def rows_of_bytes(kind: str, data: bytes, start: int, row: np.dtype[Any], count: int) -> NDArray[np.float32]:
    """Take x, y, z [count, 3] from packed rows."""
    if len(data) - start < count * row.itemsize:
        raise FrameError(
            f"truncated {kind}: {max(len(data) - start, 0)} bytes of points, its header promises "
            f"{count * row.itemsize} ({count} points)"
        )
    rows = np.frombuffer(data, row, count, start)
    return np.stack([rows[name].astype(np.float32) for name in "xyz"], axis=1)


def rows_of_text(kind: str, data: bytes, start: int, row: np.dtype[Any], count: int) -> NDArray[np.float32]:
    """Take x, y, z [count, 3] from numbers with blanks between."""
    columns = [name for name in row.names or () for _ in range(int(np.prod(row[name].shape)))]
    values = data[start:].split(maxsplit=count * len(columns))[: count * len(columns)]
    if len(values) < count * len(columns):
        raise FrameError(
            f"truncated {kind}: {len(values)} numbers, its header promises {count * len(columns)} ({count} points)"
        )
    try:
        found = [np.array(values[columns.index(name) :: len(columns)], np.float64) for name in "xyz"]
    except ValueError as error:
        raise FrameError(f"damaged {kind}: among its x, y and z is something that is no number") from error
    with np.errstate(over="ignore"):
        return np.stack(found, axis=1).astype(np.float32)
