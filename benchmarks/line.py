"""The line over the test parts of a labelled folder: what truly passed and what was thrown, judged by the belt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from compile.data import LabelledImage
from edge.bundle import GraphName, read_bundle
from edge.picture import decode
from edge.rehearsal import Rehearsal
from edge.tally import Tally, journal_rows, judgements, open_triggers, tally
from firmware_bridge.belt.config import TruePart

SECONDS_PER_PART = 0.1  # 600 parts a minute
SETTLE_S = 120.0


@dataclass(frozen=True, slots=True)
class LineRun:
    """One run: the graph that decided, the counts of the three witnesses, the latency."""

    graph: GraphName
    counts: Tally
    p50_ms: float  # trigger to verdict
    p99_ms: float


def run_line(bundle: Path, images: Sequence[LabelledImage], work: Path, seed: int) -> LineRun:
    """Send the test parts, shuffled, at 600 a minute past a station with this bundle.

    Raises:
        RehearsalError: a member of the line did not do its part.

    """
    read = read_bundle(bundle)
    graph: GraphName = "int8" if "int8" in read.manifest.graphs else "float"
    order = np.random.default_rng(seed).permutation(len(images))
    pictures = {str(i): _as_camera(images[i].path, work / "frames" / f"{i}.bmp") for i in order}
    parts = [TruePart(id=str(i), picture=str(pictures[str(i)]), defective=images[i].defective) for i in order]
    with Rehearsal(work / "line", bundle, parts, graph=graph) as line:
        line.start_all()
        line.ack()
        line.wait_for_belt(len(parts) * SECONDS_PER_PART + SETTLE_S)
        line.wait_for(lambda: open_triggers(line.journal) == 0, 10, "outcomes are missing", "station")
        rows = journal_rows(line.journal)
        counts = tally(rows, judgements(line.judgement), parts, read.spec(), open_triggers(line.journal))
    totals = sorted(row["times_ms"]["total"] for row in rows if "total" in row["times_ms"])
    return LineRun(graph, counts, totals[len(totals) // 2], totals[len(totals) * 99 // 100])


def _as_camera(picture: Path, copy: Path) -> Path:
    """A camera delivers pixels: a copy that decodes in a millisecond stands for them."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    pixels = decode(picture.read_bytes())
    if pixels.dtype != np.uint8:
        return picture.absolute()
    cv2.imwrite(str(copy), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels)
    return copy.absolute()
