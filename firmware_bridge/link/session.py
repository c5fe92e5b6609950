"""The conversation with the controller as a state machine: frames and the clock in, frames and events out.

No thread, no port: `Link` owns those. The states follow from four facts: is the port open, has this controller answered
our nonce, is its epoch one we may continue, has it echoed our parameters. Only when all hold are heartbeats sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from firmware_bridge.link import wire
from firmware_bridge.link.clock import ControllerClock
from firmware_bridge.link.outcomes import OutcomeLedger
from firmware_bridge.link.settings import LinkSettings
from firmware_bridge.parts import Outcome, PartId, Trigger, Verdict
from firmware_bridge.reject_path import Memory

MS = 1_000_000
HELLO_EVERY_NS = 100 * MS
RETRY_NS = 50 * MS
HEARTBEAT_EVERY_NS = 100 * MS
SILENCE_NS = 500 * MS  # the controller sends STATUS every 100 ms


@dataclass(slots=True)
class Request:
    """Something that is repeated until it is answered."""

    type: int
    payload: bytes
    due_ns: int
    answered: Callable[[int], None]  # with the result code


@dataclass(frozen=True, slots=True)
class Lost:
    """A part whose outcome can never be learned."""

    part_id: PartId


Event = Trigger | Outcome | Lost


class Session:
    """One box talking to whatever controller is on the wire. Not thread-safe."""

    def __init__(self, settings: LinkSettings, memory: Memory, inhibit: bool, nonce: int) -> None:
        self.counters: Counter[str] = Counter()
        self.controller_counters: dict[str, int] = dict.fromkeys(wire.COUNTERS, 0)
        self.status: wire.Status | None = None
        self.ledger: OutcomeLedger | None = None
        self.problem: str | None = None
        self.events: list[Event] = []
        self.out = bytearray()
        self._settings = settings
        self._memory = memory
        self._parameters = settings.parameters(inhibit)
        self._hash = settings.parameter_hash(inhibit)
        self._nonce = nonce
        self._sequence = 0
        self._requests: dict[int, Request] = {}
        self._decisions: dict[int, int] = {}  # part -> sequence of its request
        self._heard: set[int] = set()  # parts triggered and not yet settled
        self._last_heard = 0
        self._clock = ControllerClock()
        self._agreed = False  # the controller answered our nonce with an epoch we accept
        self._echoed = False
        self._hello_ns = 0
        self._heartbeat_ns = 0
        self._received_ns = 0
        self._fetch_ns = 0

    @property
    def connected(self) -> bool:
        return self._agreed

    @property
    def ready(self) -> bool:
        return self._agreed and self._echoed

    @property
    def epoch(self) -> int | None:
        return self.ledger.epoch if self.ledger is not None else None

    # --- what the box does ---

    def opened(self, now_ns: int) -> None:
        """The port is open; nothing is known of who is behind it."""
        self._forget(now_ns)
        self.out += b"\0"  # ends whatever half frame the controller holds
        self._hello(now_ns)

    def closed(self) -> None:
        self._agreed = self._echoed = False
        self.status = None

    def decide(self, verdict: Verdict, now_ns: int) -> None:
        part_id = verdict.part_id
        if self.ledger is None or part_id.epoch != self.ledger.epoch:
            self.counters["decisions_of_another_epoch"] += 1
        elif self.ledger.delivered(part_id.part):
            self.counters["decisions_after_outcome"] += 1
        elif part_id.part in self._decisions:
            self.counters["decisions_repeated"] += 1
        else:
            payload = wire.decision_payload(part_id.part, verdict.decision, verdict.reason)
            self._decisions[part_id.part] = self._request(wire.DECISION, payload, now_ns, self._decision_answered)

    def command(self, kind: int, now_ns: int, answered: Callable[[int], None]) -> int:
        """ACK or JOG, sent now and repeated until answered. `cancel` it when nobody waits any more."""
        return self._request(kind, b"", now_ns, answered)

    def cancel(self, sequence: int) -> None:
        self._requests.pop(sequence, None)

    def tick(self, now_ns: int, alive: bool) -> None:
        """Send what is due. `alive`: the scoring loop finished a step within its limit."""
        if self._agreed and now_ns - self._received_ns > SILENCE_NS:
            self.counters["silences"] += 1
            self._forget(now_ns)
        if not self._agreed:
            if now_ns - self._hello_ns >= HELLO_EVERY_NS:
                self._hello(now_ns)
            return
        for sequence, request in self._requests.items():
            if now_ns >= request.due_ns:
                self.counters["retries"] += 1
                request.due_ns = now_ns + RETRY_NS
                self._send(request.type, sequence, request.payload)
        if self.ready and alive and now_ns - self._heartbeat_ns >= HEARTBEAT_EVERY_NS:
            self._heartbeat_ns = now_ns
            self._send(wire.HEARTBEAT, 0)

    def next_due_ns(self, now_ns: int) -> int:
        """When `tick` has to be called next."""
        if not self._agreed:
            return self._hello_ns + HELLO_EVERY_NS
        beat_ns = self._heartbeat_ns + HEARTBEAT_EVERY_NS
        if beat_ns <= now_ns:  # the loop is not alive: look again soon
            beat_ns = now_ns + HEARTBEAT_EVERY_NS // 5
        return min([beat_ns, *(request.due_ns for request in self._requests.values())])

    # --- what the controller says ---

    def received(self, frame: wire.Frame, now_ns: int) -> None:
        try:
            message = wire.parse(frame)
        except wire.WireError:
            self.counters["bad_messages"] += 1
            return
        if isinstance(message, wire.HelloAnswer):
            if message.nonce == self._nonce:
                self._received_ns = now_ns
                self._meet(frame.epoch, message, now_ns)
            return
        if not self._agreed or self.ledger is None or frame.epoch != self.ledger.epoch:
            self.counters["foreign_epoch"] += 1
            if self._agreed and isinstance(message, wire.Status):
                self._forget(now_ns)  # another controller is speaking
            return
        self._received_ns = now_ns
        if isinstance(message, wire.Status):
            self._observe(message.now_us, frame, now_ns)
            self._take_status(message, now_ns)
        elif isinstance(message, wire.TriggerMessage):
            self._take_trigger(message, self.ledger, now_ns)
        elif isinstance(message, wire.OutcomeRecord):
            self._settle(message, self.ledger, recovered=False)
        elif isinstance(message, wire.OutcomeBatch):
            self._take_batch(message, self.ledger, now_ns)
        elif isinstance(message, wire.ParametersEcho):
            self._take_echo(frame.sequence, message)
        else:
            self._answer(frame.sequence, message.result)

    def _meet(self, epoch: int, answer: wire.HelloAnswer, now_ns: int) -> None:
        if self._agreed and self.epoch == epoch:
            return
        if self.ledger is None or self.ledger.epoch != epoch:
            last = self._memory.last_part(epoch)
            known = self._memory.knows_epoch(epoch)
            if known and answer.last_part < last:
                self.counters["epochs_refused"] += 1
                self.problem = f"the controller came back with the used epoch {epoch:08x}; asked it to draw another"
                self._hello(now_ns, new_epoch=True)
                return
            self._abandon()
            self.ledger = OutcomeLedger.resumed(epoch, last, self._memory.unresolved(epoch))
            if not known:  # another box's past: what is remembered is enough
                self.ledger.watermark = max(0, answer.last_part - 256)
            self._clock = ControllerClock()
            self.controller_counters = dict.fromkeys(wire.COUNTERS, 0)
            self._last_heard = answer.last_part
        elif answer.last_part < self._last_heard:
            self.counters["epochs_refused"] += 1
            self.problem = f"the controller restarted with its old epoch {epoch:08x}; asked it to draw another"
            self._hello(now_ns, new_epoch=True)
            return
        self.problem = None
        self._agreed = True
        self._heartbeat_ns = 0
        self._clock.observe(answer.now_us, now_ns)
        self._request(wire.PARAMETERS, self._parameters, now_ns, lambda _result: None)
        for request in self._requests.values():
            request.due_ns = min(request.due_ns, now_ns)
        self._fetch(now_ns)

    def _take_echo(self, sequence: int, echo: wire.ParametersEcho) -> None:
        self._answer(sequence, echo.result)
        self._echoed = echo.parameter_hash == self._hash and echo.result == 0
        self.problem = None if self._echoed else self._mismatch(echo.parameter_hash)

    def _take_status(self, status: wire.Status, now_ns: int) -> None:
        self.status = status
        self.controller_counters[status.counter] = status.counter_value
        if status.nonce != self._nonce:
            self.problem = "another box talks to this controller; connect only one"
            self._echoed = False
            return
        if self._echoed and status.parameter_hash != self._hash:
            self._echoed = False
            self.problem = self._mismatch(status.parameter_hash)
        if self.ledger is not None and status.settled_through > self.ledger.watermark:
            self._fetch(now_ns)

    def _mismatch(self, theirs: int) -> str:
        return (
            f"the controller's parameters have hash {theirs:08x}, this station's {self._hash:08x}; "
            "check the distances in the station file, and that the firmware matches this version"
        )

    def _take_trigger(self, message: wire.TriggerMessage, ledger: OutcomeLedger, now_ns: int) -> None:
        if message.part <= self._last_heard:
            self.counters["triggers_repeated"] += 1
            return
        self.counters["triggers_missed"] += message.part - self._last_heard - 1
        self._last_heard = message.part
        if not ledger.delivered(message.part):
            self._heard.add(message.part)
        self.events.append(
            Trigger(
                PartId(ledger.epoch, message.part),
                message.count,
                message.deadline_count,
                message.latch_us,
                self._clock.to_ns(message.latch_us),
                heard_ns=now_ns,
            )
        )

    def _take_batch(self, batch: wire.OutcomeBatch, ledger: OutcomeLedger, now_ns: int) -> None:
        if batch.settled_through <= ledger.watermark:
            return
        for record in batch.records:
            self._settle(record, ledger, recovered=True)
        # Batches are gapless from the oldest on: what a batch steps over is forgotten.
        reach = batch.records[-1].part if batch.records else batch.settled_through
        for part in ledger.missing(1, min(reach, batch.settled_through)):
            self._lose(part, ledger)
        self._last_heard = max(self._last_heard, batch.settled_through)
        if ledger.watermark < batch.settled_through:
            self._fetch(now_ns, at_once=True)

    def _settle(self, record: wire.OutcomeRecord, ledger: OutcomeLedger, recovered: bool) -> None:
        if ledger.deliver(record.part):
            self.counters["outcomes_recovered"] += recovered
            part_id = PartId(ledger.epoch, record.part)
            self.events.append(Outcome(part_id, record.decision, record.reason, record.count, recovered))
            self._close_part(record.part)

    def _lose(self, part: int, ledger: OutcomeLedger) -> None:
        if ledger.deliver(part):
            self.counters["outcomes_lost"] += 1
            self.events.append(Lost(PartId(ledger.epoch, part)))
            self._close_part(part)

    def _close_part(self, part: int) -> None:
        self._heard.discard(part)
        sequence = self._decisions.pop(part, None)
        if sequence is not None:
            self._requests.pop(sequence, None)

    def _abandon(self) -> None:
        """The controller lives under another epoch now: what was open in the old one is lost."""
        if self.ledger is None:
            return
        for part in sorted(self._heard | set(self._memory.unresolved(self.ledger.epoch))):
            self._lose(part, self.ledger)
        self._heard.clear()
        self._decisions.clear()
        self._requests.clear()

    # --- sending ---

    def _forget(self, now_ns: int) -> None:
        self.closed()
        self._received_ns = now_ns
        self._hello_ns = 0
        self._fetch_ns = 0
        kept = set(self._decisions.values())
        self._requests = {sequence: request for sequence, request in self._requests.items() if sequence in kept}

    def _hello(self, now_ns: int, new_epoch: bool = False) -> None:
        self._hello_ns = now_ns
        self._send(wire.HELLO, self._next_sequence(), wire.hello_payload(self._nonce, new_epoch))

    def _fetch(self, now_ns: int, at_once: bool = False) -> None:
        """Ask for the outcomes that are missing; an OUTCOME that is just under way is given time to arrive."""
        if self.ledger is not None and (at_once or now_ns - self._fetch_ns >= RETRY_NS):
            self._fetch_ns = now_ns
            self._send(wire.FETCH, self._next_sequence(), wire.fetch_payload(self.ledger.watermark + 1))

    def _request(self, kind: int, payload: bytes, now_ns: int, answered: Callable[[int], None]) -> int:
        sequence = self._next_sequence()
        self._requests[sequence] = Request(kind, payload, now_ns + RETRY_NS, answered)
        if self._agreed:
            self._send(kind, sequence, payload)
        return sequence

    def _answer(self, sequence: int, result: int) -> None:
        request = self._requests.pop(sequence, None)
        if request is not None:
            request.answered(result)

    def _decision_answered(self, result: int) -> None:
        if result:
            self.counters[f"decisions_refused: {wire.RESULTS.get(result, str(result))}"] += 1

    def _next_sequence(self) -> int:
        self._sequence = self._sequence % 0xFFFF + 1
        return self._sequence

    def _send(self, kind: int, sequence: int, payload: bytes = b"") -> None:
        epoch = self.ledger.epoch if self.ledger is not None else 0
        self.out += wire.encode(wire.Frame(kind, epoch, sequence, payload))

    def _observe(self, now_us: int, frame: wire.Frame, now_ns: int) -> None:
        wire_ns = (len(frame.payload) + 14) * 10 * 1_000_000_000 // self._settings.baud
        self._clock.observe(now_us, now_ns, wire_ns)
