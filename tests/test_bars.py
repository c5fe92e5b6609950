"""The bars of the methods: met at the bound, missed below it; what was not measured is not said."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bars import measured_bars
from compile.bench.cost import Cost
from compile.bench.figures import Estimate
from compile.bench.run import Results, Row, Wanted
from compile.methods.registry import DEFAULT_METHOD


def row(data: str, method: str, image: float, pixel: float = 0.2) -> Row:
    """Figures by the rule that counts; by the other all are 0."""
    figures = {"I-AUROC": Estimate(image, None), "P-AP": Estimate(pixel, None)}
    both = {"half": figures, "paper_nonzero": {name: Estimate(0.0, None) for name in figures}}
    return Row(data, method, None, method, 1.0, Cost(1, 1, 1.0, 1.0), both, {})


def met(*rows: Row) -> list[bool]:
    return [bar.met for bar in measured_bars(Results(Wanted([Path("x")], ["x"]), list(rows), [], {}, {}))]


def test_a_teacher_that_leads_by_enough_and_one_that_does_not() -> None:
    yardstick = row("magnetic_tile", "patchcore-32", 0.8)
    assert met(yardstick, row("magnetic_tile", "inp-former-pp", 0.8301, 0.2601)) == [True, True]
    assert met(yardstick, row("magnetic_tile", "inp-former-pp", 0.8299, 0.2599)) == [False, False]
    yardstick = row("cookie", "patchcore-32", 0.8)
    assert met(yardstick, row("cookie", "inp-former-pp", 0.8, 0.2599)) == [True, False]


def test_a_student_near_its_teacher_and_one_behind_the_yardstick() -> None:
    yardstick, teacher = row("cookie", "patchcore-32", 0.8), row("cookie", "inp-former-pp", 0.81, 0.3)
    assert met(yardstick, teacher, row("cookie", DEFAULT_METHOD, 0.801)) == [True, True, True, True]
    assert met(yardstick, teacher, row("cookie", DEFAULT_METHOD, 0.799)) == [True, True, False, False]


def test_grnr_and_what_was_not_measured() -> None:
    assert met() == met(row("magnetic_tile", "patchcore-32", 0.8)) == met(row("cookie", "grnr", 0.1)) == []
    assert met(row("magnetic_tile", "grnr", 0.651)) == [True]
    assert met(row("magnetic_tile", "grnr", 0.649)) == [False]
