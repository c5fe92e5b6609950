"""Front end `rgb`, version 1: a camera frame becomes the graph's input. The same function compiles and inspects.

Grey becomes three equal channels, 16-bit samples are scaled by the manifest's white (never by the picture's own
maximum: a dark part must look dark), and the picture is resized by pixel areas, which is free of aliasing. Large
reductions go by halves first, each the rounded mean of 2x2 pixels, three times as fast as one step.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.bundle import Input

BLANK_RANGE = 8  # of 255: less contrast than sensor noise under a lens cap


class FrameError(ValueError):
    """The frame is not one that this bundle can judge. The message says what was found and what was expected."""


def rgb(image: NDArray[np.uint8] | NDArray[np.uint16], spec: Input) -> NDArray[np.uint8]:
    """Turn a camera frame into the graph's input.

    Args:
        image: HxWx3 RGB or HxW (or HxWx1) grey, uint8 or uint16.
        spec: the manifest's `input`.

    Returns:
        uint8 [height, width, 3], contiguous.

    Raises:
        FrameError: wrong type, channel count or size, or a picture without content (lens cap, dead light).

    """
    _check(image, spec)
    size = (spec.width, spec.height)
    picture: NDArray[Any] = image
    while _halves_well(picture.shape[0], picture.shape[1], spec):
        half = picture.shape[1] // 2, picture.shape[0] // 2
        picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
    if picture.shape[:2] != (spec.height, spec.width):
        enlarging = picture.shape[0] < spec.height or picture.shape[1] < spec.width
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR if enlarging else cv2.INTER_AREA)
    if picture.dtype == np.uint16:
        picture = cv2.convertScaleAbs(picture, alpha=255.0 / spec.source.white)
    if picture.ndim == 2 or picture.shape[2] == 1:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    if int(picture.max()) - int(picture.min()) < BLANK_RANGE:
        raise FrameError(f"blank frame: every sample lies between {picture.min()} and {picture.max()} of 255")
    return np.ascontiguousarray(picture, dtype=np.uint8)


def _halves_well(height: int, width: int, spec: Input) -> bool:
    """Even sides of at least twice the wanted ones; odd whole factors are better taken in one exact step."""
    odd_factors = height % (2 * spec.height) == spec.height and width % (2 * spec.width) == spec.width
    even = height % 2 == 0 and width % 2 == 0
    return even and height >= 2 * spec.height and width >= 2 * spec.width and not odd_factors


def _check(image: NDArray[np.uint8] | NDArray[np.uint16], spec: Input) -> None:
    source = spec.source
    if image.ndim not in (2, 3) or image.size == 0:
        raise FrameError(f"shape {image.shape} is not a picture; expected HxW or HxWx3")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels != source.channels:
        raise FrameError(f"{channels} channel(s), the bundle was made from {source.channels}")
    expected = np.uint8 if source.white == 255 else np.uint16
    if image.dtype != expected:
        raise FrameError(f"samples of {image.dtype}, the bundle was made from {np.dtype(expected)}")
    check_size(image.shape[:2], source.height, source.width, "pixels")


def check_size(found: tuple[int, ...], heights: tuple[int, int], widths: tuple[int, int], what: str) -> None:
    """Compare a height and width with the bundle's ranges, both ends included.

    Raises:
        FrameError: it lies outside.

    """
    height, width = found
    if not (heights[0] <= height <= heights[1] and widths[0] <= width <= widths[1]):
        raise FrameError(f"{width}x{height} {what}, the bundle was made from {_span(*widths)}x{_span(*heights)}")


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}..{high}"
