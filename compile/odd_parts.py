"""Held-out parts with one artificial defect each: in the picture, in the scan, or where there are both, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compile.parts import Parts, put_together
from compile.scan_defects import dent
from compile.synthesis import paint_many
from edge.bundle import Spec
from edge.front_end import FrameError
from edge.prepare import Ready, prepare
from edge.view import View, read_view, wanted


class OddParts(NamedTuple):
    """Parts with defects; `titles` say which, `sources` which good part each shows (its place)."""

    parts: Parts
    titles: list[str]
    sources: list[int]


def make_odd(good: Parts, views: Sequence[View], spec: Spec, count: int, seed: int) -> OddParts:
    """Put a defect on each good part in turn, and round again, until there are `count`.

    Args:
        good: at least one.
        views: their files.
        spec: what the graphs look at.
        count: of defects; fewer are made where a scan with a dent is none that the box would inspect.
        seed: draws them.

    """
    painted = paint_many(list(good.inputs["image"]), count, seed) if spec.image else []
    titles = [f"painted {defect.kind}, {defect.size_px} px" for defect in painted]
    sources = [i % len(good) for i in range(count)]
    if not spec.scan:
        masks = good.inputs["mask"][sources]
        return OddParts(
            Parts({"image": np.stack([defect.image for defect in painted]), "mask": masks}), titles, sources
        )
    made: list[Ready] = []
    words, places = [], []
    for i, source in enumerate(sources):
        image, scan = read_view(views[source], wanted(spec))
        assert scan is not None
        title = titles[i] if painted and i % 2 else ""
        if not title:
            scan, title = dent(scan, good.inputs["mask"][source], np.random.default_rng([seed, i]))
        try:
            ready = prepare(image, scan, spec)
        except FrameError:
            continue  # such as a part that falls in two: a FAULT, which nothing is to be measured on
        if painted and i % 2:
            ready.tensors["image"] = painted[i].image
        made.append(ready)
        words.append(title)
        places.append(source)
    return OddParts(put_together(made), words, places)
