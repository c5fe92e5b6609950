"""The judge: what truly happened to every true part, from the physical gate alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from firmware_bridge.belt.config import BeltConfig, TruePart
from firmware_bridge.belt.gate import Gate
from firmware_bridge.belt.motion import Motion
from firmware_bridge.belt.track import Track


@dataclass(slots=True)
class Judgement:
    """One line of judgement.jsonl."""

    index: int
    id: str
    defective: bool
    gate: str  # passed | thrown | split: the gate moved while the part was in it | not_reached
    strobes: list[tuple[int, int]] = field(default_factory=list)  # (epoch, part) of every picture taken of it
    gate_open_error_counts: float | None = None  # gate in place against when it had to be; positive = late
    gate_close_error_counts: float | None = None
    belt_stopped: bool = False  # while the part was in the gate or the gate moved for it


class Judge:
    """Writes each part's judgement once the part has left the gate and the gate's story up to there is known."""

    def __init__(self, config: BeltConfig, parts: list[TruePart], track: Track, motion: Motion, gate: Gate) -> None:
        self._config = config
        self._track = track
        self._motion = motion
        self._gate = gate
        self._records = [Judgement(i, part.id, part.defective, "not_reached") for i, part in enumerate(parts)]
        self._passage: dict[int, tuple[float, float]] = {}  # part -> us at which its two ends reached the gate
        self._leads: dict[int, float] = {}
        self._next_lead = 0
        self._next_tail = 0
        self._judged = 0
        self._energised: set[int] = set()
        self._stops_us: list[tuple[float, float]] = []
        self._file: IO[str] = (config.output / "judgement.jsonl").open("w", encoding="utf-8")
        self.counters: Counter[str] = Counter()

    @property
    def finished(self) -> bool:
        return self._judged == len(self._records)

    def strobed(self, part: int | None, epoch: int, number: int) -> None:
        if part is None:
            self.counters["strobes_without_part"] += 1
        else:
            self._records[part].strobes.append((epoch, number))

    def stopped(self, start_us: float, end_us: float) -> None:
        self._stops_us.append((start_us, end_us))

    def watch(self) -> None:
        """Note which parts reached and left the gate in the belt's last step."""
        travel = self._motion.travel_mm
        at_gate = self._config.gate_distance_mm
        while self._next_lead < len(self._records) and travel >= self._track.lead_mm(self._next_lead) + at_gate:
            place = self._track.lead_mm(self._next_lead) + at_gate
            self._leads[self._next_lead] = self._motion.reached_at(place)
            self._next_lead += 1
        while self._next_tail < self._next_lead:
            place = self._track.lead_mm(self._next_tail) + at_gate + self._config.part_length_mm
            if travel < place:
                break
            self._passage[self._next_tail] = (self._leads.pop(self._next_tail), self._motion.reached_at(place))
            self._next_tail += 1

    def judge_until(self, known_us: float) -> None:
        """Judge every part that left the gate before `known_us`."""
        while self._judged in self._passage and self._passage[self._judged][1] < known_us:
            self._judge(self._records[self._judged], *self._passage.pop(self._judged))
            self._judged += 1

    def close(self) -> None:
        """Write what never reached the gate, too."""
        for record in self._records[self._judged :]:
            self._write(record)
        self._file.close()

    def summary(self) -> dict[str, object]:
        gates = Counter(record.gate for record in self._records)
        steady = [record for record in self._records if not record.belt_stopped]
        errors = [
            abs(error)
            for record in steady
            for error in (record.gate_open_error_counts, record.gate_close_error_counts)
            if error is not None
        ]
        reached = [record for record in self._records if record.gate != "not_reached"]
        return {
            "parts": len(self._records),
            **{name: gates[name] for name in ("passed", "thrown", "split", "not_reached")},
            "escapes": sum(record.defective and record.gate != "thrown" for record in reached),
            "overkill": sum(not record.defective and record.gate != "passed" for record in reached),
            "unstrobed": sum(not record.strobes for record in reached),
            "strobed_more_than_once": sum(len(record.strobes) > 1 for record in reached),
            "gate_errors_measured": len(errors),
            "gate_error_max_counts": max(errors, default=None),
            **self.counters,
        }

    def _judge(self, record: Judgement, lead_us: float, tail_us: float) -> None:
        states = self._gate.states(lead_us, tail_us)
        passing = self._config.polarity == "energise_to_pass"
        record.gate = "split" if len(states) > 1 else "passed" if states == {passing} else "thrown"
        start_us, end_us = lead_us, tail_us
        if states == {True}:
            self._energised.add(record.index)
            start_us, end_us = self._measure(record, lead_us, tail_us)
        record.belt_stopped = any(begin < end_us and end > start_us for begin, end in self._stops_us)
        self._write(record)

    def _measure(self, record: Judgement, lead_us: float, tail_us: float) -> tuple[float, float]:
        """Gate errors at both ends of the energised stretch, unless it is shared with a neighbour."""
        stretch = self._gate.energised_around((lead_us + tail_us) / 2)
        if stretch is None:
            return lead_us, tail_us
        begin_us, end_us = stretch
        place = self._track.lead_mm(record.index) + self._config.gate_distance_mm
        per_mm = self._config.counts_per_mm
        begin_mm = self._motion.travel_at(begin_us)
        before = self._config.gate_window_before_mm
        if record.index - 1 not in self._energised or begin_mm > place - self._config.pitch_mm:
            record.gate_open_error_counts = round((begin_mm - (place - before)) * per_mm, 3)
        if end_us is not None and self._motion.travel_at(end_us) < place + self._config.pitch_mm:
            late_mm = self._motion.travel_at(end_us) - (place + self._config.gate_window_after_mm)
            record.gate_close_error_counts = round(late_mm * per_mm, 3)
        return begin_us, end_us if end_us is not None else tail_us

    def _write(self, record: Judgement) -> None:
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()


def write_summary(path: Path, summary: dict[str, object]) -> None:
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
