"""The front end and the decoder: channel order, depths, sizes, and frames that must not be judged."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bundle import Input, Source
from edge.front_end import FrameError, rgb
from edge.picture import decode, rgb_from_opencv


def spec(channels: int = 3, white: int = 255, span: tuple[int, int] = (1, 512), size: int = 32) -> Input:
    source = Source.model_validate({"height": span, "width": span, "channels": channels, "white": white})
    return Input(height=size, width=size, source=source)


def gradient(height: int, width: int, top: float = 255) -> Any:
    ramp = np.linspace(0, top, height * width).reshape(height, width)
    return np.stack([ramp, ramp[::-1], np.full_like(ramp, top / 2)], axis=2)


def test_a_red_file_is_red() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    picture = decode(cv2.imencode(".png", red)[1].tobytes())
    assert picture[0, 0].tolist() == [255, 0, 0]


def test_the_graph_sees_the_channels_in_the_order_of_the_frame() -> None:
    frame = gradient(32, 32).astype(np.uint8)
    np.testing.assert_array_equal(rgb(frame, spec()), frame)
    assert not np.array_equal(rgb(frame[..., ::-1], spec()), frame)


@pytest.mark.parametrize(("shape", "expected"), [((4, 5), (4, 5)), ((4, 5, 1), (4, 5)), ((4, 5, 4), (4, 5, 3))])
def test_decoded_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert rgb_from_opencv(np.zeros(shape, np.uint16)).shape == expected


def test_alpha_is_dropped_and_colours_keep_their_place() -> None:
    pixel = np.array([[[1, 2, 3, 4]]], np.uint8)
    assert rgb_from_opencv(pixel)[0, 0].tolist() == [3, 2, 1]


def test_grey_becomes_three_equal_channels() -> None:
    grey = gradient(64, 64)[..., 0].astype(np.uint8)
    for frame in (grey, grey[..., None]):
        result = rgb(frame, spec(channels=1))
        assert result.shape == (32, 32, 3)
        assert (result[..., 0] == result[..., 1]).all()
        assert (result[..., 0] == result[..., 2]).all()


@pytest.mark.parametrize("white", [1023, 4095, 16383, 65535])
def test_sixteen_bits_are_scaled_by_the_white_of_the_manifest(white: int) -> None:
    bright = gradient(32, 32, white).astype(np.uint16)
    dark = (bright // 4).astype(np.uint16)
    eight = rgb(bright, spec(white=white)).astype(int)
    assert abs(eight - np.round(bright * (255 / white))).max() <= 1
    assert rgb(dark, spec(white=white)).max() <= 64, "a dark part must look dark"


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    size=st.sampled_from([32, 64, 96]),
    channels=st.sampled_from([1, 3]),
    white=st.sampled_from([255, 1023, 65535]),
)
def test_any_size_gives_the_input_of_the_graph(height: int, width: int, size: int, channels: int, white: int) -> None:
    frame = np.zeros((height, width) if channels == 1 else (height, width, 3), np.uint8 if white == 255 else np.uint16)
    frame[: (height + 1) // 2] = white
    result = rgb(frame, spec(channels, white, size=size))
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


@pytest.mark.parametrize(("factor", "rounding"), [(2, 0.51), (3, 0.51), (4, 1.01), (5, 0.51), (6, 1.01), (8, 1.51)])
def test_an_integer_reduction_is_the_mean_of_its_pixels(factor: int, rounding: float) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32 * factor, 32 * factor, 3)).astype(np.uint8)
    means = frame.reshape(32, factor, 32, factor, 3).mean(axis=(1, 3))
    errors = rgb(frame, spec()).astype(float) - means
    assert np.abs(errors).max() <= rounding
    assert abs(errors.mean()) <= 0.5


@pytest.mark.parametrize("side", [63, 65, 90, 100, 127, 130])
def test_any_other_reduction_is_close_to_the_mean_of_the_area(side: int) -> None:
    frame = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8), (0, 0), 3)
    edges = np.linspace(0, side, 33)
    cover = np.clip(
        np.minimum(edges[1:, None], np.arange(1, side + 1)) - np.maximum(edges[:-1, None], np.arange(side)), 0, 1
    )
    cover /= cover.sum(1, keepdims=True)
    means = np.einsum("ih,hwc,jw->ijc", cover, frame.astype(float), cover)
    assert np.abs(rgb(frame, spec()).astype(float) - means).max() <= 2.5


def test_a_frame_that_is_a_view_is_read_right() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    np.testing.assert_array_equal(rgb(whole[:, ::2], spec()), rgb(whole[:, ::2].copy(), spec()))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), "blank"),
        (np.full((64, 64, 3), 255, np.uint8), "blank"),
        (np.zeros((64, 64), np.uint8), "1 channel"),
        (np.zeros((64, 64, 4), np.uint8), "4 channel"),
        (np.zeros((64, 64, 3), np.uint16), "uint16"),
        (np.zeros((64, 64, 3), np.float32), "float32"),
        (np.zeros((600, 64, 3), np.uint8), "64x600 pixels"),
        (np.zeros((0, 64, 3), np.uint8), "not a picture"),
        (np.zeros(64, np.uint8), "not a picture"),
        (np.zeros((1, 64, 64, 3), np.uint8), "not a picture"),
    ],
)
def test_a_frame_that_the_bundle_cannot_judge_is_named(frame: Any, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        rgb(frame, spec())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_no_truncated_file_is_half_a_picture(suffix: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    data = cv2.imencode(suffix, picture)[1].tobytes()
    assert decode(data).shape == (40, 40, 3)
    for cut in (0, 1, 10, len(data) // 2, len(data) - 20, len(data) - 3):
        with pytest.raises(FrameError):
            decode(data[:cut])


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"])
)
def test_noise_is_no_picture(noise: bytes, magic: bytes) -> None:
    with pytest.raises(FrameError):
        decode(magic + noise)
