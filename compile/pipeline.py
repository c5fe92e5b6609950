"""From folders of good parts to a bundle: the whole way, in order.

Several classes share the size, the trunk, the fits and the graphs; each has its own split, threshold, evidence and
golden inputs. One class is the same with a list of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from calibration.threshold import DEFAULT_TARGET, CalibrationError, ThresholdResult
from compile.anomaly_graph import AnomalyGraph
from compile.backbones.choice import Backbone, find_backbone
from compile.bundle_writer import SIZE_BUDGET, check_writable, replacing, report_path, to_json, write_bundle
from compile.classes import class_names, class_sources, joint_scans, read_classes
from compile.data import FEWEST_PARTS, DataError, DataSet, LabelledImage
from compile.evidence import Evidence, per_class
from compile.fitting import one_thread
from compile.golden import GoldenInputs, golden_files
from compile.image_size import SizeChoice, choose_size, measure_ms_per_megapixel
from compile.job import FILES, Clock, Graphs, Job, Progress, Settings
from compile.learned_defects import draw_defects, shows_same_part
from compile.listing import Skipped
from compile.machine import machine
from compile.made import Good, Made
from compile.methods.method import Method
from compile.methods.registry import find_method
from compile.model import export_head, extract, fit_heads, join_all, paint_samples, render_trunks
from compile.parts import joined, load_parts
from compile.proof import (
    PARITY_PICTURES,
    Test,
    agree,
    check_graphs,
    drop_refused,
    judge_on_painted,
    judge_on_test,
    paint,
    show_examples,
    time_graphs,
)
from compile.report import render_report
from compile.scan_maps import scan_input
from compile.search import Class, search_precision
from compile.split_plan import SplitPlan, plan_classes, together
from compile.thresholds import extrapolates, set_thresholds, warn_of_blindness, warn_of_outliers
from compile.trunk_graph import export_trunk, map_names
from compile.wishes import check_names, check_wishes
from compile.work import work_key, work_path, working_folder
from edge.archive import SIZE_LIMIT
from edge.bundle import Bundle, Graph, GraphName, Input, Manifest, ScanInput, Source, Spec, Tensor, Threshold
from edge.errors import BeltlineError
from edge.prepare import tensor_shape
from edge.view import View

MEASURED_SIZE = 256  # pixels: where the cost of a megapixel is measured
PRECISIONS: dict[GraphName, str] = {
    "float": "float32",
    "int8": "int8 Q/DQ (uint8 activations, 7-bit weights)",
    "trt": "int8 Q/DQ (symmetric int8 activations)",
}
HALF = "float16 linear layers, float32 between them"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A bundle, where its report lies, and what was found out on the way about each class."""

    bundle: Bundle
    report: Path
    classes: list[Evidence]

    @property
    def evidence(self) -> Evidence:
        """Of the first class, and of the whole."""
        return self.classes[0]


def compile_data(settings: Settings, progress: Progress = lambda *_: None) -> Compiled:
    """Compile a folder, or one per class, into a bundle at `settings.output`, with its report beside it.

    Raises:
        BeltlineError: anything about the data, the wishes or the result; nothing is written then.
        CalibrationError, FitError, BundleError: the same, from the step that names it.

    """
    check_names(settings)
    check_writable(settings.output)
    backbone = find_backbone(settings.backbone)  # which may have to be fetched
    method = check_wishes(settings, backbone)
    clock = Clock(progress)
    with one_thread():
        with clock.step("read"):
            classes = read_classes(settings.folders, settings.group_by, clock.ticks("read files"), settings.unit)
            if count := settings.learn_defects:
                classes = [draw_defects(data, count, settings.seed, settings.group_by) for data in classes]
            sources = class_sources(classes) if method.levels else [None] * len(classes)
            scan_source = joint_scans(classes) if method.scans else None
        with clock.step("size"):
            size = _size(settings, max(data.longer_side for data in classes), backbone, method)
        scan = scan_input(scan_source, size.size, settings.background, method.scans) if scan_source else None
        key = work_key(settings, classes, backbone, size.size, machine())
        with working_folder(work_path(settings.output), key) as folder:
            jobs = []
            each_of = zip(class_names(settings.folders), classes, sources, strict=True)
            for number, (name, data, source) in enumerate(each_of):
                work = folder / str(number)
                work.mkdir(exist_ok=True)
                evidence = _evidence(settings, method, name, data, size)
                spec = _spec(size.size, source, scan, method, backbone)
                jobs.append(Job(settings, clock, work, spec, evidence, backbone=backbone))
            whole = jobs[0].evidence
            whole.seconds, whole.machine = clock.seconds, machine()
            whole.warnings += [size.warning] if size.warning else []
            for job in jobs[1:]:
                job.evidence.warnings, job.evidence.renderings = whole.warnings, whole.renderings
            return _compile(jobs)


def _spec(side: int, source: Source | None, scan: ScanInput | None, method: Method, backbone: Backbone) -> Spec:
    image = Input(height=side, width=side, source=source) if source else None
    tensors = [Tensor(name=name, shape=list(tensor_shape(name, scan))) for name in method.scans] if scan else []
    return Spec(image, scan, tuple(tensors), (backbone.map_side(side),) * 2)


def _evidence(settings: Settings, method: Method, class_name: str, data: DataSet, size: SizeChoice) -> Evidence:
    return Evidence(
        settings.name or settings.output.stem,
        settings.version,
        settings.seed,
        data,
        size,
        method=method.title,
        class_name=class_name,
    )


def _compile(jobs: list[Job]) -> Compiled:
    job = jobs[0]
    step = job.clock.step
    with step("load"):
        good = _load_good(jobs)
        tests = [_load_test(each) for each in jobs]
    target = job.settings.target_false_reject or DEFAULT_TARGET
    plans = plan_classes(good.groups, good.classes, target, job.settings.seed)
    for each, plan in zip(jobs, plans, strict=True):
        each.evidence.split = plan.words
        with _of_class(each):  # too few parts are said before the fit
            extrapolates(job.settings, int(np.unique(good.groups[plan.held]).size))
    plan = together(plans)
    method = find_method(job.settings.method, job.backbone)
    trunk = job.backbone.build(method.levels, job.side) if method.levels else None
    inputs = good.parts.inputs
    with step("quantise"):
        shown = inputs["image"][plan.folds[0][0]] if trunk else np.empty(0, np.uint8)
        trunks = render_trunks(job, trunk, shown)
    with step("features"):
        features = extract(job, trunks, inputs, "features", method.scans, trunk=trunk)
    painted_samples = None
    if method.painted:
        with step("samples"):
            painted_samples = paint_samples(job, trunks, inputs["image"], *_learned(jobs, good), trunk=trunk)
    with step("fit"):
        heads = fit_heads(job, features, plan, painted_samples, good.classes if len(jobs) > 1 else None)
    with step("export"):
        scans: dict[str, tuple[int, ...]] = {each.name: tuple(each.shape) for each in job.spec.tensors}
        head = export_head(job, trunks, heads.shipped, scans)
        graphs = join_all(trunks, head)
    if heads.shipped.takes_class:
        jobs = [replace(each, class_index=number) for number, each in enumerate(jobs)]
    with step("threshold"):
        for each, own in zip(jobs, plans, strict=True):
            with _of_class(each):
                held = set_thresholds(each, features, own, heads, good.groups)
            each.evidence.good_names = [good.paths[i].name for i in held]
            warn_of_outliers(each.evidence)
    with step("prove"):
        made = Made(good, trunks, heads, head, AnomalyGraph(trunk, heads.shipped), graphs)
        golden = []
        for each, own, test in zip(jobs, plans, tests, strict=True):
            with _of_class(each):
                golden.append(_prove(each, made, own, test))
    with step("search"):
        judged = [Class(*each) for each in zip(jobs, plans, tests, strict=True)]
        graphs = search_precision(judged, made, plan.folds[0][0])
    with step("time"):
        agree([each.evidence for each in jobs])
        for each in jobs:
            kept = drop_refused(each, graphs)
            warn_of_blindness(each.evidence, job.settings.target_false_reject)
        time_graphs(jobs[0], kept, good.parts.take(slice(1)).inputs)
    with step("write"):
        return _write(jobs, kept, golden, good)


def _prove(job: Job, made: Made, plan: SplitPlan, test: Test | None) -> GoldenInputs:
    """Prove the graphs on one class, and choose its golden inputs."""
    graphs, held = made.graphs, made.good.parts.take(plan.held)
    painted = paint(job, held, [made.good.views[i] for i in plan.held])
    half = slice(PARITY_PICTURES // 2)
    check_graphs(job, made.trained, graphs, joined([held.take(half), painted.parts.take(half)]))
    if test is not None:
        judge_on_test(job, made.trained, graphs, test)
        defects = test.parts.take(test.defective)
        titles = [image.kind for image in test.images if image.defective]
    else:
        judge_on_painted(job, made.trunks, plan, made.heads, painted)
        defects, titles = painted.parts, painted.titles
    shown = show_examples(job, graphs, held, defects, titles)
    several = bool(job.evidence.class_name)  # then half suffices: every box repeats those of all classes
    fewer = {name: values[::2] for name, values in shown.items()} if several else shown
    return GoldenInputs(fewer, job.evidence.class_name, job.class_index)


def view_of(job: Job, path: Path) -> View:
    """Give the files of the part that a data set lists by `path`, as far as its method looks at them."""
    scans = job.evidence.data.scans
    return View(path if job.spec.image else None, scans.of[path] if scans and job.spec.scan else None)


@contextmanager
def _of_class(job: Job) -> Iterator[None]:
    """Say of which class an error is, where there are several."""
    try:
        yield
    except (BeltlineError, CalibrationError) as error:
        if job.evidence.class_name:
            raise type(error)(f"{job.evidence.label}{error}") from error
        raise


def _size(settings: Settings, longer_side: int, backbone: Backbone, method: Method) -> SizeChoice:
    cost = None
    if settings.budget_ms is not None and settings.size is None:
        assert method.head_share is not None  # by `check_wishes`
        side = MEASURED_SIZE // backbone.step * backbone.step
        cost = measure_ms_per_megapixel(export_trunk(backbone.build(method.levels, side), side), method.head_share)
    return choose_size(
        longer_side,
        size=settings.size,
        smallest_defect_px=settings.smallest_defect_px,
        budget_ms=settings.budget_ms,
        ms_per_megapixel=cost,
        backbone=backbone,
    )


def _load_good(jobs: list[Job]) -> Good:
    job = jobs[0]
    views = [view_of(each, path) for each in jobs for path in each.evidence.data.good]
    specs = [each.spec for each in jobs for _ in each.evidence.data.good]
    loaded, kept, skipped = load_parts(views, specs, job.work / "good", job.clock.ticks("load good"))
    numbers = np.repeat(np.arange(len(jobs)), [len(each.evidence.data.good) for each in jobs])
    parts = np.concatenate([each.evidence.data.groups for each in jobs])
    _, groups = np.unique(np.stack([numbers, parts]), axis=1, return_inverse=True)
    good = Good(loaded, [views[i] for i in kept], numbers[kept], groups.reshape(-1)[kept])
    for number, each in enumerate(jobs):
        data = each.evidence.data
        mine = {view.file for view, number_ in zip(views, numbers, strict=True) if number_ == number}
        data.skipped.extend(item for item in skipped if item.path in mine)
        own = good.classes == number
        if (count := int(np.unique(good.groups[own]).size)) < FEWEST_PARTS:
            raise DataError(
                f"{data.folder}: {own.sum()} usable images show only {count} different parts, at least {FEWEST_PARTS} "
                "are needed. Add good parts, or say with --group-by which images show the same one."
            )
    return good


def _learned(jobs: list[Job], good: Good) -> tuple[list[tuple[LabelledImage, Source]], NDArray[np.bool_]]:
    """Give the labelled defects of all classes to learn from, and which good pictures show the part of each."""
    drawn = [(each, image) for each in jobs for image in each.evidence.data.learned]
    group_by = jobs[0].settings.group_by
    shown = [shows_same_part(each.evidence.data, image, good.paths, group_by) for each, image in drawn]
    images = [(image, each.spec.image.source) for each, image in drawn if each.spec.image]
    return images, np.array(shown, bool).reshape(len(drawn), len(good.paths))


def _load_test(job: Job) -> Test | None:
    """Load the labelled pictures; without both kinds there is nothing to measure on them."""
    data = job.evidence.data
    views = [view_of(job, image.path) for image in data.test]
    loaded, kept, skipped = load_parts(views, [job.spec] * len(views), job.work / "test", job.clock.ticks("load test"))
    data.skipped.extend(Skipped(path, f"test image: {reason}") for path, reason in skipped)
    test = Test([data.test[i] for i in kept], loaded, [views[i] for i in kept])
    return test if 0 < test.defective.sum() < len(kept) else None


def _write(jobs: list[Job], graphs: Graphs, golden: Sequence[GoldenInputs], good: Good) -> Compiled:
    job, classes = jobs[0], [each.evidence for each in jobs]
    found, wanted, several = job.evidence, job.settings, len(jobs) > 1
    method = find_method(wanted.method, job.backbone)
    report = render_report(classes).encode()
    files = {
        **{FILES[name]: model.SerializeToString(deterministic=True) for name, model in graphs.items()},
        **golden_files(graphs, golden),
        "threshold.json": to_json(per_class(classes, lambda each: _thresholds(each, graphs))),
        "parity.json": to_json(per_class(classes, Evidence.parity_json)),
        "calibration.json": to_json(found.calibration_json()),
        "report.html": report,
    }
    manifest = Manifest(
        schema_version=3 if job.spec.scan else 2 if several else 1,
        name=found.name,
        version=found.version,
        method=found.method,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        input=job.spec.image,
        scan=job.spec.scan,
        tensors=list(job.spec.tensors),
        map_height=job.map_side,
        map_width=job.map_side,
        score=method.score,
        graphs={
            name: Graph(
                file=FILES[name],
                precision=_precision(found, name),
                runtime="tensorrt" if name == "trt" else "onnxruntime",
            )
            for name in graphs
        },
        classes=[each.class_name for each in classes] if several else [],
        class_input=job.class_index is not None,
        class_sources=[each.spec.image.source for each in jobs if each.spec.image]
        if any(each.spec.image != job.spec.image for each in jobs)
        else [],
        provenance={
            "beltline": version("beltline"),
            "backbone": f"{job.backbone.title}, {', '.join(map_names(method.levels))}, frozen"
            if method.levels
            else "none",
            "backbone_sha256": job.backbone.digest() if method.levels else "",
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": version("onnxruntime"),
            "seed": wanted.seed,
            "fit_steps": found.fit_steps,
            "good_pictures": len(good.paths),
            "good_parts": int(np.unique(good.groups).size),
            "group_by": wanted.group_by,
            "learned_defects": [f"{image.kind}/{image.path.name}" for each in classes for image in each.data.learned],
            "split": per_class(classes, lambda each: each.split),
            "image_size": found.size.explanation,
        },
        files={},
    )
    path = report_path(wanted.output)
    with replacing(path, report):  # a bundle without its report would not do, nor the other way round
        budget = SIZE_BUDGET if method.light else SIZE_LIMIT
        smaller = "Choose a smaller --size" + (", or compile fewer classes together." if several else ".")
        bundle = write_bundle(wanted.output, manifest, files, budget=budget, smaller=smaller)
    return Compiled(bundle, path, classes)


def _backbone(job: Job, method: Method) -> dict[str, str]:
    if not method.levels:
        return {"backbone": "none"}
    words = f"{job.backbone.title}, {', '.join(map_names(method.levels))}, frozen"
    return {"backbone": words, "backbone_sha256": job.backbone.digest()}


def _thresholds(found: Evidence, graphs: Graphs) -> dict[str, object]:
    return {name: _threshold(found.thresholds[name]) for name in graphs}


def _threshold(result: ThresholdResult) -> dict[str, object]:
    return Threshold(
        value=result.value,
        target_false_reject=result.target_false_reject,
        rule=result.rule,
        parts=result.parts,
        interval=result.interval,
        approximate=result.approximate,
        flagged=result.flagged,
    ).model_dump(mode="json")


def _precision(found: Evidence, name: GraphName) -> str:
    reduced = found.renderings.get(name)
    return HALF if reduced and reduced.precision == "float16" else PRECISIONS[name]
