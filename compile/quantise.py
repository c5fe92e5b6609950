"""Write INT8 into a graph as explicit Q/DQ nodes: one record, rendered for two runtimes that want opposites.

ONNX Runtime on x86 is fast with asymmetric uint8 activations, int8 weights per channel and int32 bias; its uint8 x int8
products saturate on CPUs without VNNI, so weights use 7 bits there. TensorRT takes only symmetric int8 activations and
a float bias. Both renderings come from the same ranges.

What is quantised: convolutions with constant weights, and the additions between them. A convolution's clip is absorbed
into the uint8 range where that range cannot leave it. Weights are rounded to the nearest step unless the caller brings
better ones (`compile.compensation`). A node whose rounding does the most harm can stay in float: then its inputs are
not rounded for it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.ranges import asymmetric, symmetric_scale

Array = NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Target:
    """What a runtime wants of Q/DQ."""

    name: Literal["int8", "trt"]
    symmetric: bool  # int8 activations around zero, else uint8
    weight_limit: int  # largest magnitude of an int8 weight
    integer_bias: bool  # int32 bias, else float


ONNX_RUNTIME = Target("int8", symmetric=False, weight_limit=63, integer_bias=True)
TENSORRT = Target("trt", symmetric=True, weight_limit=127, integer_bias=False)
"""`weight_limit` 63 is 7 bits: sums of two uint8 x int8 products stay within int16."""

BIAS_LIMIT = np.float32(2**30)  # steps of an int32 bias; half of what fits


class Rounded(NamedTuple):
    """A convolution in whole steps: weight = whole * scale of its output channel."""

    whole: NDArray[np.int8]  # the shape of the weights
    scales: Array  # [out]
    bias: Array  # [out]


class Scale(NamedTuple):
    scale: np.float32
    zero: int


def quantised_nodes(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that `render` can quantise, in the order of the graph."""
    constants = {item.name for item in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "Conv" and node.input[1] in constants)
        or (node.op_type == "Add" and not set(node.input) & constants)
    ]


def calibrated_tensors(model: onnx.ModelProto) -> list[str]:
    """Name the tensors whose ranges a rendering needs: inputs and (clipped) outputs of the quantised nodes."""
    nodes = {node.name: node for node in model.graph.node}
    constants = {item.name for item in model.graph.initializer}
    ends = _ends(model)
    names: dict[str, None] = {}
    for name in quantised_nodes(model):
        node = nodes[name]
        for tensor in (*node.input, ends[node.output[0]]):
            if tensor not in constants:
                names[tensor] = None
    return list(names)


def render(
    model: onnx.ModelProto,
    ranges: Ranges,
    target: Target,
    *,
    keep_float: Iterable[str] = (),
    rounded: Mapping[str, Rounded] | None = None,
) -> onnx.ModelProto:
    """Write the Q/DQ form of a graph.

    Args:
        model: float graph.
        ranges: tensor -> (lowest, highest) value; see `calibrated_tensors`.
        target: the runtime.
        keep_float: names of nodes that stay in float.
        rounded: node -> what to put in its place; others are rounded to the nearest step.

    """
    return _Renderer(model, ranges, target, frozenset(keep_float), rounded or {}).run()


class _Renderer:
    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Ranges,
        target: Target,
        keep_float: frozenset[str],
        better: Mapping[str, Rounded],
    ) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.ranges, self.target, self.better = ranges, target, better
        self.chosen = [name for name in quantised_nodes(model) if name not in keep_float]
        self.constants = {item.name: numpy_helper.to_array(item) for item in self.graph.initializer}
        self.ends = _ends(model)
        self.rounded: dict[str, str] = {}  # tensor -> its quantised and dequantised twin
        self.added: dict[str, list[onnx.NodeProto]] = {}  # producing tensor -> nodes to insert after it

    def run(self) -> onnx.ModelProto:
        nodes = {node.name: node for node in self.graph.node}
        outputs = {value.name for value in self.graph.output}
        results = [self.ends[nodes[name].output[0]] for name in self.chosen]
        for name in self.chosen:
            node = nodes[name]
            for position, tensor in enumerate(node.input):
                if tensor not in self.constants:
                    node.input[position] = self._round(tensor)
            if node.op_type == "Conv":
                self._conv(node)
        for tensor in results:
            self._round(tensor)
            if tensor in outputs:
                self._put_out_rounded(tensor)
        self._assemble()
        return self.model

    def _round(self, tensor: str) -> str:
        if tensor in self.rounded:
            return self.rounded[tensor]
        scale, zero = _activation(self.ranges[tensor], self.target)
        kind = np.int8 if self.target.symmetric else np.uint8
        parameters = [
            self._constant(f"{tensor}/scale", np.array(scale)),
            self._constant(f"{tensor}/zero", np.array(zero, kind)),
        ]
        twin = f"{tensor}/rounded"
        self.added[tensor] = [
            helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{tensor}/q"], name=f"{tensor}/quantise"),
            helper.make_node("DequantizeLinear", [f"{tensor}/q", *parameters], [twin], name=f"{tensor}/dequantise"),
        ]
        self.rounded[tensor] = twin
        return twin

    def _conv(self, node: onnx.NodeProto) -> None:
        if node.name in self.better:
            whole, scales, bias = self.better[node.name]
        else:
            weight = self.constants[node.input[1]]
            bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
            whole, scales = _whole(weight, self.target.weight_limit)
        source = node.input[0].removesuffix("/rounded")
        if self.target.integer_bias:
            step = _activation(self.ranges[source], self.target).scale
            whole, scales = _fit_bias(whole, scales, bias, step)
            bias_scales = (scales * step).astype(np.float32)
            integers = np.rint(bias / bias_scales).astype(np.int32)
            biases = self._dequantised(f"{node.name}/bias", integers, bias_scales)
        else:
            biases = self._constant(f"{node.name}/bias", bias)
        node.input[1] = self._dequantised(f"{node.name}/weight", whole, scales)
        del node.input[2:]
        node.input.append(biases)

    def _dequantised(self, name: str, whole: NDArray[Any], scales: Array) -> str:
        inputs = [
            self._constant(f"{name}/q", whole),
            self._constant(f"{name}/scale", scales),
            self._constant(f"{name}/zero", np.zeros(len(scales), whole.dtype)),
        ]
        made = helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/dequantise", axis=0)
        self.added.setdefault("", []).append(made)
        return name

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _put_out_rounded(self, tensor: str) -> None:
        """The graph's output keeps its name and carries the rounded values."""
        inner = f"{tensor}/exact"
        for node in self.graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == tensor:
                        names[position] = inner
        first, last = self.added.pop(tensor)
        first.input[0], last.output[0] = inner, tensor
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                if name == self.rounded[tensor] or name == inner:
                    node.input[position] = tensor
        self.added[inner] = [first, last]

    def _assemble(self) -> None:
        """Order the nodes, absorb clips, drop constants that nobody reads."""
        if not self.target.symmetric:
            self._absorb_clips()
        ordered = list(self.added.get("", []))
        for value in self.graph.input:
            ordered.extend(self.added.get(value.name, []))
        for node in self.graph.node:
            ordered.append(node)
            for tensor in node.output:
                ordered.extend(self.added.get(tensor, []))
        copies = []
        for node in ordered:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(copies)
        used = {name for node in copies for name in node.input}
        kept = [item for item in self.graph.initializer if item.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _absorb_clips(self) -> None:
        """Saturation at the ends of uint8 is the clip, where the range lies inside it and nobody reads the exact."""
        for clip in [node for node in self.graph.node if node.op_type == "Clip"]:
            readers = [node for node in self.graph.node if clip.output[0] in node.input]
            added = self.added.get(clip.output[0])
            if readers or not added:
                continue
            scale, zero = _activation(self.ranges[clip.output[0]], self.target)
            low, high = (float(self.constants[name]) for name in clip.input[1:3])
            if -zero * scale < low or (255 - zero) * scale > high * (1 + 1e-6):
                continue
            added[0].input[0] = clip.input[0]
            self.added[clip.input[0]] = self.added.pop(clip.output[0])
            self.graph.node.remove(clip)


def _whole(weight: Array, limit: int) -> tuple[NDArray[np.int8], Array]:
    """Round weights per output channel to -limit..limit: integers and scales."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales = np.maximum(largest / limit, np.float32(1e-8)).astype(np.float32)
    return np.clip(np.rint(weight / _along_rows(scales, weight)), -limit, limit).astype(np.int8), scales


def _fit_bias(whole: NDArray[np.int8], scales: Array, bias: Array, step: np.float32) -> tuple[NDArray[np.int8], Array]:
    """Coarsen the weights of a channel whose bias would not fit into int32: they are too small to matter beside it."""
    fitting = np.maximum(scales, np.abs(bias) / (step * BIAS_LIMIT)).astype(np.float32)
    return np.rint(whole * _along_rows(scales / fitting, whole)).astype(np.int8), fitting


def _activation(span: tuple[float, float], target: Target) -> Scale:
    if target.symmetric:
        return Scale(np.float32(symmetric_scale(*span)), 0)
    scale, zero = asymmetric(*span)
    return Scale(np.float32(scale), zero)


def _along_rows(scales: Array, weight: NDArray[Any]) -> Array:
    return scales.reshape(-1, *[1] * (weight.ndim - 1))


def _ends(model: onnx.ModelProto) -> dict[str, str]:
    """Output of each node -> the tensor that is rounded: after the clip, where one follows."""
    clips = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    return {tensor: clips.get(tensor, tensor) for node in model.graph.node for tensor in node.output}
