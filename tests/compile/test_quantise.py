from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.ranges import METHODS
from compile.compensation import round_trunk
from compile.onnx_session import open_session
from compile.precision import FREE_FLOAT, calibrate, ranges_of, render_accurately
from compile.quantise import ONNX_RUNTIME, TENSORRT, Rounded, calibrated_tensors, quantised_nodes, render

TARGETS = [ONNX_RUNTIME, TENSORRT]


@pytest.fixture(scope="module")
def seen(trunk, inputs):
    return calibrate(trunk, inputs[:8])


@pytest.fixture(scope="module")
def ranges(seen):
    return ranges_of(seen, "mse", ONNX_RUNTIME)


def maps(model: onnx.ModelProto, images: np.ndarray, *, exact: bool = True) -> list[np.ndarray]:
    return open_session(model, exact=exact).run(None, {"image": images})


def change(model: onnx.ModelProto, trunk: onnx.ModelProto, images: np.ndarray) -> float:
    pairs = zip(maps(model, images), maps(trunk, images), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean((0, 2, 3), keepdims=True))) for a, b in pairs)


def test_the_ranges_cover_what_is_rounded(trunk, seen) -> None:
    everything = ranges_of(seen, "minmax", ONNX_RUNTIME)
    assert set(everything) == set(calibrated_tensors(trunk))
    for method in METHODS:
        for name, (low, high) in ranges_of(seen, method, ONNX_RUNTIME).items():
            assert everything[name][0] <= low <= 0 <= high <= everything[name][1]
        assert all(low == -high for low, high in ranges_of(seen, method, TENSORRT).values())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_rendering_has_the_form_that_its_runtime_wants(trunk, ranges, target) -> None:
    model = render(trunk, ranges, target)
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
def test_what_was_measured_best_is_taken_and_stays_within_the_budget(trunk, inputs, seen, target) -> None:
    found = render_accurately(trunk, seen, target, inputs[:20])
    assert [node.node for node in found.float_nodes] == quantised_nodes(trunk)[:FREE_FLOAT]
    assert max(found.change) < 0.6 * max(found.naive_change)
    assert max(found.change) < 0.1
    assert change(found.model, trunk, np.stack(inputs[20:24])) < 0.15
    tried = {trial.recipe: trial.change for trial in found.trials}
    nearest = {name: tried[f"int8, {name} ranges, nearest weights, {FREE_FLOAT} nodes in float"] for name in METHODS}
    assert nearest[found.method] == min(nearest.values()) < tried["int8, minmax ranges, nearest weights, all nodes"]
    assert len(set(nearest.values())) == len(METHODS), "each method was measured with ranges of its own"
    assert dict(found.ranges) == ranges_of(seen, found.method, target)
    assert max(found.change) == min(v for k, v in tried.items() if k.startswith("int8"))
    assert ("float16" in tried) == target.symmetric
    assert tried.get("float16", 0) < 0.01


@pytest.fixture(scope="module")
def rounded(trunk, inputs, ranges):
    return {target.name: round_trunk(trunk, ranges, target, inputs[:8]) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_compensation_brings_the_maps_closer_than_nearest_weights(trunk, inputs, ranges, rounded, target) -> None:
    images = np.stack(inputs[20:24])
    nearest = render(trunk, ranges, target)
    better = render(trunk, ranges, target, rounded=rounded[target.name])
    onnx.checker.check_model(better, full_check=True)
    assert change(better, trunk, images) < 0.8 * change(nearest, trunk, images)


def test_compensation_keeps_the_means_of_the_maps(trunk, inputs, ranges, rounded) -> None:
    images = np.stack(inputs[20:24])
    wanted = [each.mean((0, 2, 3)) for each in maps(trunk, images)]

    def off(model: onnx.ModelProto) -> float:
        found = [each.mean((0, 2, 3)) for each in maps(model, images)]
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))

    nearest = render(trunk, ranges, ONNX_RUNTIME)
    assert off(render(trunk, ranges, ONNX_RUNTIME, rounded=rounded["int8"])) < 0.5 * off(nearest)


def test_only_convolutions_in_int8_are_rounded(trunk, inputs, ranges) -> None:
    convs = [node.name for node in trunk.graph.node if node.op_type == "Conv"]
    told = []
    found = round_trunk(
        trunk,
        ranges,
        ONNX_RUNTIME,
        inputs[:1],
        keep_float=convs[2:],
        tick=lambda done, count: told.append((done, count)),
    )
    assert list(found) == convs[:2]
    assert told == [(1, 2), (2, 2)]
    assert all(np.abs(each.whole.astype(int)).max() <= ONNX_RUNTIME.weight_limit for each in found.values())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_everything_kept_in_float_changes_nothing(trunk, inputs, ranges, target) -> None:
    model = render(trunk, ranges, target, keep_float=quantised_nodes(trunk))
    assert not any("Quantize" in node.op_type for node in model.graph.node)
    for a, b in zip(maps(model, np.stack(inputs[:2])), maps(trunk, np.stack(inputs[:2])), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_node_kept_in_float_keeps_its_weights(trunk, ranges) -> None:
    kept = quantised_nodes(trunk)[1]
    model = render(trunk, ranges, ONNX_RUNTIME, keep_float=[kept])
    before = next(node for node in trunk.graph.node if node.name == kept)
    after = next(node for node in model.graph.node if node.name == kept)
    assert list(after.input)[1:] == list(before.input)[1:]


@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (32, 5)])
def test_seven_bit_weights_do_not_saturate_in_the_fused_kernels(groups, kernel) -> None:
    """The largest weights meet the largest inputs, on x86 with and without VNNI."""
    weights = np.ones((32, 32 // groups, kernel, kernel), np.float32)
    weights[1::2] = -1
    largest = float(np.abs(weights[0]).sum())
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "w", "b"], ["y"], "conv", group=groups, pads=[kernel // 2] * 4)],
        "convolution",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 32, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 32, 8, 8])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.zeros(32, np.float32), "b")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = render(model, {"image": (0.0, 1.0), "y": (-largest, largest)}, ONNX_RUNTIME)
    image = np.ones((1, 32, 8, 8), np.float32)
    (fused,), (exact,) = (maps(model, image, exact=flag) for flag in (False, True))
    step = 2 * largest / 255
    np.testing.assert_allclose(fused, exact, atol=1.01 * step)  # saturation costs half of the sum
    assert exact.max() > 0.98 * largest


def convolution(weights: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "w", "b"], ["y"], "conv")],
        "convolution",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, weights.shape[1], 4, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, len(weights), 4, 4])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("smallest", [0.0, 1e-9, 1e-6])
@pytest.mark.parametrize("brought", [False, True], ids=["nearest weights", "brought weights"])
def test_a_bias_far_above_its_channels_weights_keeps_its_value(smallest, *, brought) -> None:
    """In steps of a tiny weight times a tiny activation it would not fit into int32."""
    weights = np.array([smallest, 1.0], np.float32)[:, None, None, None] * np.ones((2, 3, 1, 1), np.float32)
    bias = np.array([-7.07, 0.5], np.float32)
    scales = np.maximum(np.abs(weights[:, 0, 0, 0]) / 63, 1e-8).astype(np.float32)
    mine = Rounded(np.rint(weights / scales.reshape(-1, 1, 1, 1)).astype(np.int8), scales, bias)
    ranges = {"image": (0.0, 0.01), "y": (-8.0, 8.0)}
    model = render(convolution(weights, bias), ranges, ONNX_RUNTIME, rounded={"conv": mine} if brought else None)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    found = constants["conv/bias/q"] * constants["conv/bias/scale"].astype(float)
    np.testing.assert_allclose(found, bias, rtol=1e-4)
    np.testing.assert_allclose(
        constants["conv/bias/scale"], constants["conv/weight/scale"] * constants["image/scale"], rtol=1e-6
    )
    image = np.full((1, 3, 4, 4), 0.01, np.float32)
    for exact in (True, False):
        (y,) = maps(model, image, exact=exact)
        np.testing.assert_allclose(y[0, :, 0, 0], bias + weights.sum((1, 2, 3)) * 0.01, atol=16 / 255)


def test_the_fused_kernels_say_what_the_graph_says(trunk, inputs, ranges, rounded) -> None:
    """One rounding in 100,000 falls the other way in the first layers; by the last it has grown to a step in every
    second value, without a bias."""
    model = render(trunk, ranges, ONNX_RUNTIME, rounded=rounded["int8"])
    fused, exact = (maps(model, np.stack(inputs[:2]), exact=flag) for flag in (False, True))
    for a, b in zip(fused, exact, strict=True):
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.05
        assert abs((a - b).mean()) / b.std() < 0.005


def test_the_original_graph_is_left_alone(trunk, ranges) -> None:
    before = trunk.SerializeToString(deterministic=True)
    render(trunk, ranges, TENSORRT)
    assert trunk.SerializeToString(deterministic=True) == before
