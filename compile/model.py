"""From good pictures to graphs: render the trunk, fit the head on what all renderings see, export, join."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.representative import check_representative
from compile.anomaly_graph import AnomalyHead
from compile.backbone import Trunk
from compile.backbones.dinov2 import DINOv2
from compile.data import LabelledImage
from compile.export import export, join
from compile.features import Features, has_gpu, on_disk, open_rows
from compile.fitting import Answers, Fit, Painted, fit_all
from compile.job import FILES, Graphs, Job
from compile.learned_defects import load_defects, weigh
from compile.methods.checkpoint import resumable
from compile.methods.method import Samples
from compile.methods.registry import find_method
from compile.methods.teacher import ask
from compile.parity import Inputs
from compile.precision import calibrate, render_accurately, render_in_half
from compile.pseudo_defects import paint_pictures, wanted
from compile.quantise import ONNX_RUNTIME, TENSORRT
from compile.scan_maps import ScanMap
from compile.split_plan import SplitPlan
from compile.standardise import Standardised
from compile.tensorrt_build import check_allowed
from compile.trunk_graph import export_trunk
from edge.bundle import Source
from edge.engine.flavour import TensorRTError

CALIBRATION_PICTURES = 20


@dataclass(frozen=True, slots=True)
class Heads:
    """One head per fold, and the one that is shipped."""

    folds: list[AnomalyHead]
    shipped: AnomalyHead


@dataclass(frozen=True, slots=True)
class PaintedPictures:
    """Maps of pictures with painted defects, then of real ones."""

    features: Features
    covered: NDArray[np.float32]
    sources: NDArray[np.int64]  # [painted ones, k], the good pictures that each shows something of; -1 for none
    teacher: TeacherMaps | None = None  # for a student
    shown: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))  # [real ones, good], the same part

    def on(self, pictures: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those that show nothing but some of the good pictures, and the real ones that show the part of no other."""
        painted = len(self.sources)
        others = np.setdiff1d(np.arange(self.shown.shape[1]), pictures)
        own = (np.isin(self.sources, pictures) | (self.sources < 0)).all(1)
        real = painted + np.array([i for i, part in enumerate(self.shown) if not part[others].any()], np.int64)
        return weigh(np.flatnonzero(own), real)

    def maps_on(self, pictures: NDArray[np.int64]) -> Painted:
        """The same to fit on."""
        chosen = self.on(pictures)
        return Painted(self.features.files, self.features.rows_of(chosen), self.covered[chosen])


@dataclass(frozen=True, slots=True)
class TeacherMaps:
    """Maps of good and painted pictures as a student's teacher sees them: by the float trunk alone, of its levels."""

    good: Features
    painted: Features


def calibration_pictures(pictures: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Choose evenly among the pictures that the head is fitted on too."""
    rows = np.linspace(0, len(pictures) - 1, min(CALIBRATION_PICTURES, len(pictures))).astype(int)
    return [pictures[i] for i in rows]


def render_trunks(job: Job, trunk: Trunk | DINOv2 | None, pictures: NDArray[np.uint8]) -> Graphs:
    """Export the trunk and render both INT8 forms from what its tensors hold on `calibration_pictures`.

    Of a vision transformer half precision is rendered for TensorRT, and nothing for ONNX Runtime. Where no picture is
    looked at there is no trunk.

    Raises:
        CalibrationError: they are too few or copies of each other.

    """
    if trunk is None:
        return {}
    chosen = calibration_pictures(pictures)
    check_representative(chosen)
    trunks: Graphs = {"float": export_trunk(trunk, job.side)}
    if job.backbone.family == "vit":
        job.evidence.renderings["trt"] = found = render_in_half(trunks["float"], chosen)
        trunks["trt"] = found.model
        return trunks
    seen = calibrate(trunks["float"], chosen, job.clock.ticks("calibrate"))
    for target in (ONNX_RUNTIME, TENSORRT):
        tick = job.clock.ticks(f"quantise {target.name}")
        found = render_accurately(trunks["float"], seen, target, chosen, tick=tick)
        job.evidence.renderings[target.name] = found
        trunks[target.name] = found.model
    return trunks


def extract(
    job: Job,
    trunks: Graphs,
    inputs: Inputs,
    step: str,
    scans: Sequence[ScanMap] = (),
    *,
    trunk: nn.Module | None = None,
) -> Features:
    """Compute the maps of every rendering of the trunk; those of `scans` are there.

    Where there is a GPU, `trunk` computes there those of the graph "float" that was exported from it.
    """
    folder = job.work / step
    folder.mkdir(exist_ok=True)
    masks = inputs["mask"] if scans else None
    features = Features(folder, list(trunks) or ["float"], [inputs[name] for name in scans], masks)
    for name, model in trunks.items():
        features.extract(
            name,
            model,
            inputs["image"],
            exact=name == "trt",
            threads=job.threads,
            tick=job.clock.ticks(f"{step} {name}"),
            module=trunk if name == "float" and has_gpu() else None,
        )
    return features


def _extract_in_turns(job: Job, trunks: Graphs, pictures: NDArray[np.uint8], step: str) -> Features:
    """Compute the maps of each picture by one rendering of the trunk: enough for what a student reads of it."""
    folder = job.work / step
    folder.mkdir(exist_ok=True)
    features = Features(folder, ["in turns"])
    features.extract_in_turns(trunks, pictures, threads=job.threads, tick=job.clock.ticks(step))
    return features


def paint_samples(
    job: Job,
    trunks: Graphs,
    good: NDArray[np.uint8],
    learned: Sequence[tuple[LabelledImage, Source]],
    shown: NDArray[np.bool_],
    *,
    trunk: nn.Module | None = None,
) -> PaintedPictures:
    """Paint defects on good pictures for a method to learn from, and compute their maps; a teacher's too, if any.

    Args:
        job: of the first class.
        trunks: whose maps.
        good: pictures of all classes.
        learned: real defects to learn from, too, and what their frames are.
        shown: bool [len(learned), len(good)], which good pictures show the part of each of these.
        trunk: as for `extract`.

    """
    painted = wanted(len(good))
    shape = (painted + len(learned), *good.shape[1:])
    pictures = on_disk(job.work / "samples.bin", np.dtype(np.uint8), shape)
    covered, sources = paint_pictures(good, pictures[:painted], job.settings.seed, job.clock.ticks("paint samples"))
    images, frames = [image for image, _ in learned], [source for _, source in learned]
    assert job.spec.image is not None  # by `check_wishes`
    pictures[painted:], real = load_defects(images, job.spec.image, job.work / "defects.bin", frames)
    covered = np.concatenate([covered, real])
    if method := find_method(job.settings.method, job.backbone).teacher:
        seeing = job.backbone.build(method.levels, job.side)
        own: Graphs = {"float": export_trunk(seeing, job.side)}
        taught = (
            extract(job, own, {"image": each}, f"teacher's {step}", trunk=seeing)
            for each, step in ((good, "features"), (pictures, "samples"))
        )
        maps = _extract_in_turns(job, trunks, pictures, "samples")
        return PaintedPictures(maps, covered, sources, TeacherMaps(*taught), shown)
    maps = extract(job, trunks, {"image": pictures}, "samples", trunk=trunk)
    return PaintedPictures(maps, covered, sources, shown=shown)


def fit_heads(
    job: Job,
    features: Features,
    plan: SplitPlan,
    painted: PaintedPictures | None = None,
    classes: NDArray[np.int64] | None = None,
) -> Heads:
    """Fit a head per fold; where parts were simply held out, that one is shipped.

    Cross-fitted heads count in deviations of pictures that were not fitted on; a fold's own take no part in its own.
    Where there are several `classes`, int64 [n] of the good pictures, a fit sees them in random order: a method that
    measures something on the first pictures shall meet all classes.
    """
    cross = plan.cross_fitted
    turns: list[tuple[str, NDArray[np.int64], NDArray[np.int64] | None]] = [
        (f"fit {number} of {len(plan.folds)}", train, held if cross else train)
        for number, (train, held) in enumerate(plan.folds, start=1)
    ]
    if cross:
        turns.append(("fit all", np.arange(features.pictures), None))
    if classes is not None:
        order = np.random.default_rng(job.settings.seed)
        turns = [(step, order.permutation(pictures), measured) for step, pictures, measured in turns]
    said = _ask(job, painted, np.sort(np.unique(np.concatenate([pictures for _, pictures, _ in turns]))))
    fits = [
        Fit(
            step,
            job.settings.method,
            job.backbone,
            features.files,
            features.rows_of(pictures),
            None if measured is None else features.rows_of(measured),
            job.settings.seed,
            job.settings.fit_steps,
            job.work / step,
            None if painted is None else painted.maps_on(pictures),
            None if said is None else said(pictures),
            None if classes is None else np.tile(classes[pictures], len(features.renderings)),
        )
        for step, pictures, measured in turns
    ]
    fitted = fit_all(fits, job.threads, job.clock.progress)
    spreads = [each.spread for each in fitted if each.spread]
    models = [
        Standardised(own.model, [each for each in spreads if not (cross and each is own.spread)])
        if spreads
        else own.model
        for own in fitted
    ]
    method = find_method(job.settings.method, job.backbone)
    heads = [method.head(each, features.together, (job.map_side, job.map_side)) for each in models]
    job.evidence.fit_steps = fitted[-1].steps
    return Heads(heads[: len(plan.folds)], heads[-1])


def _ask(
    job: Job, painted: PaintedPictures | None, pictures: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], Answers] | None:
    """Fit a student's teacher on good pictures and ask it about them; what it says of some of them, by these.

    One teacher serves all folds. What a fold's student learns of a part that it is judged on afterwards is only what
    the teacher makes of others because it knew that one.
    """
    teacher = find_method(job.settings.method, job.backbone).teacher
    if painted is None or painted.teacher is None or teacher is None:
        return None
    maps, odd = painted.teacher, painted.on(pictures)
    samples = Samples(open_rows(maps.good.files, pictures), open_rows(maps.painted.files, odd), painted.covered[odd])
    folder = job.work / "teacher"
    with resumable(folder):
        good, bad = ask(
            teacher,
            samples,
            folder,
            seed=job.settings.seed,
            steps=job.settings.fit_steps,
            progress=job.clock.progress,
        )
    of_good, of_odd = _places(pictures), _places(odd)
    return lambda chosen: Answers(good, of_good[chosen], bad, of_odd[painted.on(chosen)])


def _places(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each row stands in `rows`, -1 where it does not."""
    places = np.full(rows.max(initial=-1) + 1, -1)
    places[rows] = np.arange(len(rows))
    return places


def export_head(job: Job, trunks: Graphs, head: AnomalyHead, scans: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Export a head.

    Args:
        job: of the first class.
        trunks: every rendering.
        head: which takes the trunk's maps, then those of scans.
        scans: shapes of these by name.

    """
    outputs = trunks["float"].graph.output if trunks else []
    maps = {v.name: torch.zeros(2, *(axis.dim_value for axis in v.type.tensor_type.shape.dim[1:])) for v in outputs}
    maps |= {name: torch.zeros(2, *shape) for name, shape in scans.items()}
    mask = torch.ones(2, job.map_side, job.map_side)
    classes = {"class": torch.zeros(2, dtype=torch.int64)} if head.takes_class else {}
    return export(head, (*maps.values(), mask, *classes.values()), [*maps, "mask", *classes], ["score", "map"])


def join_all(trunks: Graphs, head: onnx.ModelProto) -> Graphs:
    """Join every rendering of the trunk with the float head; without a trunk the head alone is the graph.

    Raises:
        TensorRTError: a graph for TensorRT holds what TensorRT 10.3 does not take.

    """
    graphs: Graphs = {name: join(trunk, head) for name, trunk in trunks.items()} or {"float": head}
    for name in ("float", "trt"):
        if name in graphs and (problems := check_allowed(graphs[name])):
            raise TensorRTError(f"{FILES[name]}: {problems[0]} ({len(problems)} finding(s))")
    return graphs
