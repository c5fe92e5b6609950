from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compile.backbone import Trunk
from compile.bench.cost import CostError, count_macs, count_parameters, time_graph
from compile.export import export


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def graph_of(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: list[TensorProto]) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *s])
        for name, s in (("x", shape), ("y", [None] * len(shape)))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_convolution_multiplies_each_output_by_its_kernel() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2)]
    assert count_macs(graph_of(nodes, (4, 8, 8), [constant("w", 6, 2, 3, 3)])) == 6 * 4 * 4 * 2 * 9


def test_products_count_and_those_of_constants_do_not() -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"]),  # 5x7x3, done once at loading
        helper.make_node("MatMul", ["x", "ab"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    constants = [constant("a", 5, 7), constant("b", 7, 3), constant("w", 3, 11)]
    assert count_macs(graph_of(nodes, (10, 5), constants)) == 10 * 5 * 3 + 10 * 3 * 11


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_counts_its_inner_axis(transposed: int) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0] if transposed else [0, 1]),
        helper.make_node("Gemm", ["t", "w"], ["y"], transA=transposed),
    ]
    assert count_macs(graph_of(nodes, (9,), [constant("w", 9, 4)])) == 9 * 4


def test_the_trunk_costs_what_its_layers_cost() -> None:
    """Counted a second time by hooks on the convolutions themselves."""
    trunk, found = Trunk((8, 16)), []

    def hook(layer: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        found.append(out[0].numel() * layer.weight[0].numel())

    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(hook)
    image = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    trunk(image)
    assert count_macs(export(Trunk((8, 16)), (image,), ["image"], ["maps_8", "maps_16"])) == sum(found)


def test_what_a_module_remembers_counts_and_what_it_derives_does_not() -> None:
    module = nn.Linear(3, 4)
    module.register_buffer("bank", torch.zeros(10, 2))
    module.register_buffer("table", torch.zeros(10, dtype=torch.int64))
    module.register_buffer("derived", torch.zeros(1000), persistent=False)
    assert count_parameters(module, nn.Linear(2, 2, bias=False)) == 16 + 20 + 4


def test_a_graph_is_timed_alone(tmp_path: Path) -> None:
    small = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], (8, 8), [constant("w", 8, 8)])
    large = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], (1000, 3000), [constant("w", 3000, 3000)])
    taken = []
    for name, model in (("small", small), ("large", large)):
        onnx.save(model, tmp_path / name)
        taken.append(time_graph(tmp_path / name))
    assert taken[1][0] > 5 * taken[0][0] > 0
    assert taken[1][1] > taken[0][1] + 50  # MB: weights, input and output
    (tmp_path / "broken").write_bytes(b"no graph")
    with pytest.raises(CostError, match="does not run"):
        time_graph(tmp_path / "broken")
