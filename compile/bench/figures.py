"""The figures that papers print, over seeds, and the differences between methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compile.metrics import (
    Difference,
    Masks,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    paired_difference,
    paired_pixel_differences,
    pixel_metrics,
)
from compile.parity import Scored

IMAGE = {"I-AUROC": auroc, "I-AP": average_precision, "I-F1max": f1_max}
PIXEL = ("P-AUROC", "P-AP", "P-F1max", "AUPRO")
FIGURES = (*IMAGE, *PIXEL)
IMAGE_RESAMPLES, PIXEL_RESAMPLES = 1000, 300


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over the seeds, and their standard deviation where there are several."""

    mean: float
    spread: float | None


def estimate(runs: Sequence[Scored], defective: NDArray[np.bool_], masks: Masks) -> dict[str, Estimate]:
    """Compute every figure that exists: pixel figures need a mask."""
    values: list[dict[str, float]] = []
    for run in runs:
        image = image_metrics(run.scores, defective)
        found = dict(zip(IMAGE, (image.auroc, image.ap, image.f1_max), strict=True))
        if _has_pixels(masks):
            pixel = pixel_metrics(list(run.maps), masks)
            found |= zip(PIXEL, (pixel.auroc, pixel.ap, pixel.f1_max, pixel.aupro), strict=True)
        values.append(found)
    return {
        name: Estimate(
            float(np.mean([v[name] for v in values])),
            float(np.std([v[name] for v in values], ddof=1)) if len(values) > 1 else None,
        )
        for name in values[0]
    }


def compare_images(a: Sequence[Scored], b: Sequence[Scored], defective: NDArray[np.bool_]) -> dict[str, Difference]:
    """Compare the image figures of two methods, means over their seeds, a minus b, over the same test pictures."""
    first, second = (np.stack([run.scores for run in runs]) for runs in (a, b))
    return {
        name: paired_difference(first, second, defective, metric, resamples=IMAGE_RESAMPLES)
        for name, metric in IMAGE.items()
    }


def compare_pixels(a: Sequence[Scored], b: Sequence[Scored], masks: Masks) -> dict[str, Difference]:
    """Compare the pixel figures likewise; empty where no mask marks a defect."""
    if not _has_pixels(masks):
        return {}
    first, second = ([list(run.maps) for run in runs] for runs in (a, b))
    found = paired_pixel_differences(first, second, masks, resamples=PIXEL_RESAMPLES)
    return dict(zip(PIXEL, found, strict=True))


def _has_pixels(masks: Masks) -> bool:
    """Whether some mask marks a defect; the rest of what can be wrong is for the metrics to say."""
    return any(mask is not None and mask.any() for mask in masks)
