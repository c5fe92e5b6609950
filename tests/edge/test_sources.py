"""The sources: which picture a part gets, and that every loss is an error with a reason and a count."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.frame import Frame
from edge.settings import BeltSource, CameraSource, FolderSource
from edge.sources import CaptureError, PictureSource, SourceError, open_source
from edge.sources.belt import parse
from edge.sources.camera import Camera, NoCameraError
from firmware_bridge.belt.camera import Camera as SimulatedCamera
from firmware_bridge.parts import PartId, Reason, Trigger


def trigger(part: int, at_ns: int | None = None) -> Trigger:
    return Trigger(PartId(7, part), 0, 0, 0, time.monotonic_ns() if at_ns is None else at_ns)


def take(source: PictureSource, wanted: Trigger, timeout_s: float = 5) -> Frame:
    source.expect(wanted)
    deadline = time.monotonic() + timeout_s
    while (frame := source.frame(wanted, 0.05)) is None:
        assert time.monotonic() < deadline, "neither a picture nor a reason"
    return frame


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def reason(source: PictureSource, wanted: Trigger) -> Reason:
    with pytest.raises(CaptureError) as raised:
        take(source, wanted)
    return raised.value.reason


# Folder; the video file has tests of its own


def test_part_n_sees_file_n_and_no_picture_is_seen_twice(make_parts: Callable[..., Path]) -> None:
    folder = make_parts(100, 150, 200)
    (folder / "notes.txt").write_text("no picture")
    source = open_source(FolderSource(kind="folder", path=folder))
    for part, name in ((2, "001.png"), (1, "000.png"), (3, "002.png")):
        frame = take(source, trigger(part))
        assert (frame.name, frame.part_id) == (name, PartId(7, part))
    assert source.problem == ""
    for part in (4, 5, 2**32 - 1, 0):
        assert reason(source, trigger(part)) is Reason.NO_FRAME
    assert "3 pictures, none for part" in source.problem
    assert source.counters()["frames"] == 3


def test_a_damaged_or_vanished_file_is_a_bad_frame(make_parts: Callable[..., Path]) -> None:
    folder = make_parts(100, 150)
    source = open_source(FolderSource(kind="folder", path=folder))
    (folder / "000.png").write_bytes(b"no picture")
    (folder / "001.png").unlink()
    for part in (1, 2):
        assert reason(source, trigger(part)) is Reason.BAD_FRAME
    assert source.counters() == {"frames": 0, "unreadable": 2}


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures"):
        open_source(FolderSource(kind="folder", path=tmp_path))
    with pytest.raises(SourceError, match="no such folder"):
        open_source(FolderSource(kind="folder", path=tmp_path / "nowhere"))


# Camera: the device is a script, as no V4L2 device can be made here; everything behind `read` is real


class ScriptedCapture:
    """Gives a picture each time the test exposes one; `unplug` ends it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exposed: list[tuple[int, int]] = []
        self._plugged = True
        self._stamp_ns = 0

    def expose(self, level: int, stamp_ns: int | None = None) -> int:
        stamp_ns = time.monotonic_ns() if stamp_ns is None else stamp_ns
        with self._changed:
            self._exposed.append((level, stamp_ns))
            self._changed.notify_all()
        return stamp_ns

    def unplug(self) -> None:
        with self._changed:
            self._plugged = False
            self._changed.notify_all()

    def read(self) -> tuple[bool, Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._exposed or not self._plugged, 0.2)
            if not self._exposed:
                return (True, np.zeros((4, 4, 3), np.uint8)) if self._plugged else (False, None)
            level, self._stamp_ns = self._exposed.pop(0)
            return True, np.full((4, 4, 3), (1, 2, level), np.uint8)

    def get(self, key: int) -> float:
        assert key == cv2.CAP_PROP_POS_MSEC
        stamp_ns, self._stamp_ns = self._stamp_ns, 0
        return stamp_ns / 1e6

    def release(self) -> None: ...


class Device:
    """What the station opens: a fresh capture each time, nothing while it is away."""

    def __init__(self) -> None:
        self.captures: list[ScriptedCapture] = []
        self.there = True

    def __call__(self, settings: CameraSource) -> ScriptedCapture:
        if not self.there:
            raise NoCameraError("unplugged")
        self.captures.append(ScriptedCapture())
        return self.captures[-1]

    def capture(self, number: int = 1) -> ScriptedCapture:
        deadline = time.monotonic() + 5
        while len(self.captures) < number:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self.captures[number - 1]


def camera(device: Device, **options: Any) -> Camera:
    settings = {"kind": "camera", "device": "/dev/video9", "window_ms": 50, "transfer_ms": 100, **options}
    source = Camera(CameraSource.model_validate(settings), device)
    source.open()
    return source


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    for capture in device.captures:
        capture.unplug()


def test_the_picture_in_the_window_is_the_parts_own_in_rgb(device: Device) -> None:
    source = camera(device)
    capture = device.capture()
    capture.expose(10)
    time.sleep(0.01)
    wanted = trigger(1)
    time.sleep(0.002)
    stamp_ns = capture.expose(20)
    frame = take(source, wanted)
    assert frame.image[0, 0].tolist() == [20, 2, 1]
    assert abs(frame.captured_ns - stamp_ns) < 2000
    source.close()


def test_exposure_and_readout_are_taken_off_the_time_stamp(device: Device) -> None:
    source = camera(device, exposure_ms=4, readout_ms=16)
    stamp_ns = device.capture().expose(20)
    assert abs(take(source, trigger(1, stamp_ns - 30_000_000)).captured_ns - (stamp_ns - 20_000_000)) < 2000
    source.close()


def test_no_picture_and_two_pictures_are_faults(device: Device) -> None:
    source = camera(device, triggered=True)
    capture = device.capture()
    assert reason(source, trigger(1)) is Reason.NO_FRAME
    wanted = trigger(2)
    for level in (10, 20):
        time.sleep(0.002)
        capture.expose(level)
    assert reason(source, wanted) is Reason.AMBIGUOUS_FRAME
    source.close()


def test_a_picture_between_two_parts_is_for_neither(device: Device) -> None:
    source = camera(device)
    first, second = trigger(1), trigger(2)
    source.expect(second)
    time.sleep(0.002)
    device.capture().expose(10)
    assert reason(source, first) is Reason.AMBIGUOUS_FRAME
    with pytest.raises(CaptureError) as raised:
        source.frame(second, 1)
    assert raised.value.reason is Reason.AMBIGUOUS_FRAME
    source.close()


def test_an_unplugged_camera_comes_back_and_its_losses_are_counted_and_said_once(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge.sources")
    source = camera(device)
    device.there = False
    device.capture().unplug()
    assert reason(source, trigger(1)) is Reason.NO_FRAME
    wait_until(lambda: source.counters().get("open_failed", 0) >= 2)
    assert source.problem == "camera /dev/video9: unplugged"
    device.there = True
    start = time.monotonic()
    capture = device.capture(2)
    assert time.monotonic() - start < 2
    wanted = trigger(2)
    time.sleep(0.002)
    capture.expose(30)
    assert take(source, wanted).image[0, 0, 0] == 30
    counters = source.counters()
    assert counters["disconnected"] == 1
    assert counters["opened"] == 2
    assert source.problem == ""
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "/dev/video9: gives no picture" in caplog.messages[0]
    source.close()


@pytest.mark.parametrize("offset_s", [-3600, -2, 5])
def test_a_driver_with_another_clock_gives_no_picture(device: Device, offset_s: int) -> None:
    source = camera(device)
    wanted = trigger(1)
    time.sleep(0.002)
    device.capture().expose(10, time.monotonic_ns() + offset_s * 1_000_000_000)
    assert reason(source, wanted) is Reason.NO_FRAME
    assert source.counters()["bad_timestamp"] >= 1
    source.close()


def test_a_driver_that_always_stamps_otherwise_is_said_once(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    source = camera(device)
    for _ in range(30):
        device.capture().expose(10, time.monotonic_ns() - 3600 * 1_000_000_000)
    wait_until(lambda: source.counters().get("bad_timestamp", 0) >= 30)
    assert len(caplog.messages) == 1
    assert "time stamps lie 3600." in source.problem
    source.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "No such file"), ("file", "no V4L2 camera"), ("/dev/null", "no V4L2 camera")],
)
def test_a_device_that_is_no_camera_is_tried_again_and_said_once(
    tmp_path: Path, name: str, message: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    source = open_source(CameraSource(kind="camera", device=tmp_path / name, window_ms=5))
    wait_until(lambda: source.counters().get("open_failed", 0) >= 3)
    source.close()
    [said] = caplog.messages
    assert said == source.problem
    assert name in said
    assert message in said
    assert "beltline doctor" in said
    assert capfd.readouterr().err == ""


def test_opencv_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert not cv2.VideoCapture("/dev/null", cv2.CAP_V4L2).isOpened()
    assert capfd.readouterr().err == ""


# Belt, with the simulator's own camera


@pytest.fixture
def belt(tmp_path: Path) -> Iterator[tuple[SimulatedCamera, PictureSource]]:
    simulated = SimulatedCamera(tmp_path / "camera")
    source = open_source(BeltSource(kind="belt", socket=tmp_path / "camera", timeout_ms=300))
    yield simulated, source
    source.close()
    simulated.close()


def expose(simulated: SimulatedCamera, part: int, picture: Path | str) -> None:
    deadline = time.monotonic() + 5
    while not simulated.expose(7, part, time.monotonic_ns(), str(picture)):
        assert time.monotonic() < deadline, "nobody takes the picture"
        time.sleep(0.01)


def test_the_belt_names_the_part(belt: tuple[SimulatedCamera, PictureSource], make_parts: Callable[..., Path]) -> None:
    simulated, source = belt
    folder = make_parts(100, 200)
    expose(simulated, 2, folder / "001.png")
    expose(simulated, 1, folder / "000.png")
    assert take(source, trigger(1)).name == "000.png"
    assert take(source, trigger(2)).name == "001.png"
    assert reason(source, trigger(3)) is Reason.NO_FRAME


def test_two_pictures_of_one_part_and_unreadable_ones_are_faults(
    belt: tuple[SimulatedCamera, PictureSource], make_parts: Callable[..., Path], tmp_path: Path
) -> None:
    simulated, source = belt
    picture = make_parts(100) / "000.png"
    for _ in range(2):
        expose(simulated, 1, picture)
    expose(simulated, 2, tmp_path / "nowhere.png")
    expose(simulated, 3, picture)
    take(source, trigger(3))  # packets keep their order: the others have come
    assert reason(source, trigger(1)) is Reason.AMBIGUOUS_FRAME
    assert reason(source, trigger(2)) is Reason.BAD_FRAME
    assert source.counters()["unreadable"] == 1


def test_a_belt_that_starts_again_is_found_again_and_said_once(
    tmp_path: Path, make_parts: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge.sources")
    picture = make_parts(100) / "000.png"
    simulated = SimulatedCamera(tmp_path / "camera")
    source = open_source(BeltSource(kind="belt", socket=tmp_path / "camera", timeout_ms=300))
    expose(simulated, 1, picture)
    simulated.close()
    (tmp_path / "camera").unlink(missing_ok=True)
    wait_until(lambda: source.counters().get("open_failed", 0) >= 2)
    assert "Start the simulator" in source.problem
    simulated = SimulatedCamera(tmp_path / "camera")
    expose(simulated, 2, picture)
    assert take(source, trigger(2)).part_id == PartId(7, 2)
    assert source.counters()["disconnected"] == 1
    assert source.problem == ""
    assert [record.levelname for record in caplog.records][-2:] == ["WARNING", "INFO"]
    assert len(caplog.records) <= 4  # the first connection may have been refused too
    source.close()
    simulated.close()


@given(st.binary(max_size=100) | st.text().map(str.encode))
def test_noise_is_no_exposure(noise: bytes) -> None:
    assert parse(noise) is None


@pytest.mark.parametrize(
    "packet",
    [
        b'{"epoch": 1, "part": 1, "captured_ns": 1}',
        b'{"epoch": "1", "part": 1, "captured_ns": 1, "picture": "x"}',
        b'{"epoch": 1, "part": true, "captured_ns": 1, "picture": "x"}',
        b'{"epoch": 1, "part": 1, "captured_ns": 1.5, "picture": "x"}',
        b'{"epoch": 1, "part": 1, "captured_ns": 1, "picture": 7}',
        b'{"epoch": 1, "part": 1, "captured_ns": 1, "picture": "a\\u0000b"}',
        b"[" * 30000,
    ],
)
def test_a_packet_of_another_kind_is_no_exposure(packet: bytes) -> None:
    assert parse(packet) is None
