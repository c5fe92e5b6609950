"""The table of budgets and the code that keeps them name the same numbers."""

from __future__ import annotations

from benchmarks.record import budgets
from compile import demo, parity


def test_the_table_says_what_the_code_keeps() -> None:
    compile_, demo_ = budgets("compile"), budgets("demo")
    assert compile_["score_difference_relative"] == parity.FLOAT_TOLERANCE
    assert compile_["auroc_given_up_int8"] == parity.AUROC_BUDGETS["int8"]
    assert compile_["auroc_given_up_fp16"] == parity.AUROC_BUDGETS["float16"]
    assert compile_["spearman_int8"] == parity.SPEARMAN_BUDGET
    assert demo_["escape_share"] == demo.ESCAPE_SHARE
    assert demo_["overkill_level"] == demo.OVERKILL_LEVEL
