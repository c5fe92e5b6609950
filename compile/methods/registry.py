"""The methods by name: how each is fitted on maps of the frozen trunk and turned into a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.split import kfold
from compile.anomaly_graph import MAP_LIMIT, AnomalyHead
from compile.backbones.adapted import Adapted, AdaptMethod
from compile.backbones.choice import DEFAULT, FAMILIES, Backbone, Family, Level
from compile.features import FeatureFiles, Rows
from compile.job import Progress
from compile.methods.adaclip_graph import SIGMA, read_head
from compile.methods.cfm import SMOOTHING as CFM_SMOOTHING
from compile.methods.cfm import fit_cfm
from compile.methods.distil import Lesson, fit_student, teach
from compile.methods.glfm_fit import fit_glfm
from compile.methods.grnr import fit_grnr
from compile.methods.inp_former import zero_shot
from compile.methods.inp_former_fit import fit_inp_former
from compile.methods.inp_former_lite import fit_inp_former_lite, zero_shot_lite
from compile.methods.inp_former_map import published_head
from compile.methods.inp_former_pp_fit import fit_inp_former_pp
from compile.methods.inp_former_pp_patches import Fusion, fuse_by_product, fuse_by_sum
from compile.methods.inp_former_pp_patches_fit import fit_inp_former_pp_on_patches
from compile.methods.lite_groups import STRIDES
from compile.methods.m3dm import fit_m3dm
from compile.methods.mentor_fit import fit_mentor
from compile.methods.mvp_pclip import ViewHead, ViewModel, build_mvp_pclip
from compile.methods.patchcore import BANK, BLUR_SIGMA, HeldOut, fit_patchcore
from compile.methods.pnpt import Select
from compile.methods.pnpt_fit import STEPS as PNPT_STEPS
from compile.methods.pnpt_fit import fit_pnpt
from compile.methods.varad import FULL, FULL_SIZES, LIGHT, SIZES, Size
from compile.methods.varad_fit import STEPS as VARAD_STEPS
from compile.methods.varad_fit import fit_varad
from compile.scan_maps import VIEW_TENSORS, ScanMap
from compile.split_plan import FEW_PARTS
from compile.standardise import Standardised, measure_spread
from edge.bundle import ScanTensor
from edge.errors import BeltlineError

FOLDS = 5  # of VarAD's cross-fit
TAUGHT = "varad-from-"  # before a teacher's name: its student
DEFAULT_TEACHER = "inp-former-pp"
DEFAULT_METHOD = f"{TAUGHT}{DEFAULT_TEACHER}"
PATCH_CENTRE = 0.5  # of a patch, in patches
Maps = Sequence[NDArray[Any]]  # one [n, C, h, w] per level of the method


@dataclass(frozen=True, slots=True)
class Samples:
    """What a method is fitted on.

    Args:
        good: maps of good pictures.
        painted: of pictures with painted defects, for a method that asks for them.
        covered: float32 [m, H / 4, W / 4], the share of each cell that is painted.
        classes: int64 [n] of the good pictures, numbered from 0, where there are several.
        lessons: what a student's teacher said of the good and of the painted pictures, once each, where their maps are
            in several renderings.

    """

    good: Maps
    painted: Maps = ()
    covered: NDArray[np.float32] | None = None
    classes: NDArray[np.int64] | None = None
    lessons: tuple[Lesson, Lesson] | None = None


Fit = Callable[[Samples, int, int | None, Progress | None], nn.Module]  # samples, seed, steps at most, progress


@dataclass(frozen=True, slots=True)
class Shots:
    """How a method gets by with a few good pictures, or with none.

    Args:
        fit: on samples of them.
        fewest: pictures that it takes; 0 where it needs none.
        variants: whether each picture comes in its fixed variants (`compile.methods.few_shot`).
        transfer: a model fitted on other products to one for a product that it never saw.

    """

    fit: Fit
    fewest: int = 1
    variants: bool = False
    transfer: Callable[[nn.Module], nn.Module] | None = None


class UnknownMethodError(BeltlineError):
    """No method has this name, or none on this kind of backbone. The message lists those that exist."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method and what its head needs besides the model.

    Args:
        title: for people.
        fit: samples to the model, in eval mode.
        levels: of the trunk, whose maps it takes: strides, or blocks that `find_method` fills in by `groups`.
        groups: of a vision transformer's blocks.
        top: share of the map's pixels whose mean is the score; not for a model with its own image score.
        smoothing: standard deviation of the Gaussian over the map, pixels of the map.
        painted: whether it learns from painted defects, too.
        standardised: whether its maps are counted in deviations of good parts (`compile.standardise`).
        image_score: what the model's own image score is, for people; empty where the map gives the score.
        bank: whether it is a memory bank.
        light: whether its bundle is small on every box (`compile.bundle_writer.SIZE_BUDGET`).
        head_share: time of the head relative to the trunk's, where it was measured.
        several: whether one model may serve several classes.
        centre: of the first cell of its maps, in cells from the picture's edge.
        published_map: whether INP-Former's published map, its darkened rim included, stands in place of interpolation
            and smoothing.
        teacher: of a student, which is fitted on what `ask` gives.
        scans: maps of the scan that it takes after the trunk's; with no levels it sees no picture at all.
        views: whether it takes the scan's nine views and their index in place of maps.
        shots: for a method that can do with a few good pictures.

    """

    title: str
    fit: Fit
    levels: tuple[Level, ...] = (8, 16)
    top: float = 0.01
    smoothing: float = 0.0
    painted: bool = False
    standardised: bool = False
    groups: int = 2
    centre: float = 0.0
    published_map: bool = False
    image_score: str = ""
    bank: bool = False
    light: bool = False
    head_share: float | None = None
    several: bool = False
    teacher: Method | None = None
    scans: tuple[ScanTensor, ...] = ()
    views: bool = False
    shots: Shots | None = None

    @property
    def of_scans(self) -> tuple[ScanMap, ...]:
        """What it takes of a scan."""
        return (*self.scans, *(VIEW_TENSORS if self.views else ()))

    @property
    def score(self) -> str:
        """How the map becomes the score, for people."""
        map_ = "smoothed map" if self.smoothing else "map"
        of_map = f"mean of the largest {self.top:.0%} of the {map_}" if self.top else f"maximum of the {map_}"
        return self.image_score or of_map

    @torch.no_grad()
    def head(self, model: nn.Module, maps: Maps, map_size: tuple[int, int]) -> AnomalyHead:
        """Make the head of a model that takes such maps."""
        if isinstance(model, ViewModel):
            return ViewHead(model, [tuple(maps[1].shape[2:])], map_size, centre=self.centre).eval()
        one = [torch.from_numpy(np.asarray(each[:1], np.float32)) for each in maps]
        classes = [torch.zeros(1, dtype=torch.int64)] if getattr(model, "takes_class", False) else []
        grids = [(found.shape[1], found.shape[2]) for found in model(one, *classes)]
        if self.published_map:
            return published_head(model, grids[0], map_size, padding="zero").eval()
        return AnomalyHead(model, grids, map_size, top=self.top, smoothing=self.smoothing, centre=self.centre).eval()


def find_method(name: str, backbone: Backbone = DEFAULT) -> Method:
    """Look a method up as it is on a backbone.

    Raises:
        UnknownMethodError: there is none of this name, or none for a backbone of this kind.

    """
    methods = methods_of(backbone)
    if name.startswith(TAUGHT):
        return _student(_find_teacher(name.removeprefix(TAUGHT), backbone))
    if backbone.family == "lite" and name in SCAN_METHODS:
        return SCAN_METHODS[name]
    if name not in methods:
        others = [FAMILIES[family] for family, known in BY_FAMILY.items() if name in known]
        why = f"method {name!r} is for {others[0]}, and {backbone.name} is none" if others else f"no method {name!r}"
        taught = f", and {DEFAULT_METHOD} or another {TAUGHT}NAME" if backbone.family == "lite" else ""
        raise UnknownMethodError(f"{why}. There are: {', '.join(methods)}{taught}.")
    method = methods[name]
    levels = method.levels if backbone.family == "lite" else backbone.groups(method.groups)
    return replace(method, levels=levels)


def methods_of(backbone: Backbone) -> Mapping[str, Method]:
    """Give what there is on a backbone but for students and scans: of an adapted CLIP what it was adapted for."""
    if not isinstance(backbone.source, Adapted):
        return BY_FAMILY[backbone.family]
    name, fit = backbone.source.record.method, partial(_read_adapted, source=backbone.source)
    return {name: replace(ADAPTED[name], fit=fit, shots=Shots(fit, fewest=0))}


def _find_teacher(name: str, backbone: Backbone) -> Method:
    if backbone.family != "lite":
        raise UnknownMethodError(f"a student needs {FAMILIES['lite']}, and {backbone.name} is none.")
    teachers = [each for each in METHODS if each != "varad"]
    if name not in teachers:
        raise UnknownMethodError(f"no method {name!r} that could teach varad. There are: {', '.join(teachers)}.")
    return find_method(name, backbone)


def fit_alone(method: Method, samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit as `beltline compile` does, each picture a part: where they are few, folds measure the spread held out."""
    count = samples.good[0].shape[0]
    everything = np.arange(count)
    folds = kfold(everything, FOLDS, seed) if method.standardised and count < FEW_PARTS else []

    def fit(rows: NDArray[np.int64], turn: int) -> nn.Module:
        tell = None if progress is None else partial(_tell_turn, progress, turn=turn, turns=len(folds) + 1)
        return method.fit(replace(samples, good=_rows(samples.good, rows)), seed, steps, tell)

    spreads = [measure_spread(fit(others, i), _rows(samples.good, held)) for i, (others, held) in enumerate(folds)]
    model = fit(everything, len(folds))
    if not method.standardised:
        return model
    return Standardised(model, spreads or [measure_spread(model, samples.good)]).eval()


def _tell_turn(progress: Progress, what: str, done: int, of: int, *, turn: int, turns: int) -> None:
    progress(what, turn * of + done, turns * of)


def _rows(maps: Maps, rows: NDArray[np.int64]) -> Maps:
    return [cast("NDArray[Any]", Rows(each, rows)) for each in maps]


def _fit_patchcore(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps  # it takes none
    return fit_patchcore(samples.good, seed=seed, progress=progress).eval()


def _fit_varad(
    samples: Samples, seed: int, steps: int | None, progress: Progress | None, *, sizes: Sequence[Size]
) -> nn.Module:
    steps = VARAD_STEPS if steps is None else steps
    return fit_varad(samples.good, seed=seed, steps=steps, sizes=sizes, progress=progress)


def _fit_grnr(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit nothing: the paper's form, which looks at no good picture."""
    del steps
    return fit_grnr([each[:0] for each in samples.good], seed=seed, progress=progress).eval()


def _fit_grnr_as_published(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps
    nothing = [each[:0] for each in samples.good]
    return fit_grnr(nothing, seed=seed, progress=progress, self_filter="published", border="cut").eval()


def _fit_grnr_on_shots(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps
    return fit_grnr(samples.good, seed=seed, progress=progress).eval()


def _fit_pnpt(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit a template per class; where there is one the graph need not be told which."""
    select: Select = "given"
    classes = samples.classes
    if classes is None:
        classes, select = np.zeros(samples.good[0].shape[0], np.int64), "nearest"
    return fit_pnpt(samples.good, classes, seed=seed, select=select, progress=progress, steps=steps or PNPT_STEPS)


def _fit_inp_former(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_inp_former_lite(samples.good, seed=seed, steps=steps, progress=progress)


def _fit_inp_former_on_patches(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_inp_former(samples.good, seed=seed, steps=steps, progress=progress)


def _fit_inp_former_pp(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    assert samples.covered is not None
    return fit_inp_former_pp(samples.good, samples.painted, samples.covered, seed=seed, steps=steps, progress=progress)


def _fit_inp_former_pp_on_patches(
    samples: Samples, seed: int, steps: int | None, progress: Progress | None, *, fuse: Fusion
) -> nn.Module:
    assert samples.covered is not None
    return fit_inp_former_pp_on_patches(
        samples.good, samples.painted, samples.covered, seed=seed, steps=steps, fuse=fuse, progress=progress
    )


def _read_adapted(
    samples: Samples, seed: int, steps: int | None, progress: Progress | None, *, source: Adapted
) -> nn.Module:
    """Fit nothing: what was learned on other things is all there is."""
    del seed, steps, progress
    if source.record.method == "mvp-pclip":
        return build_mvp_pclip(source)
    return read_head(source, samples.good[1].shape[2])


def _fit_mentor(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_mentor(samples.good, seed=seed, steps=steps, progress=progress)


def _fit_glfm(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_glfm(samples.good, samples.classes, seed=seed, steps=steps, progress=progress)


def _fit_cfm(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_cfm(samples.good, seed=seed, steps=steps, progress=progress)


def _fit_m3dm(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_m3dm(samples.good, seed=seed, steps=steps, progress=progress)


def _student(teacher: Method) -> Method:
    return Method(
        f"VarAD (lightweight), taught by {teacher.title}",
        _fit_student,
        top=0.0,
        smoothing=1.5,
        painted=True,
        light=True,
        head_share=0.85,
        teacher=teacher,
    )


def _fit_student(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    assert samples.lessons is not None
    good, odd = samples.lessons
    return fit_student(samples.good, samples.painted, good, odd, seed=seed, steps=steps, progress=progress)


def ask(
    teacher: Method, samples: Samples, folder: Path, *, seed: int, steps: int | None, progress: Progress | None
) -> tuple[FeatureFiles, FeatureFiles]:
    """Fit a teacher and ask it about the good and the painted pictures that it was fitted on.

    Args:
        teacher: of the registry.
        samples: maps of its levels.
        folder: where its answers are kept, for `read_lesson`.
        seed: of its fit.
        steps: of its fit, at most.
        progress: called with (what, done, of).

    """
    tell = None if progress is None else partial(_tell_teacher, progress)
    if teacher.bank:
        teacher = replace(teacher, fit=_fit_halves)
    model = fit_alone(teacher, samples, seed, steps, tell)
    side = 2 * max(samples.good[teacher.levels.index(8)].shape[2:])
    shipped = min(MAP_LIMIT, 2 * side)  # the side of the map that the smoothing is meant for
    asked = replace(teacher, smoothing=teacher.smoothing * side / shipped)
    head = asked.head(model, samples.good, (side, side))
    told = None if progress is None else partial(progress, "ask the teacher")
    return teach(head, samples.good, folder / "good", told), teach(head, samples.painted, folder / "painted", told)


def _fit_halves(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit banks that a picture is new to one of; neighbours, which often show one part, go into the same."""
    del steps
    halves = np.array_split(np.arange(samples.good[0].shape[0]), 2)
    banks = [fit_patchcore(_rows(samples.good, own), seed=seed, bank=BANK // 2, progress=progress) for own in halves]
    return HeldOut(banks).eval()


def _tell_teacher(progress: Progress, what: str, done: int, of: int) -> None:
    progress(f"{what} of the teacher", done, of)


_patchcore = partial(
    Method,
    fit=_fit_patchcore,
    smoothing=BLUR_SIGMA,
    image_score="distance of the worst patch to the bank, weighted by eq. 7 of PatchCore",
    bank=True,
    several=True,
    shots=Shots(_fit_patchcore),
)
_grnr = Method(
    "GRNR, without any training picture",
    _fit_grnr,
    top=0.0,
    several=True,
    shots=Shots(_fit_grnr_on_shots, fewest=0),
)
_grnr_published = Method(
    "GRNR as its demo has it: first vectors, no border", _fit_grnr_as_published, several=True, top=0.0
)

METHODS: dict[str, Method] = {
    "patchcore": _patchcore("PatchCore: greedy memory bank, eq. 7"),
    "grnr": _grnr,
    "grnr-published": _grnr_published,
    "pnpt": Method("PNPT-style", _fit_pnpt, several=True),
    "patchcore-32": _patchcore("PatchCore with stride 32 too, the taps of inp-former-pp", levels=STRIDES),
    "inp-former": Method(
        "INP-Former on the embedded trunk",
        _fit_inp_former,
        STRIDES,
        several=True,
        shots=Shots(_fit_inp_former, variants=True, transfer=zero_shot_lite),
    ),
    "inp-former-pp": Method(
        "INP-Former++ on the embedded trunk",
        _fit_inp_former_pp,
        STRIDES,
        top=0.0,
        smoothing=1.5,
        painted=True,
        several=True,
    ),
    "varad": Method(
        "VarAD (lightweight; constants of the paper unverified)",
        partial(_fit_varad, sizes=SIZES),
        standardised=True,
        light=True,
        head_share=0.6,
    ),
    "varad-full": Method(
        "VarAD at full size (constants of the paper unverified)",
        partial(_fit_varad, sizes=FULL_SIZES),
        STRIDES,
        standardised=True,
    ),
}

SCAN_METHODS: dict[str, Method] = {  # for sets of scans with pictures
    "btf": _patchcore("BTF: RGB features and FPFH in one bank", scans=("fpfh",)),
    "fpfh": _patchcore("FPFH alone, in a bank", levels=(), scans=("fpfh",), centre=PATCH_CENTRE),
    "mentor3ad": Method(
        "Mentor3AD-style: picture and surface tell each other, guided by what they share",
        _fit_mentor,
        smoothing=BLUR_SIGMA,
        centre=PATCH_CENTRE,
        scans=("geometry",),
    ),
    "glfm": Method(
        "GLFM, light: a bank for each kind of object, on groups of the surface",
        _fit_glfm,
        levels=(),
        top=0.0,
        smoothing=BLUR_SIGMA,
        bank=True,
        several=True,
        centre=PATCH_CENTRE,
        scans=("scan", "geometry"),
    ),
    "cfm": Method(
        "CFM: picture and surface tell each other",
        _fit_cfm,
        smoothing=CFM_SMOOTHING,
        image_score="largest value over the root of the mean of those above 0, as CFM's",
        centre=PATCH_CENTRE,
        scans=("geometry",),
    ),
    "m3dm": Method(
        "M3DM: banks of picture, surface and fused feature",
        _fit_m3dm,
        smoothing=BLUR_SIGMA,
        image_score="M3DM's object scores of three banks, weighed by a one-class machine",
        bank=True,
        centre=PATCH_CENTRE,
        scans=("geometry",),
    ),
}

DEFAULT_ON_BOTH, DEFAULT_ON_SCANS = "mentor3ad", "fpfh"  # scans with pictures, scans alone

VIT_METHODS: dict[str, Method] = {
    "patchcore": _patchcore("PatchCore: greedy memory bank, eq. 7"),
    "inp-former": Method(
        "INP-Former: model, losses and map as published",
        _fit_inp_former_on_patches,
        published_map=True,
        several=True,
        shots=Shots(_fit_inp_former_on_patches, variants=True, transfer=zero_shot),
    ),
    "inp-former-pp": Method(
        "INP-Former++ on patches, error times head",
        partial(_fit_inp_former_pp_on_patches, fuse=fuse_by_product),
        top=0.0,
        smoothing=1.5,
        painted=True,
        several=True,
    ),
    "inp-former-pp-sum": Method(
        "INP-Former++ on patches, mean of error and head as described (unverified)",
        partial(_fit_inp_former_pp_on_patches, fuse=fuse_by_sum),
        painted=True,
        several=True,
    ),
    "varad": Method(
        "VarAD (lightweight; constants of the paper unverified)",
        partial(_fit_varad, sizes=(LIGHT, LIGHT)),
        standardised=True,
    ),
    "varad-full": Method(
        "VarAD at full size (constants of the paper unverified)",
        partial(_fit_varad, sizes=(FULL,) * 4),
        standardised=True,
        groups=4,
    ),
    "grnr": _grnr,
    "grnr-published": _grnr_published,
    "pnpt": Method("PNPT-style", _fit_pnpt, several=True),
}
ADAPTED: dict[AdaptMethod, Method] = {
    "adaclip": Method(
        "AdaCLIP with a constant text",
        _fit_grnr,
        smoothing=SIGMA * MAP_LIMIT,
        centre=PATCH_CENTRE,
        image_score="margin of the picture's embedding, fused with its oddest patches, between the texts",
        several=True,
    ),
    "mvp-pclip": Method(
        "MVP-PCLIP with a constant text",
        _fit_grnr,
        levels=(),
        views=True,
        centre=PATCH_CENTRE,
        image_score="mean over nine views of the probability that the object is damaged",
        several=True,
    ),
}
BY_FAMILY: dict[Family, dict[str, Method]] = {
    "lite": METHODS,
    "vit": {name: replace(method, centre=PATCH_CENTRE) for name, method in VIT_METHODS.items()},
}
