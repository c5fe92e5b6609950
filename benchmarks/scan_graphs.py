"""What one scan takes on one thread, front end and graph, as the methods for scans are compiled by default.

Banks hold random vectors, as many as a fitted one: a graph's time does not hang on what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from compile.backbones.choice import DEFAULT
from compile.export import export, join
from compile.methods.method import Method
from compile.methods.patchcore import BANK, PatchCore
from compile.methods.registry import SCAN_METHODS
from compile.onnx_session import open_session
from compile.scan_maps import scan_input
from compile.trunk_graph import export_trunk, map_names
from edge.bundle import Background, Input, ScanSource, Source, Spec, Tensor
from edge.prepare import prepare, tensor_shape

SIDE = 256


def scan_scores(
    points: NDArray[np.float32], background: Background, distance_mm: tuple[float, float]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give each method's whole way from a scan [H, W, 3] in mm, and a picture as large, to its score.

    Args:
        points: the scan.
        background: of it.
        distance_mm: about where it lies.

    """
    height, width = points.shape[:2]
    size: dict[str, Any] = {"height": (height, height), "width": (width, width)}
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for name in ("fpfh", "btf"):
        method = SCAN_METHODS[name]
        scan = scan_input(ScanSource(**size, unit="mm", distance_mm=distance_mm), SIDE, background, method.scans)
        image = Input(height=SIDE, width=SIDE, source=Source(**size, channels=3)) if method.levels else None
        tensors = tuple(Tensor(name=each, shape=list(tensor_shape(each, scan))) for each in method.scans)
        spec = Spec(image, scan, tensors, (DEFAULT.map_side(SIDE),) * 2)
        session = open_session(_graph(method, spec))

        def score(spec: Spec = spec, session: Any = session) -> Any:
            given = prepare(picture, points, spec).tensors
            return session.run(None, {key: np.ascontiguousarray(values)[None] for key, values in given.items()})

        yield name, score


def _graph(method: Method, spec: Spec) -> onnx.ModelProto:
    trunk = export_trunk(DEFAULT.build(method.levels, SIDE), SIDE) if method.levels else None
    outputs = trunk.graph.output if trunk else []
    shapes = [[axis.dim_value for axis in each.type.tensor_type.shape.dim[1:]] for each in outputs]
    maps = [torch.zeros(2, *shape) for shape in (*shapes, *(tensor.shape for tensor in spec.tensors))]
    vectors = torch.rand(BANK, sum(each.shape[1] for each in maps), generator=torch.Generator().manual_seed(0))
    bank = PatchCore(vectors, [(each.shape[2], each.shape[3]) for each in maps])
    head = method.head(bank, [each.numpy() for each in maps], spec.map_size)
    names = [*map_names(method.levels), *method.scans, "mask"]
    exported = export(head, (*maps, torch.ones(2, *spec.map_size)), names, ["score", "map"])
    return join(trunk, exported) if trunk else exported
