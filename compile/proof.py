"""Prove each graph, or leave it out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from compile.anomaly_graph import AnomalyGraph
from compile.data import LabelledImage
from compile.evaluate import load_masks, test_row
from compile.evidence import Evidence, Example
from compile.job import FILES, Graphs, Job
from compile.methods.registry import find_method
from compile.model import Heads, extract
from compile.odd_parts import OddParts, make_odd
from compile.onnx_session import open_session
from compile.parity import (
    Inputs,
    Reduced,
    Scored,
    both,
    check_behaviour,
    check_float,
    false_reject_shift,
    judge_reduced,
    score_all,
)
from compile.parts import Parts, joined
from compile.precision import FEATURE_BUDGET
from compile.split_plan import SplitPlan
from compile.thresholds import oddest_parts
from edge.bundle import GraphName
from edge.view import View

PARITY_PICTURES = 32
PAINTED = 96
SHOWN_DEFECTS = 5
TIMED_RUNS, WARM_UP_RUNS = 15, 3


class Test:
    """The labelled test parts that could be read."""

    def __init__(self, images: list[LabelledImage], parts: Parts, views: Sequence[View]) -> None:
        self.images, self.parts, self.views = images, parts, views
        self.defective = np.array([image.defective for image in images], bool)
        self.scores: dict[GraphName, NDArray[np.float64]] = {}  # by each graph that was judged
        self.painted: dict[GraphName, NDArray[np.float64]] = {}  # of defects painted on the good ones


def open_graph(name: GraphName, model: bytes) -> ort.InferenceSession:
    """Open a graph as it is scored here: the form for TensorRT with exact arithmetic."""
    return open_session(model, exact=name == "trt")


def check_graphs(job: Job, trained: AnomalyGraph, graphs: Graphs, sample: Parts) -> None:
    """Check the float graph against the trained model, and the behaviour of all.

    Raises:
        ParityError: one does not hold.

    """
    mine = score_torch(job, trained, sample.inputs, "parity")
    theirs = score_all(open_session(graphs["float"]), sample.inputs, class_index=job.class_index)
    _check_float(job, mine, theirs)
    few = sample.take(slice(None, None, max(1, len(sample) // 4))).inputs
    for name, model in graphs.items():
        check_behaviour(_opener(name, model.SerializeToString()), few, job.class_index)


def judge_on_test(job: Job, trained: AnomalyGraph, graphs: Graphs, test: Test) -> None:
    """Check the float graph on the labelled test pictures, judge the reduced ones, and keep the figures of all.

    The reduced graphs are judged on defects painted on the good test pictures, too. Where the float graph is not among
    them, it was when others were judged on the same test before.

    Raises:
        ParityError: the float graph does not say what the trained model says.

    """
    found = job.evidence
    masks = load_masks(test.images, job.map_side)
    scored = {name: _score(job, name, model, test.parts.inputs, "test") for name, model in graphs.items()}
    if "float" in graphs:
        mine = score_torch(job, trained, test.parts.inputs, "test torch")
        _check_float(job, mine, scored["float"])
        found.test.append(test_row("torch", mine, test.images, masks, found.thresholds["float"].value))
    found.test = [row for row in found.test if row.graph not in graphs]
    for name, each in scored.items():
        found.test.append(test_row(name, each, test.images, masks, found.thresholds[name].value))
        found.other_scores[name] = each.scores[test.defective]
        test.scores[name] = each.scores
    found.other_name = "defective test pictures"
    if not found.renderings:
        return
    good = np.flatnonzero(~test.defective).tolist()
    views = [test.views[i] for i in good]
    defects = make_odd(test.parts.take(good), views, job.spec, PAINTED, job.settings.seed).parts.inputs
    test.painted |= {name: _score(job, name, model, defects, "painted").scores for name, model in graphs.items()}
    for name in (each for each in found.renderings if each in graphs):
        full, reduced, precision = test.scores["float"], test.scores[name], found.renderings[name].precision
        shift = _shift(job, name)
        labelled = judge_reduced(full, reduced, test.defective, shift=shift, labelled=True, precision=precision)
        found.reduced[name] = both(labelled, _judge_painted(job, name, test.painted))


def judge_on_painted(
    job: Job, trunks: Graphs, plan: SplitPlan, heads: Heads, painted: OddParts, *, step: str = "painted"
) -> None:
    """Judge the reduced graphs on painted defects; a head never scores a part that it was fitted on."""
    found = job.evidence
    scans = find_method(job.settings.method, job.backbone).scans
    features = extract(job, trunks, painted.parts.inputs, step, scans)
    fold_of_held = np.concatenate([np.full(len(rows), fold) for fold, (_, rows) in enumerate(plan.folds)])
    fold = fold_of_held[painted.sources]
    for name in FILES:
        if name not in features.renderings:
            continue
        scores = np.empty(len(fold))
        for number, head in enumerate(heads.folds):
            rows = np.flatnonzero(fold == number)
            if rows.size:
                scores[rows] = features.score(head, name, rows, job.map_side, job.class_index)
        found.other_scores[name] = scores
    found.other_name = "painted defects on held-out parts"
    for name in (each for each in found.renderings if each in trunks):
        found.reduced[name] = _judge_painted(job, name, found.other_scores)


def _judge_painted(job: Job, name: GraphName, painted: dict[GraphName, NDArray[np.float64]]) -> Reduced:
    good = job.evidence.good_scores
    full, reduced = (np.concatenate([good[each], painted[each]]) for each in ("float", name))
    defective = np.arange(len(full)) >= len(good[name])
    precision = job.evidence.renderings[name].precision
    return judge_reduced(full, reduced, defective, shift=_shift(job, name), labelled=False, precision=precision)


def _shift(job: Job, name: GraphName) -> float:
    found = job.evidence
    target = found.thresholds["float"].target_false_reject
    return false_reject_shift(found.good_scores["float"], found.good_scores[name], found.good_groups, target)


def _check_float(job: Job, mine: Scored, theirs: Scored) -> None:
    """Check more pictures, and keep the worst of all."""
    before = job.evidence.float_parity
    found = check_float(mine, theirs, job.evidence.thresholds["float"].value)
    for figure in ("pictures", "labels_differ"):
        found[figure] += before.get(figure, 0)
    for figure in ("score_error_relative", "map_error_of_peak"):
        found[figure] = max(found[figure], before.get(figure, 0.0))
    job.evidence.float_parity = found


def paint(job: Job, held: Parts, views: Sequence[View]) -> OddParts:
    """Put defects on held-out parts; defect i lies on held-out part i, then round again."""
    return make_odd(held, views, job.spec, min(PAINTED, 2 * len(held)), job.settings.seed)


def show_examples(job: Job, graphs: Graphs, good: Parts, defects: Parts, titles: Sequence[str]) -> Inputs:
    """Keep a few parts with their maps for the report; returns the golden ones of them."""
    scores = job.evidence.good_scores["float"]
    order = np.argsort(scores)
    chosen = np.linspace(0, len(titles) - 1, min(SHOWN_DEFECTS, len(titles))).astype(int)
    places = [("lowest", order[0]), ("median", order[len(order) // 2])]
    places += [("a highest", i) for i in oddest_parts(job.evidence, "float")]
    names = [f"{job.evidence.good_names[i]}, good, {word} score ({scores[i]:.4g}) untrained" for word, i in places]
    names += [titles[i] for i in chosen]
    shown = joined([good.take([int(i) for _, i in places]), defects.take(chosen)])
    scored = score_all(open_session(graphs["float"]), shown.inputs, class_index=job.class_index)
    job.evidence.examples = [
        Example(name, shown.shown(i), scored.maps[i], float(scored.scores[i])) for i, name in enumerate(names)
    ]
    first_defect = len(places)
    return shown.take([1, 2, *range(first_defect, min(first_defect + 2, len(shown)))]).inputs


def agree(classes: Sequence[Evidence]) -> None:
    """Take a reduced graph back that another class refuses: the bundle has it for all classes or for none."""
    for name in classes[0].renderings:
        against = [found.class_name for found in classes if not found.reduced[name].kept]
        for found in classes:
            if against and found.reduced[name].kept:
                reason = f"refused for class {', '.join(against)}"
                found.reduced[name] = replace(found.reduced[name], kept=False, reason=reason)


def drop_refused(job: Job, graphs: Graphs) -> Graphs:
    """Leave out the reduced graphs that gave up too much, and say so; and where rounding changed much all the same."""
    for name, reduced in job.evidence.reduced.items():
        change = max(job.evidence.renderings[name].change)
        if not reduced.kept:
            label = job.evidence.label
            job.evidence.warnings.append(
                f"{label}{FILES[name]} was left out: {reduced.reason} (on {reduced.evidence})."
            )
        elif change > FEATURE_BUDGET:
            job.evidence.warn(
                f"{FILES[name]}: rounding changes the trunk's maps by {change:.0%}, {FEATURE_BUDGET:.0%} was wanted. "
                f"It was kept, as its scores are {reduced.reason}."
            )
    return {name: model for name, model in graphs.items() if name == "float" or job.evidence.reduced[name].kept}


def time_graphs(job: Job, graphs: Graphs, one: Inputs) -> None:
    """Take the median time of each graph that runs here: one thread, one part, interleaved."""
    sessions = {name: open_session(model) for name, model in graphs.items() if name != "trt"}
    times: dict[GraphName, list[float]] = {name: [] for name in sessions}
    for _ in range(TIMED_RUNS):
        for name, session in sessions.items():
            started = time.perf_counter()
            score_all(session, one, class_index=job.class_index)
            times[name].append((time.perf_counter() - started) * 1000)
    job.evidence.graph_ms = {name: statistics.median(taken[WARM_UP_RUNS:]) for name, taken in times.items()}


@torch.no_grad()
def score_torch(job: Job, graph: AnomalyGraph, inputs: Inputs, step: str) -> Scored:
    """Score with the trained model itself."""
    tick = job.clock.ticks(step)
    maps = np.empty(inputs["mask"].shape, np.float32)
    scores = np.empty(len(maps))
    order = [name for name in ("image", *(tensor.name for tensor in job.spec.tensors), "mask") if name in inputs]
    classes = [] if job.class_index is None else [torch.tensor([job.class_index])]
    for i in range(len(maps)):
        score, heat = graph(*(torch.from_numpy(np.array(inputs[name][i : i + 1])) for name in order), *classes)
        scores[i], maps[i] = float(score[0]), heat[0].numpy()
        tick(i + 1, len(maps))
    return Scored(scores, maps)


def _score(job: Job, name: GraphName, model: onnx.ModelProto, inputs: Inputs, step: str) -> Scored:
    session = open_graph(name, model.SerializeToString())
    return score_all(session, inputs, job.clock.ticks(f"{step} {name}"), job.class_index)


def _opener(name: GraphName, model: bytes) -> Callable[[], ort.InferenceSession]:
    return lambda: open_graph(name, model)
