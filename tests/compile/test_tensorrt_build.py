from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.half import render_half
from compile.quantise import ONNX_RUNTIME, TENSORRT, calibrated_tensors, quantised_nodes, render
from compile.tensorrt_build import build, check_allowed
from edge.engine.flavour import TensorRTError


def rendered(trunk, target, keep_float=()):
    return render(trunk, dict.fromkeys(calibrated_tensors(trunk), (-6.0, 6.0)), target, keep_float=keep_float)


def test_the_float_trunk_is_allowed_and_builds(trunk) -> None:
    assert check_allowed(trunk) == []
    plan = build(trunk)
    assert len(plan.engine) > 100_000
    assert plan.compute_capabilities == ["8.6"]


def test_the_tensorrt_form_is_allowed_and_builds(trunk) -> None:
    model = rendered(trunk, TENSORRT)
    assert check_allowed(model) == []
    assert len(build(model).engine) > 100_000


def test_what_a_search_may_end_with_is_allowed_and_builds(trunk) -> None:
    """Half of the nodes in float among INT8 ones, and half precision throughout or for the rest."""
    some = quantised_nodes(trunk)[::2]
    for model in (rendered(trunk, TENSORRT, some), render_half(trunk), render_half(trunk, keep_float=some)):
        assert check_allowed(model) == []
        assert len(build(model).engine) > 100_000


def test_the_onnx_runtime_form_is_refused_by_list_and_by_builder(trunk) -> None:
    model = rendered(trunk, ONNX_RUNTIME)
    assert any("only symmetric int8" in finding for finding in check_allowed(model))
    with pytest.raises(TensorRTError, match=r"refuses node .+"):
        build(model)


def graph(nodes, *, opset=18, shape=("batch", 8), ir=10, constants=()) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", [x], [y], list(constants))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


TWO = numpy_helper.from_array(np.array(2, np.int64), "two")


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        (graph([helper.make_node("Det", ["x"], ["y"], name="d")]), "d: operator ai.onnx.Det"),
        (graph([helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft")]), "com.microsoft.Relu"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], opset=20), "opset 20"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], opset=16), "opset 16"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], ir=11), "IR version 11"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], shape=("batch", "width")), "all but the batch must be fixed"),
        (
            graph(
                [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="t")],
                constants=[numpy_helper.from_array(np.array([3841], np.int64), "k")],
            ),
            "t: TopK K must be at most 3840",
        ),
        (graph([helper.make_node("TopK", ["x", "x"], ["y", "i"], name="t")]), "t: TopK input 1 must be a constant"),
        (
            graph(
                [helper.make_node("TopK", ["x", "k"], ["y", "i"], sorted=0, name="t")],
                constants=[numpy_helper.from_array(np.array([3], np.int64), "k")],
            ),
            "t: TopK must be sorted",
        ),
        (graph([helper.make_node("Squeeze", ["x", "x"], ["y"], name="s")]), "s: Squeeze input 1 must be a constant"),
        (
            graph([helper.make_node("ReduceMax", ["x", "x"], ["y"], name="r")]),
            "r: ReduceMax input 1 must be a constant",
        ),
        (graph([helper.make_node("Pad", ["x", "p", "", "x"], ["y"], name="p")]), "p: Pad input 3 must be a constant"),
        (
            graph([helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"], name="l")]),
            "l: LayerNormalization gives its first output alone",
        ),
        (
            graph([helper.make_node("Pow", ["x", "two"], ["y"], name="p")], constants=[TWO]),
            "p: Pow of integers is not allowed",
        ),
        (
            graph([helper.make_node("ScatterND", ["x", "i", "u"], ["y"], name="s")]),
            "s: ScatterND is not allowed from opset 18 on",
        ),
        (
            graph([helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2], dilations=[2], name="a")], opset=19),
            "a: AveragePool must not be dilated",
        ),
        (
            graph([helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic", name="r")]),
            "r: Resize must be nearest or linear",
        ),
        (graph([helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="q")]), "q: no constant zero point"),
    ],
)
def test_what_lies_outside_is_named(model, finding: str) -> None:
    assert any(finding in found for found in check_allowed(model))


def test_constants_may_be_nodes_and_axes_may_be_left_out() -> None:
    axes = helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([1], np.int64)))
    allowed = graph(
        [
            axes,
            helper.make_node("Unsqueeze", ["x", "axes"], ["u"]),
            helper.make_node("ReduceMax", ["u"], ["r"]),
            helper.make_node("ScatterND", ["r", "i", "u"], ["s"]),
            helper.make_node("Resize", ["s", "", "scales"], ["y"], mode="linear"),
        ],
        opset=17,
    )
    assert check_allowed(allowed) == []
