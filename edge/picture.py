"""Encoded pictures become arrays: the one place on the box where OpenCV's BGR order is turned into RGB.

OpenCV decodes a truncated file in silence as a half-grey picture, so the end markers are looked for first. Orientation
tags are ignored: a part lies as the camera saw it. Alpha is dropped.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError

Picture = NDArray[np.uint8] | NDArray[np.uint16]


def rgb_from_opencv(image: NDArray[Any]) -> Picture:
    """OpenCV's HxW, HxWx1, HxWx3 (BGR) or HxWx4 (BGRA), uint8 or uint16, as HxW grey or HxWx3 RGB."""
    if image.dtype not in (np.uint8, np.uint16):
        raise FrameError(f"samples of {image.dtype}; 8 or 16 bits are read")
    if image.ndim == 2 or image.shape[2] == 1:
        return image.reshape(image.shape[:2])
    if image.shape[2] not in (3, 4):
        raise FrameError(f"{image.shape[2]} channels; grey, colour, or colour with alpha are read")
    order = cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    picture: Picture = cv2.cvtColor(image, order)  # type: ignore[assignment]
    return picture


def decode(data: bytes) -> Picture:
    """Decode a JPEG, PNG, BMP or TIFF file: HxW grey or HxWx3 RGB, uint8 or uint16.

    Raises:
        FrameError: empty, truncated, damaged, not a picture, or of another sample type.

    """
    if problem := _incomplete(data):
        raise FrameError(problem)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FrameError(f"not decodable ({error.err})") from error
    if image is None:
        raise FrameError("not a picture, or damaged")
    return rgb_from_opencv(image)


def _incomplete(data: bytes) -> str | None:
    if not data:
        return "empty file"
    if data.startswith(b"\xff\xd8"):
        scan = data.rfind(b"\xff\xda")  # the last scan: a thumbnail inside has markers of its own before it
        return "truncated JPEG: its end is missing" if scan < 0 or data.find(b"\xff\xd9", scan) < 0 else None
    if data.startswith(b"\x89PNG"):
        return None if b"IEND" in data[-64:] else "truncated PNG: its end is missing"
    if data.startswith(b"BM") and len(data) < int.from_bytes(data[2:6], "little"):
        return "truncated BMP: shorter than its header states"
    return None
