"""Calibrate a trunk for INT8, and choose by measurement how it is rounded.

Every choice is measured on good pictures and on the same with painted defects, which no weight is fitted on, as the
change of the trunk's maps relative to their spread. First the ranges (smallest and largest value, percentile, entropy,
mean square error), then whether refitted weights pay (`compile.compensation`). What was tried is kept as evidence. What
the scores make of it decides in the end, and where they refuse it, `compile.search` goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.ranges import METHODS, Histogram, histogram, merge
from compile.onnx_session import open_session, with_outputs
from compile.quantise import Array, Ranges, Target, calibrated_tensors
from compile.recipe import Precision, Recipe, Tick, half, int8
from compile.synthesis import paint_many

PLAIN = "minmax"  # of `calibration.ranges`: the naive choice
FEATURE_BUDGET = 0.15  # change of the trunk's maps, relative to their spread, above which a kept graph is remarked on
FREE_FLOAT = 2  # nodes: the stem and the first depthwise convolution, always; in float they are as fast as in INT8
PROBES = 4  # pictures that renderings are measured on, and as many with defects


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node that stays in float, and the change of the maps that reducing it alone causes."""

    node: str
    operator: str
    harm: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A rendering that was measured."""

    recipe: str  # for people
    change: float  # the largest of the maps', relative to their spread
    verdict: str = ""  # what the scores made of it, where they were asked


@dataclass(frozen=True, slots=True)
class Rendering:
    """A reduced form of the trunk and what it changes: relative change per map, of their spread."""

    model: onnx.ModelProto
    change: list[float]
    naive_change: list[float]  # min-max ranges, nearest weights, every node rounded
    float_nodes: list[FloatNode]
    precision: Precision = "int8"
    method: str = ""  # of `calibration.ranges`
    ranges: Ranges = field(default_factory=dict)
    pictures: int = 0  # that the ranges come from
    trials: list[Trial] = field(default_factory=list)


class Probes:
    """Pictures that no weight is fitted on, and the same with painted defects: what a rendering is measured on."""

    def __init__(self, trunk: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._operators = {node.name: node.op_type for node in trunk.graph.node}
        good = list(pictures[-PROBES:])
        self._images = np.stack([*good, *(defect.image for defect in paint_many(good, len(good), 0))])
        self._reference = self._maps(trunk)

    def change(self, model: onnx.ModelProto) -> list[float]:
        """Relative change of each map."""
        return [
            float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean(axis=(0, 2, 3), keepdims=True)))
            for a, b in zip(self._maps(model), self._reference, strict=True)
        ]

    def harm(self, recipe: Recipe, node: str) -> FloatNode:
        """Measure what reducing a node alone does."""
        return FloatNode(node, self._operators[node], max(self.change(recipe.alone(node))))

    def _maps(self, model: onnx.ModelProto) -> list[Array]:
        found: list[Array] = open_session(model, exact=True).run(None, {"image": self._images})
        return found


def calibrate(
    trunk: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]], tick: Tick | None = None
) -> dict[str, Histogram]:
    """Count what the trunk's tensors hold on pictures uint8 [H, W, 3]."""
    tensors = calibrated_tensors(trunk)
    session = open_session(with_outputs(trunk, tensors))
    seen: dict[str, Histogram] = {}
    for done, picture in enumerate(pictures, start=1):
        for name, values in zip(tensors, session.run(tensors, {"image": picture[None]}), strict=True):
            counted = histogram(values)
            seen[name] = merge(seen[name], counted) if name in seen else counted
        if tick:
            tick(done, len(pictures))
    return seen


def ranges_of(seen: dict[str, Histogram], method: str, target: Target) -> Ranges:
    """Take every tensor's range by a method of `calibration.ranges`, as the target rounds."""
    return {name: METHODS[method](each, symmetric=target.symmetric) for name, each in seen.items()}


def fitted_on(pictures: Sequence[NDArray[np.uint8]]) -> Sequence[NDArray[np.uint8]]:
    """Which pictures weights are fitted on: not those that are measured on, where there are enough."""
    return pictures[:-PROBES] if len(pictures) >= 2 * PROBES else pictures


def render_accurately(
    trunk: onnx.ModelProto,
    seen: dict[str, Histogram],
    target: Target,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    tick: Tick | None = None,
) -> Rendering:
    """Render a trunk for a target in the way that changes its maps least.

    Only the first nodes stay in float. What the scores make of it decides (`compile.proof`), and more stay in float
    where they refuse it (`compile.search`).
    """
    probes = Probes(trunk, pictures)
    ranges = {method: ranges_of(seen, method, target) for method in METHODS}
    recipes = {method: int8(trunk, each, target, fitted_on(pictures)) for method, each in ranges.items()}
    free = recipes[PLAIN].nodes[:FREE_FLOAT]
    trials = []

    def measured(words: str, model: onnx.ModelProto) -> list[float]:
        change = probes.change(model)
        trials.append(Trial(words, max(change)))
        return change

    naive = measured(f"int8, {PLAIN} ranges, nearest weights, all nodes", recipes[PLAIN].sketch([]))
    nearest = {
        method: measured(f"int8, {method} ranges, nearest weights, {len(free)} nodes in float", recipe.sketch(free))
        for method, recipe in recipes.items()
    }
    method = min(nearest, key=lambda each: max(nearest[each]))
    recipe = recipes[method]
    model = recipe.write(free, tick)
    change = measured(f"int8, {method} ranges, refitted weights, {len(free)} nodes in float", model)
    if max(change) >= max(nearest[method]):
        model, change = recipe.sketch(free), nearest[method]
    if target.symmetric:  # for TensorRT; a processor computes half precision in float
        measured("float16", half(trunk).sketch([]))
    kept = [probes.harm(recipe, name) for name in free]
    return Rendering(model, change, naive, kept, "int8", method, ranges[method], len(pictures), trials)


def worst_first(recipe: Recipe, probes: Probes, but: Sequence[str] = ()) -> list[FloatNode]:
    """Rank nodes by the harm that reducing each alone does."""
    return sorted((probes.harm(recipe, name) for name in recipe.nodes if name not in but), key=lambda node: -node.harm)


def render_in_half(trunk: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]]) -> Rendering:
    """Render a trunk in half precision, and measure what that changes."""
    model = half(trunk).sketch([])
    change = Probes(trunk, pictures).change(model)
    return Rendering(model, change, change, [], precision="float16", trials=[Trial("float16", max(change))])
