"""Damaged files are no pictures: what the decoder only warns about is an error here, and the terminal stays clean."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from edge.front_end import FrameError
from edge.picture import decode

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:256, :256])
JPEG = {
    "colour": [cv2.IMWRITE_JPEG_QUALITY, 95],
    "full colour": [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
}


def jpeg(kind: str = "colour") -> bytes:
    return cv2.imencode(".jpg", PHOTOGRAPH[..., ::-1], JPEG[kind])[1].tobytes()


def png() -> bytes:
    return cv2.imencode(".png", PHOTOGRAPH[..., ::-1])[1].tobytes()


def refused(data: bytes) -> bool:
    try:
        decode(data)
    except FrameError:
        return True
    return False


@pytest.mark.parametrize("kind", JPEG)
def test_jpegs_have_the_pixels_that_opencv_sees(kind: str) -> None:
    expected = cv2.imdecode(np.frombuffer(jpeg(kind), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode(jpeg(kind)), expected)


def test_a_grey_jpeg_is_grey() -> None:
    encoded = cv2.imencode(".jpg", PHOTOGRAPH[..., 0])[1]
    np.testing.assert_array_equal(decode(encoded.tobytes()), cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("kind", JPEG)
def test_a_cut_jpeg_with_a_new_end_is_no_picture(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    whole = jpeg(kind)
    for part in np.linspace(0.1, 0.95, 18):
        with pytest.raises(FrameError, match="damaged JPEG"):
            decode(whole[: int(len(whole) * part)] + b"\xff\xd9")
    assert capfd.readouterr().err == "", "the decoder wrote past the logs"


def test_what_is_wrong_with_a_jpeg_is_said_in_plain_words() -> None:
    whole = jpeg()
    said = set()
    for spoilt in (whole[:-500], whole[:200], overwrite(whole, 2, 600), overwrite(whole, len(whole) // 2, 300)):
        with pytest.raises(FrameError) as error:
            decode(spoilt)
        said.add(str(error.value))
    assert said == {
        "damaged JPEG: its end, or a part of it, is missing",
        "damaged JPEG: its header cannot be read",
        "damaged JPEG: its data contradict themselves",
    }


def overwrite(data: bytes, at: int, count: int) -> bytes:
    return data[:at] + np.random.default_rng(0).bytes(count) + data[at + count :]


def test_a_picture_of_16_bits_that_hides_a_pixel_is_refused() -> None:
    picture = np.full((32, 32, 4), 65535, np.uint16)
    picture[:16, :, :3] = 300
    assert decode(cv2.imencode(".png", picture)[1].tobytes()).shape == (32, 32, 3)
    picture[3, 5, 3] = 65534
    with pytest.raises(FrameError, match=r"transparent in 0\.10% of its pixels"):
        decode(cv2.imencode(".png", picture)[1].tobytes())


def zeroed(data: bytearray, at: int) -> None:
    data[at : at + 400] = bytes(400)


def overwritten(data: bytearray, at: int) -> None:
    data[at : at + 400] = np.random.default_rng(at).bytes(400)


def lost(data: bytearray, at: int) -> None:
    del data[at : at + 400]


def doubled(data: bytearray, at: int) -> None:
    data[at:at] = data[at : at + 400]


@pytest.mark.parametrize("damage", [zeroed, overwritten, lost, doubled])
def test_damage_inside_the_scan_is_found_nearly_always(
    damage: Callable[[bytearray, int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = jpeg()
    places = np.linspace(whole.rfind(b"\xff\xda") + 20, len(whole) - 500, 50).astype(int)
    found = 0
    for at in places:
        damaged = bytearray(whole)
        damage(damaged, int(at))
        found += refused(bytes(damaged))
    assert found >= 45  # a JPEG has no checksum: a decoder that falls back into step has nothing to warn about
    assert capfd.readouterr().err == ""


def test_every_damage_of_a_png_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    whole = png()
    rng = np.random.default_rng(2)
    for at in (*range(len(whole) - 12, len(whole)), *rng.integers(0, len(whole), 200).tolist()):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        assert refused(bytes(damaged)), f"byte {at}"
    assert capfd.readouterr().err == ""


def test_what_follows_the_end_of_a_picture_does_no_harm() -> None:
    for whole in (jpeg(), png()):
        np.testing.assert_array_equal(decode(whole + bytes(1000)), decode(whole))


def test_a_header_of_giant_size_takes_no_memory() -> None:
    giant = bytearray(jpeg())
    start = giant.find(b"\xff\xc0")
    giant[start + 5 : start + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(FrameError, match="65500x65500"):
        decode(bytes(giant))


def test_ink_colours_are_refused() -> None:
    file = BytesIO()
    Image.fromarray(PHOTOGRAPH).convert("CMYK").save(file, "JPEG")
    with pytest.raises(FrameError, match="CMYK"):
        decode(file.getvalue())
