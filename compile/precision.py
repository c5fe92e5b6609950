"""Calibrate a trunk for INT8, and find by measurement which more of its nodes than the first two stay in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.ranges import METHODS, Histogram, histogram, merge
from compile.compensation import round_trunk
from compile.half import render_half
from compile.onnx_session import open_session, with_outputs
from compile.quantise import Array, Target, calibrated_tensors, quantised_nodes, render

METHOD = "mse"  # of `calibration.ranges`: the range that loses least in mean square
FEATURE_BUDGET = 0.10  # largest change of the trunk's maps, relative to their spread, that is left to the head
FREE_FLOAT = 2  # nodes: the stem and the first depthwise convolution, always; in float they are as fast as in INT8
MOST_FLOAT = 4  # nodes, those included; the others are chosen by the harm that rounding each alone does
PROBES = 4  # pictures on which single nodes are measured


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """What the trunk's tensors held on good pictures: one record, rendered for every runtime."""

    method: str
    pictures: int
    ranges: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, object]:
        return {
            "method": self.method,
            "pictures": self.pictures,
            "ranges": {name: [float(f"{low:.7g}"), float(f"{high:.7g}")] for name, (low, high) in self.ranges.items()},
        }


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node that stays in float, and the change of the maps that rounding it alone causes."""

    node: str
    operator: str
    harm: float


@dataclass(frozen=True, slots=True)
class Rendering:
    """A reduced form of the trunk and what it changes: relative change per map, of their spread."""

    model: onnx.ModelProto
    change: list[float]
    naive_change: list[float]  # min-max ranges, nearest weights, every node rounded
    float_nodes: list[FloatNode]


def calibrate(
    trunk: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]], tick: Callable[[int, int], None] | None = None
) -> tuple[CalibrationRecord, dict[str, tuple[float, float]]]:
    """Record the ranges on pictures uint8 [H, W, 3]; the second result is their plain minimum and maximum."""
    tensors = calibrated_tensors(trunk)
    session = open_session(with_outputs(trunk, tensors))
    seen: dict[str, Histogram] = {}
    for done, picture in enumerate(pictures, start=1):
        for name, values in zip(tensors, session.run(tensors, {"image": picture[None]}), strict=True):
            counted = histogram(values)
            seen[name] = merge(seen[name], counted) if name in seen else counted
        if tick:
            tick(done, len(pictures))
    record = CalibrationRecord(METHOD, len(pictures), {n: METHODS[METHOD](seen[n]) for n in tensors})
    return record, {name: METHODS["minmax"](seen[name]) for name in tensors}


def render_accurately(
    trunk: onnx.ModelProto,
    record: CalibrationRecord,
    plain_ranges: dict[str, tuple[float, float]],
    target: Target,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    tick: Callable[[int, int], None] | None = None,
) -> Rendering:
    """Render a trunk for a target, with as few nodes in float as bring its maps within the feature budget.

    At most MOST_FLOAT: where those do not suffice, the change stays over the budget, and what the scores make of it
    decides (`compile.proof`).

    The last pictures are only measured on, where there are enough; the weights are fitted on the others.
    """
    images = np.stack(pictures[-PROBES:])
    fitted = pictures[:-PROBES] if len(pictures) >= 2 * PROBES else pictures
    reference = _maps(trunk, images)
    names = quantised_nodes(trunk)
    operators = {node.name: node.op_type for node in trunk.graph.node}

    def harm(name: str) -> FloatNode:
        alone = render(trunk, record.ranges, target, keep_float=[other for other in names if other != name])
        return FloatNode(name, operators[name], max(_changes(_maps(alone, images), reference)))

    def attempt(kept: list[FloatNode]) -> Rendering:
        keep = [node.node for node in kept]
        rounded = round_trunk(trunk, record.ranges, target, fitted, keep_float=keep, tick=tick)
        model = render(trunk, record.ranges, target, keep_float=keep, rounded=rounded)
        return Rendering(model, _changes(_maps(model, images), reference), naive, kept)

    naive = _changes(_maps(render(trunk, plain_ranges, target), images), reference)
    found = attempt([harm(name) for name in names[:FREE_FLOAT]])
    if max(found.change) > FEATURE_BUDGET:
        worst = sorted((harm(name) for name in names[FREE_FLOAT:]), key=lambda node: -node.harm)
        for most in range(1, MOST_FLOAT - FREE_FLOAT + 1):
            found = attempt([*found.float_nodes[:FREE_FLOAT], *worst[:most]])
            if max(found.change) <= FEATURE_BUDGET:
                break
    return found


def render_in_half(trunk: onnx.ModelProto, pictures: Sequence[NDArray[np.uint8]]) -> Rendering:
    """Render a trunk in half precision, and measure what that changes."""
    images = np.stack(pictures[-PROBES:])
    model = render_half(trunk)
    change = _changes(_maps(model, images), _maps(trunk, images))
    return Rendering(model, change, change, [])


def _maps(model: onnx.ModelProto, images: NDArray[np.uint8]) -> list[Array]:
    found: list[Array] = open_session(model, exact=True).run(None, {"image": images})
    return found


def _changes(maps: list[Array], reference: list[Array]) -> list[float]:
    return [
        float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean(axis=(0, 2, 3), keepdims=True)))
        for a, b in zip(maps, reference, strict=True)
    ]
