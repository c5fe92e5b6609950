"""The page of maps: a row per chosen test picture, a column per method, everything inside one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from compile.bench.data import Labelled
from compile.parity import Scored

TEMPLATE = "maps.html"
DEFECTIVE_SHOWN, GOOD_SHOWN = 16, 4
SIDE = 192  # pixels of a cell
GREEN = (40, 255, 40)


@dataclass(frozen=True, slots=True)
class Cell:
    score: float
    above: float  # share of the good test pictures that score lower
    image: str  # JPEG, base64


@dataclass(frozen=True, slots=True)
class Shown:
    """The chosen pictures of one data set."""

    data: str
    methods: list[str]
    rows: list[tuple[str, str, list[Cell]]]  # name, picture with its mask's outline, one cell per method


def choose_pictures(data: Labelled) -> list[int]:
    """Choose evenly: the defective ones stand in the order of their kinds."""
    chosen = []
    for kind, most in ((True, DEFECTIVE_SHOWN), (False, GOOD_SHOWN)):
        places = np.flatnonzero(data.defective == kind)
        chosen += places[np.linspace(0, len(places) - 1, min(most, len(places))).astype(int)].tolist()
    return chosen


def show(data: Labelled, scored: dict[str, Scored], chosen: Sequence[int]) -> Shown:
    """Draw the chosen pictures; a method has one scale, from the median of good pictures to the top of the chosen."""
    scales = {}
    for name, each in scored.items():
        good = each.maps[np.flatnonzero(~data.defective)[:64]]
        low, high = float(np.median(good)), float(np.quantile(each.maps[list(chosen)], 0.995))
        scales[name] = (low, max(high - low, 1e-9))
    rows = []
    for i in chosen:
        image, cells = data.images[i], []
        for name, each in scored.items():
            low, span = scales[name]
            above = float(np.mean(each.scores[~data.defective] < each.scores[i]))
            heat = _overlay(data.pictures[i], (each.maps[i] - low) / span)
            cells.append(Cell(float(each.scores[i]), above, _jpeg(heat)))
        rows.append((f"{image.kind}/{image.path.name}", _jpeg(_outlined(data, i)), cells))
    return Shown(data.name, list(scored), rows)


def render_page(shown: Sequence[Shown], size: int) -> str:
    """Render HTML with every picture inlined, no script, nothing fetched."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("compile.bench").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(shown=shown, size=size)


def _outlined(data: Labelled, i: int) -> NDArray[np.uint8]:
    picture, mask = _small(data.pictures[i]), data.masks["paper_nonzero"][i]
    if mask is not None and mask.any():
        raised = cv2.resize(mask.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(raised, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, GREEN, 1)
    return picture


def _overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    level = (np.clip(cv2.resize(heat, (SIDE, SIDE)), 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(_small(picture), 0.4, colours, 0.6, 0).astype(np.uint8)


def _small(picture: NDArray[Any]) -> NDArray[np.uint8]:
    return cv2.resize(np.ascontiguousarray(picture), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> str:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return base64.b64encode(data.tobytes()).decode()
