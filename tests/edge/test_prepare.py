"""One function makes the graphs' inputs of a part, in the workshop and on the box."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edge.bundle import ScanInput, ScanTensor, Spec, Tensor
from edge.front_end import FrameError
from edge.organised_scan.draw import draw_height
from edge.organised_scan.example import example_scan
from edge.prepare import digest, prepare, tensor_shape

NAMES: tuple[ScanTensor, ...] = ("scan", "geometry", "fpfh")


def whole(scan: ScanInput, side: int) -> Spec:
    """All tensors there are."""
    scan = scan.model_copy(update={"fpfh_cells": 8, "fpfh_neighbours": 8})
    tensors = tuple(Tensor(name=name, shape=list(tensor_shape(name, scan))) for name in NAMES)
    return Spec(None, scan, tensors, (side, side))


@pytest.mark.parametrize("background", ["belt", "none"])
@pytest.mark.parametrize("side", [16, 64, 128])  # of a map coarser, as fine, and finer than the graph's grid
def test_every_tensor_is_as_declared_and_finite(blocks: SimpleNamespace, background: str, side: int) -> None:
    scan = blocks.spec().scan.model_copy(update={"background": background})
    spec = whole(scan, side)
    for points in (blocks.scan(10, missing=0.2) * 1000, example_scan(scan)):
        ready = prepare(None, points, spec)
        assert ready.tensors["mask"].shape == (side, side)
        assert set(np.unique(ready.tensors["mask"])) <= {0, 1}
        for tensor in spec.tensors:
            values = ready.tensors[tensor.name]
            assert (list(values.shape), values.dtype) == (tensor.shape, np.float32)
            assert np.isfinite(values).all()
        assert ready.scan is not None
        assert draw_height(ready.scan).shape == (64, 64, 3)


def test_the_mask_leaves_out_belt_and_holes(blocks: SimpleNamespace) -> None:
    points = blocks.scan(10, missing=0) * 1000
    points[40:56, 50:70] = np.nan
    mask = prepare(None, points, blocks.spec()).tensors["mask"]
    assert mask[8, 6] == mask[7, 7] == 0, "the hole"
    assert mask[:2].max() == mask[:, :2].max() == 0, "the belt"
    assert mask[4, 7] == 1, "the part"
    spec = blocks.spec()
    surface = spec._replace(scan=spec.scan.model_copy(update={"background": "none"}))
    assert prepare(None, points, surface).tensors["mask"].mean() > 0.9, "nothing was taken away but the hole"


def test_what_is_missing_is_said(blocks: SimpleNamespace) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (96, 128)).astype(np.uint8)
    with pytest.raises(FrameError, match="a picture without a scan, and the bundle looks at scans"):
        prepare(picture, None, blocks.spec())
    with pytest.raises(FrameError, match="a scan without its picture"):
        prepare(None, blocks.scan(10) * 1000, blocks.spec(image=True))


def test_the_digest_is_of_picture_and_scan(blocks: SimpleNamespace) -> None:
    spec = blocks.spec(image=True)
    pictures = np.random.default_rng(0).integers(0, 255, (2, 96, 128)).astype(np.uint8)
    scans = [blocks.scan(10, seed=seed) * 1000 for seed in range(2)]
    found = {digest(prepare(picture, scan, spec).tensors, spec) for picture in pictures for scan in scans}
    assert len(found) == 4
    again = prepare(pictures[0], scans[0].copy(), spec).tensors
    assert digest(again, spec) in found
