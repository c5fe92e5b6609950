"""Where the scores refuse a reduced graph: find the nodes that cost it its accuracy, and keep those in float.

Nodes are ranked by the harm that reducing each alone does to the trunk's maps, and the fewest of the worst that suffice
are found by bisection, up to half of all: beyond it little would be gained. Each attempt is judged as the first one
was: a threshold of its own, held-out good parts, painted defects, labelled pictures where there are some. A form for
TensorRT that INT8 does not serve is tried in half precision, against the tighter budget of that. Nothing of it runs
where the first rendering keeps its budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.evidence import Evidence
from compile.export import join
from compile.job import FILES, Graphs, Job
from compile.made import Made
from compile.methods.registry import find_method
from compile.model import calibration_pictures, extract, join_all
from compile.parity import check_behaviour
from compile.precision import FloatNode, Probes, Rendering, Trial, fitted_on, worst_first
from compile.proof import Test, judge_on_painted, judge_on_test, open_graph, paint
from compile.quantise import ONNX_RUNTIME, TENSORRT
from compile.recipe import Recipe, half, int8
from compile.split_plan import SplitPlan
from compile.thresholds import set_thresholds
from edge.bundle import GraphName

TARGETS = {"int8": ONNX_RUNTIME, "trt": TENSORRT}
STEPS = ("search", "search painted")  # folders of one attempt
Judge = Callable[[Rendering], str]  # why it is refused; nothing where it is not


@dataclass(frozen=True, slots=True)
class Class:
    """One class of the bundle: what a rendering is judged on."""

    job: Job
    plan: SplitPlan
    test: Test | None


def search_precision(classes: Sequence[Class], made: Made, learned: NDArray[np.int64]) -> Graphs:
    """Give the graphs, those that were refused replaced by ones that keep their budget, where such were found.

    Args:
        classes: with the evidence of the first renderings; that of their replacements takes its place.
        made: what was made for all classes.
        learned: good pictures that the heads were fitted on.

    """
    graphs, whole = dict(made.graphs), classes[0].job.evidence
    refused = [name for name in whole.renderings if _refusal(classes, name)]
    if not refused:
        return graphs
    pictures = calibration_pictures(made.good.parts.inputs["image"][learned])
    for name in refused:
        reason = _refusal(classes, name)
        before = [_Kept(each.job.evidence, name) for each in classes]
        plain, trunk = whole.renderings[name], made.trunks["float"]
        recipes = []
        if plain.precision == "int8":
            recipes.append(int8(trunk, plain.ranges, TARGETS[name], fitted_on(pictures)))
        if name == "trt":  # a processor computes half precision in float
            recipes.append(half(trunk))
        probes = Probes(trunk, pictures)
        found = None
        for recipe in recipes:
            found = found or widen(plain, recipe, probes, partial(_judge, classes, made, name))
        if found is None:
            for each in before:
                each.restore()
            continue
        graphs |= join_all({name: found.model}, made.head)
        whole.warnings.append(_words(name, found, reason))
    return graphs


def widen(plain: Rendering, recipe: Recipe, probes: Probes, judge: Judge) -> Rendering | None:
    """Find the rendering by a recipe that keeps the fewest nodes in float and is not refused.

    Args:
        plain: the rendering that was refused; its nodes in float stay so where it is by the same recipe.
        recipe: the way to reduce.
        probes: what nodes are ranked on.
        judge: told of every attempt; the last one is the result.

    """
    same = plain.precision == recipe.precision
    kept = plain.float_nodes if same else []
    worst: list[FloatNode] = []
    tried: dict[int, tuple[Rendering, str]] = {}

    def holds(count: int) -> bool:
        nodes = [*kept, *worst[:count]]
        model = recipe.write([node.node for node in nodes], None)
        rendering = _rendering(plain, recipe, model, probes, nodes)
        reason = judge(rendering)
        words = f"{recipe.precision}, {len(nodes)} nodes in float"
        plain.trials.append(Trial(words, max(rendering.change), reason or "inside the accuracy budget"))
        tried[count] = rendering, reason
        return not reason

    if not same and holds(0):
        return tried[0][0]
    worst += worst_first(recipe, probes, [node.node for node in kept])
    count = fewest(len(worst) // 2, holds)
    if count is None:
        return None
    if count != list(tried)[-1]:
        judge(tried[count][0])
    return tried[count][0]


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """Bisect for the smallest count from 1 to `most` that holds, where more never hurts: `most` is tried first."""
    if most < 1 or not holds(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _rendering(plain: Rendering, recipe: Recipe, model: Any, probes: Probes, nodes: list[FloatNode]) -> Rendering:
    made = replace(plain, model=model, change=probes.change(model), float_nodes=nodes, precision=recipe.precision)
    return made if recipe.precision == "int8" else replace(made, method="", ranges={}, pictures=0)


def _judge(classes: Sequence[Class], made: Made, name: GraphName, rendering: Rendering) -> str:
    """Put a rendering in the place of the one there was, and judge it on every class; why it is refused."""
    job = classes[0].job
    for each in classes:
        for step in STEPS:  # of the attempt before, perhaps of a process that was killed
            shutil.rmtree(each.job.work / step, ignore_errors=True)
    job.evidence.renderings[name] = rendering
    trunks: Graphs = {name: rendering.model}
    graph = join(rendering.model, made.head)
    data = graph.SerializeToString()
    scans = find_method(job.settings.method, job.backbone).scans
    features = extract(job, trunks, made.good.parts.inputs, STEPS[0], scans)
    for each in classes:
        set_thresholds(each.job, features, each.plan, made.heads, made.good.groups)
        if each.test is not None:
            judge_on_test(each.job, made.trained, {name: graph}, each.test)
        else:
            held = each.plan.held
            painted = paint(each.job, made.good.parts.take(held), [made.good.views[i] for i in held])
            judge_on_painted(each.job, trunks, each.plan, made.heads, painted, step=STEPS[1])
        few = made.good.parts.take(each.plan.held[:4]).inputs
        check_behaviour(partial(open_graph, name, data), few, each.job.class_index)
    return _refusal(classes, name)


def _refusal(classes: Sequence[Class], name: GraphName) -> str:
    found = [(each.job.evidence, each.job.evidence.reduced[name]) for each in classes]
    return "; ".join(f"{evidence.label}{reduced.reason}" for evidence, reduced in found if not reduced.kept)


def _words(name: GraphName, found: Rendering, reason: str) -> str:
    form = "INT8" if found.precision == "int8" else "half precision"
    kept = f"{len(found.float_nodes)} nodes of the trunk in float"
    return f"{FILES[name]} is in {form} with {kept}: the first form was refused: {reason}."


class _Kept:
    """What the evidence says of one graph, to be put back."""

    def __init__(self, evidence: Evidence, name: GraphName) -> None:
        self._evidence, self._name = evidence, name
        self._tables: list[dict[GraphName, Any]] = [
            *(evidence.renderings, evidence.thresholds, evidence.good_scores, evidence.other_scores, evidence.reduced)
        ]
        self._entries = [table[name] for table in self._tables]
        self._rows = list(evidence.test)

    def restore(self) -> None:
        for table, entry in zip(self._tables, self._entries, strict=True):
            table[self._name] = entry
        self._evidence.test = self._rows
