"""Activation ranges for INT8, from what a tensor held on calibration pictures.

A tensor is seen batch by batch; each batch becomes a `Histogram` and two histograms merge into one. Bin widths are
powers of two and bin edges their multiples, so merging adds neighbouring bins and is exact: the order of the batches
does not matter, and nothing is seen twice. From the histogram a method gives a range (low, high), always with
low <= 0 <= high, so that zero is represented exactly (padding and ReLU stay exact).

The arithmetic of the two renderings stands here, once:

    asymmetric uint8   real = scale * (q - zero_point),  q in 0..255      (ONNX Runtime on a CPU)
    symmetric int8     real = scale * q,                 q in -127..127   (TensorRT; weights everywhere)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.threshold import CalibrationError

BINS = 8192
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
SMALLEST_EXPONENT = -126  # a bin is never narrower than the smallest normal float32
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a tensor's values fell into bins of width 2**exponent, the first of them at `first` widths."""

    exponent: int
    first: int
    counts: NDArray[np.int64]
    low: float  # smallest and largest value seen
    high: float

    @property
    def centres(self) -> NDArray[np.float64]:
        return np.asarray((np.arange(len(self.counts)) + self.first + 0.5) * 2.0**self.exponent, dtype=np.float64)

    @property
    def values(self) -> int:
        return int(self.counts.sum())


def histogram(tensor: ArrayLike) -> Histogram:
    """Count the values of one batch of a tensor, any shape.

    Raises:
        CalibrationError: the tensor is empty or holds NaN or infinity.

    """
    flat = np.asarray(tensor, dtype=np.float64).ravel()
    if flat.size == 0:
        raise CalibrationError("an empty tensor has no range")
    low, high = float(flat.min()), float(flat.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CalibrationError(
            f"{int(np.sum(~np.isfinite(flat)))} of {flat.size} values are not finite: the graph or its input is broken"
        )
    exponent = _exponent(low, high)
    first = math.floor(low / 2.0**exponent)
    counts = np.bincount(np.floor(flat / 2.0**exponent).astype(np.int64) - first)
    return Histogram(exponent, first, counts.astype(np.int64), low, high)


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Add two histograms of one tensor. Associative and commutative, exactly."""
    low, high = min(a.low, b.low), max(a.high, b.high)
    exponent = _exponent(low, high)
    first, last = math.floor(low / 2.0**exponent), math.floor(high / 2.0**exponent)
    counts = np.zeros(last - first + 1, dtype=np.int64)
    for part in (a, b):
        bins = (np.arange(len(part.counts)) + part.first) >> (exponent - part.exponent)
        np.add.at(counts, bins - first, part.counts)
    return Histogram(exponent, first, counts, low, high)


def minmax(seen: Histogram, *, symmetric: bool = False) -> Range:
    """Everything that was seen."""
    return _ends(min(seen.low, 0.0), max(seen.high, 0.0), symmetric=symmetric)


def percentile(seen: Histogram, share: float = 0.9999, *, symmetric: bool = False) -> Range:
    """Clip the share (1 - `share`) of all values, half of it on each side that has values beyond zero."""
    if not 0.5 < share <= 1:
        raise CalibrationError(f"share {share}: between 0.5 and 1, for example 0.9999")
    cumulated = np.cumsum(seen.counts) / seen.values
    clipped = (1 - share) / 2
    width = 2.0**seen.exponent
    low = (seen.first + int(np.searchsorted(cumulated, clipped, side="right"))) * width
    high = (seen.first + int(np.searchsorted(cumulated, 1 - clipped, side="left")) + 1) * width
    return _ends(min(max(low, seen.low), 0.0), max(min(high, seen.high), 0.0), symmetric=symmetric)


def mse(seen: Histogram, *, symmetric: bool = False, steps: int = 64) -> Range:
    """Give the range whose quantisation loses least in mean square, by descent over both ends in turn."""
    low, high = minmax(seen, symmetric=symmetric)
    filled = np.flatnonzero(seen.counts)
    centres, counts = seen.centres[filled], seen.counts[filled]
    if symmetric:
        bounds = (high * k / steps for k in range(steps, 0, -1))
        best = min(bounds, key=lambda bound: _loss(centres, counts, -bound, bound, symmetric=True))
        return -best, best
    shrinks = np.arange(steps, 0, -1) / steps
    ends = [1.0, 1.0]
    for _ in range(3):
        for side in (0, 1):
            if (low, high)[side] == 0:
                continue
            losses = []
            for shrink in shrinks:
                trial = list(ends)
                trial[side] = float(shrink)
                losses.append(_loss(centres, counts, low * trial[0], high * trial[1], symmetric=False))
            ends[side] = float(shrinks[int(np.argmin(losses))])
    return low * ends[0], high * ends[1]


def entropy(seen: Histogram, *, symmetric: bool = False, steps: int = 64) -> Range:
    """Give the range whose rounded distribution tells least apart from what was seen (Kullback-Leibler).

    After S. Migacz, "8-bit inference with TensorRT" (GTC 2017): values beyond a range count at its ends in the
    reference and are missing from the rounded distribution; a step's count is spread evenly over its non-empty bins.
    There the range is of a magnitude; that both ends shrink by the same share, and that zeros do not count, is ours.
    """
    low, high = minmax(seen, symmetric=symmetric)
    shrinks = np.arange(steps, 0, -1) / steps
    best = float(shrinks[int(np.argmin([_divergence(seen, low * share, high * share) for share in shrinks]))])
    return low * best, high * best


METHODS: dict[str, Callable[..., Range]] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}
"""Each takes a histogram, and `symmetric` for a range that is to be around zero."""


def asymmetric(low: float, high: float) -> tuple[float, int]:
    """Give (scale, zero point) of uint8 for a range; a constant zero gives the smallest scale."""
    low, high = _with_zero(low, high)
    scale = max((high - low) / 255, SMALLEST_SCALE)
    return scale, int(np.clip(round(-low / scale), 0, 255))


def symmetric_scale(low: float, high: float, largest: int = 127) -> float:
    """Give the scale of a signed integer in -largest..largest; 127 is int8, 63 seven bits."""
    low, high = _with_zero(low, high)
    return max(-low, high, SMALLEST_SCALE * largest) / largest


def fake_quantise(values: NDArray[np.float64], low: float, high: float, *, symmetric: bool) -> NDArray[np.float64]:
    """Round values as the INT8 graph will."""
    if symmetric:
        scale = symmetric_scale(low, high)
        return np.asarray(np.clip(np.rint(values / scale), -127, 127) * scale)
    scale, zero = asymmetric(low, high)
    return np.asarray((np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale)


def _loss(
    centres: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float, *, symmetric: bool
) -> float:
    error = fake_quantise(centres, low, high, symmetric=symmetric) - centres
    return float(counts @ (error * error))


def _divergence(seen: Histogram, low: float, high: float) -> float:
    """Kullback-Leibler divergence of what was seen, clipped, from what 256 steps between low and high keep of it."""
    filled = np.flatnonzero(seen.counts)
    filled = filled[filled + seen.first != 0]  # zero is exact: what a ReLU cut off must not rule
    centres, counts = seen.centres[filled], seen.counts[filled].astype(np.float64)
    inside = (centres >= low) & (centres <= high)
    if not inside.any():
        return math.inf
    kept = counts[inside]
    step = np.floor((centres[inside] - low) / max(high - low, SMALLEST_SCALE) * 256).clip(0, 255).astype(np.int64)
    spread = (np.bincount(step, kept) / np.maximum(np.bincount(step), 1))[step]
    clipped = kept.copy()
    clipped[0] += counts[centres < low].sum()
    clipped[-1] += counts[centres > high].sum()
    p, q = clipped / clipped.sum(), spread / spread.sum()
    return float(p @ np.log(p / q))


def _ends(low: float, high: float, *, symmetric: bool) -> Range:
    bound = max(-low, high)
    return (-bound, bound) if symmetric else (low, high)


def _with_zero(low: float, high: float) -> Range:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise CalibrationError(f"range {low} .. {high}: both ends must be finite and in order")
    return min(low, 0.0), max(high, 0.0)


def _exponent(low: float, high: float) -> int:
    """Give the smallest bin width that holds the span in BINS bins and indexes every value below 2**52."""
    exponent = max(
        SMALLEST_EXPONENT,
        math.frexp((high - low) / BINS)[1] - 1 if high > low else SMALLEST_EXPONENT,
        math.frexp(max(-low, high))[1] - 40,
    )
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent
