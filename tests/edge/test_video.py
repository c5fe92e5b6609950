"""A video file: a part sees the frame of its number or nothing, whatever happened to the file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import data

from edge.settings import VideoSource
from edge.sources import CaptureError, PictureSource, SourceError, open_source
from edge.sources.avi import AviError, find_frames
from firmware_bridge.parts import PartId, Reason, Trigger

FRAMES = 30
PHOTOGRAPH = cv2.resize(data.astronaut(), (160, 120), interpolation=cv2.INTER_AREA)


def numbered(number: int) -> NDArray[np.uint8]:
    """A photograph with its number in six bars at the top, RGB."""
    picture = np.roll(PHOTOGRAPH, number * 3, axis=1)
    for bit in range(6):
        picture[:20, bit * 24 : bit * 24 + 24] = 255 * (number >> bit & 1)
    return picture.astype(np.uint8)


def number_in(picture: NDArray[np.uint8] | NDArray[np.uint16]) -> int:
    return sum(int(picture[10, bit * 24 + 12].mean() > 128) << bit for bit in range(6))


def record(path: Path, code: str = "MJPG", backend: int = cv2.CAP_FFMPEG) -> Path:
    writer = cv2.VideoWriter(str(path), backend, cv2.VideoWriter.fourcc(*code), 25, (160, 120))
    assert writer.isOpened()
    for number in range(1, FRAMES + 1):
        writer.write(cv2.cvtColor(numbered(number), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return record(tmp_path_factory.mktemp("video") / "line.avi").read_bytes()


def opened(path: Path) -> PictureSource:
    return open_source(VideoSource(kind="video", path=path))


def seen(source: PictureSource) -> dict[int, int | Reason]:
    """What each part sees: the number in its picture, or the reason for none."""
    found = {part: seen_by(source, part) for part in range(1, FRAMES + 2)}
    source.close()
    return found


def seen_by(source: PictureSource, part: int) -> int | Reason:
    try:
        frame = source.frame(Trigger(PartId(7, part), 0, 0, 0, time.monotonic_ns()), 1)
    except CaptureError as error:
        return error.reason
    assert frame is not None
    return number_in(frame.image)


@pytest.mark.parametrize("backend", [cv2.CAP_FFMPEG, cv2.CAP_OPENCV_MJPEG])
def test_part_n_sees_frame_n_in_rgb(tmp_path: Path, backend: int) -> None:
    source = opened(record(tmp_path / "line.avi", backend=backend))
    assert (len(source), source.problem) == (FRAMES, "")  # type: ignore[arg-type]
    frame = source.frame(Trigger(PartId(7, 20), 0, 0, 0, 0), 1)
    assert frame is not None
    assert frame.name == "line.avi frame 20"
    assert np.abs(frame.image.astype(int) - numbered(20)).mean() < 6
    assert seen(source) == {part: part if part <= FRAMES else Reason.NO_FRAME for part in range(1, FRAMES + 2)}
    assert source.counters() == {"frames": FRAMES + 1, "unreadable": 0}


def test_a_damaged_frame_is_a_fault_and_the_others_keep_their_number(tmp_path: Path, recorded: bytes) -> None:
    path = tmp_path / "line.avi"
    path.write_bytes(recorded)
    offset, length = find_frames(path).found[13]
    path.write_bytes(recorded[: offset + length // 2] + bytes(400) + recorded[offset + length // 2 + 400 :])
    found = seen(opened(path))
    assert found.pop(14) is Reason.BAD_FRAME
    assert found == {part: part if part <= FRAMES else Reason.NO_FRAME for part in found}


def test_after_a_damaged_chunk_header_every_part_is_a_fault(
    tmp_path: Path, recorded: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "line.avi"
    path.write_bytes(recorded)
    offset, _ = find_frames(path).found[13]
    path.write_bytes(recorded[: offset - 1500] + bytes(3000) + recorded[offset + 1500 :])
    with caplog.at_level(logging.WARNING):
        source = opened(path)
    assert "only the first 13 are certain" in caplog.text
    assert "only the first 13 are certain" in source.problem
    found = seen(source)
    assert all(found[part] == part for part in range(1, 13))
    assert all(found[part] is Reason.BAD_FRAME for part in range(13, FRAMES + 1))
    assert found[FRAMES + 1] is Reason.NO_FRAME


def test_a_file_cut_short_gives_its_first_frames(tmp_path: Path, recorded: bytes) -> None:
    path = tmp_path / "line.avi"
    path.write_bytes(recorded[: len(recorded) * 6 // 10])
    found = seen(opened(path))
    assert [found[part] for part in range(1, 16)] == list(range(1, 16))
    assert {found[part] for part in range(20, FRAMES + 1)} == {Reason.BAD_FRAME}


DAMAGES: dict[str, Callable[[bytearray, int, int], None]] = {
    "zeroed": lambda raw, at, size: raw.__setitem__(slice(at, at + size), bytes(len(raw[at : at + size]))),
    "noise": lambda raw, at, size: raw.__setitem__(slice(at, at + size), np.random.default_rng(at).bytes(size)),
    "lost": lambda raw, at, size: raw.__delitem__(slice(at, at + size)),
    "doubled": lambda raw, at, size: raw.__setitem__(slice(at, at), raw[at : at + size]),
    "cut": lambda raw, at, size: raw.__delitem__(slice(at, None)),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(DAMAGES)), st.floats(0, 1), st.integers(1, 20_000))
def test_no_damage_gives_a_part_the_picture_of_another(
    tmp_path: Path, recorded: bytes, damage: str, place: float, size: int
) -> None:
    raw = bytearray(recorded)
    at = int(place**2 * (len(raw) - 1))  # more often near the headers
    DAMAGES[damage](raw, at, size)
    path = tmp_path / "damaged.avi"
    path.write_bytes(raw)
    try:
        source = opened(path)
    except SourceError:
        return
    for part, what in seen(source).items():
        assert what in (part, Reason.BAD_FRAME, Reason.NO_FRAME)


# Files put together by hand


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def stream(frames: int, what: bytes = b"vids", handler: bytes = b"MJPG") -> bytes:
    header = what + handler + bytes(24) + frames.to_bytes(4, "little") + bytes(20)
    return chunk(b"LIST", b"strl" + chunk(b"strh", header))


def avi(streams: bytes, *movies: bytes) -> bytes:
    first, *others = (chunk(b"LIST", b"movi" + movie) for movie in movies)
    whole = chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"hdrl" + streams) + chunk(b"JUNK", b"00dc" * 9) + first)
    return whole + b"".join(chunk(b"RIFF", b"AVIX" + other) for other in others)


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(numbered(number), cv2.COLOR_RGB2BGR))[1].tobytes()


def test_records_sound_indices_and_further_parts_of_large_files_are_walked(tmp_path: Path) -> None:
    path = tmp_path / "line.avi"
    sound, index = chunk(b"00wb", b"abc"), chunk(b"ix01", bytes(24))
    record_of_two = chunk(b"LIST", b"rec " + sound + chunk(b"01dc", jpeg(2)) + chunk(b"01db", jpeg(3)))
    first = index + chunk(b"01dc", jpeg(1)) + record_of_two
    path.write_bytes(
        avi(stream(9, b"auds", b"\0\0\0\0") + stream(5), first, chunk(b"01dc", jpeg(4)) + chunk(b"01dc", b""))
    )
    found = seen(opened(path))
    assert [found[part] for part in range(1, 7)] == [1, 2, 3, 4, Reason.BAD_FRAME, Reason.NO_FRAME]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"nothing" * 100, "not an AVI file"),
        (cv2.imencode(".png", PHOTOGRAPH)[1].tobytes(), "not an AVI file"),
        (b"", "not an AVI file"),
        (avi(stream(0), b""), "contains no frames"),
        (avi(stream(30), b""), "contains no frames"),
        (avi(b"", chunk(b"00dc", jpeg(1))), "contains no frames"),
        (avi(stream(1, handler=b"XVID"), chunk(b"00dc", jpeg(1))), "'XVID', not Motion JPEG"),
        (avi(stream(0), chunk(b"00dc", jpeg(1))), "states 0 frames, 1 are there"),
        (avi(stream(3), chunk(b"00dc", jpeg(1)) + chunk(b"00dc", jpeg(3))), "states 3 frames, 2 are there"),
        (avi(stream(2**31), chunk(b"00dc", jpeg(1)) + b"broken"), "states 2147483648 frames"),
    ],
)
def test_a_file_whose_frames_are_not_certain_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "v.avi"
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=message) as raised:
        opened(path)
    assert str(path) in str(raised.value)
    assert "ffmpeg" in str(raised.value)


@pytest.mark.parametrize("name", ["line.mp4", "line.mkv"])
def test_a_film_of_differences_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="not an AVI file"):
        opened(record(tmp_path / name, "mp4v"))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        opened(tmp_path / "nowhere.avi")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([b"", b"RIFF\x20\1\0\0AVI ", b"RIFF\x20\1\0\0AVI LIST\x10\1\0\0"]))
def test_noise_is_no_video(tmp_path: Path, noise: bytes, magic: bytes) -> None:
    path = tmp_path / "noise.avi"
    path.write_bytes(magic + noise)
    with pytest.raises(AviError):
        find_frames(path)


@pytest.mark.parametrize(("name", "code"), [("line.mp4", "mp4v"), ("line.avi", "XVID"), ("line.webm", "VP80")])
def test_a_bench_takes_any_video_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, code: str
) -> None:
    path = record(tmp_path / name, code)
    with pytest.raises(SourceError, match="ffmpeg"):
        opened(path)
    source = open_source(VideoSource(kind="video", path=path), bench=True)
    assert "will do for a bench" in caplog.text
    assert len(source) == FRAMES  # type: ignore[arg-type]
    frame = source.frame(Trigger(PartId(7, 1), 0, 0, 0, 0), 1)
    assert frame is not None
    assert np.abs(frame.image.astype(int) - numbered(1)).mean() < 12, "RGB"
    assert [seen_by(source, part) for part in range(2, FRAMES + 2)] == [*range(2, FRAMES + 1), Reason.BAD_FRAME]
    source.close()


def test_a_bench_prefers_what_is_certain(tmp_path: Path, recorded: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "line.avi"
    path.write_bytes(recorded)
    open_source(VideoSource(kind="video", path=path), bench=True).close()
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"no video", b"RIFF\x10\0\0\0AVI LIST"])
def test_what_is_no_video_is_refused_on_a_bench_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(SourceError, match="no video that OpenCV can read"):
        open_source(VideoSource(kind="video", path=tmp_path / "x.mp4"), bench=True)
