from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.backbones.choice import LARGEST, SMALLEST
from compile.image_size import choose_size
from compile.job import Settings
from compile.wishes import WishError, check_wishes

PLAIN = Settings(Path("data"), Path("x.bundle"))


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        *(("size", size, "--size") for size in (0, 7, 100, 250, 96, 2048, -32)),
        *(
            ("smallest_defect_px", px, "--smallest-defect")
            for px in (0.0, -3.0, 5e-324, 1e-300, 0.99, math.inf, math.nan)
        ),
        *(("budget_ms", ms, "--budget-ms") for ms in (0.0, -1.0, math.inf, math.nan)),
        *(("target_false_reject", rate, "--target-false-reject") for rate in (0.0, 5e-324, 1.0, math.nan)),
        *(("seed", seed, "--seed") for seed in (-5, 2**32)),
        ("fit_steps", 19, "--fit-steps"),
        ("group_by", "(", "--group-by"),
        ("learn_defects", -1, "--learn-defects"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_with_its_value(field: str, value: object, option: str) -> None:
    with pytest.raises(WishError) as refused:
        check_wishes(replace(PLAIN, **{field: value}))
    assert str(refused.value).startswith(f"{option} {value!r}: ")


def test_a_tail_model_needs_a_target() -> None:
    with pytest.raises(WishError, match="--tail-model: state with --target-false-reject"):
        check_wishes(replace(PLAIN, tail_model=True))
    check_wishes(replace(PLAIN, tail_model=True, target_false_reject=0.001))


def test_a_budget_is_refused_where_nobody_knows_what_the_head_takes() -> None:
    wanted = replace(PLAIN, method="pnpt", budget_ms=20)
    with pytest.raises(WishError, match=r"--budget-ms 20: what --method pnpt takes .* Choose --size instead"):
        check_wishes(wanted)
    check_wishes(replace(wanted, size=256))
    check_wishes(replace(wanted, method="varad"))


def test_a_method_that_learns_nothing_from_defects_refuses_them() -> None:
    with pytest.raises(WishError, match=r"--learn-defects 3: --method varad learns nothing .*inp-former-pp"):
        check_wishes(replace(PLAIN, learn_defects=3))
    check_wishes(replace(PLAIN, learn_defects=3, method="inp-former-pp"))


@pytest.mark.parametrize("group_by", ["near-duplicates", "folder", r"part-(\d+)"])
def test_every_way_to_group_is_taken(group_by: str) -> None:
    check_wishes(replace(PLAIN, group_by=group_by))


@given(st.integers(1, 100_000), st.floats())
def test_every_defect_that_passes_can_be_chosen_for(side: int, defect: float) -> None:
    try:
        check_wishes(replace(PLAIN, smallest_defect_px=defect))
    except WishError:
        return
    assert SMALLEST <= choose_size(side, smallest_defect_px=defect).size <= LARGEST


def test_a_student_is_refused_several_products_by_its_option() -> None:
    wanted = Settings(Path("cap"), Path("a.bundle"), more=(Path("lid"),), method="varad-from-grnr")
    with pytest.raises(WishError, match="--teacher grnr: makes a model of one product, and 2 folders"):
        check_wishes(wanted)


def test_a_teacher_that_nobody_knows_is_refused_by_its_option() -> None:
    with pytest.raises(WishError, match="--teacher: no method 'nobody'"):
        check_wishes(Settings(Path("good"), Path("a.bundle"), method="varad-from-nobody"))
