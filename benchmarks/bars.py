"""What the methods are to reach on the shared data sets (`[methods]` in budgets.toml), next to what they reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.record import budgets
from compile.bench.run import Results, Row
from compile.methods.registry import DEFAULT_METHOD, DEFAULT_TEACHER
from compile.metrics import MaskRule

YARDSTICK = "patchcore-32"
TILE, COOKIE = "magnetic_tile", "cookie"
RULE: MaskRule = "half"


class Bar(NamedTuple):
    """One that was measured."""

    words: str
    value: float
    bound: float
    most: bool = False  # the bound is the largest value, not the smallest

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.most else self.value >= self.bound

    def __str__(self) -> str:
        limit = f"at {'most' if self.most else 'least'} {self.bound:g}"
        return f"{'met   ' if self.met else 'MISSED'}  {self.words}: {self.value:+.4f}, {limit}"


def measured_bars(results: Results) -> list[Bar]:
    """Those that the methods and data sets of a comparison tell of, in the order of the table."""
    rows = {(row.data, row.method): row for row in results.rows if row.shots is None}
    return list(_bars(rows, budgets("methods")))


def _bars(rows: dict[tuple[str, str], Row], wanted: dict[str, float]) -> Iterator[Bar]:
    for data, lead in ((TILE, wanted["pp_lead_tile"]), (COOKIE, wanted["pp_lead_cookie"])):
        yardstick = rows.get((data, YARDSTICK))
        teacher, student = rows.get((data, DEFAULT_TEACHER)), rows.get((data, DEFAULT_METHOD))
        if yardstick and teacher:
            gained = _figure(teacher, "I-AUROC") - _figure(yardstick, "I-AUROC")
            yield Bar(f"{data}: image AUROC of {DEFAULT_TEACHER} over {YARDSTICK}", gained, lead)
            ratio = _figure(teacher, "P-AP") / _figure(yardstick, "P-AP")
            yield Bar(f"{data}: its pixel AP over {YARDSTICK}'s", ratio, wanted["pp_pixel_ap_ratio"])
        if teacher and student:
            lost = _figure(teacher, "I-AUROC") - _figure(student, "I-AUROC")
            yield Bar(f"{data}: image AUROC that its student lacks", lost, wanted["student_behind_teacher"], most=True)
        if yardstick and student:
            gained = _figure(student, "I-AUROC") - _figure(yardstick, "I-AUROC")
            yield Bar(f"{data}: image AUROC of the student over {YARDSTICK}", gained, wanted["student_lead"])
    if grnr := rows.get((TILE, "grnr")):
        yield Bar(f"{TILE}: image AUROC of grnr", _figure(grnr, "I-AUROC"), wanted["grnr_tile"])


def _figure(row: Row, name: str) -> float:
    return row.figures[RULE][name].mean
