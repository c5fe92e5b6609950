"""The C core as a state machine, through ctypes, against a slow model that was written from the promises.

The model looks at every part that ever was, at every count. It shares no code and no structure with the core.
The same checker is then shown to go red on mutated copies of the C sources.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
from dataclasses import dataclass, field
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

    def connect(self, inhibit: bool = False, configuration: LinkSettings = SETTINGS) -> None:
        """What a box does until the permit is on."""
        self.say(wire.HELLO, wire.hello_payload(7, False))
        self.say(wire.PARAMETERS, configuration.parameters(inhibit))
        self.say(wire.HEARTBEAT)
        self.say(wire.ACK)
        self.tick()


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

    count: int = 0
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

    def open_parts(self) -> list[ModelPart]:
        return [part for part in self.parts.values() if part.outcome is None]

    def step(self) -> None:
        self.count += 1
        self.steps += 1
        self.virtual = max(self.virtual, self.count + (LEAD if self.steps >= 2 else 0))
        if self.changed_at is not None and self.count - self.changed_at >= 3:
            if self.high != self.stable:
                self.stable = self.high
                if self.high:
                    self._latch(self.changed_at)
            self.changed_at = None
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
        if not self.permitted:
            part.decision, part.reason, part.closed = Decision.FAULT, Reason.NOT_PERMITTED, True
        if self.last_latch is not None and count - self.last_latch < 40:
            for near in (part, self.parts[len(self.parts)]):
                if near.outcome is None:
                    near.decision, near.reason, near.closed = Decision.FAULT, Reason.OVERRUN, True
        self.last_latch = count
        self.parts[len(self.parts) + 1] = part

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
        for part in self.open_parts():
            part.outcome = Decision.FAULT, reason

    def jump(self, by: int) -> None:
        self.count += by
        self.virtual = self.count
        self.steps = 0
        self.changed_at = None
        self.flush(Reason.ENCODER)

    def gate_passes(self) -> bool:
        inside = [p for p in self.open_parts() if p.count + 90 <= self.virtual < p.count + 125]
        return bool(inside) and all(part.decision is Decision.ACCEPT for part in inside)


class Run:
    """Core and model side by side; every difference is an AssertionError."""

    def __init__(self, library: Path, first_count: int) -> None:
        self.core = Core(library, first_count)
        self.core.connect()
        self.model = Model()
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
        self.core.tick()

    def compare(self) -> None:
        assert self.core.gate == self.model.gate_passes(), f"gate at {self.model.count}"
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
        elif kind == "mute":
            self.beating = False
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
        assert [outcome.part for outcome in heard] == sorted({outcome.part for outcome in heard}), "each once, in order"
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
    st.sampled_from([("mute",), ("ack",), ("ack",), ("stall",), ("jump",)]),
)


def check(library: Path, ops: list[tuple[Any, ...]], first_count: int) -> None:
    run = Run(library, first_count)
    for op in ops:
        run.apply(op)
    run.check_outcomes()


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
            ops += [("run", 30), ("ack",)]
    return ops


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    return build_library(tmp_path_factory.mktemp("core"), flags)


@given(ops=st.lists(OPS, max_size=60), first_count=st.sampled_from([0, 2**31 - 500, 2**32 - 500]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_core_does_what_the_promises_say(library: Path, ops: list[tuple[Any, ...]], first_count: int) -> None:
    check(library, ops, first_count)


@pytest.mark.parametrize("seed", range(10))
def test_busy_line(library: Path, seed: int) -> None:
    check(library, busy_schedule(seed), 2**32 - 1000)


DECIDE = "part->decision = decision;\n            part->reason"
LATE = "part->decision = RC_REJECT;\n                    part->reason = RC_LATE;"
PASS = "part->decision = RC_ACCEPT; part->reason = RC_SCORE_BELOW_THRESHOLD;"
INVERTED = "part->decision = decision == RC_ACCEPT ? RC_REJECT : RC_ACCEPT;\n            part->reason"
OPEN = "if (part->decision == RC_UNDECIDED) {\n            part->decision"
AT_GATE = "uint32_t at_gate = part->count + p->gate_distance"
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
}


@pytest.mark.parametrize("name", MUTANTS)
def test_checker_goes_red_on_planted_defects(name: str, tmp_path: Path) -> None:
    file, old, new = MUTANTS[name]
    sources = tmp_path / "controller"
    shutil.copytree(Path(firmware_bridge.__file__).parent / "controller", sources)
    text = (sources / file).read_text()
    assert text.count(old) == 1, "the planted defect no longer fits the source"
    (sources / file).write_text(text.replace(old, new))
    mutant = build_library(tmp_path, ("-O1",), sources)

    def survives() -> None:
        for seed in range(10):
            check(mutant, busy_schedule(seed), 0)

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
    assert {(o.decision, o.reason) for o in core.heard(wire.OUTCOME)} == {(Decision.REJECT, Reason.DRY_RUN)}


def test_energise_to_reject_throws_what_lay_on_the_belt_at_the_start(library: Path) -> None:
    core = Core(library)
    core.connect(configuration=SETTINGS.model_copy(update={"polarity": "energise_to_reject"}))
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


def test_jog_moves_the_gate_once_and_is_refused_with_parts_on_the_belt(core: Core) -> None:
    core.connect()
    core.say(wire.JOG)
    assert core.gate
    wait_ms(core, 210)
    assert not core.gate
    pass_part(core)
    core.say(wire.JOG)
    assert not core.gate
    assert core.heard(wire.REPLY)[-1].result == 8


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
    accepted = (
        kind == wire.DECISION and epoch == EPOCH and payload in {struct.pack("<IBB", part, 1, r) for r in (1, 10)}
    )
    run(core, 200)
    outcomes = core.heard(wire.OUTCOME)
    assert all(o.decision is not Decision.ACCEPT or accepted for o in outcomes)
