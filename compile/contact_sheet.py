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
from edge.picture import decode
from edge.scorer import Scorer
from edge.tally import Tally

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
    cells = [_cell(part, decode((folder / part.picture).read_bytes()), scorer, by_crc) for part in chosen]
    while len(cells) % COLUMNS:
        cells.append(np.full_like(cells[0], GROUND))
    sheet = np.vstack([np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)])
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return path


def _cell(
    part: LinePart, frame: NDArray[Any], scorer: Scorer, by_crc: dict[int | None, dict[str, Any]]
) -> NDArray[np.uint8]:
    score = scorer.score(frame)
    row = by_crc.get(score.input_crc32)
    limit = max(row["threshold"] if row else scorer.threshold, 1e-9)
    heat = np.clip(score.map / (2 * limit), 0, 1)
    coloured = cv2.cvtColor(cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    pictures = [cv2.resize(image, (CELL, CELL), interpolation=cv2.INTER_AREA) for image in (frame, coloured)]
    cell = np.full((CELL + CAPTION + 8, 2 * CELL + 8, 3), GROUND, np.uint8)
    cell[:CELL, : 2 * CELL] = np.hstack(pictures)
    decision = row["decision"] if row else "?"
    colour = {"ACCEPT": GREEN, "REJECT": RED}.get(decision, YELLOW)
    truth = f"{part.kind} {part.size_px} px" if part.defective else "good"
    shown = f"{row['score']:.3g}" if row and row["score"] is not None else "no score"
    _write(cell, f"{read_mark(np.asarray(frame, np.uint8)) or part.id}: {truth}", CELL + 16, INK)
    _write(cell, f"{decision}  {shown} / {limit:.3g}", CELL + 33, colour)
    return cell


def _write(image: NDArray[np.uint8], text: str, y: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(image, text, (4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
