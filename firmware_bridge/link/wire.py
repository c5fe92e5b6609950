r"""The serial wire between the box and the reject controller.

Format. One frame, before stuffing, little-endian::

    u8 version | u8 type | u32 epoch | u16 sequence | payload, 0..240 bytes | u32 CRC-32/ISO-HDLC of all before

then COBS, then one zero byte. The longest frame has 252 bytes, so stuffing always adds exactly one. The payloads are
the dataclasses below; the C side is `controller/reject_controller.h`.

Failure modes. Lost, doubled and flipped bytes; a reader that starts in the middle of a frame; a controller that was
restarted (another epoch) or a box that was (another nonce); frames that waited in a buffer since before.

Strategy.
- A decoder starts afresh at every zero, so damage costs one frame. Damaged frames are counted and dropped, never
  repaired.
- `epoch` names one life of the controller. Either side ignores, and counts, frames of another epoch; only HELLO and
  its answer cross epochs. The answer is valid only with the box's own nonce in it.
- `sequence` counts the box's requests and matches answers to retries. It orders nothing.
- A decision may be sent any number of times: it is idempotent by part id and the first one wins.
- A lost OUTCOME shows in STATUS (`settled_through`) and is fetched; the controller remembers the last 256.
- A lost TRIGGER is not repeated: the part gets no verdict, is thrown, and its outcome is heard or fetched.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from firmware_bridge.link import cobs
from firmware_bridge.parts import Decision, Reason

VERSION = 1
MAX_PAYLOAD = 240
_HEADER = struct.Struct("<BBIH")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IBBI")

DECISION_CODES = {Decision.ACCEPT: 1, Decision.REJECT: 2, Decision.FAULT: 3}
DECISIONS = {code: decision for decision, code in DECISION_CODES.items()}
REASON_CODES = {
    Reason.SCORE_BELOW_THRESHOLD: 1,
    Reason.SCORE_ABOVE_THRESHOLD: 2,
    Reason.LATE: 3,
    Reason.NO_VERDICT: 4,
    Reason.NO_FRAME: 5,
    Reason.AMBIGUOUS_FRAME: 6,
    Reason.BAD_FRAME: 7,
    Reason.BAD_SCORE: 8,
    Reason.SCORER_FAILED: 9,
    Reason.HEARTBEAT_LOST: 11,
    Reason.NOT_PERMITTED: 12,
    Reason.OVERRUN: 13,
    Reason.ENCODER: 14,
    Reason.OUTCOME_UNKNOWN: 15,
    Reason.CONTROLLER_STALLED: 16,
}
REASONS = {code: reason for reason, code in REASON_CODES.items()}

RESULTS = {
    0: "ok",
    1: "the decision came after the decision point",
    2: "the part was settled before",
    3: "unknown part",
    4: "a value is out of range",
    5: "no parameters were pushed yet",
    6: "no heartbeat from the station",
    7: "the encoder is not connected",
    8: "parts lie, or may lie, between the eye and the gate: run the belt empty for one gate distance",
}
FAULTS = {
    1: "power-up, not acknowledged",
    2: "heartbeat lost",
    4: "encoder lost, jumped or ran backwards",
    8: "controller stalled",
    16: "station restarted, not acknowledged",
    32: "parameters changed, not acknowledged",
}
COUNTERS = (
    "crc_errors",
    "bad_frames",
    "foreign_epoch",
    "bad_messages",
    "late_decisions",
    "conflicting_decisions",
    "unknown_parts",
    "overruns",
    "too_close",
    "heartbeats_lost",
    "encoder_jumps",
    "encoder_reversals",
    "encoder_losses",
    "stalls",
    "eye_bounces",
    "send_overflows",
)

# box -> controller
HELLO, PARAMETERS, HEARTBEAT, DECISION, ACK, JOG, FETCH = range(1, 8)
# controller -> box
HELLO_ANSWER, PARAMETERS_ECHO, STATUS, REPLY, TRIGGER, OUTCOME, OUTCOMES = range(0x81, 0x88)

_STATUS = struct.Struct("<6I3BI")


class WireError(ValueError):
    """A frame that must be dropped; `crc` tells damage from nonsense."""

    def __init__(self, message: str, crc: bool = False) -> None:
        super().__init__(message)
        self.crc = crc


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it is on the wire."""

    type: int
    epoch: int
    sequence: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    nonce: int
    last_part: int
    parameter_hash: int  # 0 = none pushed yet
    now_us: int


@dataclass(frozen=True, slots=True)
class ParametersEcho:
    parameter_hash: int
    result: int


@dataclass(frozen=True, slots=True)
class Status:
    now_us: int
    count: int
    last_part: int
    settled_through: int  # every part up to this one has an outcome
    parameter_hash: int
    nonce: int
    faults: int
    permit: bool
    parameters_set: bool
    inhibited: bool
    gate_energised: bool
    encoder_known: bool
    counter: str  # one counter at a time: one that changed, else the next in turn
    counter_value: int

    @property
    def fault_words(self) -> str | None:
        return "; ".join(words for bit, words in FAULTS.items() if self.faults & bit) or None


@dataclass(frozen=True, slots=True)
class Reply:
    result: int


@dataclass(frozen=True, slots=True)
class TriggerMessage:
    part: int
    count: int
    deadline_count: int
    latch_us: int


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    part: int
    decision: Decision
    reason: Reason
    count: int


@dataclass(frozen=True, slots=True)
class OutcomeBatch:
    oldest: int  # lowest part number the controller can still remember
    settled_through: int
    records: tuple[OutcomeRecord, ...]


Message = HelloAnswer | ParametersEcho | Status | Reply | TriggerMessage | OutcomeRecord | OutcomeBatch


def encode(frame: Frame) -> bytes:
    """The bytes of one frame, delimiter included. Raises ValueError for a payload above 240 bytes."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(frame.payload)} bytes; a frame holds at most {MAX_PAYLOAD}")
    raw = _HEADER.pack(VERSION, frame.type, frame.epoch, frame.sequence) + frame.payload
    return cobs.encode(raw + _CRC.pack(zlib.crc32(raw))) + b"\0"


def decode(stuffed: bytes) -> Frame:
    """One frame from the bytes between two zeros. Raises WireError."""
    if len(stuffed) > _HEADER.size + MAX_PAYLOAD + 5:
        raise WireError(f"{len(stuffed)} bytes without a delimiter")
    try:
        raw = cobs.decode(stuffed)
    except ValueError as error:
        raise WireError(str(error)) from error
    if len(raw) < _HEADER.size + 4:
        raise WireError(f"frame of {len(raw)} bytes is too short")
    if zlib.crc32(raw[:-4]) != _CRC.unpack(raw[-4:])[0]:
        raise WireError("CRC differs", crc=True)
    version, kind, epoch, sequence = _HEADER.unpack_from(raw)
    if version != VERSION:
        raise WireError(f"wire version {version}; this box speaks {VERSION}")
    return Frame(kind, epoch, sequence, raw[_HEADER.size : -4])


class Decoder:
    """Cuts a stream into frames; counts what it drops, but for a first frame whose beginning was never seen."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._started = False
        self.crc_errors = 0
        self.bad_frames = 0

    def feed(self, data: bytes) -> list[Frame]:
        frames = []
        self._buffer += data
        *complete, rest = self._buffer.split(b"\0")
        self._buffer = rest[: 2 * MAX_PAYLOAD]  # a longer run is one bad frame, however long it gets
        for stuffed in complete:
            if not stuffed:
                continue
            try:
                frames.append(decode(bytes(stuffed)))
            except WireError as error:
                self.crc_errors += error.crc and self._started
                self.bad_frames += not error.crc and self._started
            self._started = True
        return frames


def hello_payload(nonce: int, new_epoch: bool) -> bytes:
    return struct.pack("<IB", nonce, new_epoch)


def decision_payload(part: int, decision: Decision, reason: Reason) -> bytes:
    return struct.pack("<IBB", part, DECISION_CODES[decision], REASON_CODES[reason])


def fetch_payload(part: int) -> bytes:
    return struct.pack("<I", part)


def _record(payload: bytes, at: int = 0) -> OutcomeRecord:
    part, decision, reason, count = _RECORD.unpack_from(payload, at)
    if decision not in DECISIONS or reason not in REASONS:
        raise WireError(f"outcome of part {part} with decision {decision}, reason {reason}")
    return OutcomeRecord(part, DECISIONS[decision], REASONS[reason], count)


def _status(payload: bytes) -> Status:
    now_us, count, last, through, parameter_hash, nonce, faults, flags, counter, value = _STATUS.unpack(payload)
    if counter >= len(COUNTERS):
        raise WireError(f"status with counter {counter}; this box knows {len(COUNTERS)}")
    return Status(
        now_us=now_us,
        count=count,
        last_part=last,
        settled_through=through,
        parameter_hash=parameter_hash,
        nonce=nonce,
        faults=faults,
        permit=bool(flags & 1),
        parameters_set=bool(flags & 2),
        inhibited=bool(flags & 4),
        gate_energised=bool(flags & 8),
        encoder_known=bool(flags & 16),
        counter=COUNTERS[counter],
        counter_value=value,
    )


def _batch(payload: bytes) -> OutcomeBatch:
    oldest, through = struct.unpack_from("<II", payload)
    if (len(payload) - 8) % _RECORD.size:
        raise WireError(f"outcome batch of {len(payload)} bytes")
    records = tuple(_record(payload, at) for at in range(8, len(payload), _RECORD.size))
    return OutcomeBatch(oldest, through, records)


def parse(frame: Frame) -> Message:
    """The message of a frame from the controller. Raises WireError for an unknown type or a wrong length."""
    payload = frame.payload
    try:
        if frame.type == HELLO_ANSWER:
            return HelloAnswer(*struct.unpack("<4I", payload))
        if frame.type == PARAMETERS_ECHO:
            return ParametersEcho(*struct.unpack("<IB", payload))
        if frame.type == STATUS:
            return _status(payload)
        if frame.type == REPLY:
            return Reply(*struct.unpack("<B", payload))
        if frame.type == TRIGGER:
            return TriggerMessage(*struct.unpack("<4I", payload))
        if frame.type == OUTCOME and len(payload) == _RECORD.size:
            return _record(payload)
        if frame.type == OUTCOMES:
            return _batch(payload)
    except struct.error as error:
        raise WireError(f"type 0x{frame.type:02x} with {len(payload)} bytes: {error}") from error
    raise WireError(f"type 0x{frame.type:02x} with {len(payload)} bytes is not known")
