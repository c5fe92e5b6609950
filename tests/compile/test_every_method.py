"""Every method's whole graph, on the trunk in the form for TensorRT, lies within what 10.3 takes and is built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compile.backbones.choice import DEFAULT
from compile.export import export, join
from compile.methods.distil import Lesson
from compile.methods.registry import DEFAULT_METHOD, METHODS, Samples, find_method, fit_alone
from compile.quantise import TENSORRT, calibrated_tensors, render
from compile.tensorrt_build import build, check_allowed
from compile.trunk_graph import export_trunk, map_names

SIDE, PICTURES = 64, 6


def drawn(maps: list[NDArray[np.float32]], rng: np.random.Generator) -> Lesson:
    """Whatever a teacher says."""
    count, _, height, width = maps[0].shape
    return Lesson(
        rng.uniform(size=count).astype(np.float32), rng.uniform(size=(count, height, width)).astype(np.float32)
    )


@pytest.mark.parametrize("name", [name for name in (*METHODS, DEFAULT_METHOD) if name != "patchcore-32"])
def test_tensorrt_builds_its_whole_graph(name: str, inputs: list[NDArray[np.uint8]]) -> None:
    method, rng = find_method(name), np.random.default_rng(0)
    trunk = DEFAULT.build(method.levels, SIDE)
    with torch.inference_mode():
        maps = [
            each.numpy()
            for each in trunk(torch.from_numpy(np.stack([each[:SIDE, :SIDE] for each in inputs[:PICTURES]])))
        ]
    samples = Samples(maps, maps, np.zeros((PICTURES, SIDE // 4, SIDE // 4), np.float32))
    samples.covered[:, 4:8, 4:8] = 1
    if method.teacher:
        samples = replace(samples, lessons=(drawn(maps, rng), drawn(maps, rng)))
    side = DEFAULT.map_side(SIDE)
    head = method.head(fit_alone(method, samples, 0, 1, None), maps, (side, side))
    taken = tuple(torch.from_numpy(each[:2]) for each in maps)
    exported = export(head, (*taken, torch.ones(2, side, side)), [*map_names(method.levels), "mask"], ["score", "map"])
    plain = export_trunk(trunk, SIDE)
    graph = join(render(plain, dict.fromkeys(calibrated_tensors(plain), (-6.0, 6.0)), TENSORRT), exported)
    assert check_allowed(graph) == []
    assert len(build(graph).engine) > 100_000
