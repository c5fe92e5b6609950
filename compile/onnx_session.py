"""Run a graph with ONNX Runtime, in the workshop."""

from __future__ import annotations

import onnx
import onnxruntime as ort


def open_session(model: onnx.ModelProto | bytes, *, threads: int = 1, exact: bool = False) -> ort.InferenceSession:
    """Open a CPU session.

    Args:
        model: the graph, or its bytes.
        threads: inside one operator.
        exact: run Q/DQ as written, in float. ONNX Runtime's fused int8 kernels saturate on x86 without VNNI where
            weights use all 8 bits, which TensorRT does not: graphs for TensorRT are scored this way.

    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def with_outputs(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """Copy a graph and put out inner tensors too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    for name in tensors:
        if name not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy
