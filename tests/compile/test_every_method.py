"""The whole graph of methods, on the trunk in the form for TensorRT, lies within what 10.3 takes and is built.

One stands for those whose operators it holds, too: a trace costs seconds. `varad` is inside its student, `varad-full`
is it once more, `inp-former` is inside `inp-former-pp`, `grnr-published` and `patchcore-32` are other constants.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from compile.backbones.choice import DEFAULT, Level
from compile.export import export, join
from compile.methods.distil import Lesson
from compile.methods.method import Samples, fit_alone
from compile.methods.registry import DEFAULT_METHOD, METHODS, find_method
from compile.quantise import TENSORRT, calibrated_tensors, render
from compile.tensorrt_build import build, check_allowed
from compile.trunk_graph import export_trunk, map_names

SIDE, PICTURES = 64, 6
STANDS_FOR = {
    "patchcore": ["patchcore-32"],
    "grnr": ["grnr-published"],
    "pnpt": [],
    "inp-former-pp": ["inp-former"],
    DEFAULT_METHOD: ["varad", "varad-full"],
}


def drawn(maps: list[NDArray[np.float32]], rng: np.random.Generator) -> Lesson:
    """Whatever a teacher says."""
    count, _, height, width = maps[0].shape
    return Lesson(
        rng.uniform(size=count).astype(np.float32), rng.uniform(size=(count, height, width)).astype(np.float32)
    )


@cache
def trunk_of(levels: tuple[Level, ...]) -> tuple[nn.Module, onnx.ModelProto]:
    """The trunk, and its graph in the form for TensorRT."""
    trunk = DEFAULT.build(levels, SIDE)
    plain = export_trunk(trunk, SIDE)
    return trunk, render(plain, dict.fromkeys(calibrated_tensors(plain), (-6.0, 6.0)), TENSORRT)


def test_no_method_is_left_out() -> None:
    assert sorted([*STANDS_FOR, *chain(*STANDS_FOR.values())]) == sorted([*METHODS, DEFAULT_METHOD])


@pytest.mark.parametrize("name", STANDS_FOR)
def test_tensorrt_builds_its_whole_graph(name: str, inputs: list[NDArray[np.uint8]]) -> None:
    method, rng = find_method(name), np.random.default_rng(0)
    trunk, rendered = trunk_of(method.levels)
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
    graph = join(rendered, exported)
    assert check_allowed(graph) == []
    assert len(build(graph).engine) > 100_000
