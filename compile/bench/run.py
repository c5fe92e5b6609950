"""Compare methods on labelled data sets: the same pictures, trunk, size and metrics for all.

No labels are in any fit but those of defects that were drawn to learn from and left the test of all methods.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch

from compile.adapt import check_unseen
from compile.anomaly_graph import AnomalyHead
from compile.backbones.adapted import Adapted
from compile.backbones.choice import DEFAULT, Backbone, Level, find_backbone
from compile.bench.cost import Cost, count_macs, count_parameters, time_graph
from compile.bench.data import RULES, Labelled, load_labelled, read_labelled
from compile.bench.figures import Estimate, compare_images, compare_pixels, estimate
from compile.bench.kept import Run, is_kept, keep_run, read_run
from compile.bench.page import Shown, choose_pictures, show
from compile.bench.score import score_maps
from compile.bench.settings import Entry, check_setting, samples_of
from compile.data import FEWEST_PARTS, DataSet, folder_name
from compile.export import export, join
from compile.fitting import one_thread
from compile.job import Progress
from compile.machine import machine
from compile.methods.checkpoint import resumable
from compile.methods.distil import read_lesson
from compile.methods.method import Method
from compile.methods.registry import UnknownMethodError, find_method, methods_of
from compile.methods.teacher import ask
from compile.metrics import Difference, MaskRule
from compile.trunk_graph import export_trunk, map_names
from compile.wishes import WishError, check_learn_defects, check_side
from compile.work import key_of, working_folder
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
    together: bool = False  # one model of all data sets
    shots: Sequence[int] = ()  # good pictures of each data set that methods are fitted on; all, if none are given
    work: Path | None = None  # where what is done is kept until all is: a comparison that was killed goes on


FEWEST_GOOD = 1  # pictures, where methods are fitted on so many shots
REPEATED = ("methods", "seeds", "data", "work")  # wishes that change no single run
MAPS = "maps-"  # of pictures, which are computed anew
SAMPLES = "samples"


class Row(NamedTuple):
    """One method in one setting on one data set."""

    data: str
    method: str
    shots: int | None
    label: str  # both
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


def check_wanted(wanted: Wanted, backbone: Backbone) -> list[Entry]:
    """Look up what was asked for.

    Raises:
        WishError: it makes no sense, whatever the data.

    """
    check_side(wanted.size, backbone)
    check_learn_defects(wanted.learn_defects)
    if wanted.seeds < 1:
        raise WishError(f"--seeds {wanted.seeds}: at least 1.")
    lists: dict[str, list[str]] = {
        "--methods": list(wanted.methods),
        "DATA": [folder_name(folder) for folder in wanted.data],
    }
    for what, values in lists.items():
        if not values:
            raise WishError(f"{what}: give at least one.")
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise WishError(f"{what}: {twice!r} was given twice; the tables tell rows apart by it.")
    try:
        methods = {name: find_method(name, backbone) for name in wanted.methods}
    except UnknownMethodError as error:
        raise WishError(f"--methods: {error}") from error
    counts: Sequence[int | None] = wanted.shots or [None]
    entries = [Entry(name, method, count) for name, method in methods.items() for count in counts]
    check_setting(entries, methods_of(backbone), len(wanted.data), together=wanted.together)
    return entries


def run_bench(wanted: Wanted, progress: Progress) -> Results:
    """Compare methods.

    Raises:
        WishError: what was asked for makes no sense.
        DataError: a folder cannot be compared on.
        FitError: a fit failed.

    """
    backbone = find_backbone(wanted.backbone)
    entries = check_wanted(wanted, backbone)
    methods = [entry.method for entry in entries]
    # what is wrong shows before the work
    fewest = max(FEWEST_GOOD, *wanted.shots) if wanted.shots else FEWEST_PARTS
    sets = [read_labelled(folder, progress, wanted.learn_defects, wanted.unit, fewest) for folder in wanted.data]
    if isinstance(backbone.source, Adapted):
        check_unseen(backbone.source, sets)
    union: tuple[Level, ...] = tuple(
        sorted({level for each in methods for level in (*each.levels, *(each.teacher or each).levels)})
    )
    scans = sorted({name for method in methods for name in method.of_scans})
    trunks = {
        levels: export_trunk(backbone.build(levels, wanted.size), wanted.size)
        for levels in {union, *(method.levels for method in methods)}
        if levels
    }
    results = Results(wanted, [], [], {}, {})
    at_once = wanted.together or any(entry.transferred for entry in entries)
    with _working_folder(wanted, sets, backbone) as kept:
        for some in [sets] if at_once else [[each] for each in sets]:
            with tempfile.TemporaryDirectory(dir=kept, prefix=MAPS) as name:
                loaded = []
                for number, each in enumerate(some):
                    work = Path(name) / str(number)
                    work.mkdir()
                    data = load_labelled(
                        each,
                        wanted.size,
                        trunks.get(union),
                        work,
                        backbone=backbone,
                        levels=union,
                        paint=any(method.painted for method in methods),
                        threads=len(os.sched_getaffinity(0)),
                        progress=progress,
                        scans=scans,
                        background=wanted.background,
                    )
                    loaded.append(data)
                _compare_on(loaded, entries, trunks, kept, results, progress=progress)
    return results


@contextmanager
def _working_folder(wanted: Wanted, sets: Sequence[DataSet], backbone: Backbone) -> Iterator[Path]:
    if wanted.work is None:
        with tempfile.TemporaryDirectory(prefix="beltline-bench-") as name:
            yield Path(name)
        return
    wishes = {name: value for name, value in asdict(wanted).items() if name not in REPEATED}
    with working_folder(wanted.work, key_of(wishes, sets, backbone, wanted.size, machine()), keep=True) as folder:
        for left in folder.glob(f"{MAPS}*"):
            shutil.rmtree(left)
        yield folder


def _compare_on(
    sets: Sequence[Labelled],
    entries: Sequence[Entry],
    trunks: dict[tuple[Level, ...], onnx.ModelProto],
    kept: Path,
    results: Results,
    *,
    progress: Progress,
) -> None:
    wanted = results.wanted
    runs: list[dict[str, list[Run]]] = [{entry.label: [] for entry in entries} for _ in sets]
    for entry in entries:
        trunk = trunks.get(entry.method.levels)
        for fitted_on, measured_on in entry.turns(len(sets), together=wanted.together):
            name = ", ".join(sets[i].name for i in measured_on)
            for seed in range(wanted.seeds):
                step = f"{name}: {entry.label}, seed {seed}"
                places = {i: kept / sets[i].name / entry.label / str(seed) for i in measured_on}
                if not all(is_kept(place) for place in places.values()):
                    head, taken = _fit(
                        entry,
                        [sets[i] for i in fitted_on],
                        seed,
                        trunk,
                        places[measured_on[0]] / "fit",
                        steps=wanted.fit_steps,
                        progress=partial(_named, progress, step),
                    )
                    cost = _cost(entry.method, head, sets[0], trunk, kept)
                    for i, place in places.items():
                        maps = sets[i].test_maps(entry.method.levels, entry.method.of_scans)
                        scored = score_maps(head, maps, partial(progress, f"{step}, score"), i)
                        keep_run(place, Run(scored, taken, cost))
                for i, place in places.items():
                    runs[i][entry.label].append(read_run(place))
    for data, found in zip(sets, runs, strict=True):
        _tell_figures(data, entries, found, results, progress)


def _tell_figures(
    data: Labelled,
    entries: Sequence[Entry],
    measured: dict[str, list[Run]],
    results: Results,
    progress: Progress,
) -> None:
    scored = {label: [run.scored for run in runs] for label, runs in measured.items()}
    first = scored[entries[0].label]
    for done, entry in enumerate(entries, start=1):
        runs = scored[entry.label]
        figures = {rule: estimate(runs, data.defective, data.masks[rule]) for rule in RULES}
        differences: dict[MaskRule, dict[str, Difference]] = {}
        if runs is not first:
            image = compare_images(runs, first, data.defective)
            differences = {rule: image | compare_pixels(runs, first, data.masks[rule]) for rule in RULES}
        fit_s = float(np.median([run.seconds for run in measured[entry.label]]))
        cost = measured[entry.label][0].cost
        results.rows.append(Row(data.name, entry.name, entry.shots, entry.label, fit_s, cost, figures, differences))
        progress(f"{data.name}: figures", done, len(entries))
    results.shown.append(show(data, {label: each[0] for label, each in scored.items()}, choose_pictures(data)))
    results.remarks[data.name] = data.remarks
    results.test[data.name] = (int(np.sum(~data.defective)), int(np.sum(data.defective)))


def _named(progress: Progress, step: str, _: str, done: int, of: int) -> None:
    progress(step, done, of)


def _fit(
    entry: Entry,
    sets: Sequence[Labelled],
    seed: int,
    trunk: onnx.ModelProto | None,
    work: Path,
    *,
    steps: int | None,
    progress: Progress,
) -> tuple[AnomalyHead, float]:
    """Give the head, and the seconds that its fit took, its teacher's included."""
    shutil.rmtree(work / SAMPLES, ignore_errors=True)
    (work / SAMPLES).mkdir(parents=True)
    samples = samples_of(entry, sets, seed, trunk, work / SAMPLES, progress=progress)
    started = time.monotonic()
    with one_thread(), resumable(work):
        if teacher := entry.method.teacher:
            (data,) = sets  # a student is of one product
            taught = data.samples(teacher.levels)
            answers = ask(teacher, taught, work, seed=seed, steps=steps, progress=progress)
            good, odd = (read_lesson(each, np.arange(each.shapes[0][0])) for each in answers)
            samples = replace(samples, lessons=(good, odd))
        model = entry.fit(samples, seed, steps, progress)
    taken = time.monotonic() - started
    shutil.rmtree(work)
    data = sets[0]
    like = data.test_maps(entry.method.levels, entry.method.of_scans)
    return entry.method.head(model, like, (data.map_side, data.map_side)), taken


def _cost(method: Method, head: AnomalyHead, data: Labelled, trunk: onnx.ModelProto | None, work: Path) -> Cost:
    graph = export_graph(method, head, data, trunk)
    file = work / "graph.onnx"
    onnx.save(graph, file)
    parts = [head, *([data.backbone.build(method.levels, data.size)] if trunk else [])]
    return Cost(count_parameters(*parts), count_macs(graph), *time_graph(file))


def export_graph(method: Method, head: AnomalyHead, data: Labelled, trunk: onnx.ModelProto | None) -> onnx.ModelProto:
    """Export the head and join it with its trunk, as a bundle carries them. Maps of scans are inputs of the graph."""
    maps = tuple(torch.from_numpy(np.array(each[:2])) for each in data.test_maps(method.levels, method.of_scans))
    mask = torch.ones(2, data.map_side, data.map_side)
    classes = {"class": torch.zeros(2, dtype=torch.int64)} if head.takes_class else {}
    names = [*map_names(method.levels), *method.of_scans, "mask", *classes]
    exported = export(head, (*maps, mask, *classes.values()), names, ["score", "map"])
    return join(trunk, exported) if trunk else exported
