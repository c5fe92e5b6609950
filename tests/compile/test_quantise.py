from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compile.onnx_session import open_session
from compile.precision import FEATURE_BUDGET, MOST_FLOAT, calibrate, render_accurately
from compile.quantise import ONNX_RUNTIME, TENSORRT, bias_shift, calibrated_tensors, quantised_nodes, render

TARGETS = [ONNX_RUNTIME, TENSORRT]


@pytest.fixture(scope="module")
def calibrated(trunk, inputs):
    return calibrate(trunk, inputs[:8])


def maps(model: onnx.ModelProto, images: np.ndarray, *, exact: bool = True) -> list[np.ndarray]:
    return open_session(model, exact=exact).run(None, {"image": images})


def change(model: onnx.ModelProto, trunk: onnx.ModelProto, images: np.ndarray) -> float:
    pairs = zip(maps(model, images), maps(trunk, images), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean((0, 2, 3), keepdims=True))) for a, b in pairs)


def test_the_record_covers_what_is_rounded(trunk, inputs, calibrated) -> None:
    record, plain = calibrated
    assert set(record.ranges) == set(plain) == set(calibrated_tensors(trunk))
    for name, (low, high) in record.ranges.items():
        assert plain[name][0] <= low <= 0 <= high <= plain[name][1]
    again = json.loads(json.dumps(record.to_json()))
    assert again["pictures"] == 8
    assert len(again["means"]) == sum(node.op_type == "Conv" for node in trunk.graph.node)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_rendering_has_the_form_that_its_runtime_wants(trunk, calibrated, target) -> None:
    model = render(trunk, calibrated[0].ranges, target)
    onnx.checker.check_model(model, full_check=True)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            assert zero.dtype == (np.int8 if target.symmetric else np.uint8)
            assert not (target.symmetric and zero.any())
        if node.op_type == "Conv":
            weight = made_by[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            assert np.abs(constants[weight.input[0]].astype(int)).max() == target.weight_limit
            assert (node.input[2] in constants) == (not target.integer_bias)
    assert [value.name for value in model.graph.output] == [value.name for value in trunk.graph.output]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_rounding_stays_within_the_budget_and_beats_naive_rounding(trunk, inputs, calibrated, target) -> None:
    record, plain = calibrated
    found = render_accurately(trunk, record, plain, target, inputs[:8])
    assert len(found.float_nodes) <= MOST_FLOAT
    assert max(found.change) < max(found.naive_change)
    assert max(found.change) < 2 * FEATURE_BUDGET
    assert change(found.model, trunk, np.stack(inputs[20:24])) < 2 * FEATURE_BUDGET


def test_bias_correction_takes_the_shift_of_the_means_back(trunk, inputs, calibrated) -> None:
    record = calibrated[0]
    images = np.stack(inputs[20:24])
    shifts = bias_shift(trunk, record.means, ONNX_RUNTIME)
    plain = render(trunk, record.ranges, ONNX_RUNTIME)
    corrected = render(trunk, record.ranges, ONNX_RUNTIME, shifts=shifts)
    wanted = [each.mean((0, 2, 3)) for each in maps(trunk, images)]

    def off(model: onnx.ModelProto) -> float:
        found = [each.mean((0, 2, 3)) for each in maps(model, images)]
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))

    assert off(corrected) < 0.8 * off(plain)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_everything_kept_in_float_changes_nothing(trunk, inputs, calibrated, target) -> None:
    model = render(trunk, calibrated[0].ranges, target, keep_float=quantised_nodes(trunk))
    assert not any("Quantize" in node.op_type for node in model.graph.node)
    for a, b in zip(maps(model, np.stack(inputs[:2])), maps(trunk, np.stack(inputs[:2])), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_node_kept_in_float_keeps_its_weights(trunk, calibrated) -> None:
    kept = quantised_nodes(trunk)[1]
    model = render(trunk, calibrated[0].ranges, ONNX_RUNTIME, keep_float=[kept])
    before = next(node for node in trunk.graph.node if node.name == kept)
    after = next(node for node in model.graph.node if node.name == kept)
    assert list(after.input)[1:] == list(before.input)[1:]


def test_seven_bit_weights_do_not_saturate_in_the_fused_kernels(trunk, inputs, calibrated) -> None:
    """Holds on x86 with and without VNNI: the fused kernels say what the graph as written says."""
    model = render(trunk, calibrated[0].ranges, ONNX_RUNTIME)
    fused, exact = (maps(model, np.stack(inputs[:2]), exact=flag) for flag in (False, True))
    for a, b in zip(fused, exact, strict=True):
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.03


def test_the_original_graph_is_left_alone(trunk, calibrated) -> None:
    before = trunk.SerializeToString(deterministic=True)
    render(trunk, calibrated[0].ranges, TENSORRT)
    assert trunk.SerializeToString(deterministic=True) == before
