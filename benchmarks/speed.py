"""How long one 1024x1024 frame takes on one thread, and how that grows with the image size.

    python -m benchmarks.speed [BUNDLE]      # by default what `make demo` left in out/demo

The whole call (front end, graph, score, map) is held against the bundle's own INT8 trunk to stride 16 alone, cut out of
the same file, both timed in turn. Growth needs no fitted head and no fitted rounding: time does not depend on weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.peers.subjects import Subject, first_score, wide_bundle
from benchmarks.record import Record, budgets, interleaved_ms, median
from compile.anomaly_graph import MAP_LIMIT, AnomalyHead
from compile.backbone import Trunk
from compile.export import export, join
from compile.methods.varad import VarAD
from compile.onnx_session import open_session
from compile.precision import FREE_FLOAT, PLAIN, calibrate, ranges_of
from compile.quantise import ONNX_RUNTIME, quantised_nodes, render
from compile.trunk_graph import export_trunk, map_names
from edge.bundle import Bundle, GraphName
from edge.scorer import Scorer

SOURCE = 1024  # pixels a side
SIZES = (256, 512, 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("out/demo/surface.bundle"))
    path = parser.parse_args().bundle
    bundle = wide_bundle(path)
    record, budget = Record("speed"), budgets("score")
    _whole_call(bundle, record, budget)
    _first_score(path, bundle, record, budget)
    _growth(record, budget)
    return record.finish()


def _whole_call(bundle: Bundle, record: Record, budget: dict[str, float]) -> None:
    side = bundle.manifest.pictures.height
    frame = np.random.default_rng(0).integers(0, 256, (SOURCE, SOURCE, 3)).astype(np.uint8)
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    names: tuple[GraphName, ...] = ("float", "int8")
    scorers = {name: Scorer(bundle, name) for name in names if name in bundle.manifest.graphs}
    calls: dict[str, Callable[[], Any]] = {f"whole {name}": partial(s.score, frame) for name, s in scorers.items()}
    for name, scorer in scorers.items():
        model = onnx.load_from_string(bundle.read(bundle.manifest.graphs[scorer.graph].file))
        trunk = open_session(_trunk_alone(model))
        calls[f"trunk {name}"] = partial(trunk.run, None, {"image": image})
    times = interleaved_ms(calls)
    for call, taken in times.items():
        record.figure(f"{call}, {side} px, median", median(taken), "ms")
        record.figure(f"{call}, {side} px, minimum", min(taken), "ms")
    if "int8" not in scorers:
        record.failures.append("the bundle has no INT8 graph")
        return
    ratio = median([whole / trunk for whole, trunk in zip(times["whole int8"], times["trunk int8"], strict=True)])
    record.figure("whole int8 over trunk int8", ratio, "x", budget["ratio_to_trunk"])
    record.figure(
        "goal: whole int8 on a CPU with VNNI", median(times["whole int8"]), f"ms (goal {budget['goal_ms']:g})"
    )


def _first_score(path: Path, bundle: Bundle, record: Record, budget: dict[str, float]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (SOURCE, SOURCE, 3)).astype(np.uint8)
    student = Subject("student INT8", path, "student", 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, _ = pool.apply(first_score, (student, bundle.manifest.pictures, frame))
    record.figure("from opening the bundle to the first score", seconds, "s", budget["load_to_first_score_s"])


def _trunk_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cut the trunk out of the joined graph: the nodes that its maps need."""
    outputs = [f"trunk/{name}" for name in map_names(Trunk().levels)]
    makers = {name: node for node in model.graph.node for name in node.output}
    needed, wanted = set(), list(outputs)
    while wanted:
        name = wanted.pop()
        if name in makers and name not in needed:
            needed.add(name)
            wanted += makers[name].input
    nodes = [node for node in model.graph.node if needed & set(node.output)]
    inputs = [value for value in model.graph.input if value.name == "image"]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "trunk", inputs, results, list(model.graph.initializer))
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _growth(record: Record, budget: dict[str, float]) -> None:
    calls: dict[str, Callable[[], Any]] = {}
    for side in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
        map_side = min(MAP_LIMIT, side // 2)
        feed = {"image": image, "mask": np.ones((1, map_side, map_side), np.float32)}
        for name, (cut, whole) in _graphs(side, map_side, image[0]).items():
            calls[f"{name} trunk {side}"] = partial(open_session(cut).run, None, {"image": image})
            calls[f"{name} graph {side}"] = partial(open_session(whole).run, None, feed)
    times = interleaved_ms(calls, rounds=12, warm_up=2)
    for call, taken in times.items():
        record.figure(f"{call} px", median(taken) / int(call.split()[-1]) ** 2 * 1e6, "ms per megapixel")
    for name in ("float", "int8"):
        graph, trunk = _growth_of(f"{name} graph", times), _growth_of(f"{name} trunk", times)
        record.figure(f"{name}: time per pixel, 1024 over 256", graph, "x", budget["pixel_growth_1024_over_256"])
        record.figure(f"{name}: that growth over the trunk's own", graph / trunk, "x", budget["growth_over_trunk"])


def _growth_of(what: str, times: dict[str, list[float]]) -> float:
    small, large = times[f"{what} {SIZES[0]}"], times[f"{what} {SIZES[-1]}"]
    return median([b / a for a, b in zip(small, large, strict=True)]) * (SIZES[0] / SIZES[-1]) ** 2


def _graphs(side: int, map_side: int, image: NDArray[np.uint8]) -> dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]:
    """Trunk and whole graph, in float and in the INT8 form for ONNX Runtime with what is always in float there."""
    trunk = Trunk()
    with torch.no_grad():
        maps = trunk(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    head = AnomalyHead(VarAD(trunk.channels, grids), grids, (map_side, map_side))
    example = (*(torch.zeros(2, *m.shape[1:]) for m in maps), torch.ones(2, *head.map_size))
    exported = export(head.eval(), example, [*map_names(trunk.levels), "mask"], ["score", "map"])
    whole = export_trunk(trunk, side)
    ranges = ranges_of(calibrate(whole, [image]), PLAIN, ONNX_RUNTIME)
    rounded = render(whole, ranges, ONNX_RUNTIME, keep_float=quantised_nodes(whole)[:FREE_FLOAT])
    return {name: (each, join(each, exported)) for name, each in (("float", whole), ("int8", rounded))}


if __name__ == "__main__":
    sys.exit(main())
