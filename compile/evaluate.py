"""Figures of a graph on labelled test pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compile.data import LabelledImage, read_image
from compile.evidence import Interval, TestRow
from compile.metrics import MaskRule, MetricError, paired_pixel_difference, pixel_metrics, resize_mask
from compile.parity import Scored, image_auroc

PIXEL_RESAMPLES = 100


def load_masks(images: Sequence[LabelledImage], side: int, rule: MaskRule = "half") -> list[NDArray[np.bool_] | None]:
    """Bring ground truth to the map's size; None where it is not known."""
    return [_mask(image, side, rule) for image in images]


def _mask(image: LabelledImage, side: int, rule: MaskRule) -> NDArray[np.bool_] | None:
    if not image.defective:
        return np.zeros((side, side), bool)
    if image.mask is None:
        return None
    mask = read_image(image.mask)
    return resize_mask(mask if mask.ndim == 2 else mask.max(axis=2), side, side, rule)


def test_row(
    graph: str,
    found: Scored,
    images: Sequence[LabelledImage],
    masks: Sequence[NDArray[np.bool_] | None],
    threshold: float,
) -> TestRow:
    """Compute the figures of one graph."""
    defective = np.array([image.defective for image in images])
    rejected = found.scores > threshold
    both = defective.any() and not defective.all()
    pixel_auroc, aupro = _pixels(found, masks)
    return TestRow(
        graph,
        Interval(*image_auroc(found.scores, defective)) if both else None,
        pixel_auroc,
        aupro,
        int(np.sum(rejected & ~defective)),
        int(np.sum(~defective)),
        int(np.sum(~rejected & defective)),
        int(np.sum(defective)),
    )


def _pixels(found: Scored, masks: Sequence[NDArray[np.bool_] | None]) -> tuple[Interval | None, Interval | None]:
    """Intervals by the paired bootstrap against constant maps, whose figures are the same in every sample."""
    constant = np.zeros_like(found.maps)
    try:
        base = pixel_metrics(list(constant), list(masks))
        auroc, aupro = paired_pixel_difference(list(found.maps), list(constant), list(masks), resamples=PIXEL_RESAMPLES)
    except MetricError:
        return None, None
    return (
        Interval(*(value + base.auroc for value in (auroc.value, auroc.low, auroc.high))),
        Interval(*(value + base.aupro for value in (aupro.value, aupro.low, aupro.high))),
    )
