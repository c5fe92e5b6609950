"""Which nodes a search keeps in float: on a chain of convolutions with one tensor whose range is spoilt."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compile.precision import Probes, Rendering, calibrate, ranges_of
from compile.quantise import ONNX_RUNTIME, render
from compile.recipe import half, int8
from compile.search import fewest, widen

SIDE, WIDTH, DEPTH = 32, 6, 12
BUDGET = 0.15  # of the maps' spread


@given(st.integers(0, 40), st.integers(1, 60))
def test_the_fewest_are_found_in_few_attempts(most, enough):
    asked = []

    def holds(count):
        asked.append(count)
        return count >= enough

    assert fewest(most, holds) == (enough if enough <= most else None)
    assert len(set(asked)) == len(asked) <= 7
    assert all(1 <= count <= most for count in asked)
    if enough > most:
        assert len(asked) <= 1, "what half of all nodes do not mend is not searched"


@pytest.fixture(scope="module")
def chain() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t0"], "turn", perm=[0, 3, 1, 2]),
    ]
    weights = []
    for i in range(DEPTH):
        inputs = 3 if i == 0 else WIDTH
        square = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:, :inputs]
        weights += [
            numpy_helper.from_array(square.reshape(WIDTH, inputs, 1, 1).astype(np.float32), f"w{i}"),
            numpy_helper.from_array(np.zeros(WIDTH, np.float32), f"b{i}"),
        ]
        nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}", f"b{i}"], [f"t{i + 1}"], f"conv{i}"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["b", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(f"t{DEPTH}", TensorProto.FLOAT, ["b", WIDTH, SIDE, SIDE])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(16)]


def searched(chain, pictures, spoilt: set[str], recipe=None):
    """Search from a rendering whose ranges of some tensors are far too narrow."""
    ranges = ranges_of(calibrate(chain, pictures), "minmax", ONNX_RUNTIME)
    ranges = {name: (low / 20, high / 20) if name in spoilt else (low, high) for name, (low, high) in ranges.items()}
    probes = Probes(chain, pictures)
    plain = Rendering(render(chain, ranges, ONNX_RUNTIME), [1.0], [1.0], [], ranges=ranges)
    judged = []

    def judge(rendering):
        judged.append(rendering)
        return "" if max(rendering.change) <= BUDGET else "too much"

    found = widen(plain, recipe or int8(chain, ranges, ONNX_RUNTIME, pictures), probes, judge)
    return found, plain, judged


def test_the_nodes_that_read_spoilt_tensors_stay_in_float_and_no_others(chain, pictures):
    found, plain, judged = searched(chain, pictures, {"t4", "t7"})
    assert found is not None
    assert {node.node for node in found.float_nodes} == {"conv4", "conv7"}
    assert min(node.harm for node in found.float_nodes) > BUDGET
    assert found is judged[-1], "what was judged last is what the evidence speaks of"
    read = {name for node in found.model.graph.node if node.op_type == "Conv" for name in node.input}
    assert {"t3/rounded", "t4", "t5/rounded", "t7", "t8/rounded"} <= read
    assert [trial.verdict for trial in plain.trials].count("inside the accuracy budget") >= 2
    assert {trial.verdict for trial in plain.trials} == {"too much", "inside the accuracy budget"}


def test_what_is_spoilt_throughout_is_given_up_after_one_attempt(chain, pictures):
    found, plain, judged = searched(chain, pictures, {f"t{i}" for i in range(DEPTH + 1)})
    assert found is None
    assert len(judged) == len(plain.trials) == 1


def test_half_precision_takes_over_at_once(chain, pictures):
    found, plain, judged = searched(chain, pictures, {"t7"}, half(chain))
    assert found is judged[0]
    assert (found.precision, found.float_nodes, found.ranges) == ("float16", [], {})
    assert [trial.recipe for trial in plain.trials] == ["float16, 0 nodes in float"]
    assert max(found.change) < 0.01
