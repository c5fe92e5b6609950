"""One picture to look at: the parts of a run with their heat maps and what became of them, mistakes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from compile.demo_parts import LinePart, read_mark
from edge.bundle import Bundle, GraphName
from edge.frame import Score
from edge.organised_scan.draw import draw_height, draw_worst
from edge.prepare import prepare
from edge.scorer import Scorer
from edge.tally import Tally
from edge.view import named, read_view, wanted
from firmware_bridge.belt.config import TruePart

COLUMNS, CELL, CAPTION = 4, 168, 40  # pixels
GREEN, RED, YELLOW, INK = (96, 200, 96), (230, 80, 80), (240, 200, 60), (230, 230, 230)
GROUND = 24


def write_contact_sheet(
    path: Path,
    bundle: Bundle,
    graph: GraphName,
    folder: Path,
    *,
    parts: Sequence[LinePart],
    rows: Sequence[dict[str, Any]],
    counts: Tally,
    limit: int = 24,
) -> Path:
    """Frame, heat map by `graph` and verdict of up to `limit` parts: mistakes first, then defective, then good ones."""
    by_crc = {row["input_crc32"]: row for row in rows}
    scorer = Scorer(bundle, graph)
    wrong = set(counts.escapes) | set(counts.overkill)
    order = sorted(parts, key=lambda part: (str(part.id) not in wrong, not part.defective))
    mistakes = sum(str(part.id) in wrong for part in parts)
    defective = max(0, (limit - mistakes) * 2 // 3)
    chosen = [*order[: mistakes + defective], *[p for p in order if not p.defective and str(p.id) not in wrong]][:limit]
    cells = [_cell(part, part.on_belt(folder), scorer, by_crc) for part in chosen]
    while len(cells) % COLUMNS:
        cells.append(np.full_like(cells[0], GROUND))
    sheet = np.vstack([np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)])
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return path


def _cell(
    part: LinePart, on_belt: TruePart, scorer: Scorer, by_crc: dict[int | None, dict[str, Any]]
) -> NDArray[np.uint8]:
    image, scan = read_view(named(on_belt.picture, on_belt.scan), wanted(scorer.spec))
    score = scorer.score(image, scan)
    row = by_crc.get(score.input_crc32)
    limit = max(row["threshold"] if row else scorer.threshold, 1e-9)
    frame, place = _shown(image, scan, scorer, score, limit)
    heat = np.clip(score.map / (2 * limit), 0, 1)
    coloured = cv2.cvtColor(cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    pictures = [cv2.resize(each, (CELL, CELL), interpolation=cv2.INTER_AREA) for each in (frame, coloured)]
    cell = np.full((CELL + CAPTION + 8, 2 * CELL + 8, 3), GROUND, np.uint8)
    cell[:CELL, : 2 * CELL] = np.hstack(pictures)
    decision = row["decision"] if row else "?"
    colour = {"ACCEPT": GREEN, "REJECT": RED}.get(decision, YELLOW)
    unit = "places" if part.scan else "px"
    truth = f"{part.kind} {part.size_px} {unit}" if part.defective else "good"
    shown = f"{row['score']:.3g}" if row and row["score"] is not None else "no score"
    mark = None if image is None else read_mark(np.asarray(image, np.uint8))
    _write(cell, f"{mark or part.id}: {truth}{place}", CELL + 16, INK)
    _write(cell, f"{decision}  {shown} / {limit:.3g}", CELL + 33, colour)
    return cell


def _shown(image: Any, scan: Any, scorer: Scorer, score: Score, limit: float) -> tuple[NDArray[Any], str]:
    """A part's picture, or its height with a box around a place that is too bad, and where that is."""
    if scan is None:
        return image, ""
    ready = prepare(image, scan, scorer.spec)
    assert ready.scan is not None
    if score.worst is None or score.value <= limit:
        return draw_height(ready.scan), ""
    where = f", at {score.worst.x_mm:.0f} {score.worst.y_mm:.0f} mm"
    return draw_worst(ready.scan, score.worst, scorer.spec.map_size), where


def _write(image: NDArray[np.uint8], text: str, y: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(image, text, (4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
