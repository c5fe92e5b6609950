"""What a rehearsed line did, counted from three witnesses that do not know each other.

The journal says what the station decided and what the controller reported; the belt's judgement says what the gate
physically did to each true part; the pictures say which part each decision was made from (the digest of the scored
tensor must be that of the true part's picture).
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.bundle import Spec
from edge.front_end import FrameError
from edge.prepare import digest, prepare
from edge.view import View, named, read_view, wanted
from firmware_bridge.belt.config import TruePart
from firmware_bridge.parts import PartId

Row = dict[str, Any]


def journal_rows(journal: Path) -> list[Row]:
    """Every outcome of a journal, oldest first; `times_ms` decoded."""
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM outcome ORDER BY id")]
    connection.close()
    for row in rows:
        row["times_ms"] = json.loads(row["times_ms"] or "{}")
    return rows


def open_triggers(journal: Path) -> int:
    """Triggers that have no outcome."""
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as connection:
        query = "SELECT count(*) FROM trigger t LEFT JOIN outcome o USING (epoch, part) WHERE o.id IS NULL"
        count: int = connection.execute(query).fetchone()[0]
    connection.close()
    return count


def judgements(folder: Path) -> list[Row]:
    """The belt's judgement of each true part, in the order of the belt."""
    lines = (folder / "judgement.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@dataclass
class Tally:
    """The counts that promises are made of."""

    parts: int = 0  # that reached the gate
    outcomes: dict[str, int] = field(default_factory=dict)  # "REJECT score_above_threshold" -> count
    without_outcome: int = 0  # strobed parts that the journal does not know, and open triggers
    died_unheard: int = 0  # strobed by a controller that died before it could tell; their gate is judged all the same
    unproven_passed: int = 0  # physically passed, but no ACCEPT in the journal
    wrong_picture: int = 0  # decided from another picture than the part's own
    without_digest: int = 0  # an ACCEPT whose journal row does not say from which picture
    recovered_without_digest: int = 0  # the same, fetched from the controller: its verdict died with the station
    accepted_thrown: int = 0  # an ACCEPT in the journal, but the gate threw it
    good: int = 0
    defective: int = 0
    escapes: list[str] = field(default_factory=list)  # ids of defective parts that passed
    overkill: list[str] = field(default_factory=list)  # ids of good parts that were thrown

    @property
    def faults(self) -> int:
        return sum(count for name, count in self.outcomes.items() if name.startswith("FAULT"))

    @property
    def late(self) -> int:
        return sum(count for name, count in self.outcomes.items() if name.endswith((" late", " no_verdict")))

    @property
    def broken(self) -> list[str]:
        """The promises that were broken, in words; empty when all were kept."""
        broken = {
            "parts without an outcome": self.without_outcome,
            "parts passed without a proven ACCEPT": self.unproven_passed,
            "decisions made from another part's picture": self.wrong_picture,
            "parts accepted without a picture's digest": self.without_digest,
            "accepted parts thrown by a moving belt": self.accepted_thrown,
        }
        return [f"{count} {what}" for what, count in broken.items() if count]


def tally(rows: list[Row], judged: list[Row], parts: Sequence[TruePart], spec: Spec, open_count: int) -> Tally:
    """Count.

    Args:
        rows: of the journal.
        judged: by the belt.
        parts: that lay on the belt.
        spec: the bundle's inputs, to repeat what the front end did.
        open_count: triggers of the journal that have no outcome.

    """
    views = {part.id: named(part.picture, part.scan) for part in parts}
    by_id = {PartId(row["epoch"], row["part"]): row for row in rows}
    result = Tally(without_outcome=open_count)
    result.outcomes = dict(Counter(f"{row['decision']} {row['reason']}" for row in rows))
    blind = [row for row in rows if row["decision"] == "ACCEPT" and row["input_crc32"] is None]
    result.recovered_without_digest = sum(bool(row["recovered"]) for row in blind)
    result.without_digest = len(blind) - result.recovered_without_digest
    for part in judged:
        if part["gate"] == "not_reached":
            continue
        result.parts += 1
        passed = part["gate"] != "thrown"
        mine = [by_id.get(PartId(*strobe)) for strobe in part["strobes"]]
        accepted = any(row is not None and row["decision"] == "ACCEPT" for row in mine)
        unknown = [PartId(*strobe) for strobe, row in zip(part["strobes"], mine, strict=True) if row is None]
        died = sum(_died_unheard(part_id, rows) for part_id in unknown)
        result.died_unheard += died
        result.without_outcome += len(unknown) - died
        result.unproven_passed += passed and not (accepted or any(map(_open_for, mine)))
        result.accepted_thrown += accepted and part["gate"] == "thrown" and not part["belt_stopped"]
        true = _digest(views[part["id"]], spec)
        result.wrong_picture += sum(row is not None and row["input_crc32"] not in (None, true) for row in mine)
        if part["defective"]:
            result.defective += 1
            if passed:
                result.escapes.append(part["id"])
        else:
            result.good += 1
            if not passed:
                result.overkill.append(part["id"])
    return result


def _died_unheard(part_id: PartId, rows: list[Row]) -> bool:
    """The controller strobed the part and died before its trigger had left: the next after an ended epoch's last."""
    last = max((row["part"] for row in rows if row["epoch"] == part_id.epoch), default=0)
    return bool(rows) and rows[-1]["epoch"] != part_id.epoch and part_id.part == last + 1


def _open_for(row: Row | None) -> bool:
    """The station asked for ACCEPT; the controller died or hung with the gate in its hand, which may stand open for it.

    A part that passes so was proven good; its outcome is FAULT, as the controller cannot vouch for it any more.
    """
    if row is None or row["reason"] not in ("outcome_unknown", "controller_stalled"):
        return False
    return bool(row["verdict_decision"] == "ACCEPT")


def _digest(view: View, spec: Spec) -> int | None:
    """None for a part that the front end refuses: no decision may be made from its picture."""
    try:
        ready = prepare(*read_view(view, wanted(spec)), spec)
    except FrameError:
        return None
    return digest(ready.tensors, spec)
