"""A whole bundle: what lies in its reduced graphs, and what evidence it carries of how they were chosen."""

from __future__ import annotations

import json

import onnx
from onnx import TensorProto

from calibration.ranges import METHODS
from compile.pipeline import Compiled
from compile.quantise import calibrated_tensors
from edge.bundle import GraphName

REDUCED: tuple[GraphName, ...] = ("int8", "trt")


def graph(compiled: Compiled, name: GraphName) -> onnx.ModelProto:
    bundle = compiled.bundle
    return onnx.load_from_string(bundle.read(bundle.manifest.graphs[name].file))


def test_the_head_and_its_scan_are_the_float_ones(compiled: Compiled) -> None:
    """A recurrence amplifies rounding: adapters, scan, map and score are the same nodes with the same constants."""

    def head(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
        nodes = [node for node in model.graph.node if node.name.startswith("head/")]
        read = {name for node in nodes for name in node.input}
        constants = [item for item in model.graph.initializer if item.name in read]
        assert not any(
            item.data_type in (TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8) for item in constants
        )
        assert not any("Quantize" in node.op_type for node in nodes)
        return [n.SerializeToString() for n in nodes], sorted(c.SerializeToString() for c in constants)

    full = head(graph(compiled, "float"))
    assert len(full[0]) > 50, "a scan is many nodes"
    for name in REDUCED:
        assert head(graph(compiled, name)) == full


def test_the_bundle_tells_how_each_graph_was_chosen(compiled: Compiled) -> None:
    bundle = compiled.bundle
    parity, ranges = (json.loads(bundle.read(name)) for name in ("parity.json", "calibration.json"))
    for name in REDUCED:
        told = parity["reduced"][name]
        assert told["precision"] == "int8"
        tried = {trial["recipe"]: trial["maps_change"] for trial in told["trials"]}
        measured = {each: tried[f"int8, {each} ranges, nearest weights, 2 nodes in float"] for each in METHODS}
        assert told["ranges"] == min(measured, key=lambda each: measured[each]) == ranges[name]["method"]
        assert max(told["maps_change_relative"]) < min(measured.values()), "refitted weights pay"
        assert ("float16" in tried) == (name == "trt")
        assert set(ranges[name]["ranges"]) == set(calibrated_tensors(compiled_trunk(compiled)))
        assert ranges[name]["pictures"] == min(20, ranges[name]["pictures"]) >= 8
    assert "search" in compiled.evidence.seconds


def compiled_trunk(compiled: Compiled) -> onnx.ModelProto:
    """The float trunk of the joined graph, under the names that it was calibrated with."""
    model = graph(compiled, "float")
    nodes = [node for node in model.graph.node if node.name.startswith("trunk/")]
    for node in nodes:
        node.name = node.name.removeprefix("trunk/")
        for names in (node.input, node.output):
            for position, tensor in enumerate(names):
                names[position] = tensor.removeprefix("trunk/")
    constants = [item for item in model.graph.initializer if item.name.startswith("trunk/")]
    for item in constants:
        item.name = item.name.removeprefix("trunk/")
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "trunk", [], [], constants))
