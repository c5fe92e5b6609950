"""The codec against independent references, against damage, and Python against C."""

from __future__ import annotations

import binascii
import ctypes
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_bridge.host_controller import build_library
from firmware_bridge.link import cobs, wire
from firmware_bridge.parts import Decision, Reason

FRAMES = st.builds(
    wire.Frame,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.one_of(st.binary(max_size=240), st.binary(min_size=238, max_size=240), st.integers(0, 240).map(bytes)),
)


def slow_cobs(raw: bytes) -> bytes:
    """Byte by byte, as the paper tells it."""
    out, block = bytearray(), bytearray()
    for byte in raw:
        if byte == 0:
            out += bytes([len(block) + 1]) + block
            block.clear()
        else:
            block.append(byte)
            if len(block) == 254:
                out += bytes([255]) + block
                block.clear()
    return bytes(out + bytes([len(block) + 1]) + block)


@given(st.one_of(st.binary(max_size=1000), st.lists(st.sampled_from([0, 1]), min_size=240, max_size=600).map(bytes)))
def test_cobs_agrees_with_the_slow_one_and_comes_back(raw: bytes) -> None:
    stuffed = cobs.encode(raw)
    assert stuffed == slow_cobs(raw)
    assert 0 not in stuffed
    assert cobs.decode(stuffed) == raw


@pytest.mark.parametrize("run", [253, 254, 255, 508, 509])
@pytest.mark.parametrize("tail", [b"", b"\0", b"x"])
def test_cobs_at_full_blocks(run: int, tail: bytes) -> None:
    raw = b"\xff" * run + tail
    assert cobs.encode(raw) == slow_cobs(raw)
    assert cobs.decode(cobs.encode(raw)) == raw


@pytest.mark.parametrize("stuffed", [b"\x00", b"\x03a", b"\x02a\x05b", b"\x03a\x00"])
def test_what_is_not_cobs_is_refused(stuffed: bytes) -> None:
    with pytest.raises(ValueError, match=r"COBS|zero byte"):
        cobs.decode(stuffed)


def test_known_frame() -> None:
    """Pinned bytes: the wire may not change by accident."""
    raw = bytes([1, 4, 0x78, 0x56, 0x34, 0x12, 9, 0, 3, 0, 0, 0, 1, 1])
    crc = binascii.crc32(raw)
    expected = slow_cobs(raw + struct.pack("<I", crc)) + b"\0"
    payload = wire.decision_payload(3, Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD)
    assert wire.encode(wire.Frame(wire.DECISION, 0x12345678, 9, payload)) == expected


def test_every_word_has_its_code() -> None:
    assert set(wire.REASON_CODES) == set(Reason)
    assert set(wire.DECISION_CODES) == set(Decision)
    assert len(wire.REASONS) == len(Reason)


@given(FRAMES)
def test_frame_comes_back(frame: wire.Frame) -> None:
    encoded = wire.encode(frame)
    assert encoded.count(0) == 1
    assert len(encoded) == 8 + len(frame.payload) + 4 + 2
    assert wire.decode(encoded[:-1]) == frame


@given(FRAMES, st.data())
def test_any_damaged_byte_is_noticed(frame: wire.Frame, data: st.DataObject) -> None:
    encoded = bytearray(wire.encode(frame))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    assert frame not in wire.Decoder().feed(bytes(encoded) + b"\0")


@given(st.lists(st.one_of(FRAMES, st.binary(max_size=40)), max_size=8), st.integers(1, 50))
def test_garbage_costs_only_what_it_touches(items: list[wire.Frame | bytes], chunk: int) -> None:
    stream = b"".join(wire.encode(i) if isinstance(i, wire.Frame) else i + b"\0" for i in items)
    decoder = wire.Decoder()
    found = [frame for at in range(0, len(stream), chunk) for frame in decoder.feed(stream[at : at + chunk])]
    assert found == [item for item in items if isinstance(item, wire.Frame)]


@given(st.integers(0x80, 0x88), st.binary(max_size=240))
def test_any_payload_is_a_message_or_a_wire_error(kind: int, payload: bytes) -> None:
    try:
        wire.parse(wire.Frame(kind, 1, 1, payload))
    except wire.WireError:
        return


def test_endless_noise_without_a_zero_takes_no_memory() -> None:
    decoder = wire.Decoder()
    for _ in range(1000):
        assert decoder.feed(b"x" * 1000) == []
    frame = wire.Frame(wire.HEARTBEAT, 1, 2)
    assert decoder.feed(b"\0" + wire.encode(frame)) == [frame]


class CFrame(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint8),
        ("epoch", ctypes.c_uint32),
        ("sequence", ctypes.c_uint16),
        ("length", ctypes.c_uint16),
        ("payload", ctypes.c_uint8 * 240),
    ]


class CWire:
    """The C codec behind the Python one's face."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.wire_crc32.restype = ctypes.c_uint32
        self.lib.wire_encode.restype = ctypes.c_size_t

    def crc(self, data: bytes) -> int:
        return int(self.lib.wire_crc32(data, ctypes.c_size_t(len(data))))

    def encode(self, frame: wire.Frame) -> bytes:
        payload = (ctypes.c_uint8 * 240)(*frame.payload)
        c_frame = CFrame(frame.type, frame.epoch, frame.sequence, len(frame.payload), payload)
        out = ctypes.create_string_buffer(254)
        length = self.lib.wire_encode(ctypes.byref(c_frame), out)
        return out.raw[:length]

    def decode(self, stream: bytes) -> list[wire.Frame]:
        decoder = ctypes.create_string_buffer(512)
        self.lib.wire_decoder_init(decoder)
        frames = []
        c_frame = CFrame()
        for byte in stream:
            if self.lib.wire_feed(decoder, ctypes.c_uint8(byte), ctypes.byref(c_frame)) == 1:
                payload = bytes(c_frame.payload[: c_frame.length])
                frames.append(wire.Frame(c_frame.type, c_frame.epoch, c_frame.sequence, payload))
        return frames


@pytest.fixture(scope="module")
def c_wire(tmp_path_factory: pytest.TempPathFactory) -> CWire:
    flags = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    return CWire(build_library(tmp_path_factory.mktemp("wire"), flags))


def test_crc_check_value(c_wire: CWire) -> None:
    assert c_wire.crc(b"123456789") == 0xCBF43926


@given(st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_c_crc_is_that_of_binascii(c_wire: CWire, data: bytes) -> None:
    assert c_wire.crc(data) == binascii.crc32(data)


@given(FRAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_c_and_python_write_the_same_bytes(c_wire: CWire, frame: wire.Frame) -> None:
    assert c_wire.encode(frame) == wire.encode(frame)


@given(st.lists(st.one_of(FRAMES, st.binary(max_size=300)), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_c_and_python_read_the_same_from_any_stream(c_wire: CWire, items: list[wire.Frame | bytes]) -> None:
    stream = b"".join(wire.encode(i) if isinstance(i, wire.Frame) else i for i in items) + b"\0"
    assert c_wire.decode(stream) == wire.Decoder().feed(stream)
