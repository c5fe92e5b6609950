"""A line of real processes over a tiny bundle, and the promises that hold whatever is done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge.bundle import read_bundle
from edge.listener import Listener
from edge.rehearsal import Belt, Rehearsal
from edge.tally import Row, Tally, journal_rows, judgements, open_triggers, tally
from firmware_bridge.belt.config import TruePart

GOOD, DEFECTIVE = 128, 250  # brightness: what the tiny graph tells apart


class Line:
    """A rehearsal with a listener, and its end."""

    def __init__(self, rehearsal: Rehearsal, listener: Listener) -> None:
        self.rehearsal, self.listener = rehearsal, listener

    def rows(self) -> list[Row]:
        return journal_rows(self.rehearsal.journal)

    def wait_for_outcomes(self, count: int, timeout_s: float = 20) -> None:
        self.rehearsal.wait_for(lambda: len(self.rows()) >= count, timeout_s, f"no {count} outcomes", "station")

    def wait_ready(self) -> None:
        self.rehearsal.wait_for(
            lambda: bool(self.rehearsal.status()["path"]["ready"]), 20, "the station is not ready", "station"
        )

    def finish(self, timeout_s: float = 60) -> tuple[Tally, dict[str, Any]]:
        """Let the belt run out; then every outcome must be journalled, and every journalled one be heard."""
        line = self.rehearsal
        summary = line.wait_for_belt(timeout_s)
        line.wait_for(lambda: open_triggers(line.journal) == 0, 15, "outcomes are missing", "station")
        wanted = {f"{row['epoch']:08x}-{row['part']}" for row in self.rows()}
        line.wait_for(lambda: wanted <= set(self.heard()), 30, "messages are missing", "publisher")
        spec = read_bundle(line.bundle).spec()
        counts = tally(self.rows(), judgements(line.judgement), line.parts, spec, open_triggers(line.journal))
        return counts, summary

    def heard(self) -> list[str]:
        return [message["id"] for message in self.listener.verdicts()]


@pytest.fixture
def start_line(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    """Starts a line with a bundle and parts; the belt waits for `ack`."""
    with ExitStack() as stack:

        def start(bundle: Path, parts: list[TruePart], belt: Belt | None = None, **options: Any) -> Line:
            rehearsal = stack.enter_context(Rehearsal(tmp_path / "line", bundle, parts, belt=belt, **options))
            rehearsal.start_all()
            return Line(rehearsal, stack.enter_context(Listener(rehearsal.broker_port, "beltline/#")))

        yield start


@pytest.fixture
def make_line(
    tmp_path: Path, make_bundle: Callable[..., Path], tiny: Any, start_line: Callable[..., Line]
) -> Callable[..., Line]:
    """Starts a line: `line = make_line(40, every=4)`: 40 parts, each fourth defective."""

    def make(count: int, every: int = 4, **options: Any) -> Line:
        folder = tmp_path / "pictures"
        folder.mkdir()
        parts = []
        for number in range(count):
            defective = number % every == every - 1
            picture = tiny.picture(DEFECTIVE if defective else GOOD, seed=number)
            path = folder / f"{number:03d}.bmp"
            assert cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            parts.append(TruePart(picture=str(path), defective=defective, id=str(number)))
        return start_line(make_bundle(), parts, **options)

    return make
