"""Ask TensorRT, ahead of time and without a GPU, whether it takes a graph.

Two questions. `check_allowed` reads the file alone: opset, IR version, operators and their attributes, static spatial
size, and the forms of Q/DQ that TensorRT 10.3 (JetPack 6) takes. `build` has TensorRT-RTX build an engine for SM86:
built for RTX SM86, never run on Orin.

The allow-list is our reading of public pages of onnx-tensorrt; no matrix of 10.3 itself was at hand. Its operators are
those that anomaly graphs have use for among the supported ones of `docs/operators.md` in release 8.5 (opset 17) as well
as in 10.15 (opset 9 to 24). Between the two `docs/Changelog.md` tells of none that was removed. LayerNormalization
joined in 8.6, int64 in 9.0. What that changelog adds or mends after 10.3 is refused: axes that are no constants (Pad
10.4, Squeeze and Unsqueeze 10.7, CumSum 10.8), Pow of integers (10.8, 10.12), ScatterND from opset 18 on (10.9). So are
what both matrices except: Resize by other than nearest or linear, antialiasing, other axes of reductions than
constants, second outputs of LayerNormalization and MaxPool, dilated AveragePool, unsorted TopK. Graphs hold neither
Loop, Scan nor If, although TensorRT takes them: it runs them slowly.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from edge.engine.build import Built, Options
from edge.engine.build import build as build_engine
from edge.engine.flavour import require

OPSETS = range(17, 20)
NEWEST_IR = 10
OPERATORS = set(
    """
    Abs Add And ArgMax ArgMin AveragePool Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum
    DepthToSpace DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements Gemm
    GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish Identity LayerNormalization LeakyRelu Less
    LessOrEqual Log MatMul Max MaxPool Mean Min Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round ScatterND Shape Sigmoid Sign Sin Slice
    Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - one name per line would fill two screens
)
LARGEST_TOPK = 3840
CONSTANT_INPUTS = {  # operator -> which input
    **dict.fromkeys(("TopK", "CumSum", "Squeeze", "Unsqueeze"), 1),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Reduce")), 1),
    "Pad": 3,
}
ONE_OUTPUT = ("LayerNormalization", "MaxPool")
INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def check_allowed(model: onnx.ModelProto) -> list[str]:
    """Say what of a graph lies outside of what TensorRT 10.3 takes; an empty list means nothing."""
    found = []
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset not in OPSETS:
        found.append(f"opset {opset}; {OPSETS.start} to {OPSETS.stop - 1} are allowed")
    if model.ir_version > NEWEST_IR:
        found.append(f"IR version {model.ir_version}; at most {NEWEST_IR} is allowed")
    constants = {item.name: item for item in model.graph.initializer}
    constants |= {node.output[0]: value for node in model.graph.node if (value := _constant(node))}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            found.append(f"{_name(node)}: operator {node.domain or 'ai.onnx'}.{node.op_type} is not in the allow-list")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found.extend(_check_quantised(node, constants))
        else:
            found.extend(f"{_name(node)}: {node.op_type} {why}" for why in _check_form(node, constants, opset))
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if any(size.dim_value <= 0 for size in sizes[1:]):
            shape = [size.dim_param or size.dim_value for size in sizes]
            found.append(f"input {value.name}: shape {shape}; all but the batch must be fixed")
    return found


def _check_form(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], opset: int) -> Iterator[str]:
    """What of a node TensorRT 10.3 does not take, though it takes the operator."""
    kind, given = node.op_type, dict(enumerate(node.input))
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    at = CONSTANT_INPUTS.get(kind)
    if at is not None and given.get(at) and given[at] not in constants:
        yield f"input {at} must be a constant"
    elif kind == "TopK" and _scalar(constants[given[1]]) > LARGEST_TOPK:
        yield f"K must be at most {LARGEST_TOPK}"
    if kind == "TopK" and not attributes.get("sorted", 1):
        yield "must be sorted"
    if kind in ONE_OUTPUT and any(node.output[1:]):
        yield "gives its first output alone"
    if kind == "Pow" and any(constants[name].data_type in INTEGERS for name in node.input if name in constants):
        yield "of integers is not allowed"
    if kind == "ScatterND" and (opset >= 18 or attributes.get("reduction", b"none") != b"none"):
        yield "is not allowed from opset 18 on, nor with a reduction"
    if kind == "AveragePool" and set(attributes.get("dilations", [])) - {1}:
        yield "must not be dilated"
    if kind == "Resize" and (attributes.get("mode", b"nearest") == b"cubic" or attributes.get("antialias", 0)):
        yield "must be nearest or linear, without antialiasing"


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    values = [item.t for item in node.attribute if item.name == "value"]
    return values[0] if node.op_type == "Constant" and values else None


def _check_quantised(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[str]:
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None:
        return [f"{_name(node)}: no constant zero point; without one the type is uint8"]
    if zero.data_type != onnx.TensorProto.INT8:
        kind = onnx.TensorProto.DataType.Name(zero.data_type).lower()
        return [f"{_name(node)}: {node.op_type} of {kind}; only symmetric int8 is allowed"]
    if onnx.numpy_helper.to_array(zero).any():
        return [f"{_name(node)}: zero point is not zero; only symmetric int8 is allowed"]
    return []


def build(model: onnx.ModelProto) -> Built:
    """Build an engine for RTX GPUs of SM86 at batch 1, which needs no GPU here.

    Raises:
        TensorRTError: TensorRT-RTX is not installed, or refuses the graph; names the refused node.

    """
    options = Options(compute_capabilities=["8.6"])
    return build_engine(model.SerializeToString(), require("tensorrt-rtx"), None, options)


def _name(node: onnx.NodeProto) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)


def _scalar(tensor: onnx.TensorProto) -> int:
    return int(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
