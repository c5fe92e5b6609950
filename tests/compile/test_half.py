"""What half precision is known to break, in graphs that would show it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.half import half_nodes, render_half
from compile.onnx_session import open_session

TOKENS, WIDTH = 6, 16
EPSILON = 1e-8  # INP-Former's LayerNorm; as float16 it is 0


def graph(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return open_session(model, exact=True).run(None, {"x": x})[0]


@pytest.mark.parametrize("decomposed", [False, True], ids=["LayerNormalization", "decomposed"])
def test_the_epsilon_of_a_layer_norm_survives(*, decomposed: bool) -> None:
    """Tokens without variance, as of a blank region: 0 / sqrt(0 + epsilon) is 0, and without epsilon not a number."""
    node = helper.make_node
    square = np.eye(WIDTH, dtype=np.float32) * 2
    norm = [node("LayerNormalization", ["p", "ones", "zeros"], ["n"], "norm", epsilon=EPSILON)]
    if decomposed:
        norm = [
            node("ReduceMean", ["p", "last"], ["m"], "mean"),
            node("Sub", ["p", "m"], ["c"], "centre"),
            node("Mul", ["c", "c"], ["s"], "square"),
            node("ReduceMean", ["s", "last"], ["v"], "variance"),
            node("Add", ["v", "epsilon"], ["e"], "add"),
            node("Sqrt", ["e"], ["r"], "root"),
            node("Div", ["c", "r"], ["n"], "divide"),
        ]
    constants = {"w": square, "ones": np.ones(WIDTH, np.float32), "zeros": np.zeros(WIDTH, np.float32)}
    constants |= {"last": np.array([2]), "epsilon": np.float32(EPSILON)}
    model = graph(
        [node("MatMul", ["x", "w"], ["p"], "in"), *norm, node("MatMul", ["n", "w"], ["y"], "out")], **constants
    )
    half = render_half(model)
    assert half_nodes(model) == ["in", "out"]
    x = np.random.default_rng(0).normal(size=(1, TOKENS, WIDTH)).astype(np.float32)
    x[0, 0] = 3.0
    expected = run(model, x)
    assert np.float16(EPSILON) == 0
    np.testing.assert_array_equal(expected[0, 0], 0)
    np.testing.assert_allclose(run(half, x), expected, atol=0.02)
    if decomposed:
        np.testing.assert_array_equal(run(half, x)[0, 0], 0)
        spoilt = onnx.ModelProto()
        spoilt.CopyFrom(half)
        (held,) = (item for item in spoilt.graph.initializer if item.name == "epsilon")
        held.CopyFrom(numpy_helper.from_array(np.float32(np.float16(EPSILON)), "epsilon"))
        assert np.isnan(run(spoilt, x)[0, 0]).all(), "so this graph does show it"


def test_attention_and_cosine_stay_in_float() -> None:
    """Products of two activations overflow half precision: tokens of norm 400 meet at 160,000."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["q"], "project"),
        node("Transpose", ["q"], ["t"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["q", "t"], ["a"], "attend"),
        node("Softmax", ["a"], ["p"], "softmax", axis=-1),
        node("MatMul", ["p", "q"], ["o"], "gather"),
        node("ReduceL2", ["o", "last"], ["l"], "norm"),
        node("Max", ["l", "tiny"], ["safe"], "floor"),
        node("Div", ["o", "safe"], ["y"], "cosine"),
    ]
    constants = {"w": np.eye(WIDTH, dtype=np.float32), "last": np.array([2]), "tiny": np.float32(1e-12)}
    model = graph(nodes, **constants)
    half = render_half(model)
    assert half_nodes(model) == ["project"]
    kept = {node.name: list(node.input) for node in half.graph.node}
    assert all(kept[node.name] == list(node.input) for node in nodes[1:])
    x = np.full((1, TOKENS, WIDTH), 100, np.float32)
    x[0, 0] = 0.0
    x[0, 0, 0] = 1e-3
    found = run(half, x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, run(model, x), rtol=2e-3, atol=1e-5)


def test_kept_nodes_stay_as_they_were() -> None:
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["p"], "first"), node("MatMul", ["p", "w"], ["y"], "second")]
    model = graph(nodes, w=np.eye(WIDTH, dtype=np.float32) * (1 + 1e-4))
    half = render_half(model, keep_float=["first"])
    made = {each.name: list(each.input) for each in half.graph.node}
    assert made["first"] == ["x", "w"]
    assert made["second"] == ["p/half", "w/half"]
    assert run(render_half(model, keep_float=half_nodes(model)), np.ones((1, TOKENS, WIDTH), np.float32)) == (
        pytest.approx(run(model, np.ones((1, TOKENS, WIDTH), np.float32)), rel=0, abs=0)
    )
