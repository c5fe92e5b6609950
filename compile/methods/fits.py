"""Every method's fit in one form: samples, seed, steps at most and progress to a model in eval mode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from compile.backbones.adapted import Adapted
from compile.job import Progress
from compile.methods.adaclip_graph import read_head
from compile.methods.cfm import fit_cfm
from compile.methods.distil import fit_student
from compile.methods.glfm_fit import fit_glfm
from compile.methods.grnr import fit_grnr
from compile.methods.inp_former_fit import fit_inp_former
from compile.methods.inp_former_lite import fit_inp_former_lite
from compile.methods.inp_former_pp_fit import fit_inp_former_pp
from compile.methods.inp_former_pp_patches import Fusion
from compile.methods.inp_former_pp_patches_fit import fit_inp_former_pp_on_patches
from compile.methods.m3dm import fit_m3dm
from compile.methods.mentor_fit import fit_mentor
from compile.methods.method import Samples
from compile.methods.mvp_pclip import build_mvp_pclip
from compile.methods.patchcore import fit_patchcore
from compile.methods.pnpt import Select
from compile.methods.pnpt_fit import STEPS as PNPT_STEPS
from compile.methods.pnpt_fit import fit_pnpt
from compile.methods.varad import Size
from compile.methods.varad_fit import STEPS as VARAD_STEPS
from compile.methods.varad_fit import fit_varad


def patchcore(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps  # it takes none
    return fit_patchcore(samples.good, seed=seed, progress=progress).eval()


def varad(
    samples: Samples, seed: int, steps: int | None, progress: Progress | None, *, sizes: Sequence[Size]
) -> nn.Module:
    steps = VARAD_STEPS if steps is None else steps
    return fit_varad(samples.good, seed=seed, steps=steps, sizes=sizes, progress=progress)


def grnr(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit nothing: the paper's form, which looks at no good picture."""
    del steps
    return fit_grnr([each[:0] for each in samples.good], seed=seed, progress=progress).eval()


def grnr_as_published(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps
    nothing = [each[:0] for each in samples.good]
    return fit_grnr(nothing, seed=seed, progress=progress, self_filter="published", border="cut").eval()


def grnr_on_shots(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps
    return fit_grnr(samples.good, seed=seed, progress=progress).eval()


def pnpt(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit a template per class; where there is one the graph need not be told which."""
    select: Select = "given"
    classes = samples.classes
    if classes is None:
        classes, select = np.zeros(samples.good[0].shape[0], np.int64), "nearest"
    return fit_pnpt(samples.good, classes, seed=seed, select=select, progress=progress, steps=steps or PNPT_STEPS)


def inp_former(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_inp_former_lite(samples.good, seed=seed, steps=steps, progress=progress)


def inp_former_on_patches(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_inp_former(samples.good, seed=seed, steps=steps, progress=progress)


def inp_former_pp(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    assert samples.covered is not None
    return fit_inp_former_pp(samples.good, samples.painted, samples.covered, seed=seed, steps=steps, progress=progress)


def inp_former_pp_on_patches(
    samples: Samples, seed: int, steps: int | None, progress: Progress | None, *, fuse: Fusion
) -> nn.Module:
    assert samples.covered is not None
    return fit_inp_former_pp_on_patches(
        samples.good, samples.painted, samples.covered, seed=seed, steps=steps, fuse=fuse, progress=progress
    )


def adapted(samples: Samples, seed: int, steps: int | None, progress: Progress | None, *, source: Adapted) -> nn.Module:
    """Fit nothing: what was learned on other things is all there is."""
    del seed, steps, progress
    if source.record.method == "mvp-pclip":
        return build_mvp_pclip(source)
    return read_head(source, samples.good[1].shape[2])


def mentor(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_mentor(samples.good, seed=seed, steps=steps, progress=progress)


def glfm(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_glfm(samples.good, samples.classes, seed=seed, steps=steps, progress=progress)


def cfm(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_cfm(samples.good, seed=seed, steps=steps, progress=progress)


def m3dm(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    return fit_m3dm(samples.good, seed=seed, steps=steps, progress=progress)


def student(samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    assert samples.lessons is not None
    good, odd = samples.lessons
    return fit_student(samples.good, samples.painted, good, odd, seed=seed, steps=steps, progress=progress)
