"""The methods by name: how each is fitted on maps of the frozen trunk and turned into a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compile.anomaly_graph import AnomalyHead
from compile.job import FIT_STEPS, Progress
from compile.methods.patchcore import BLUR_SIGMA, fit_patchcore
from compile.methods.varad_fit import fit_varad
from compile.standardise import Standardised, measure_spread
from edge.errors import BeltlineError

Maps = Sequence[NDArray[Any]]  # of good pictures: one [n, C, h, w] per stride of the method
Fit = Callable[[Maps, int, int | None, Progress | None], nn.Module]  # maps, seed, steps at most, progress


class UnknownMethodError(BeltlineError):
    """No method has this name. The message lists those that exist."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method and what its head needs besides the model.

    Args:
        title: for people.
        fit: good pictures' maps to the model, in eval mode.
        strides: of the trunk, whose maps it takes.
        top: share of the map's pixels whose mean is the score; not for a model with its own image score.
        smoothing: standard deviation of the Gaussian over the map, pixels of the map.

    """

    title: str
    fit: Fit
    strides: tuple[int, ...] = (8, 16)
    top: float = 0.01
    smoothing: float = 0.0

    @torch.no_grad()
    def head(self, model: nn.Module, maps: Maps, map_size: tuple[int, int]) -> AnomalyHead:
        """Make the head of a model that takes such maps."""
        one = [torch.from_numpy(np.asarray(each[:1], np.float32)) for each in maps]
        grids = [(found.shape[1], found.shape[2]) for found in model(one)]
        return AnomalyHead(model, grids, map_size, top=self.top, smoothing=self.smoothing).eval()


def find_method(name: str) -> Method:
    """Look a method up.

    Raises:
        UnknownMethodError: there is none of this name.

    """
    if name not in METHODS:
        raise UnknownMethodError(f"no method {name!r}. There are: {', '.join(METHODS)}.")
    return METHODS[name]


def _fit_patchcore(maps: Maps, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    del steps  # it takes none
    return fit_patchcore(maps, seed=seed, progress=progress).eval()


def _fit_varad(maps: Maps, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    model = fit_varad(maps, seed=seed, progress=progress, steps=FIT_STEPS if steps is None else steps)
    return Standardised(model, [measure_spread(model, maps)]).eval()


METHODS: dict[str, Method] = {
    "patchcore": Method("PatchCore: greedy memory bank, eq. 7", _fit_patchcore, smoothing=BLUR_SIGMA),
    "varad": Method("VarAD, lightweight, standardised", _fit_varad),
}
