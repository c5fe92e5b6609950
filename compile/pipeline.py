"""From a folder of good parts to a bundle: the whole way, in order."""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from calibration.threshold import DEFAULT_TARGET
from compile.anomaly_graph import AnomalyGraph
from compile.backbone import Trunk
from compile.bundle_writer import check_writable, replacing, report_path, to_json, write_bundle
from compile.data import FEWEST_PARTS, DataError, DataSet, Skipped, read_data
from compile.evidence import Evidence
from compile.features import load_pictures
from compile.fitting import one_thread
from compile.golden import golden_files
from compile.image_size import SizeChoice, choose_size, measure_ms_per_megapixel
from compile.job import FILES, Clock, Graphs, Job, Progress, Settings
from compile.methods.registry import Method, find_method
from compile.model import export_graphs, extract, fit_heads, paint_samples, render_trunks
from compile.precision import CalibrationRecord
from compile.proof import (
    PARITY_PICTURES,
    Test,
    check_graphs,
    drop_refused,
    judge_on_painted,
    judge_on_test,
    paint,
    show_examples,
    time_graphs,
)
from compile.report import render_report
from compile.split_plan import plan_split
from compile.thresholds import extrapolates, set_thresholds, warn_of_blindness, warn_of_outliers
from compile.trunk_graph import export_trunk
from compile.wishes import check_wishes
from edge.bundle import Bundle, Graph, GraphName, Input, Manifest, Threshold

MEASURED_SIZE = 256  # pixels: where the cost of a megapixel is measured
PRECISIONS: dict[GraphName, str] = {
    "float": "float32",
    "int8": "int8 Q/DQ (uint8 activations, 7-bit weights)",
    "trt": "int8 Q/DQ (symmetric int8 activations)",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A bundle, where its report lies, and what was found out on the way."""

    bundle: Bundle
    report: Path
    evidence: Evidence


def compile_data(settings: Settings, progress: Progress = lambda *_: None) -> Compiled:
    """Compile a folder into a bundle at `settings.output`, with its report beside it.

    Raises:
        BeltlineError: anything about the data, the wishes or the result; nothing is written then.
        CalibrationError, FitError, BundleError: the same, from the step that names it.

    """
    check_wishes(settings)
    check_writable(settings.output)
    clock = Clock(progress)
    with one_thread(), tempfile.TemporaryDirectory(prefix="beltline-") as folder:
        with clock.step("read"):
            data = read_data(settings.data, settings.group_by, clock.ticks("read files"))
        with clock.step("size"):
            size = _size(settings, data)
        evidence = Evidence(settings.name or settings.output.stem, settings.version, settings.seed, data, size)
        evidence.method = find_method(settings.method).title
        evidence.seconds = clock.seconds
        evidence.machine = _machine()
        evidence.warnings += [size.warning] if size.warning else []
        spec = Input(height=size.size, width=size.size, source=data.source)
        return _compile(Job(settings, clock, Path(folder), spec, evidence))


def _compile(job: Job) -> Compiled:
    step = job.clock.step
    with step("load"):
        pictures, groups, names = _load_good(job)
        test = _load_test(job)
    plan = plan_split(groups, job.settings.target_false_reject or DEFAULT_TARGET, job.settings.seed)
    job.evidence.split = plan.words
    extrapolates(job.settings, int(np.unique(groups[plan.held]).size))  # too few parts are said before the fit
    method = find_method(job.settings.method)
    trunk = Trunk(method.strides)
    with step("quantise"):
        trunks, record = render_trunks(job, trunk, pictures[plan.folds[0][0]])
    with step("features"):
        features = extract(job, trunks, pictures, "features")
    painted_samples = None
    if method.painted:
        with step("samples"):
            painted_samples = paint_samples(job, trunks, pictures)
    with step("fit"):
        heads = fit_heads(job, features, plan, painted_samples)
    with step("export"):
        graphs = export_graphs(job, trunks, heads.shipped)
    with step("threshold"):
        held = set_thresholds(job, features, plan, heads, groups)
        job.evidence.good_names = [names[i] for i in held]
        warn_of_outliers(job.evidence)
    with step("prove"):
        trained = AnomalyGraph(trunk, heads.shipped)
        painted = paint(job, pictures, held)
        half = PARITY_PICTURES // 2
        sample = np.concatenate([pictures[held[:half]], np.stack([defect.image for defect in painted[:half]])])
        check_graphs(job, trained, graphs, sample)
        if test is not None:
            judge_on_test(job, trained, graphs, test)
            defects = [(test.images[i].kind, test.pictures[i]) for i in np.flatnonzero(test.defective)]
        else:
            judge_on_painted(job, trunks, plan, heads, held, painted=painted)
            defects = [(f"painted {defect.kind}, {defect.size_px} px", defect.image) for defect in painted]
        golden = show_examples(job, graphs, pictures[held], defects)
        graphs = drop_refused(job, graphs)
        warn_of_blindness(job.evidence, job.settings.target_false_reject)
        time_graphs(job, graphs, pictures[0])
    with step("write"):
        return _write(job, graphs, record, golden, groups)


def _size(settings: Settings, data: DataSet) -> SizeChoice:
    cost = None
    if settings.budget_ms is not None and settings.size is None:
        method = find_method(settings.method)
        assert method.head_share is not None  # by `check_wishes`
        cost = measure_ms_per_megapixel(export_trunk(Trunk(method.strides), MEASURED_SIZE), method.head_share)
    return choose_size(
        data.longer_side,
        size=settings.size,
        smallest_defect_px=settings.smallest_defect_px,
        budget_ms=settings.budget_ms,
        ms_per_megapixel=cost,
    )


def _load_good(job: Job) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    data = job.evidence.data
    pictures, kept, skipped = load_pictures(data.good, job.spec, job.work / "good.bin", job.clock.ticks("load good"))
    data.skipped.extend(skipped)
    groups = data.groups[kept]
    if (parts := int(np.unique(groups).size)) < FEWEST_PARTS:
        raise DataError(
            f"{data.folder}: {len(kept)} usable images show only {parts} different parts, at least {FEWEST_PARTS} are "
            "needed. Add good parts, or say with --group-by which images show the same one."
        )
    return pictures, groups, [data.good[i].name for i in kept]


def _load_test(job: Job) -> Test | None:
    """Load the labelled pictures; without both kinds there is nothing to measure on them."""
    data = job.evidence.data
    paths = [image.path for image in data.test]
    pictures, kept, skipped = load_pictures(paths, job.spec, job.work / "test.bin", job.clock.ticks("load test"))
    data.skipped.extend(Skipped(path, f"test image: {reason}") for path, reason in skipped)
    test = Test([data.test[i] for i in kept], pictures)
    return test if 0 < test.defective.sum() < len(kept) else None


def _write(
    job: Job, graphs: Graphs, record: CalibrationRecord, golden: NDArray[np.uint8], groups: NDArray[np.int64]
) -> Compiled:
    found, wanted = job.evidence, job.settings
    method = find_method(wanted.method)
    report = render_report(found).encode()
    files = {
        **{FILES[name]: model.SerializeToString(deterministic=True) for name, model in graphs.items()},
        **golden_files(graphs, golden, job.map_side),
        "threshold.json": to_json({name: _threshold(job, name) for name in graphs}),
        "parity.json": to_json(found.parity_json()),
        "calibration.json": to_json(record.to_json()),
        "report.html": report,
    }
    manifest = Manifest(
        name=found.name,
        version=found.version,
        method=found.method,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        input=job.spec,
        map_height=job.map_side,
        map_width=job.map_side,
        score=method.score,
        graphs={
            name: Graph(
                file=FILES[name],
                precision=PRECISIONS[name],
                runtime="tensorrt" if name == "trt" else "onnxruntime",
            )
            for name in graphs
        },
        provenance={
            "beltline": version("beltline"),
            "backbone": f"EfficientNet-Lite0, strides {', '.join(map(str, method.strides))}, frozen",
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": version("onnxruntime"),
            "seed": wanted.seed,
            "fit_steps": found.fit_steps,
            "good_pictures": len(groups),
            "good_parts": int(np.unique(groups).size),
            "group_by": wanted.group_by,
            "split": found.split,
            "image_size": found.size.explanation,
        },
        files={},
    )
    path = report_path(wanted.output)
    with replacing(path, report):  # a bundle without its report would not do, nor the other way round
        bundle = write_bundle(wanted.output, manifest, files, smaller=_smaller(method))
    return Compiled(bundle, path, found)


def _smaller(method: Method) -> str:
    if method.bank:
        return "The memory bank is as large at every --size: choose another --method."
    return "Choose a smaller --size."


def _threshold(job: Job, name: GraphName) -> dict[str, object]:
    result = job.evidence.thresholds[name]
    return Threshold(
        value=result.value,
        target_false_reject=result.target_false_reject,
        rule=result.rule,
        parts=result.parts,
        interval=result.interval,
        approximate=result.approximate,
        flagged=result.flagged,
    ).model_dump(mode="json")


def _machine() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} threads"
