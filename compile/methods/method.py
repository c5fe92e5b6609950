"""What a method is: how it is fitted on maps of the frozen trunk, and how its model becomes a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.split import kfold
from compile.anomaly_graph import AnomalyHead
from compile.backbones.choice import Level
from compile.features import Rows
from compile.job import Progress
from compile.methods.distil import Lesson
from compile.methods.inp_former_map import published_head
from compile.methods.mvp_pclip import ViewHead, ViewModel
from compile.scan_maps import VIEW_TENSORS, ScanMap
from compile.split_plan import FEW_PARTS
from compile.standardise import Standardised, measure_spread
from edge.bundle import ScanTensor

FOLDS = 5  # of VarAD's cross-fit
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


def fit_alone(method: Method, samples: Samples, seed: int, steps: int | None, progress: Progress | None) -> nn.Module:
    """Fit as `beltline compile` does, each picture a part: where they are few, folds measure the spread held out."""
    count = samples.good[0].shape[0]
    everything = np.arange(count)
    folds = kfold(everything, FOLDS, seed) if method.standardised and count < FEW_PARTS else []

    def fit(rows: NDArray[np.int64], turn: int) -> nn.Module:
        tell = None if progress is None else partial(_tell_turn, progress, turn=turn, turns=len(folds) + 1)
        return method.fit(replace(samples, good=rows_of(samples.good, rows)), seed, steps, tell)

    spreads = [measure_spread(fit(others, i), rows_of(samples.good, held)) for i, (others, held) in enumerate(folds)]
    model = fit(everything, len(folds))
    if not method.standardised:
        return model
    return Standardised(model, spreads or [measure_spread(model, samples.good)]).eval()


def _tell_turn(progress: Progress, what: str, done: int, of: int, *, turn: int, turns: int) -> None:
    progress(what, turn * of + done, turns * of)


def rows_of(maps: Maps, rows: NDArray[np.int64]) -> Maps:
    """Choose rows of maps, read when they are asked for."""
    return [cast("NDArray[Any]", Rows(each, rows)) for each in maps]
