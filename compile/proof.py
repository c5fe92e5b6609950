"""Prove each graph, or leave it out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from compile.anomaly_graph import AnomalyGraph
from compile.data import LabelledImage
from compile.evaluate import load_masks, test_row
from compile.evidence import Example
from compile.job import FILES, Graphs, Job
from compile.model import Heads, extract
from compile.onnx_session import open_session
from compile.parity import Scored, check_behaviour, check_float, judge_reduced, score_all
from compile.split_plan import SplitPlan
from compile.synthesis import Defect, paint_many
from compile.thresholds import oddest_parts
from edge.bundle import GraphName

PARITY_PICTURES = 32
PAINTED = 96
SHOWN_DEFECTS = 5
TIMED_RUNS, WARM_UP_RUNS = 15, 3


class Test:
    """The labelled test pictures that could be read."""

    def __init__(self, images: list[LabelledImage], pictures: NDArray[np.uint8]) -> None:
        self.images, self.pictures = images, pictures
        self.defective = np.array([image.defective for image in images], bool)


def open_graph(name: GraphName, model: bytes) -> ort.InferenceSession:
    """Open a graph as it is scored here: the form for TensorRT with exact arithmetic."""
    return open_session(model, exact=name == "trt")


def check_graphs(job: Job, trained: AnomalyGraph, graphs: Graphs, pictures: NDArray[np.uint8]) -> None:
    """Check the float graph against the trained model, and the behaviour of all.

    Raises:
        ParityError: one does not hold.

    """
    mine = score_torch(job, trained, pictures, "parity")
    theirs = score_all(open_session(graphs["float"]), pictures, job.map_side)
    job.evidence.float_parity = check_float(mine, theirs, job.evidence.thresholds["float"].value)
    few = pictures[:: max(1, len(pictures) // 4)]
    for name, model in graphs.items():
        check_behaviour(_opener(name, model.SerializeToString()), few, job.map_side)


def judge_on_test(job: Job, trained: AnomalyGraph, graphs: Graphs, test: Test) -> None:
    """Judge the reduced graphs on labelled test pictures, and keep the figures of all."""
    found = job.evidence
    masks = load_masks(test.images, job.map_side)
    scored = {name: _score(job, name, model.SerializeToString(), test.pictures) for name, model in graphs.items()}
    float_limit = found.thresholds["float"].value
    torch_scores = score_torch(job, trained, test.pictures, "test torch")
    found.test.append(test_row("torch", torch_scores, test.images, masks, float_limit))
    for name, each in scored.items():
        found.test.append(test_row(name, each, test.images, masks, found.thresholds[name].value))
        found.other_scores[name] = each.scores[test.defective]
    found.other_name = "defective test pictures"
    for name in found.renderings:
        _judge(job, name, scored["float"].scores, scored[name].scores, test.defective, labelled=True)


def judge_on_painted(
    job: Job, trunks: Graphs, plan: SplitPlan, heads: Heads, held: NDArray[np.int64], *, painted: list[Defect]
) -> None:
    """Judge the reduced graphs on painted defects; a head never scores a part that it was fitted on."""
    found = job.evidence
    features = extract(job, trunks, np.stack([defect.image for defect in painted]), "painted")
    fold_of_held = np.concatenate([np.full(len(rows), fold) for fold, (_, rows) in enumerate(plan.folds)])
    fold = fold_of_held[np.arange(len(painted)) % len(held)]
    for name in trunks:
        scores = np.empty(len(painted))
        for number, head in enumerate(heads.folds):
            rows = np.flatnonzero(fold == number)
            if rows.size:
                scores[rows] = features.score(head, name, rows, job.map_side)
        found.other_scores[name] = scores
    found.other_name = "painted defects on held-out parts"
    both = {name: np.concatenate([found.good_scores[name], found.other_scores[name]]) for name in trunks}
    defective = np.arange(len(both["float"])) >= len(held)
    for name in found.renderings:
        _judge(job, name, both["float"], both[name], defective, labelled=False)


def _judge(
    job: Job,
    name: GraphName,
    full: NDArray[np.float64],
    reduced: NDArray[np.float64],
    defective: NDArray[np.bool_],
    *,
    labelled: bool,
) -> None:
    found = job.evidence
    found.reduced[name] = judge_reduced(
        full,
        reduced,
        defective,
        thresholds=(found.thresholds["float"].value, found.thresholds[name].value),
        good=(found.good_scores["float"], found.good_scores[name]),
        labelled=labelled,
    )


def paint(job: Job, pictures: NDArray[np.uint8], held: NDArray[np.int64]) -> list[Defect]:
    """Paint defects on held-out parts; defect i lies on held-out picture i, then round again."""
    return paint_many([pictures[i] for i in held], min(PAINTED, 2 * len(held)), job.settings.seed)


def show_examples(
    job: Job, graphs: Graphs, good: NDArray[np.uint8], defects: list[tuple[str, NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    """Keep a few pictures with their maps for the report; returns the golden ones of them."""
    scores = job.evidence.good_scores["float"]
    order = np.argsort(scores)
    chosen = np.linspace(0, len(defects) - 1, min(SHOWN_DEFECTS, len(defects))).astype(int)
    places = [("lowest", order[0]), ("median", order[len(order) // 2])]
    places += [("a highest", i) for i in oddest_parts(job.evidence, "float")]
    shown = [
        (f"{job.evidence.good_names[i]}, good, {word} score ({scores[i]:.4g}) untrained", good[i]) for word, i in places
    ]
    shown += [defects[i] for i in chosen]
    pictures = np.stack([picture for _, picture in shown])
    scored = score_all(open_session(graphs["float"]), pictures, job.map_side)
    job.evidence.examples = [
        Example(title, picture, heat, float(score))
        for (title, picture), heat, score in zip(shown, scored.maps, scored.scores, strict=True)
    ]
    first_defect = len(places)
    return pictures[[1, 2, *range(first_defect, min(first_defect + 2, len(pictures)))]]


def drop_refused(job: Job, graphs: Graphs) -> Graphs:
    """Leave out the reduced graphs that gave up too much, and say so."""
    for name, reduced in job.evidence.reduced.items():
        if not reduced.kept:
            job.evidence.warnings.append(f"{FILES[name]} was left out: {reduced.reason} (on {reduced.evidence}).")
    return {name: model for name, model in graphs.items() if name == "float" or job.evidence.reduced[name].kept}


def time_graphs(job: Job, graphs: Graphs, picture: NDArray[np.uint8]) -> None:
    """Take the median time of each graph that runs here: one thread, one picture, interleaved."""
    sessions = {name: open_session(model) for name, model in graphs.items() if name != "trt"}
    times: dict[GraphName, list[float]] = {name: [] for name in sessions}
    for _ in range(TIMED_RUNS):
        for name, session in sessions.items():
            started = time.perf_counter()
            score_all(session, picture[None], job.map_side)
            times[name].append((time.perf_counter() - started) * 1000)
    job.evidence.graph_ms = {name: statistics.median(taken[WARM_UP_RUNS:]) for name, taken in times.items()}


@torch.no_grad()
def score_torch(job: Job, graph: AnomalyGraph, pictures: NDArray[np.uint8], step: str) -> Scored:
    """Score with the trained model itself."""
    tick = job.clock.ticks(step)
    scores = np.empty(len(pictures))
    maps = np.empty((len(pictures), job.map_side, job.map_side), np.float32)
    mask = torch.ones(1, job.map_side, job.map_side)
    for i, picture in enumerate(pictures):
        score, heat = graph(torch.from_numpy(np.array(picture))[None], mask)
        scores[i], maps[i] = float(score[0]), heat[0].numpy()
        tick(i + 1, len(pictures))
    return Scored(scores, maps)


def _score(job: Job, name: GraphName, model: bytes, pictures: NDArray[np.uint8]) -> Scored:
    return score_all(open_graph(name, model), pictures, job.map_side, job.clock.ticks(f"test {name}"))


def _opener(name: GraphName, model: bytes) -> Callable[[], ort.InferenceSession]:
    return lambda: open_graph(name, model)
