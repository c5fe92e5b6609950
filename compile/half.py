"""Write half precision into a graph: its linear layers and convolutions as float16, with casts around them.

TensorRT builds a strongly typed graph as it is written, so the casts are what makes its matrix units work in half
precision. Only products with constant weights are cast: they are nearly all the work of a vision transformer and half
of its file. Normalisation, softmax, attention's own products, GELU and the residual stream stay in float32, where half
precision is known to go wrong (LayerNorm above all). A transformer is not rounded to INT8: there it is no faster.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PRODUCTS = ("MatMul", "Gemm", "Conv")


def half_nodes(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that `render_half` casts, in the order of the graph: products by constants."""
    constants = {item.name for item in model.graph.initializer}
    return [node.name for node in model.graph.node if _is_product(node, constants)]


def render_half(model: onnx.ModelProto, *, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """Copy a float graph with its products by constants in float16, but for those whose names are kept.

    Raises:
        ValueError: a weight is too large for float16.

    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {item.name: item for item in made.graph.initializer}
    halves: dict[str, onnx.TensorProto] = {}
    casts: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        if node.name in keep_float or not _is_product(node, constants):
            nodes.append(node)
            continue
        for position, name in enumerate(node.input):
            half = f"{name}/half"
            node.input[position] = half
            if name in constants:
                halves[half] = _half(constants[name], half)
            elif half not in casts:
                casts.add(half)
                nodes.append(helper.make_node("Cast", [name], [half], name=half, to=TensorProto.FLOAT16))
        out = node.output[0]
        node.output[0] = f"{out}/product"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [out], name=f"{out}/float", to=TensorProto.FLOAT)]
    used = {name for node in nodes for name in node.input}
    kept = [item for item in constants.values() if item.name in used]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(copies)
    made.graph.initializer.extend([*kept, *halves.values()])
    return made


def _is_product(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    return node.op_type in PRODUCTS and node.input[1] in constants


def _half(constant: onnx.TensorProto, name: str) -> onnx.TensorProto:
    value = numpy_helper.to_array(constant)
    if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError(f"{constant.name}: a weight of {np.abs(value).max():.3g} is too large for float16")
    return numpy_helper.from_array(value.astype(np.float16), name)
