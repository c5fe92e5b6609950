"""Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999): bytes without zeros, so that zero can delimit."""

from __future__ import annotations


def encode(raw: bytes) -> bytes:
    """Stuff `raw`; the result holds no zero byte and is longer by one byte, and one more per full run of 254."""
    out = bytearray()
    for block in raw.split(b"\0"):
        start = 0
        while len(block) - start >= 254:
            out.append(255)
            out += block[start : start + 254]
            start += 254
        out.append(len(block) - start + 1)
        out += block[start:]
    return bytes(out)


def decode(stuffed: bytes) -> bytes:
    """Undo `encode`. Raises ValueError when a code is zero or points past the end."""
    out = bytearray()
    at = 0
    while at < len(stuffed):
        code = stuffed[at]
        if code == 0 or at + code > len(stuffed):
            raise ValueError(f"code {code} at byte {at} of {len(stuffed)} is not COBS")
        block = stuffed[at + 1 : at + code]
        if 0 in block:
            raise ValueError(f"zero byte inside the block at byte {at}")
        out += block
        at += code
        if code != 255 and at < len(stuffed):
            out.append(0)
    return bytes(out)
