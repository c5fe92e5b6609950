"""What a method costs: numbers it keeps, multiply-adds, latency and memory of its exported graph."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import shape_inference
from torch import nn

from edge.errors import BeltlineError

TIMED_RUNS, WARM_UP_RUNS = 21, 5


class CostError(BeltlineError):
    """A graph could not be run. The message holds what ONNX Runtime said."""


@dataclass(frozen=True, slots=True)
class Cost:
    parameters: int  # learned or remembered numbers, a memory bank included
    macs: int  # of one picture, Conv, Gemm and MatMul
    latency_ms: float  # of one picture, ONNX Runtime, one thread: median
    memory_mb: float  # peak of a process that runs this graph alone, Python and ONNX Runtime included


def count_parameters(*modules: nn.Module) -> int:
    """Count what modules keep: parameters and persistent buffers in floating point."""
    return sum(t.numel() for module in modules for t in module.state_dict().values() if t.is_floating_point())


def count_macs(model: onnx.ModelProto) -> int:
    """Count the multiply-adds of one picture: of Conv, Gemm and MatMul whose inputs are not all constants."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(single, strict_mode=True, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {v.name: [axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {constant.name: list(constant.dims) for constant in graph.initializer}
    fixed = {constant.name for constant in graph.initializer}
    products = 0
    for node in graph.node:
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)
        else:
            products += _products(node, shapes)
    return products


def _products(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    out = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return out * math.prod(shapes[node.input[1]][1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return out * shapes[node.input[0]][-2 if transposed else -1]


def time_graph(file: Path) -> tuple[float, float]:
    """Run a graph in a process of its own: median latency in ms, peak memory in MB.

    Raises:
        CostError: it does not run.

    """
    command = [sys.executable, "-m", "compile.bench.timing", str(file), str(TIMED_RUNS), str(WARM_UP_RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise CostError(f"the exported graph does not run: {last[0]}")
    told = json.loads(done.stdout)
    return float(told["latency_ms"]), float(told["memory_mb"])
