"""Compare methods on labelled data sets: the same pictures, trunk, size and metrics for all.

No labels are in any fit but those of defects that were drawn to learn from and left the test of all methods.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch

from compile.anomaly_graph import AnomalyHead
from compile.backbones.choice import DEFAULT, Backbone, Level, find_backbone
from compile.bench.cost import Cost, count_macs, count_parameters, time_graph
from compile.bench.data import RULES, Labelled, load_labelled, read_labelled
from compile.bench.figures import Estimate, compare_images, compare_pixels, estimate
from compile.bench.page import Shown, choose_pictures, show
from compile.bench.score import score_maps
from compile.export import export, join
from compile.features import on_disk
from compile.fitting import one_thread
from compile.job import Progress
from compile.methods.distil import read_lesson
from compile.methods.registry import Method, UnknownMethodError, ask, find_method, fit_alone
from compile.metrics import Difference, MaskRule
from compile.parity import Scored
from compile.trunk_graph import export_trunk, map_names
from compile.wishes import WishError, check_learn_defects, check_side
from edge.bundle import Background
from edge.scans.unit import Unit


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to compare. The first method is the one that the others are compared with."""

    data: Sequence[Path]
    methods: Sequence[str]
    size: int = 256
    seeds: int = 1
    fit_steps: int | None = None  # the method's own number
    backbone: str = DEFAULT.name
    learn_defects: int = 0  # labelled ones, which leave the test of all methods
    unit: Unit | None = None  # of scans; None: from what they span
    background: Background = "none"  # of scans


class Row(NamedTuple):
    """One method on one data set."""

    data: str
    method: str
    fit_s: float  # median over the seeds, one thread
    cost: Cost
    figures: dict[MaskRule, dict[str, Estimate]]
    differences: dict[MaskRule, dict[str, Difference]]  # to the first method; empty for itself


@dataclass(frozen=True, slots=True)
class Results:
    wanted: Wanted
    rows: list[Row]
    shown: list[Shown]
    remarks: dict[str, list[str]]  # by data set
    test: dict[str, tuple[int, int]]  # good and defective test pictures, by data set


def check_wanted(wanted: Wanted, backbone: Backbone) -> dict[str, Method]:
    """Look up what was asked for.

    Raises:
        WishError: it makes no sense, whatever the data.

    """
    check_side(wanted.size, backbone)
    check_learn_defects(wanted.learn_defects)
    if wanted.seeds < 1:
        raise WishError(f"--seeds {wanted.seeds}: at least 1.")
    for what, values in (("--methods", list(wanted.methods)), ("DATA", [p.resolve().name for p in wanted.data])):
        if not values:
            raise WishError(f"{what}: give at least one.")
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise WishError(f"{what}: {twice!r} was given twice; the tables tell rows apart by it.")
    try:
        return {name: find_method(name, backbone) for name in wanted.methods}
    except UnknownMethodError as error:
        raise WishError(f"--methods: {error}") from error


def run_bench(wanted: Wanted, progress: Progress) -> Results:
    """Compare methods.

    Raises:
        WishError: what was asked for makes no sense.
        DataError: a folder cannot be compared on.
        FitError: a fit failed.

    """
    backbone = find_backbone(wanted.backbone)
    methods = check_wanted(wanted, backbone)
    # what is wrong shows before the work
    sets = [read_labelled(folder, progress, wanted.learn_defects, wanted.unit) for folder in wanted.data]
    union: tuple[Level, ...] = tuple(
        sorted({level for each in methods.values() for level in (*each.levels, *(each.teacher or each).levels)})
    )
    scans = sorted({name for method in methods.values() for name in method.scans})
    trunks = {
        levels: export_trunk(backbone.build(levels, wanted.size), wanted.size)
        for levels in {union, *(method.levels for method in methods.values())}
        if levels
    }
    threads = len(os.sched_getaffinity(0))
    results = Results(wanted, [], [], {}, {})
    for each in sets:
        with tempfile.TemporaryDirectory(prefix="beltline-bench-") as name:
            data = load_labelled(
                each,
                wanted.size,
                trunks.get(union),
                Path(name),
                backbone=backbone,
                levels=union,
                paint=any(method.painted for method in methods.values()),
                threads=threads,
                progress=progress,
                scans=scans,
                background=wanted.background,
            )
            _compare_on(data, methods, trunks, Path(name), results, progress=progress)
    return results


def _compare_on(
    data: Labelled,
    methods: dict[str, Method],
    trunks: dict[tuple[Level, ...], onnx.ModelProto],
    work: Path,
    results: Results,
    *,
    progress: Progress,
) -> None:
    runs: dict[str, list[Scored]] = {}
    spent: dict[str, tuple[float, Cost]] = {}
    for name, method in methods.items():
        seconds, runs[name] = [], []
        for seed in range(results.wanted.seeds):
            step = f"{data.name}: {name}, seed {seed}"
            head, taken = _fit(
                method, data, work, seed=seed, steps=results.wanted.fit_steps, progress=partial(_named, progress, step)
            )
            tick = partial(progress, f"{step}, score")
            scored = score_maps(head, data.test_maps(method.levels, method.scans), tick)
            runs[name].append(_on_disk(scored, work / f"{name}_{seed}.bin"))
            seconds.append(taken)
        spent[name] = float(np.median(seconds)), _cost(method, head, data, trunks.get(method.levels), work)
    first = next(iter(methods))
    for done, name in enumerate(methods, start=1):
        figures = {rule: estimate(runs[name], data.defective, data.masks[rule]) for rule in RULES}
        differences: dict[MaskRule, dict[str, Difference]] = {}
        if name != first:
            image = compare_images(runs[name], runs[first], data.defective)
            differences = {r: image | compare_pixels(runs[name], runs[first], data.masks[r]) for r in RULES}
        results.rows.append(Row(data.name, name, *spent[name], figures, differences))
        progress(f"{data.name}: figures", done, len(methods))
    results.shown.append(show(data, {name: each[0] for name, each in runs.items()}, choose_pictures(data)))
    results.remarks[data.name] = data.remarks
    results.test[data.name] = (int(np.sum(~data.defective)), int(np.sum(data.defective)))


def _named(progress: Progress, step: str, _: str, done: int, of: int) -> None:
    progress(step, done, of)


def _fit(
    method: Method, data: Labelled, work: Path, *, seed: int, steps: int | None, progress: Progress
) -> tuple[AnomalyHead, float]:
    """Give the head, and the seconds that its fit took, its teacher's included."""
    samples = data.samples(method.levels, method.scans)
    started = time.monotonic()
    with one_thread(), tempfile.TemporaryDirectory(dir=work) as folder:
        if method.teacher:
            taught = data.samples(method.teacher.levels)
            answers = ask(method.teacher, taught, Path(folder), seed=seed, steps=steps, progress=progress)
            good, odd = (read_lesson(each, np.arange(each.shapes[0][0])) for each in answers)
            samples = replace(samples, lessons=(good, odd))
        model = fit_alone(method, samples, seed, steps, progress)
    taken = time.monotonic() - started
    return method.head(model, samples.good, (data.map_side, data.map_side)), taken


def _on_disk(scored: Scored, file: Path) -> Scored:
    """Keep maps in a scratch file: those of all methods and seeds together may not fit into memory."""
    maps = on_disk(file, scored.maps.dtype, scored.maps.shape)
    maps[:] = scored.maps
    return Scored(scored.scores, maps)


def _cost(method: Method, head: AnomalyHead, data: Labelled, trunk: onnx.ModelProto | None, work: Path) -> Cost:
    graph = export_graph(method, head, data, trunk)
    file = work / "graph.onnx"
    onnx.save(graph, file)
    parts = [head, *([data.backbone.build(method.levels, data.size)] if trunk else [])]
    return Cost(count_parameters(*parts), count_macs(graph), *time_graph(file))


def export_graph(method: Method, head: AnomalyHead, data: Labelled, trunk: onnx.ModelProto | None) -> onnx.ModelProto:
    """Export the head and join it with its trunk, as a bundle carries them. Maps of scans are inputs of the graph."""
    maps = tuple(torch.from_numpy(np.array(each[:2])) for each in data.test_maps(method.levels, method.scans))
    mask = torch.ones(2, data.map_side, data.map_side)
    exported = export(head, (*maps, mask), [*map_names(method.levels), *method.scans, "mask"], ["score", "map"])
    return join(trunk, exported) if trunk else exported
