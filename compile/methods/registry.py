"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from compile.anomaly_graph import MAP_LIMIT
from compile.backbones.adapted import Adapted, AdaptMethod
from compile.backbones.choice import DEFAULT, FAMILIES, Backbone, Family
from compile.methods import fits
from compile.methods.adaclip_graph import SIGMA
from compile.methods.cfm import SMOOTHING as CFM_SMOOTHING
from compile.methods.inp_former import zero_shot
from compile.methods.inp_former_lite import zero_shot_lite
from compile.methods.inp_former_pp_patches import fuse_by_product, fuse_by_sum
from compile.methods.lite_groups import STRIDES
from compile.methods.method import Method, Shots
from compile.methods.patchcore import BLUR_SIGMA
from compile.methods.varad import FULL, FULL_SIZES, LIGHT, SIZES
from edge.errors import BeltlineError

TAUGHT = "varad-from-"  # before a teacher's name: its student
DEFAULT_TEACHER = "inp-former-pp"
DEFAULT_METHOD = f"{TAUGHT}{DEFAULT_TEACHER}"
PATCH_CENTRE = 0.5  # of a patch, in patches


class UnknownMethodError(BeltlineError):
    """No method has this name, or none on this kind of backbone. The message lists those that exist."""


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
    name, fit = backbone.source.record.method, partial(fits.adapted, source=backbone.source)
    return {name: ADAPTED[name](fit=fit, shots=Shots(fit, fewest=0))}


def _find_teacher(name: str, backbone: Backbone) -> Method:
    if backbone.family != "lite":
        raise UnknownMethodError(f"a student needs {FAMILIES['lite']}, and {backbone.name} is none.")
    teachers = [each for each in METHODS if each != "varad"]
    if name not in teachers:
        raise UnknownMethodError(f"no method {name!r} that could teach varad. There are: {', '.join(teachers)}.")
    return find_method(name, backbone)


def _student(teacher: Method) -> Method:
    return Method(
        f"VarAD (lightweight), taught by {teacher.title}",
        fits.student,
        top=0.0,
        smoothing=1.5,
        painted=True,
        light=True,
        head_share=0.85,
        teacher=teacher,
    )


_patchcore = partial(
    Method,
    fit=fits.patchcore,
    smoothing=BLUR_SIGMA,
    image_score="distance of the worst patch to the bank, weighted by eq. 7 of PatchCore",
    bank=True,
    several=True,
    shots=Shots(fits.patchcore),
)
_grnr = Method(
    "GRNR, without any training picture",
    fits.grnr,
    top=0.0,
    several=True,
    shots=Shots(fits.grnr_on_shots, fewest=0),
)
_grnr_published = Method(
    "GRNR as its demo has it: first vectors, no border", fits.grnr_as_published, several=True, top=0.0
)

METHODS: dict[str, Method] = {
    "patchcore": _patchcore("PatchCore: greedy memory bank, eq. 7"),
    "grnr": _grnr,
    "grnr-published": _grnr_published,
    "pnpt": Method("PNPT-style", fits.pnpt, several=True),
    "patchcore-32": _patchcore("PatchCore with stride 32 too, the taps of inp-former-pp", levels=STRIDES),
    "inp-former": Method(
        "INP-Former on the embedded trunk",
        fits.inp_former,
        STRIDES,
        several=True,
        shots=Shots(fits.inp_former, variants=True, transfer=zero_shot_lite),
    ),
    "inp-former-pp": Method(
        "INP-Former++ on the embedded trunk",
        fits.inp_former_pp,
        STRIDES,
        top=0.0,
        smoothing=1.5,
        painted=True,
        several=True,
    ),
    "varad": Method(
        "VarAD (lightweight; constants of the paper unverified)",
        partial(fits.varad, sizes=SIZES),
        standardised=True,
        light=True,
        head_share=0.6,
    ),
    "varad-full": Method(
        "VarAD at full size (constants of the paper unverified)",
        partial(fits.varad, sizes=FULL_SIZES),
        STRIDES,
        standardised=True,
    ),
}

SCAN_METHODS: dict[str, Method] = {  # for sets of scans with pictures
    "btf": _patchcore("BTF: RGB features and FPFH in one bank", scans=("fpfh",)),
    "fpfh": _patchcore("FPFH alone, in a bank", levels=(), scans=("fpfh",), centre=PATCH_CENTRE),
    "mentor3ad": Method(
        "Mentor3AD-style: picture and surface tell each other, guided by what they share",
        fits.mentor,
        smoothing=BLUR_SIGMA,
        centre=PATCH_CENTRE,
        scans=("geometry",),
    ),
    "glfm": Method(
        "GLFM, light: a bank for each kind of object, on groups of the surface",
        fits.glfm,
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
        fits.cfm,
        smoothing=CFM_SMOOTHING,
        image_score="largest value over the root of the mean of those above 0, as CFM's",
        centre=PATCH_CENTRE,
        scans=("geometry",),
    ),
    "m3dm": Method(
        "M3DM: banks of picture, surface and fused feature",
        fits.m3dm,
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
        fits.inp_former_on_patches,
        published_map=True,
        several=True,
        shots=Shots(fits.inp_former_on_patches, variants=True, transfer=zero_shot),
    ),
    "inp-former-pp": Method(
        "INP-Former++ on patches, error times head",
        partial(fits.inp_former_pp_on_patches, fuse=fuse_by_product),
        top=0.0,
        smoothing=1.5,
        painted=True,
        several=True,
    ),
    "inp-former-pp-sum": Method(
        "INP-Former++ on patches, mean of error and head as described (unverified)",
        partial(fits.inp_former_pp_on_patches, fuse=fuse_by_sum),
        painted=True,
        several=True,
    ),
    "varad": Method(
        "VarAD (lightweight; constants of the paper unverified)",
        partial(fits.varad, sizes=(LIGHT, LIGHT)),
        standardised=True,
    ),
    "varad-full": Method(
        "VarAD at full size (constants of the paper unverified)",
        partial(fits.varad, sizes=(FULL,) * 4),
        standardised=True,
        groups=4,
    ),
    "grnr": _grnr,
    "grnr-published": _grnr_published,
    "pnpt": Method("PNPT-style", fits.pnpt, several=True),
}
ADAPTED: dict[AdaptMethod, Callable[..., Method]] = {  # all but their fits
    "adaclip": partial(
        Method,
        "AdaCLIP with a constant text",
        smoothing=SIGMA * MAP_LIMIT,
        centre=PATCH_CENTRE,
        image_score="margin of the picture's embedding, fused with its oddest patches, between the texts",
        several=True,
    ),
    "mvp-pclip": partial(
        Method,
        "MVP-PCLIP with a constant text",
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
