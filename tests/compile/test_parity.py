from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.onnx_session import open_session
from compile.parity import (
    AUROC_BUDGETS,
    ParityError,
    Scored,
    check_behaviour,
    check_float,
    false_reject_shift,
    image_auroc,
    judge_reduced,
    of_pictures,
    score_all,
)

SIDE = 8
RNG = np.random.default_rng(3)


def graph(*, dead: bool = False, random: bool = False) -> onnx.ModelProto:
    """The brightness of each 16x16 block as map and the brightest block as score; or nothing of the kind."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["t"], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("ReduceMean", ["p", "one"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "gain"], ["g"]),
        helper.make_node("Mul", ["g", "mask"], ["clean" if random else "map"]),
        helper.make_node("ReduceMax", ["map", "two"], ["score"], keepdims=0),
    ]
    if random:
        nodes[6:6] = [
            helper.make_node("RandomNormalLike", ["clean"], ["noise"]),
            helper.make_node("Add", ["clean", "noise"], ["map"]),
        ]
    values = {"one": np.array([1]), "two": np.array([1, 2]), "gain": np.array(0.0 if dead else 1.0, np.float32)}
    make = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [make("image", TensorProto.UINT8, ["b", 128, 128, 3]), make("mask", TensorProto.FLOAT, ["b", SIDE, SIDE])],
        [make("score", TensorProto.FLOAT, ["b"]), make("map", TensorProto.FLOAT, ["b", SIDE, SIDE])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_live_graph_passes_and_a_dead_one_is_refused(inputs) -> None:
    pictures = of_pictures(np.stack(inputs[:4]), SIDE)
    check_behaviour(lambda: open_session(graph()), pictures)
    with pytest.raises(ParityError, match="dead"):
        check_behaviour(lambda: open_session(graph(dead=True)), pictures)


def test_a_graph_that_does_not_repeat_itself_is_refused(inputs) -> None:
    with pytest.raises(ParityError, match="differently the second time"):
        check_behaviour(lambda: open_session(graph(random=True)), of_pictures(np.stack(inputs[:3]), SIDE))


def test_a_graph_that_changes_on_reload_is_refused(inputs) -> None:
    rows = iter([graph(), graph(dead=True)])
    with pytest.raises(ParityError, match="after a reload"):
        check_behaviour(lambda: open_session(next(rows)), of_pictures(np.stack(inputs[:3]), SIDE))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda image: image[..., ::-1], id="BGR for RGB"),
        pytest.param(lambda image: np.roll(image, 5, axis=1), id="another resize"),
        pytest.param(lambda image: 255 - image, id="inverted"),
    ],
)
def test_a_planted_fault_is_refused(inputs, trunk, fault) -> None:
    pictures = np.stack(inputs[:4])
    whole = [each.mean(1) for each in open_session(trunk).run(None, {"image": pictures})][1]
    wrong = [each.mean(1) for each in open_session(trunk).run(None, {"image": fault(pictures).copy()})][1]
    trained, exported = (Scored(maps.max((1, 2)).astype(float), maps) for maps in (whole, wrong))
    check_float(trained, trained, 0.0)
    with pytest.raises(ParityError, match="differs from the trained model"):
        check_float(trained, exported, 0.0)


def test_maps_that_differ_under_equal_scores_are_refused() -> None:
    maps = RNG.uniform(0, 4, (3, 6, 6)).astype(np.float32)
    trained = Scored(np.array([1.0, 2.0, 3.0]), maps)
    moved = maps.copy()
    moved[1, 2, 2] += 0.0009 * maps.max()
    assert check_float(trained, Scored(trained.scores, moved), 0.0)["map_error_of_peak"] == pytest.approx(
        9e-4, rel=0.01
    )
    moved[1, 2, 2] += 0.0002 * maps.max()
    with pytest.raises(ParityError, match=r"scores by 0 relative, maps by 0\.0011 of the peak, 0 other label"):
        check_float(trained, Scored(trained.scores, moved), 0.0)


def test_a_score_that_is_but_rounding_is_compared_at_the_scale_of_the_threshold() -> None:
    """A memory bank's own pictures score 0 but for rounding."""
    maps = np.full((2, 2, 2), 30, np.float32)
    trained = Scored(np.array([5e-5, 30.0]), maps)
    assert check_float(trained, Scored(np.array([0.0, 30.0]), maps), 25.0)["score_error_relative"] < 1e-4
    with pytest.raises(ParityError, match=r"scores by 0\.0004 relative"):
        check_float(trained, Scored(np.array([1.05e-3, 30.0]), maps), 25.0)


def test_labels_count_outside_the_margin_only() -> None:
    maps = np.ones((2, 2, 2), np.float32)
    trained = Scored(np.array([1.00005, 3.0]), maps)
    found = check_float(trained, Scored(np.array([0.99999, 3.0]), maps), 1.0)
    assert found["labels_differ"] == 0
    with pytest.raises(ParityError):
        check_float(trained, Scored(np.array([1.0, np.nan]), maps), 1.0)


def scores(shift: float, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    full = np.concatenate([rng.normal(0, 1, 200), rng.normal(2.0, 1, 200)])
    truth = np.arange(400) >= 200
    return full, full + shift + rng.normal(0, noise, 400), truth


def judge(shift: float, noise: float, *, labelled: bool):
    full, reduced, truth = scores(shift, noise)
    moved = false_reject_shift(full[~truth], reduced[~truth], np.arange(200), 0.05)
    return judge_reduced(full, reduced, truth, shift=moved, labelled=labelled)


def test_a_shift_that_the_own_threshold_follows_costs_nothing() -> None:
    found = judge(0.7, 0.0, labelled=False)
    assert found.kept
    assert found.auroc_loss == pytest.approx(0)
    assert found.spearman == pytest.approx(1)
    assert found.false_reject_shift == 0


def test_noise_moves_the_false_rejects_of_parts_that_set_no_threshold() -> None:
    found = [judge(0.7, noise, labelled=False).false_reject_shift for noise in (0.0, 0.01, 0.3, 3.0)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[1] < 0.005
    assert 0.01 < found[3] < 0.05, "what two unrelated graphs show at a target of 0.05 on halves of 100 parts"


def test_pictures_of_one_part_set_and_break_a_threshold_together() -> None:
    full = np.random.default_rng(0).normal(size=50)
    again = full - 1  # a second picture of each part, the part's lower score
    pictures, groups = np.concatenate([full, again]), np.tile(np.arange(50), 2)
    reduced = np.concatenate([full, again + 0.5])
    assert false_reject_shift(pictures, reduced, groups, 0.1) == 0
    assert false_reject_shift(pictures, reduced, np.arange(100), 0.1) > 0


def test_a_graph_that_gives_up_accuracy_is_refused() -> None:
    found = judge(0.0, 1.0, labelled=True)
    assert not found.kept
    assert "image AUROC falls" in found.reason
    low, high = found.auroc_loss_interval
    assert low < found.auroc_loss < high


def test_the_point_estimate_decides_and_not_the_interval() -> None:
    """Few pictures: one defect that sinks below half of the good ones costs 1/40 of the area, the interval holds 0."""
    full = np.concatenate([np.arange(20.0), 30 + np.arange(20.0)])
    reduced = full.copy()
    reduced[20] = 9.5
    found = judge_reduced(full, reduced, np.arange(40) >= 20, shift=0.0, labelled=True)
    low, high = found.auroc_loss_interval
    assert low <= AUROC_BUDGETS["int8"] < found.auroc_loss < high
    assert not found.kept
    better = judge_reduced(reduced, full, np.arange(40) >= 20, shift=0.0, labelled=True)
    assert better.kept, "what a reduced graph gains is no loss"


def test_half_precision_has_a_tighter_budget() -> None:
    """One of 10,000 pairs and then 30 of them fall the other way."""
    full = np.concatenate([np.arange(100.0), 100 + np.arange(100.0)])
    for sunk, kept in ((1, {"int8": True, "float16": True}), (30, {"int8": True, "float16": False})):
        reduced = full.copy()
        reduced[100] = 99.5 - sunk
        judged = {
            name: judge_reduced(full, reduced, np.arange(200) >= 100, shift=0.0, labelled=True, precision=name)
            for name in kept
        }
        assert judged["int8"].auroc_loss == pytest.approx(sunk / 10_000)
        assert {name: each.kept for name, each in judged.items()} == kept
    assert judged["float16"].reason == "image AUROC falls by 0.0030, allowed 0.001"


def test_ranks_must_agree_where_there_are_no_labels() -> None:
    assert "Spearman" in judge(0.0, 0.35, labelled=False).reason
    assert "Spearman" not in judge(0.0, 0.35, labelled=True).reason


def test_auroc_with_interval() -> None:
    full, _, truth = scores(0, 0)
    value, low, high = image_auroc(full, truth)
    assert low < value < high
    assert value == pytest.approx(0.92, abs=0.03)
    assert image_auroc(truth.astype(float), truth) == (1.0, 1.0, 1.0)


def test_scoring_one_by_one_is_scoring_the_batch(inputs) -> None:
    session = open_session(graph())
    pictures = np.stack(inputs[:3])
    together = session.run(None, {"image": pictures, "mask": np.ones((3, SIDE, SIDE), np.float32)})
    found = score_all(session, of_pictures(pictures, SIDE))
    np.testing.assert_allclose(found.scores, together[0], rtol=1e-6)
    np.testing.assert_allclose(found.maps, together[1], rtol=1e-6)
