"""Round a trunk's convolutions one after the other, each making up for what was rounded before it.

A convolution of the INT8 graph sees inputs x' that differ from the float graph's x. In the order of the graph, each one
gets the weights W' that bring W'x' closest to Wx over the calibration pictures (least squares from second moments),
rounded so that the outputs change least (`compile.rounding`), and the bias that makes the means of both equal. Biases
and weights thus take back upstream errors too, activations' included. Depthwise convolutions are many tiny ones.

Both graphs are run a piece at a time, from the last convolution's input to the next one's, so every layer is computed
once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compile.onnx_session import open_session
from compile.quantise import Array, Ranges, Rounded, Target, quantised_nodes, render
from compile.rounding import Array64, round_weights

DAMPING = 0.01  # of the mean variance of a convolution's inputs, added to each: keeps rare inputs from ruling


def round_trunk(
    trunk: onnx.ModelProto,
    ranges: Ranges,
    target: Target,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    keep_float: Collection[str] = (),
    tick: Callable[[int, int], None] | None = None,
) -> dict[str, Rounded]:
    """Round every convolution that is not kept in float: node -> weights, scales, bias.

    Args:
        trunk: float graph with the input `image`.
        ranges: tensor -> (lowest, highest) value.
        target: the runtime.
        pictures: uint8 [H, W, 3].
        keep_float: names of nodes that stay in float.
        tick: told (done, all) after each convolution.

    """
    constants = {item.name: numpy_helper.to_array(item) for item in trunk.graph.initializer}
    wanted = set(quantised_nodes(trunk)) - set(keep_float)
    nodes = [node for node in trunk.graph.node if node.op_type == "Conv" and node.name in wanted]
    rounded: dict[str, Rounded] = {}
    exact, lossy = _Pieces(pictures), _Pieces(pictures)
    for done, node in enumerate(nodes, start=1):
        model = render(trunk, ranges, target, keep_float=keep_float, rounded=rounded)
        made = {name for each in model.graph.node for name in each.output}
        source = node.input[0]
        twin = f"{source}/rounded" if f"{source}/rounded" in made else source  # an output is rounded under its own name
        weight, bias = constants[node.input[1]], constants[node.input[2]]
        pairs = zip(exact.run(trunk, source), lossy.run(model, twin), strict=True)
        rounded[node.name] = _round(node, weight, bias, pairs, target.weight_limit)
        if tick:
            tick(done, len(nodes))
    return rounded


def _round(
    node: onnx.NodeProto, weight: Array, bias: Array, pairs: Iterable[tuple[Array, Array]], limit: int
) -> Rounded:
    """Fit and round one convolution from its (float, rounded) inputs."""
    attributes: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    groups = attributes.get("group", 1)
    size = weight[0].size
    cross, own = np.zeros((groups, size, size)), np.zeros((groups, size, size))
    sum_exact, sum_lossy, count = np.zeros((groups, size)), np.zeros((groups, size)), 0
    for pair in pairs:
        x, seen = (_patches(each, weight.shape[2:], attributes) for each in pair)
        cross += x @ seen.transpose(0, 2, 1)
        own += seen @ seen.transpose(0, 2, 1)
        sum_exact += x.sum(axis=2)
        sum_lossy += seen.sum(axis=2)
        count += x.shape[2]
    mean, mean_lossy = sum_exact / count, sum_lossy / count
    cross = cross / count - mean[:, :, None] * mean_lossy[:, None, :]
    own = own / count - mean_lossy[:, :, None] * mean_lossy[:, None, :]
    ridge = (DAMPING * np.trace(own, axis1=1, axis2=2) / size + 1e-9)[:, None, None] * np.eye(size)
    weights = weight.reshape(groups, -1, size).astype(np.float64)
    fitted: Array64 = np.linalg.solve(own + ridge, (cross + ridge).transpose(0, 2, 1) @ weights.transpose(0, 2, 1))
    fitted = fitted.transpose(0, 2, 1)
    scales = np.maximum(np.abs(fitted).max(axis=2) / limit, 1e-8).astype(np.float32).astype(np.float64)
    steps = round_weights(fitted, own + ridge, scales, limit)
    shift = weights @ mean[..., None] - (steps * scales[..., None]) @ mean_lossy[..., None]
    return Rounded(
        steps.reshape(weight.shape).astype(np.int8),
        scales.ravel().astype(np.float32),
        (bias + shift.ravel()).astype(np.float32),
    )


def _patches(x: Array, kernel: Sequence[int], attributes: dict[str, Any]) -> Array:
    """What the kernel sees at each place: [batch, channels, h, w] -> [groups, channels / groups * kernel, places]."""
    top, left, bottom, right = pads = attributes.get("pads", (0, 0, 0, 0))
    step_y, step_x = attributes.get("strides", (1, 1))
    if (*kernel, step_y, step_x) == (1, 1, 1, 1) and not any(pads):  # most convolutions; nothing is copied then
        return np.asarray(x.transpose(1, 0, 2, 3).reshape(attributes.get("group", 1), -1, x[:, 0].size))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    seen = sliding_window_view(padded, tuple(kernel), axis=(2, 3))[:, :, ::step_y, ::step_x]
    groups = attributes.get("group", 1)
    size = x.shape[1] // groups * kernel[0] * kernel[1]
    return np.asarray(seen.transpose(1, 4, 5, 0, 2, 3).reshape(groups, size, -1))


class _Pieces:
    """Runs a graph from where it last stopped: remembers the tensors at which it stopped, for all pictures."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._known: dict[str, list[NDArray[Any]]] = {"image": [picture[None] for picture in pictures]}

    def run(self, model: onnx.ModelProto, wanted: str) -> list[NDArray[Any]]:
        """Compute a tensor for every picture, and forget what no later one is computed from."""
        if wanted not in self._known:
            nodes, inputs = _cut(model, [wanted], self._known)
            session = open_session(_piece(model, nodes, {n: self._known[n][0] for n in inputs}, wanted), exact=True)
            feeds = zip(*(self._known[name] for name in inputs), strict=True)
            self._known[wanted] = [session.run(None, dict(zip(inputs, feed, strict=True)))[0] for feed in feeds]
        found = self._known[wanted]
        _, still_read = _cut(model, [value.name for value in model.graph.output], self._known)
        self._known = {name: self._known[name] for name in still_read}
        return found


def _cut(
    model: onnx.ModelProto, wanted: Sequence[str], known: Collection[str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Find the nodes between known tensors and wanted ones, in order, and which known tensors they read."""
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output).difference(known):
            nodes.append(node)
            needed.update(node.input)
    return nodes[::-1], sorted(needed.intersection(known))


def _piece(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], inputs: dict[str, NDArray[Any]], wanted: str
) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    kinds = {name: helper.np_dtype_to_tensor_dtype(held.dtype) for name, held in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "piece",
        [helper.make_tensor_value_info(name, kinds[name], held.shape) for name, held in inputs.items()],
        [helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None)],
        [item for item in model.graph.initializer if item.name in read],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
