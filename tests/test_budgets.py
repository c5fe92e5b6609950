"""The table of budgets and the code that keeps them name the same numbers."""

from __future__ import annotations

from benchmarks.record import budgets
from compile import demo, parity


def test_the_table_says_what_the_code_keeps() -> None:
    compile_, demo_ = budgets("compile"), budgets("demo")
    assert parity.FLOAT_TOLERANCE == compile_["score_difference_relative"]
    assert parity.AUROC_BUDGET == compile_["auroc_given_up_int8"]
    assert parity.SPEARMAN_BUDGET == compile_["spearman_int8"]
    assert demo.ESCAPE_SHARE == demo_["escape_share"]
    assert demo.OVERKILL_LEVEL == demo_["overkill_level"]
