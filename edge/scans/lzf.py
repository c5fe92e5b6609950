"""LZF, the compression of binary PCD files.

A control byte below 32 says how many bytes follow as they are, less one. Any other is a copy of what was written
before: three bits of length less two (7: another byte is added), then 13 bits of distance less one, big end first.
"""

from __future__ import annotations

from edge.front_end import FrameError


def decompress(data: bytes, size: int) -> bytes:
    """Unpack `data`, which must give exactly `size` bytes.

    Raises:
        FrameError: damaged.

    """
    out = bytearray()
    at = 0
    try:
        while at < len(data) and len(out) <= size:
            control = data[at]
            at += 1
            if control < 32:
                out += data[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += data[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - data[at] - 1
            at += 1
            if start < 0:
                raise FrameError("damaged PCD: its compressed points refer to what is not there")
            _copy(out, start, length + 2)
    except IndexError as error:
        raise FrameError("truncated PCD: its compressed points end early") from error
    if len(out) != size:
        raise FrameError(f"damaged PCD: its points unpack to {len(out)} bytes, not {size}")
    return bytes(out)


def _copy(out: bytearray, start: int, length: int) -> None:
    """Append what begins at `start`, which may run into itself."""
    piece = out[start : start + length]
    out += (piece * (length // len(piece) + 1))[:length]
