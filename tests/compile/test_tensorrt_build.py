from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.quantise import ONNX_RUNTIME, TENSORRT, calibrated_tensors, render
from compile.tensorrt_build import build, check_allowed
from edge.engine.flavour import TensorRTError


def rendered(trunk, target):
    return render(trunk, dict.fromkeys(calibrated_tensors(trunk), (-6.0, 6.0)), target)


def test_the_float_trunk_is_allowed_and_builds(trunk) -> None:
    assert check_allowed(trunk) == []
    plan = build(trunk)
    assert len(plan.engine) > 100_000
    assert plan.compute_capabilities == ["8.6"]


def test_the_tensorrt_form_is_allowed_and_builds(trunk) -> None:
    model = rendered(trunk, TENSORRT)
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
            "t: K must be a constant of at most 3840",
        ),
        (graph([helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="q")]), "q: no constant zero point"),
    ],
)
def test_what_lies_outside_is_named(model, finding: str) -> None:
    assert any(finding in found for found in check_allowed(model))
