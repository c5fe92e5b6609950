"""The C core as a state machine, through ctypes, against a slow model that was written from the promises.

The model looks at every part that ever was, at every count. It shares no code and no structure with the core.
The same checker is then shown to go red on mutated copies of the C sources. A second checker, `World`, knows nothing of
how the core works: it moves true parts through the eye and to the gate, and looks at which of them pass.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import firmware_bridge
from firmware_bridge.host_controller import build_library
from firmware_bridge.link import LinkSettings, wire
from firmware_bridge.parts import Decision, Reason

US_PER_COUNT = 200
SETTINGS = LinkSettings(
    port="none",
    decision_distance_counts=60,
    gate_distance_counts=100,
    gate_window_before_counts=10,
    gate_window_after_counts=25,
    debounce_counts=3,
    min_part_spacing_counts=40,
    actuator_delay_ms=2.0,
).model_copy(update={"heartbeat_timeout_ms": 60})  # shorter than a station may ask for: the core has no limit here
LEAD = 2000 // US_PER_COUNT
EPOCH = 0xC0FFEE01
ACCEPT = (Decision.ACCEPT, Reason.SCORE_BELOW_THRESHOLD)

_SEND = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_size_t)
_GATE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_bool, ctypes.c_uint32, ctypes.c_bool)
_PERMIT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_bool)
_STROBE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
_DRAW = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)


class Io(ctypes.Structure):
    _fields_ = [
        ("user", ctypes.c_void_p),
        ("send", _SEND),
        ("gate", _GATE),
        ("permit", _PERMIT),
        ("strobe", _STROBE),
        ("draw_epoch", _DRAW),
    ]


class Core:
    """One controller and the wires around it. `count`, `now_us`: where the test has brought it."""

    def __init__(self, library: Path, first_count: int = 0) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.rc_size.restype = ctypes.c_size_t
        self.memory = ctypes.create_string_buffer(self.lib.rc_size())
        self.count = first_count
        self.now_us = 0xFFFF0000  # wraps soon
        self.frames: list[wire.Frame] = []
        self.gate = False
        self.hold = False
        self.release = 0
        self.pulses_us: list[int] = []
        self.strobes: list[int] = []
        self.sequence = 0
        self.epoch = EPOCH
        self._decoder = wire.Decoder()
        self._io = Io(
            None,
            _SEND(self._send),
            _GATE(self._gate),
            _PERMIT(self._permit),
            _STROBE(self._strobe),
            _DRAW(lambda _: 77),
        )
        self.lib.rc_init(self.memory, ctypes.byref(self._io), ctypes.c_uint32(EPOCH))
        self.wake()
        self.lib.rc_encoder(self.memory, ctypes.c_uint32(first_count), ctypes.c_uint32(self.now_us & 0xFFFFFFFF))

    def _send(self, _user: Any, data: Any, length: int) -> bool:
        self.frames += self._decoder.feed(bytes(data[:length]))
        return True

    def _gate(self, _user: Any, energised: bool, release: int, hold: bool) -> None:
        self.gate, self.release, self.hold = energised, release, hold

    def _permit(self, _user: Any, level: bool) -> None:
        if level:
            self.pulses_us.append(self.now_us)

    def _strobe(self, _user: Any, _epoch: int, part: int) -> None:
        self.strobes.append(part)

    def wake(self) -> None:
        self.lib.rc_wake(self.memory, ctypes.c_uint32(self.now_us & 0xFFFFFFFF))

    def tick(self) -> None:
        self.lib.rc_tick(self.memory)

    def eye(self, level: bool) -> None:
        self.lib.rc_eye(self.memory, ctypes.c_bool(level), ctypes.c_uint32(self.now_us & 0xFFFFFFFF))

    def step(self, by: int = 1) -> None:
        self.count = (self.count + by) % (1 << 32)
        self.now_us += US_PER_COUNT
        self.lib.rc_encoder(self.memory, ctypes.c_uint32(self.count), ctypes.c_uint32(self.now_us & 0xFFFFFFFF))

    def receive(self, data: bytes) -> None:
        self.lib.rc_receive(self.memory, data, ctypes.c_size_t(len(data)))

    def say(self, kind: int, payload: bytes = b"", epoch: int | None = None, sequence: int | None = None) -> int:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        self.receive(wire.encode(wire.Frame(kind, self.epoch if epoch is None else epoch, sequence, payload)))
        return sequence

    def decide(self, part: int, decision: Decision, reason: Reason, epoch: int | None = None) -> None:
        self.say(wire.DECISION, wire.decision_payload(part, decision, reason), epoch)

    def heard(self, kind: int) -> list[Any]:
        return [wire.parse(frame) for frame in self.frames if frame.type == kind]

    def connect(self, inhibit: bool = False, configuration: LinkSettings = SETTINGS, moved: int = 15) -> None:
        """What a box does until the permit is on; then the belt moves so far that nothing old lies at the eye."""
        self.say(wire.HELLO, wire.hello_payload(7, False))
        self.say(wire.PARAMETERS, configuration.parameters(inhibit))
        self.say(wire.HEARTBEAT)
        self.say(wire.ACK)
        self.tick()
        for _ in range(moved):
            self.step()


@dataclass
class ModelPart:
    count: int
    decision: Decision | None = None
    reason: Reason | None = None
    closed: bool = False  # no verdict may change it, but for NO_VERDICT -> LATE
    outcome: tuple[Decision, Reason] | None = None


@dataclass
class Model:
    """The promises, slowly. Counts here do not wrap."""

    rejects: bool = False  # the gate is energised to reject
    register: int = 64
    count: int = 0
    unseen: int = 0  # what passed the eye up to this count may be on the belt unfollowed
    followed: bool = False  # what blocks the eye is the last part
    jogging: bool = False
    permitted: bool = True
    parts: dict[int, ModelPart] = field(default_factory=dict)
    virtual: int = 0
    steps: int = 1000  # since the speed was last unknown
    high: bool = False
    stable: bool = False
    changed_at: int | None = None
    last_latch: int | None = None

    def eye(self, level: bool) -> None:
        if level == self.high:
            return
        self.high = level
        if self.changed_at is None and level != self.stable:
            self.changed_at = self.count
            self.jogging = False

    def open_parts(self) -> list[ModelPart]:
        return [part for part in self.parts.values() if part.outcome is None]

    def step(self) -> None:
        self.count += 1
        self.steps += 1
        if self.steps == 1:  # after a pause the gate has moved, but the belt has not
            self.virtual = self.count
        lead = LEAD if self.steps >= 2 else 0
        self.virtual = max(self.virtual, min(self.count + lead, self.virtual + 5))
        if self.changed_at is not None and self.count - self.changed_at >= 3:
            if self.high != self.stable:
                self.stable = self.high
                if self.high:
                    self._latch(self.changed_at)
            self.changed_at = None
        if self.high and self.stable:
            if self.followed and self.last_latch is not None and self.count - self.last_latch > 25:
                self._condemn(self.parts[len(self.parts)])
                self.followed = False
            if not self.followed:
                self._lose_sight()
        for part in self.open_parts():
            if self.count >= part.count + 60 or self.virtual >= part.count + 90:
                if part.decision is None:
                    part.decision, part.reason = Decision.FAULT, Reason.NO_VERDICT
                part.closed = True
            if self.count >= part.count + 125:
                assert part.decision is not None
                assert part.reason is not None
                part.outcome = part.decision, part.reason

    def _latch(self, count: int) -> None:
        part = ModelPart(count)
        before = self.parts.get(len(self.parts))
        near = self.last_latch is not None and count - self.last_latch < 40
        self.followed = not near and count - 10 >= self.unseen
        if not self.followed:
            self._lose_sight()
            self._condemn(part)
        if near and before is not None:
            self._condemn(before)
        self.last_latch = count
        if len(self.open_parts()) == self.register:
            self.followed = False
            self._lose_sight()
            part.outcome = Decision.FAULT, Reason.OVERRUN
        elif not self.permitted:
            part.decision, part.reason, part.closed = Decision.FAULT, Reason.NOT_PERMITTED, True
        self.parts[len(self.parts) + 1] = part

    def hand(self) -> None:
        """Something went through the eye while the belt stood; close behind the last part it may touch it."""
        self.steps = 0
        if self.last_latch is not None and self.count - self.last_latch <= 50:
            self._condemn(self.parts[len(self.parts)])
        self.followed = False
        self._lose_sight()

    def _condemn(self, part: ModelPart) -> None:
        if part.outcome is None:
            part.decision, part.reason, part.closed = Decision.FAULT, Reason.OVERRUN, True

    def _lose_sight(self) -> None:
        self.unseen = self.count
        self.jogging = False

    def decide(self, number: int, decision: Decision, reason: Reason) -> None:
        part = self.parts.get(number)
        if part is None or part.outcome is not None:
            return
        if part.closed:
            if part.reason is Reason.NO_VERDICT and decision is not Decision.FAULT:
                part.decision, part.reason = Decision.REJECT, Reason.LATE
        elif part.decision is None:
            part.decision, part.reason = decision, reason

    def silence(self) -> None:
        self.permitted = False
        for part in self.open_parts():
            if part.decision is None:
                part.decision, part.reason = Decision.FAULT, Reason.HEARTBEAT_LOST
            part.closed = True

    def flush(self, reason: Reason) -> None:
        self.permitted = False
        self.last_latch = None
        self.followed = False
        self._lose_sight()
        for part in self.open_parts():
            part.outcome = Decision.FAULT, reason

    def jump(self, by: int) -> None:
        self.count += by
        self.virtual = self.count
        self.steps = 0
        self.changed_at = None
        self.stable = self.high
        self.flush(Reason.ENCODER)

    def empty(self) -> bool:
        """Certainly no part between eye and gate, and none at the eye."""
        return not self.open_parts() and self.changed_at is None and self.count >= self.unseen + 125

    def gate_energised(self) -> bool:
        inside = [p for p in self.open_parts() if p.count + 90 <= self.virtual < p.count + 125]
        proven = bool(inside) and all(part.decision is Decision.ACCEPT for part in inside)
        if self.jogging and not inside:
            return True
        if self.rejects:
            return not proven and (bool(inside) or self.virtual < self.unseen + 125)
        return proven


class Run:
    """Core and model side by side; every difference is an AssertionError."""

    def __init__(self, library: Path, first_count: int, polarity: str = "energise_to_pass", register: int = 64) -> None:
        self.core = Core(library, first_count)
        self.core.connect(configuration=SETTINGS.model_copy(update={"polarity": polarity}), moved=0)
        self.model = Model(polarity == "energise_to_reject", register)
        self.jogged_us = 0
        self.beating = True
        self.heartbeat_us = self.core.now_us
        self.run(10)

    def run(self, counts: int) -> None:
        for _ in range(counts):
            self.core.step()
            self.model.step()
            if self.model.count % 10 == 0:
                self._wake()
            self.compare()

    def _wake(self) -> None:
        self.core.wake()
        if self.beating and self.core.now_us - self.heartbeat_us >= 20_000:
            self.core.say(wire.HEARTBEAT)
            self.heartbeat_us = self.core.now_us
        elif self.core.now_us - self.heartbeat_us > 60_000 and self.core.now_us - self.heartbeat_us <= 62_000:
            self.model.silence()
        if self.core.now_us - self.jogged_us >= 200_000:
            self.model.jogging = False
        self.core.tick()

    def compare(self) -> None:
        assert self.core.gate == self.model.gate_energised(), f"gate at {self.model.count}"
        assert self.core.strobes == list(range(1, len(self.model.parts) + 1))

    def apply(self, op: tuple[Any, ...]) -> None:
        kind, *values = op
        if kind == "run":
            self.run(values[0])
        elif kind == "part":
            self.eye(True)
            self.run(values[0])
            self.eye(False)
            self.run(5)
        elif kind == "eye":
            self.eye(values[0])
            self.run(values[1])
        elif kind == "decide":
            back, decision, reason, stale = values
            part = len(self.model.parts) + 1 - back
            if part >= 0:
                self.core.decide(part, decision, reason, EPOCH ^ 1 if stale else None)
                if not stale:
                    self.model.decide(part, decision, reason)
        elif kind == "hand":
            self.run(1)
            level = self.model.high
            self.eye(not level)
            for _ in range(11):
                self._wake()
                self.core.now_us += 2000
            self.eye(level)
            self.model.hand()
            self.compare()
            self.run(1)
        elif kind == "mute":
            self.beating = False
        elif kind == "jog":
            assert jog(self.core) == (0 if self.model.empty() else 8)
            if self.model.empty():
                self.model.jogging, self.jogged_us = True, self.core.now_us
        elif kind == "ack":
            self.beating = True
            self.core.say(wire.HEARTBEAT)
            self.heartbeat_us = self.core.now_us
            self.core.say(wire.ACK)
            self.model.permitted = True
        elif kind == "stall":
            self.core.now_us += 150_000
            self.core.wake()
            self.model.flush(Reason.CONTROLLER_STALLED)
            self.model.steps = 0
            self.core.say(wire.HEARTBEAT)
            self.heartbeat_us = self.core.now_us
        else:
            self.core.step(50)
            self.model.jump(50)
        self.compare()

    def eye(self, level: bool) -> None:
        self.core.eye(level)
        self.model.eye(level)

    def check_outcomes(self) -> None:
        self.run(200)  # everything leaves the register
        heard = self.core.heard(wire.OUTCOME)
        in_order = [outcome.part for outcome in heard if outcome.reason is not Reason.OVERRUN]
        assert in_order == sorted(in_order)
        assert len(heard) == len(self.model.parts), "each once"
        expected = {number: part.outcome for number, part in self.model.parts.items()}
        assert {outcome.part: (outcome.decision, outcome.reason) for outcome in heard} == expected
        triggers = self.core.heard(wire.TRIGGER)
        first = (self.core.count - self.model.count) % (1 << 32)
        latched = [(first + part.count) % (1 << 32) for part in self.model.parts.values()]
        assert [trigger.count for trigger in triggers] == latched
        assert all((t.deadline_count - t.count) % (1 << 32) == 60 for t in triggers)


VERDICTS = [
    ACCEPT,
    (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD),
    (Decision.FAULT, Reason.NO_FRAME),
]

OPS = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 70)),
    st.tuples(st.just("part"), st.integers(1, 30)),
    st.tuples(st.just("eye"), st.booleans(), st.integers(0, 4)),
    st.builds(
        lambda back, verdict, stale: ("decide", back, *verdict, stale),
        st.integers(0, 4),
        st.sampled_from([ACCEPT, ACCEPT, *VERDICTS]),
        st.sampled_from([False, False, False, True]),
    ),
    st.sampled_from([("mute",), ("ack",), ("ack",), ("stall",), ("jump",), ("jog",), ("hand",), ("run", 140)]),
)


POLARITIES = ["energise_to_pass", "energise_to_reject"]


def check(
    library: Path,
    ops: list[tuple[Any, ...]],
    first_count: int,
    polarity: str = "energise_to_pass",
    register: int = 64,
) -> None:
    run = Run(library, first_count, polarity, register)
    for op in ops:
        run.apply(op)
    run.check_outcomes()


NOD = ("decide", 0, *ACCEPT, False)
STORIES: list[list[tuple[Any, ...]]] = [
    [("part", 5), ("run", 20), NOD, ("part", 5), NOD],  # too close
    [("part", 30), NOD],  # too long: two that touch
    [("part", 8), ("run", 28), ("part", 8), NOD, ("run", 7), ("part", 8), NOD],  # the third is too close, and too many
    [("part", 12), ("jump",), ("ack",), ("part", 12), NOD],  # right behind one that is not followed any more
    [("part", 5), ("stall",), ("run", 20), ("ack",), ("part", 12), NOD],  # far enough behind such a one
    [("part", 12), NOD, ("run", 40), ("hand",), ("part", 12), NOD],  # right behind what a hand laid down
    [("part", 12), NOD, ("hand",), ("run", 60)],  # a hand right behind a part
    [("jump",), ("run", 30)],  # while a jog runs
    [("eye", True, 20), ("eye", False, 1), ("jump",), ("run", 60), ("part", 12)],  # a jump at the trailing edge
]


def busy_schedule(seed: int) -> list[tuple[Any, ...]]:
    """A line that mostly works: parts at a steady pitch, most verdicts in time."""
    random = Random(seed)
    ops: list[tuple[Any, ...]] = []
    for _ in range(30):
        ops += [("part", 20), ("run", random.randint(16, 60))]
        ops.append(("decide", random.randint(0, 2), *random.choice(VERDICTS), random.random() < 0.2))
        if random.random() < 0.3:  # a second opinion, which comes too late to count
            ops.append(("decide", 1, *random.choice(VERDICTS), False))
        if random.random() < 0.1:
            silence = [("mute",), ("run", 320), ("part", 20), ("run", 30)]
            at_the_eye = [("eye", True, 1), ("stall",), ("run", 20), ("eye", False, 4)]
            ops += random.choice([[("stall",)], [("jump",)], silence, at_the_eye])
            ops += [("run", 30), ("jog",), ("ack",)]
        if random.random() < 0.2:
            ops += [("run", 150), ("jog",), ("run", 30), *random.choice(STORIES), ("run", 60)]
    return ops


SANITIZED = ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("core"), SANITIZED)


@pytest.fixture(scope="module")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for two parts between eye and gate, where three fit on the belt."""
    return build_library(tmp_path_factory.mktemp("small"), (*SANITIZED, "-DRC_REGISTER=2u"))


FIRST_COUNTS = st.sampled_from([0, 2**31 - 500, 2**32 - 500])


@pytest.mark.parametrize("polarity", POLARITIES)
@given(ops=st.lists(OPS, max_size=60), first_count=FIRST_COUNTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_core_does_what_the_promises_say(
    library: Path, polarity: str, ops: list[tuple[Any, ...]], first_count: int
) -> None:
    check(library, ops, first_count, polarity)


@given(ops=st.lists(OPS, max_size=60), first_count=FIRST_COUNTS, polarity=st.sampled_from(POLARITIES))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_core_does_so_with_more_parts_than_it_can_follow(
    small_library: Path, ops: list[tuple[Any, ...]], first_count: int, polarity: str
) -> None:
    check(small_library, ops, first_count, polarity, register=2)


@pytest.mark.parametrize("polarity", POLARITIES)
@pytest.mark.parametrize("seed", range(10))
def test_busy_line(library: Path, small_library: Path, seed: int, polarity: str) -> None:
    check(library, busy_schedule(seed), 2**32 - 1000, polarity)
    check(small_library, busy_schedule(seed), 2**32 - 1000, polarity, register=2)


# --- the same, seen from the belt ---

LENGTH = 20


class World:
    """True parts on a true belt, with a gate that follows its output by the actuator's delay.

    The photo-eye is at place 0, the gate 100 counts on. `at` is how far the belt has moved; a part's leading edge is at
    the eye when `at` equals its `lead`. Nothing is expected of the core but this: while an unproven part is in the gate
    for the first time, the gate rejects. What passes while the counts lie is excused.
    """

    def __init__(self, library: Path, polarity: str, first_count: int, leads: list[int]) -> None:
        self.core = Core(library, first_count)
        self.rejecting = polarity == "energise_to_reject"
        self.settings = SETTINGS.model_copy(update={"polarity": polarity})
        self.leads = [-70, -5, *leads]
        self.at = self.furthest = 0
        self.proven: set[int] = set()
        self.excused: set[int] = set()
        self.number: dict[int, int] = {}  # part -> lead of the true part at the eye when it was latched
        self.outputs: list[tuple[int, bool]] = [(0, False)]
        self.nonce, self.beating, self.pushes = 7, True, 0
        self.core.eye(self.blocked())
        self.core.connect(configuration=self.settings, moved=0)
        self.look()

    def blocked(self) -> bool:
        return any(lead <= self.at < lead + LENGTH for lead in self.leads)

    def look(self) -> None:
        if self.core.gate != self.outputs[-1][1]:
            self.outputs.append((self.core.now_us, self.core.gate))
        for part in range(len(self.number) + 1, (self.core.strobes or [0])[-1] + 1):
            covering = [lead for lead in self.leads if lead <= self.at <= lead + LENGTH + 3]
            self.number[part] = covering[-1] if covering else 10**9

    def energised(self) -> bool:
        """The gate itself, not its output."""
        return next(state for us, state in reversed(self.outputs) if us <= self.core.now_us - 2000 or us == 0)

    def judge(self) -> None:
        if self.at <= self.furthest:
            return
        self.furthest = self.at
        for lead in self.leads:
            if lead + 100 < self.at < lead + 100 + LENGTH and lead not in self.proven | self.excused:
                assert self.energised() == self.rejecting, f"unproven part {lead} passes at {self.at}"

    def wake(self) -> None:
        self.core.wake()
        if self.beating:
            self.core.say(wire.HEARTBEAT)
        self.core.tick()
        self.look()

    def step(self, by: int = 1, us: int = US_PER_COUNT) -> None:
        self.at += by
        self.core.now_us += us - US_PER_COUNT
        self.core.step(by)
        self.look()
        self.core.eye(self.blocked())
        self.look()
        self.judge()
        if self.at % 5 == 0:
            self.wake()

    def run(self, counts: int) -> None:
        for _ in range(counts):
            self.step()

    def start(self) -> None:
        """No belt is at its speed at once."""
        for i in range(20):
            self.step(us=20_000 // (i + 1))

    def slip(self, moved: int) -> None:
        """The belt moves, and no count tells of it."""
        reach = self.at + moved + LEAD + 15
        self.excused |= {lead for lead in self.leads if lead + 100 <= reach}
        self.at += moved
        self.furthest = max(self.furthest, self.at)
        self.core.eye(self.blocked())

    def apply(self, op: tuple[Any, ...]) -> None:
        kind, *values = op
        if kind == "run":
            self.run(values[0])
        elif kind == "decide":
            part = (self.core.strobes or [0])[-1] - values[0]
            if part > 0:
                self.core.decide(part, *values[1])
                if values[1] == ACCEPT:
                    self.proven.add(self.number[part])
        elif kind == "back":
            for _ in range(values[0]):
                self.step(-1)
        elif kind == "pause":
            for _ in range(values[0] // 10):
                self.core.now_us += 10_000
                self.wake()
            self.start()
        elif kind == "noise":
            self.excused |= {lead for lead in self.leads if lead + 80 <= self.at <= lead + 120}
            for _ in range(16):
                self.core.now_us += 10_000
                self.wake()
            for _ in range(values[0]):
                self.step(us=1)
            self.start()
        elif kind == "jump":
            self.slip(values[1])
            self.core.step(values[0])
        elif kind == "stall":
            self.excused |= {lead for lead in self.leads if lead + 100 <= self.at + values[0] + LEAD + 15}
            self.core.now_us += 150_000
            self.core.wake()
            self.run(values[0])
        elif kind == "lost":
            self.core.lib.rc_encoder_lost(self.core.memory)
            self.slip(values[0])
            self.core.count = values[1]
            self.core.step()
        elif kind == "parameters":
            self.pushes += 1
            self.core.say(
                wire.PARAMETERS,
                self.settings.model_copy(update={"min_part_spacing_counts": 40 + self.pushes % 2}).parameters(False),
            )
        elif kind == "hello":
            self.nonce += 1
            self.core.say(wire.HELLO, wire.hello_payload(self.nonce, False))
        elif kind == "epoch":
            self.core.say(wire.HELLO, wire.hello_payload(self.nonce, True))
            self.core.epoch = 77
            self.number.clear()
            self.core.strobes.clear()
        elif kind == "hand":  # lays a part on the standing belt, through the eye's beam
            for level in (not self.blocked(), self.blocked()):
                for _ in range(7):
                    self.core.now_us += 10_000
                    self.wake()
                self.core.eye(level)
                self.look()
            if all(not self.at - 70 < lead < self.at + 10 for lead in self.leads):
                self.leads.append(self.at - LENGTH)
        elif kind == "mute":
            self.beating = False
        elif kind == "jog":
            self.core.say(wire.JOG)
        else:
            self.beating = True
            self.core.say(wire.HEARTBEAT)
            self.core.say(wire.ACK)
        self.look()


GAPS = st.sampled_from([20, 21, 25, 30, 39, 40, 40, 45, 60, 90, 150])
EVENTS = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 60)),
    st.tuples(st.just("run"), st.integers(20, 60)),
    st.tuples(st.just("decide"), st.integers(0, 3), st.sampled_from([ACCEPT, ACCEPT, ACCEPT, *VERDICTS])),
    st.tuples(st.just("decide"), st.integers(0, 1), st.just(ACCEPT)),
    st.tuples(st.just("back"), st.integers(1, 45)),
    st.tuples(st.just("pause"), st.integers(120, 300)),
    st.tuples(st.just("noise"), st.integers(1, 3)),
    st.tuples(st.just("jump"), st.sampled_from([-200, -40, 2, 30, 50, 2**31]), st.integers(0, 60)),
    st.tuples(st.just("stall"), st.integers(0, 60)),
    st.tuples(st.just("lost"), st.integers(0, 60), st.sampled_from([0, 100, 2**31 - 20, 2**32 - 20])),
    st.tuples(st.just("hand"), st.booleans()),
    st.sampled_from(
        [("epoch",), ("parameters",), ("hello",), ("mute",), ("jog",), ("ack",), ("ack",), ("ack",), ("run", 130)]
    ),
)


@pytest.mark.parametrize("polarity", POLARITIES)
@given(
    gaps=st.lists(GAPS, min_size=4, max_size=20),
    schedule=st.tuples(FIRST_COUNTS, st.lists(EVENTS, max_size=40)),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_unproven_part_passes(
    library: Path,
    small_library: Path,
    polarity: str,
    gaps: list[int],
    schedule: tuple[int, list[tuple[Any, ...]]],
) -> None:
    first_count, ops = schedule
    for each in (library, small_library):
        world = World(each, polarity, first_count, list(accumulate(gaps)))
        for op in ops:
            world.apply(op)
        world.run(150)


DECIDE = "part->decision = decision;\n            part->reason"
LATE = "part->decision = RC_REJECT;\n                    part->reason = RC_LATE;"
PASS = "part->decision = RC_ACCEPT; part->reason = RC_SCORE_BELOW_THRESHOLD;"
INVERTED = "part->decision = decision == RC_ACCEPT ? RC_REJECT : RC_ACCEPT;\n            part->reason"
OPEN = "if (part->decision == RC_UNDECIDED) {\n            part->decision"
AT_GATE = "uint32_t at_gate = part->count + p->gate_distance"
FAR = "        rc->counters[RC_TOO_CLOSE]++;\n        rc_gate_unproven(rc);\n    } else {"
SEND = "    rc_send_outcome(rc, outcome);"
MUTANTS = {
    "off-by-one part": ("rc_parts.c", "part->part != number", "part->part != number + 1"),
    "inverted decision": ("rc_parts.c", DECIDE, INVERTED),
    "stale epoch accepted": ("rc_messages.c", "frame->epoch != rc->epoch || !rc->session", "!rc->session"),
    "late accept passes": ("rc_parts.c", LATE, PASS),
    "no verdict passes": ("rc_parts.c", "make_fault(part, RC_NO_VERDICT);", PASS),
    "last decision wins": ("rc_parts.c", OPEN, OPEN.replace("part->decision == RC_UNDECIDED", "true")),
    "gate two counts late": ("rc_gate.c", AT_GATE, AT_GATE + " + 2"),
    "actuator delay ignored": ("reject_controller.c", "if (rc->ring_length > 1) {", "if (rc->ring_length > 1000) {"),
    "heartbeat not watched": ("reject_controller.c", "rc_latch(rc, RC_FAULT_HEARTBEAT);", ";"),
    "rejected part passes": (
        "rc_gate.c",
        "part->decision == RC_ACCEPT) {\n                proven",
        "true) {\n                proven",
    ),
    "outcome twice": ("rc_parts.c", SEND, SEND + SEND),
    "jog over unfollowed parts": ("rc_messages.c", "rc->length > 0 || rc->unproven", "rc->length > 0"),
    "jog goes on": ("rc_gate.c", "    rc->jogging = false;\n", ""),
    "overrun before spacing": (
        "rc_parts.c",
        "if (too_close_to_last(rc, count)) {",
        "if (rc->length < RC_REGISTER && too_close_to_last(rc, count)) {",
    ),
    "part far ahead condemned": ("rc_parts.c", FAR, "        rc_parts_condemn_last(rc);\n    } else {"),
    "hand at the eye overlooked": ("reject_controller.c", "        rc_parts_foreign(rc);\n", "        ;\n"),
    "part before a hand passes": ("rc_parts.c", "known && rc->peak -", "known && false && rc->peak -"),
    "counts of before a jump": ("rc_parts.c", "    rc->last_trigger_known = false;\n", ""),
    "tail of an unfollowed part": ("rc_parts.c", "return rc->unproven && rc_ahead", "return false && rc_ahead"),
    "parts that touch": ("reject_controller.c", "        rc_parts_condemn_last(rc);\n", "        ;\n"),
    "gate at pass for the unfollowed": (
        "rc_gate.c",
        "(rc->unproven && rc_ahead(rc->virtual",
        "(false && rc_ahead(rc->virtual",
    ),
    "jog into a part": ("reject_controller.c", "if (rc->jogging) { /*", "if (false) { /*"),
    "edge lost in a jump": (
        "reject_controller.c",
        "        rc->eye_stable = rc->eye;\n        rc_parts",
        "        rc_parts",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_checker_goes_red_on_planted_defects(name: str, tmp_path: Path) -> None:
    file, old, new = MUTANTS[name]
    sources = tmp_path / "controller"
    shutil.copytree(Path(firmware_bridge.__file__).parent / "controller", sources)
    text = (sources / file).read_text()
    assert text.count(old) == 1, "the planted defect no longer fits the source"
    (sources / file).write_text(text.replace(old, new))
    mutant = build_library(tmp_path, ("-O1", "-DRC_REGISTER=2u"), sources)

    def survives() -> None:
        for seed in range(20):
            check(mutant, busy_schedule(seed), 0, POLARITIES[seed % 2], register=2)

    with pytest.raises(AssertionError):
        survives()


# --- single promises ---


@pytest.fixture
def core(library: Path) -> Core:
    return Core(library)


def pass_part(core: Core) -> int:
    """One part through the eye; its number."""
    core.eye(True)
    run(core, 20)
    core.eye(False)
    run(core, 5)
    return core.strobes[-1]


def run(core: Core, counts: int, beat: bool = True) -> None:
    for i in range(counts):
        core.step()
        if i % 10 == 0:
            core.wake()
            if beat:
                core.say(wire.HEARTBEAT)
            core.tick()


def wait_ms(core: Core, ms: int, beat: bool = True) -> None:
    """The belt stands."""
    for _ in range(ms // 10):
        core.now_us += 10_000
        core.wake()
        if beat:
            core.say(wire.HEARTBEAT)
        core.tick()


def status(core: Core, beat: bool = True) -> wire.Status:
    wait_ms(core, 110, beat)
    found: wire.Status = core.heard(wire.STATUS)[-1]
    return found


def counter(core: Core, name: str) -> int:
    status(core)
    found = [message.counter_value for message in core.heard(wire.STATUS) if message.counter == name]
    return int(found[-1])


def test_no_permit_before_the_acknowledgement(core: Core) -> None:
    core.say(wire.HELLO, wire.hello_payload(7, False))
    assert not status(core, beat=False).permit
    core.say(wire.ACK)
    core.say(wire.PARAMETERS, SETTINGS.parameters(False))
    core.say(wire.ACK)
    assert [reply.result for reply in core.heard(wire.REPLY)] == [5, 6]  # no parameters, then no heartbeat
    core.say(wire.HEARTBEAT)
    run(core, 200)
    assert core.pulses_us == []
    core.say(wire.ACK)
    run(core, 200)
    assert core.pulses_us


def test_pulses_come_every_40_ms_and_end_with_the_heartbeat(core: Core) -> None:
    core.connect()
    run(core, 2000)
    gaps = [b - a for a, b in zip(core.pulses_us, core.pulses_us[1:], strict=False)]
    assert max(gaps) <= 44_000
    silent_from = core.now_us
    run(core, 2000, beat=False)
    assert core.pulses_us[-1] - silent_from <= 62_000
    assert core.heard(wire.STATUS)[-1].faults == 2


def test_returning_heartbeat_alone_gives_no_permit(core: Core) -> None:
    core.connect()
    run(core, 1000, beat=False)
    pulses = len(core.pulses_us)
    run(core, 1000)
    assert len(core.pulses_us) == pulses
    core.say(wire.ACK)
    run(core, 500)
    assert len(core.pulses_us) > pulses


def test_repeated_command_acts_once(core: Core) -> None:
    core.connect()
    sequence = core.say(wire.ACK)
    run(core, 1000, beat=False)
    core.say(wire.HEARTBEAT)
    core.say(wire.ACK, sequence=sequence)  # a retry that waited in a buffer
    assert not status(core).permit


def test_part_that_just_reached_the_eye_is_counted_after_a_stall(core: Core) -> None:
    core.connect()
    run(core, 10)
    core.eye(True)
    run(core, 1)
    core.now_us += 300_000
    core.wake()
    run(core, 200)
    assert core.strobes == [1]
    found = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert found == {1: (Decision.FAULT, Reason.NOT_PERMITTED)}


def test_accepted_part_passes_after_the_box_fell_silent(core: Core) -> None:
    core.connect()
    first = pass_part(core)
    core.decide(first, *ACCEPT)
    run(core, 20)
    second = pass_part(core)
    core.now_us += 61_000
    run(core, 200, beat=False)
    found = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert found == {first: ACCEPT, second: (Decision.FAULT, Reason.HEARTBEAT_LOST)}


def test_gate_is_released_by_count_when_the_core_hangs(core: Core) -> None:
    core.connect()
    part = pass_part(core)
    core.decide(part, *ACCEPT)
    latch = core.heard(wire.TRIGGER)[0].count
    while not core.gate:
        run(core, 1)
    assert not core.hold
    assert 0 <= core.release - (latch + 125 - LEAD) <= 5


@pytest.mark.parametrize("polarity", ["energise_to_pass", "energise_to_reject"])
def test_dry_run_keeps_the_gate_passing_and_says_so(library: Path, polarity: str) -> None:
    core = Core(library)
    core.connect(inhibit=True, configuration=SETTINGS.model_copy(update={"polarity": polarity}))
    passing = polarity == "energise_to_pass"
    for _ in range(3):
        part = pass_part(core)
        core.decide(part, Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)
        assert core.gate == passing
        run(core, 100)
        assert core.gate == passing
    assert status(core).inhibited
    assert {(o.decision, o.reason) for o in core.heard(wire.OUTCOME)} == {
        (Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)
    }


def test_energise_to_reject_throws_what_lay_on_the_belt_at_the_start(library: Path) -> None:
    core = Core(library)
    core.connect(configuration=SETTINGS.model_copy(update={"polarity": "energise_to_reject"}), moved=0)
    run(core, 100)
    assert core.gate, "unfollowed parts may lie between eye and gate"
    run(core, 30)
    assert not core.gate
    part = pass_part(core)
    core.decide(part, *ACCEPT)
    run(core, 20)
    pass_part(core)  # no verdict
    states = []
    for _ in range(150):
        run(core, 1)
        states.append(core.gate)
    assert sum(states) in range(34, 38), "only the window of the second part"


def test_register_overrun_is_a_fault_and_never_accepted(library: Path) -> None:
    far = SETTINGS.model_copy(update={"decision_distance_counts": 5000, "gate_distance_counts": 6000})
    core = Core(library)
    core.connect(configuration=far)
    for _ in range(66):
        part = pass_part(core)
        core.decide(part, *ACCEPT)
        run(core, 20)
    run(core, 7000)
    outcomes = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert outcomes == {n: ACCEPT if n <= 64 else (Decision.FAULT, Reason.OVERRUN) for n in range(1, 67)}
    assert counter(core, "overruns") == 2


def test_256_outcomes_are_remembered(core: Core) -> None:
    core.connect()
    for _ in range(300):
        core.decide(pass_part(core), *ACCEPT)
        run(core, 25)
    run(core, 200)
    remembered: list[int] = []
    fetched_from = 1
    while fetched_from <= 300:
        core.say(wire.FETCH, wire.fetch_payload(fetched_from))
        batch = core.heard(wire.OUTCOMES)[-1]
        assert (batch.oldest, batch.settled_through) == (45, 300)
        remembered += [record.part for record in batch.records]
        fetched_from = batch.records[-1].part + 1
    assert remembered == list(range(45, 301))


def test_small_swing_back_triggers_nothing_twice_and_a_long_one_is_a_fault(core: Core) -> None:
    core.connect()
    core.eye(True)
    run(core, 20)
    for direction in (-1, 1):
        for i in range(20):
            core.step(direction)
            if i == 18:
                core.eye(direction == 1)
    run(core, 20)
    assert core.strobes == [1]
    for _ in range(40):
        core.step(-1)
    assert core.heard(wire.OUTCOME)[0].reason is Reason.ENCODER
    assert counter(core, "encoder_reversals") == 1


def test_eye_edges_without_counts_are_a_dead_encoder(core: Core) -> None:
    core.connect()
    run(core, 10)
    for level in (True, False, True):
        core.eye(level)
        wait_ms(core, 30)
    assert status(core).faults == 4


def test_silent_encoder_closes_an_open_gate(core: Core) -> None:
    core.connect()
    part = pass_part(core)
    core.decide(part, *ACCEPT)
    while not core.gate:
        run(core, 1)
    wait_ms(core, 110)
    assert not core.gate
    run(core, 200)
    assert core.heard(wire.OUTCOME)[0].reason is Reason.ENCODER


def jog(core: Core) -> int:
    """The result of a JOG: 0 done, 8 parts may lie on the belt."""
    core.say(wire.JOG)
    return int(core.heard(wire.REPLY)[-1].result)


def test_jog_moves_the_gate_once_and_is_refused_with_parts_on_the_belt(core: Core) -> None:
    core.connect()
    assert jog(core) == 8, "nobody saw what lay on the belt at the start"
    run(core, 130)
    assert jog(core) == 0
    assert core.gate
    wait_ms(core, 210)
    assert not core.gate
    pass_part(core)
    assert jog(core) == 8
    assert not core.gate


def test_jog_is_refused_while_flushed_parts_lie_before_the_gate(core: Core) -> None:
    core.connect()
    run(core, 130)
    pass_part(core)
    core.step(50)
    assert jog(core) == 8
    for _ in range(60):
        run(core, 1)
        assert not core.gate


@pytest.mark.parametrize("event", ["jump", "stall", "eye"])
def test_a_running_jog_ends_when_a_part_may_come(core: Core, event: str) -> None:
    core.connect()
    run(core, 130)
    assert jog(core) == 0
    assert core.gate
    if event == "jump":
        core.step(50)
    elif event == "stall":
        core.now_us += 150_000
        core.wake()
    else:
        core.eye(True)
    assert not core.gate
    assert jog(core) == 8


def test_a_part_beyond_the_register_that_follows_too_closely_condemns_its_neighbour(library: Path) -> None:
    far = SETTINGS.model_copy(update={"decision_distance_counts": 5000, "gate_distance_counts": 6000})
    core = Core(library)
    core.connect(configuration=far)
    run(core, 20)
    for n in range(1, 66):
        core.eye(True)
        run(core, 8)
        core.eye(False)
        run(core, 4 if n == 64 else 35)
        core.decide(n, *ACCEPT)
    run(core, 7000)
    outcomes = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert outcomes[63] == ACCEPT
    assert outcomes[64] == outcomes[65] == (Decision.FAULT, Reason.OVERRUN)


@pytest.mark.parametrize("polarity", ["energise_to_pass", "energise_to_reject"])
def test_a_part_right_behind_one_that_a_jump_lost_is_not_believed(library: Path, polarity: str) -> None:
    core = Core(library)
    core.connect(configuration=SETTINGS.model_copy(update={"polarity": polarity}))
    run(core, 200)
    pass_part(core)  # 20 long; its tail is 5 counts past the eye
    core.step(1000)
    core.say(wire.ACK)
    part = pass_part(core)
    core.decide(part, *ACCEPT)
    for _ in range(130):
        run(core, 1)
        assert core.gate == (polarity == "energise_to_reject") or core.count > 1325
    assert [(o.decision, o.reason) for o in core.heard(wire.OUTCOME)][-1] == (Decision.FAULT, Reason.OVERRUN)


def test_a_part_close_behind_what_a_hand_laid_down_costs_no_other(core: Core) -> None:
    core.connect()
    run(core, 130)
    core.decide(pass_part(core), *ACCEPT)
    run(core, 40)
    for level in (True, False):
        core.eye(level)
        wait_ms(core, 30)
    run(core, 5)
    core.decide(pass_part(core), *ACCEPT)
    first, second = (trigger.count for trigger in core.heard(wire.TRIGGER))
    assert second - first == 70
    run(core, 200)
    outcomes = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert outcomes == {1: ACCEPT, 2: (Decision.FAULT, Reason.OVERRUN)}


def test_a_hand_behind_a_part_beyond_the_register_costs_no_other(small_library: Path) -> None:
    core = Core(small_library)
    core.connect()
    run(core, 130)
    for _ in range(2):
        core.decide(pass_part(core), *ACCEPT)
        run(core, 20)
    pass_part(core)  # nobody follows it
    for level in (True, False):
        core.eye(level)
        wait_ms(core, 30)
    run(core, 200)
    outcomes = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert outcomes == {1: ACCEPT, 2: ACCEPT, 3: (Decision.FAULT, Reason.OVERRUN)}


def test_a_dry_run_keeps_the_cause(core: Core) -> None:
    core.connect(inhibit=True)
    run(core, 20)
    late = pass_part(core)
    run(core, 40)
    core.decide(late, *ACCEPT)
    silent = pass_part(core)
    run(core, 60)
    flushed = pass_part(core)
    core.step(50)
    found = {o.part: (o.decision, o.reason) for o in core.heard(wire.OUTCOME)}
    assert found == {
        late: (Decision.REJECT, Reason.LATE),
        silent: (Decision.FAULT, Reason.ENCODER),
        flushed: (Decision.FAULT, Reason.ENCODER),
    }


def test_parts_that_touch_are_not_one(core: Core) -> None:
    """The eye stays blocked for longer than a part is long: something follows that nobody triggered."""
    core.connect()
    run(core, 20)
    core.eye(True)
    run(core, 10)
    core.decide(1, *ACCEPT)
    run(core, 30)
    core.eye(False)
    run(core, 200)
    assert [(o.decision, o.reason) for o in core.heard(wire.OUTCOME)] == [(Decision.FAULT, Reason.OVERRUN)]
    assert counter(core, "too_close") == 1


def test_a_part_after_a_jump_at_a_trailing_edge_is_triggered(core: Core) -> None:
    core.connect()
    run(core, 20)
    core.eye(True)
    run(core, 20)
    core.eye(False)
    run(core, 1)  # the trailing edge is not yet debounced
    core.step(50)
    run(core, 60)
    assert pass_part(core) == 2


@pytest.mark.parametrize("polarity", ["energise_to_pass", "energise_to_reject"])
def test_silent_encoder_leaves_no_gate_at_pass(library: Path, polarity: str) -> None:
    core = Core(library)
    core.connect(configuration=SETTINGS.model_copy(update={"polarity": polarity}))
    run(core, 130)
    part = pass_part(core)
    core.decide(part, *ACCEPT)
    run(core, 65)  # in the gate now
    rejecting = polarity == "energise_to_reject"
    assert core.gate != rejecting
    wait_ms(core, 110)
    assert core.gate == rejecting
    run(core, 200)
    assert core.heard(wire.OUTCOME)[0].reason is Reason.ENCODER


def test_lost_encoder_rejects_in_either_polarity(library: Path) -> None:
    core = Core(library)
    core.connect(configuration=SETTINGS.model_copy(update={"polarity": "energise_to_reject"}))
    run(core, 200)
    assert not core.gate
    core.lib.rc_encoder_lost(core.memory)
    assert core.gate
    assert core.hold


def test_a_rejected_part_that_stopped_right_before_the_gate_does_not_pass(library: Path) -> None:
    """At speed the gate is commanded ahead of the belt. What the lead anticipated did not come."""
    core = Core(library)
    core.connect(configuration=SETTINGS.model_copy(update={"polarity": "energise_to_reject", "actuator_delay_ms": 8.0}))
    run(core, 200)
    part = pass_part(core)
    core.decide(part, Decision.REJECT, Reason.SCORE_ABOVE_THRESHOLD)
    run(core, 63)  # 88 counts past the eye, commanded 40 ahead: its window is over
    assert not core.gate
    wait_ms(core, 200)
    core.now_us += 1000
    run(core, 3)
    assert core.gate


def test_two_hasty_counts_do_not_open_the_gate_early(core: Core) -> None:
    """Electrical noise after a pause looks like an infinite speed."""
    core.connect()
    core.eye(True)
    run(core, 10)
    core.decide(1, *ACCEPT)
    wait_ms(core, 150)
    for _ in range(3):
        core.now_us += 1 - US_PER_COUNT
        core.step()
        assert not core.gate
    run(core, 30)
    assert not core.gate


@pytest.mark.parametrize(
    "change",
    [
        {"decision_distance_counts": 95},
        {"gate_distance_counts": 5},
        {"min_part_spacing_counts": 10},
        {"heartbeat_timeout_ms": 0},
    ],
)
def test_senseless_parameters_are_refused(core: Core, change: dict[str, int]) -> None:
    core.say(wire.HELLO, wire.hello_payload(7, False))
    core.say(wire.PARAMETERS, SETTINGS.model_copy(update=change).parameters(False))
    assert core.heard(wire.PARAMETERS_ECHO) == [wire.ParametersEcho(0, 4)]
    assert not status(core, beat=False).parameters_set


def test_other_parameters_stop_the_belt_and_settle_what_was_followed(core: Core) -> None:
    core.connect()
    part = pass_part(core)
    core.say(wire.PARAMETERS, SETTINGS.model_copy(update={"gate_distance_counts": 120}).parameters(False))
    assert core.heard(wire.OUTCOME) == [wire.OutcomeRecord(part, Decision.FAULT, Reason.NOT_PERMITTED, core.count)]
    assert status(core).faults == 32


def test_another_epoch_on_request_begins_at_part_1(core: Core) -> None:
    core.connect()
    pass_part(core)
    core.say(wire.HELLO, wire.hello_payload(7, True))
    assert core.frames[-1].epoch == 77
    core.epoch = 77
    core.say(wire.HEARTBEAT)
    core.say(wire.ACK)
    run(core, 200)
    assert pass_part(core) == 1


@given(data=st.binary(max_size=600))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_do_no_harm(library: Path, data: bytes) -> None:
    core = Core(library)
    core.connect()
    part = pass_part(core)
    core.receive(data)
    core.receive(b"\0")
    core.decide(part, *ACCEPT)
    run(core, 200)
    assert [(o.part, o.decision) for o in core.heard(wire.OUTCOME)] == [(part, Decision.ACCEPT)]


@given(
    kind=st.integers(0, 255),
    payload=st.binary(max_size=60),
    epoch=st.sampled_from([EPOCH, 0, 77]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_well_framed_message_opens_no_gate(library: Path, kind: int, payload: bytes, epoch: int) -> None:
    core = Core(library)
    core.connect()
    part = pass_part(core)
    core.say(kind, payload, epoch)
    accepted = kind == wire.DECISION and epoch == EPOCH and payload in {struct.pack("<IBB", part, 1, 1)}
    run(core, 200)
    outcomes = core.heard(wire.OUTCOME)
    assert all(o.decision is not Decision.ACCEPT or accepted for o in outcomes)
