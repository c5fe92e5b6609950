"""Ask TensorRT, ahead of time and without a GPU, whether it takes a graph.

Two questions. `check_allowed` reads the file alone: opset, IR version, operators, static spatial size, and the forms of
Q/DQ that TensorRT 10.3 (JetPack 6) takes. `build` parses and builds an engine with the TensorRT-RTX builder of the
`tensorrt-rtx-cu12` wheel for SM86: built for RTX SM86, never run on Orin. That builder prints errors of the CUDA driver
on a machine without a GPU and builds all the same, so the returned plan decides; the messages are kept for the error.

The allow-list is the part of the onnx-tensorrt operator matrix (`docs/operators.md` of its release 8.5, opset 17) that
anomaly graphs have use for. Later releases up to 10.3 take all of these; LayerNormalization joined in 8.6. Graphs hold
neither Loop, Scan nor If, although TensorRT takes them: it runs them slowly. That matrix names int64, which the input
`class` has, among the types that are not cut down from release 9.2 on.
"""

from __future__ import annotations

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


def check_allowed(model: onnx.ModelProto) -> list[str]:
    """Say what of a graph lies outside of what TensorRT 10.3 takes; an empty list means nothing."""
    found = []
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset not in OPSETS:
        found.append(f"opset {opset}; {OPSETS.start} to {OPSETS.stop - 1} are allowed")
    if model.ir_version > NEWEST_IR:
        found.append(f"IR version {model.ir_version}; at most {NEWEST_IR} is allowed")
    constants = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            found.append(f"{_name(node)}: operator {node.domain or 'ai.onnx'}.{node.op_type} is not in the allow-list")
        elif node.op_type == "TopK" and (
            node.input[1] not in constants or _scalar(constants[node.input[1]]) > LARGEST_TOPK
        ):
            found.append(f"{_name(node)}: K must be a constant of at most {LARGEST_TOPK}")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found.extend(_check_quantised(node, constants))
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if any(size.dim_value <= 0 for size in sizes[1:]):
            shape = [size.dim_param or size.dim_value for size in sizes]
            found.append(f"input {value.name}: shape {shape}; all but the batch must be fixed")
    return found


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
