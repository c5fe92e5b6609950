"""Encoded pictures become arrays: the one place where OpenCV's BGR order is turned into RGB.

OpenCV shows what is left of a damaged file as a picture, and the decoder's warnings go to stderr only. So a JPEG is
decoded by simplejpeg, where each warning of libjpeg-turbo is an error (the pixels are the same), and the checksums of a
PNG are tested first. What remains: a JPEG has no checksum, so damage of a few bytes, after which the decoder falls back
into step, gives no warning; BMP and TIFF show damaged samples as they are. Orientation tags are ignored: a part lies
as the camera saw it. An alpha channel that hides nothing is dropped; a file in which some pixel is not opaque is no
camera's picture but a cut-out, and what colours its hidden pixels hold is chance: it is refused.
"""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from edge.front_end import FrameError

Picture = NDArray[np.uint8] | NDArray[np.uint16]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MOST_JPEG_PIXELS = 2**27  # a damaged header may ask for 13 GB

# What OpenCV logs by itself names no file and no device; who calls it says the same with a name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


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


def opencv_decoded(data: bytes, damaged: str) -> NDArray[Any]:
    """Decode by OpenCV, with the samples and the order of channels as it has them.

    Raises:
        FrameError: it cannot; with the words `damaged` where OpenCV has none.

    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FrameError(f"not decodable ({error.err})") from error
    if image is None:
        raise FrameError(damaged)
    return image


def decode(data: bytes) -> Picture:
    """Decode a JPEG, PNG, BMP or TIFF file: HxW grey or HxWx3 RGB, uint8 or uint16.

    Raises:
        FrameError: empty, truncated, damaged, not a picture, transparent somewhere, or of another sample type.

    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if problem := _incomplete(data):
        raise FrameError(problem)
    image = opencv_decoded(data, "not a picture, or damaged")
    picture = rgb_from_opencv(image)
    if image.ndim == 3 and image.shape[2] == 4:
        hidden = float(np.mean(image[..., 3] < np.iinfo(picture.dtype).max))
        if hidden:
            raise FrameError(f"transparent in {hidden:.2%} of its pixels; save it without alpha, as the camera saw it")
    return picture


def _jpeg(data: bytes) -> Picture:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("CMYK", "YCCK"):
            raise FrameError(f"{colours} colours; a grey or RGB JPEG is read")
        if height * width > MOST_JPEG_PIXELS:
            raise FrameError(f"{width}x{height} pixels; a JPEG of at most {MOST_JPEG_PIXELS} pixels is read")
        picture: Picture = simplejpeg.decode_jpeg(data, "GRAY" if colours == "Gray" else "RGB")
    except FrameError:
        raise
    except ValueError as error:
        raise FrameError(f"damaged JPEG: {_jpeg_damage(str(error))}") from error
    return picture.reshape(height, width) if colours == "Gray" else picture


def _jpeg_damage(said: str) -> str:
    """What libjpeg-turbo's words mean."""
    if "premature end" in said.lower():
        return "its end, or a part of it, is missing"
    if "Header" in said:
        return "its header cannot be read"
    return "its data contradict themselves"


def _incomplete(data: bytes) -> str | None:
    if not data:
        return "empty file"
    if data.startswith(PNG_MAGIC):
        return _png_damage(data)
    if data.startswith(b"BM") and len(data) < int.from_bytes(data[2:6], "little"):
        return "truncated BMP: shorter than its header states"
    return None


def _png_damage(data: bytes) -> str | None:
    """Walk the chunks (length, type, content, CRC-32 of type and content) up to IEND."""
    start, kind = len(PNG_MAGIC), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 8 + length
        if end + 4 > len(data):
            return "truncated PNG: its end is missing"
        if zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"damaged PNG: the checksum of its part at byte {start} is wrong"
        start = end + 4
    return None
