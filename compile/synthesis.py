"""Defects painted on pictures of good parts, with their masks: what a check can use where nobody has real defects.

Each kind has a stated size: `size_px` is the diameter of the circle that holds the mask. Everything is drawn from the
generator that is passed in, so a seed gives the same defects. They stand in for real ones in two places only: to
compare a reduced graph with its float original, and to show the line at work. They say nothing about how well real
defects are found.

    scratch   a thin curved line, near white or near black
    stain     a smooth-edged irregular spot that darkens or brightens
    chip      a sharp-edged piece gone: flat, dark or bright, with a lit rim
    dent      the surface pushed in: drawn together and shaded from one side
    smear     fine structure wiped away
    swap      a region of fractal noise shape filled with texture from elsewhere, turned and inverted
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import BeltlineError

SMALLEST_SIZE = 6  # pixels
SMALLEST_CHANGE = 16.0  # mean absolute change inside the mask, of 255: fainter is no defect that anyone could ask for
Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class SynthesisError(BeltlineError):
    """The defect cannot be painted. The message says what was asked and what is possible."""


@dataclass(frozen=True, slots=True)
class Defect:
    """A good picture with one painted defect."""

    image: Image  # [H, W, 3] RGB
    mask: Mask  # [H, W]
    kind: str
    size_px: int


def paint(
    image: Image,
    kind: str,
    size_px: int,
    rng: np.random.Generator,
    *,
    region: Mask | None = None,
    donors: Sequence[Image] = (),
) -> Defect:
    """Paint one defect on a copy of a good picture.

    Args:
        image: uint8 [H, W, 3] RGB.
        kind: one of `KINDS`.
        size_px: diameter of the circle that holds the defect, at least 6 and at most half the shorter side.
        rng: where every choice comes from.
        region: bool [H, W], where the centre may lie; by default anywhere that keeps the whole defect in the picture.
        donors: other good pictures that `swap` takes texture from; by default the picture itself.

    """
    height, width = image.shape[:2]
    largest = min(height, width) // 2
    if kind not in KINDS:
        raise SynthesisError(f"no defect of kind {kind!r}; there are {', '.join(KINDS)}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise SynthesisError(f"picture {image.shape} of {image.dtype}: expected uint8 HxWx3")
    if not SMALLEST_SIZE <= size_px <= largest:
        raise SynthesisError(
            f"size {size_px} px on a picture of {width}x{height}: possible are {SMALLEST_SIZE}..{largest}"
        )
    top, left = _corner(height, width, size_px, rng, region)
    window = (slice(top, top + size_px), slice(left, left + size_px))
    before = image[window].astype(np.float32)
    donor = donors[int(rng.integers(len(donors)))] if donors else image
    after, cover = KINDS[kind](before, rng, donor)
    cover = cover * _disc(size_px)
    inside = cover > 0.5
    after = _visible(before, after, inside, rng)
    result, mask = image.copy(), np.zeros((height, width), dtype=bool)
    blended = before + cover[..., None] * (after - before)
    result[window] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
    mask[window] = inside
    return Defect(result, mask, kind, size_px)


def paint_many(
    images: Sequence[Image], count: int, seed: int, smallest_px: int = 0, largest_px: int = 0
) -> list[Defect]:
    """Paint `count` defects, all kinds in turn, on good pictures in turn.

    Sizes are drawn evenly in their logarithm between `smallest_px` and `largest_px`, by default 1/16 and 1/5 of the
    shorter side.
    """
    if not images:
        raise SynthesisError("no good pictures to paint on")
    rng = np.random.default_rng(seed)
    kinds = list(KINDS)
    defects = []
    for number in range(count):
        image = images[number % len(images)]
        side = min(image.shape[:2])
        low = max(smallest_px or side // 16, SMALLEST_SIZE)
        high = min(max(largest_px or side // 5, low), side // 2)
        size = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        donors = [images[int(rng.integers(len(images)))]]
        defects.append(paint(image, kinds[number % len(kinds)], size, rng, donors=donors))
    return defects


def fractal_noise(side: int, cells: int, rng: np.random.Generator) -> Floats:
    """Give smooth noise [side, side] of mean 0 and deviation 1: octaves of random grids from `cells` cells upwards."""
    total: NDArray[Any] = np.zeros((side, side), dtype=np.float32)
    weight = 1.0
    while cells < side:
        grid = rng.normal(size=(cells + 1, cells + 1)).astype(np.float32)
        total += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        cells, weight = 2 * cells, weight / 2
    noise: Floats = (total - total.mean()) / max(float(total.std()), 1e-6)
    return noise


def _scratch(before: Floats, rng: np.random.Generator, donor: Image) -> tuple[Floats, Floats]:
    del donor
    side = len(before)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.linspace(-0.48, 0.48, 24)
    bend = rng.uniform(-0.15, 0.15) * (1 - (along / 0.48) ** 2)
    x = side * (0.5 + along * np.cos(angle) - bend * np.sin(angle))
    y = side * (0.5 + along * np.sin(angle) + bend * np.cos(angle))
    points = np.stack([x, y], axis=1)
    cover = np.zeros((side, side), dtype=np.uint8)
    width = max(2, round(side / 16))
    cv2.polylines(cover, [np.rint(points * 16).astype(np.int32)], False, 255, width, cv2.LINE_AA, 4)
    tone = 240.0 if _away(before, rng) > 0 else 12.0
    return np.full_like(before, tone), (cover / 255).astype(np.float32)


def _stain(before: Floats, rng: np.random.Generator, donor: Image) -> tuple[Floats, Floats]:
    del donor
    cover = cv2.GaussianBlur(_blob(len(before), rng), (0, 0), max(1.0, len(before) / 16))
    tint = rng.uniform(0.7, 1.3, size=3).astype(np.float32)
    return before + _away(before, rng) * rng.uniform(55, 85) * tint, cover.astype(np.float32)


def _chip(before: Floats, rng: np.random.Generator, donor: Image) -> tuple[Floats, Floats]:
    del donor
    side = len(before)
    count = int(rng.integers(5, 9))
    corners = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.35, 0.5, count) * side
    points = np.stack([side / 2 + radius * np.cos(corners), side / 2 + radius * np.sin(corners)], axis=1)
    cover = np.zeros((side, side), dtype=np.uint8)
    cv2.fillConvexPoly(cover, cv2.convexHull(np.rint(points).astype(np.int32)), 1)
    tone = before.mean(axis=(0, 1)) + _away(before, rng) * 80
    inside = np.tile(tone, (side, side, 1)).astype(np.float32) + rng.normal(0, 4, (side, side, 1)).astype(np.float32)
    rim = cover - cv2.erode(cover, np.ones((3, 3), dtype=np.uint8))
    inside[rim > 0] += 60 * np.sign(before.mean() - tone.mean())
    return inside, cover.astype(np.float32)


def _dent(before: Floats, rng: np.random.Generator, donor: Image) -> tuple[Floats, Floats]:
    del donor
    side = len(before)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    depth = np.maximum(1 - x * x - y * y, 0)
    squeeze = 1 + 0.8 * depth
    source_x, source_y = (x * squeeze + 1) * side / 2 - 0.5, (y * squeeze + 1) * side / 2 - 0.5
    warped = cv2.remap(before, source_x, source_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    light = rng.uniform(0, 2 * np.pi)
    shade = (x * np.cos(light) + y * np.sin(light)) * np.sqrt(depth)
    return warped + 150 * shade[..., None], (depth > 0.1).astype(np.float32)


def _smear(before: Floats, rng: np.random.Generator, donor: Image) -> tuple[Floats, Floats]:
    del donor
    cover = cv2.GaussianBlur(_blob(len(before), rng), (0, 0), max(1.0, len(before) / 24))
    wiped = cv2.GaussianBlur(before, (0, 0), len(before) / 6, borderType=cv2.BORDER_REFLECT)
    return wiped + 12 * rng.choice((-1, 1)), cover.astype(np.float32)


def _swap(before: Floats, rng: np.random.Generator, donor: Image) -> tuple[Floats, Floats]:
    side = len(before)
    top, left = (int(rng.integers(0, max(1, limit - side))) for limit in donor.shape[:2])
    patch = np.rot90(donor[top : top + side, left : left + side], int(rng.integers(1, 4)))
    patch = cv2.resize(np.ascontiguousarray(patch), (side, side)).astype(np.float32)
    shape = fractal_noise(side, 2, rng) + 2.0 * _disc(side) - 0.8
    return 2 * before.mean(axis=(0, 1)) - patch, _largest_piece(shape > 0.3)


Painter = Callable[[Floats, np.random.Generator, Image], tuple[Floats, Floats]]
KINDS: dict[str, Painter] = {
    "scratch": _scratch,
    "stain": _stain,
    "chip": _chip,
    "dent": _dent,
    "smear": _smear,
    "swap": _swap,
}


def _corner(height: int, width: int, size: int, rng: np.random.Generator, region: Mask | None) -> tuple[int, int]:
    if region is None:
        return int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    half = size // 2
    allowed = np.zeros_like(region)
    inner = (slice(half, height - (size - half) + 1), slice(half, width - (size - half) + 1))
    allowed[inner] = region[inner]
    places = np.flatnonzero(allowed)
    if places.size == 0:
        raise SynthesisError(f"no place for a defect of {size} px: the region leaves none inside {width}x{height}")
    y, x = divmod(int(rng.choice(places)), width)
    return y - half, x - half


def _visible(before: Floats, after: Floats, inside: Mask, rng: np.random.Generator) -> Floats:
    """Shift the tone of a change that nobody would see, such as a smear on a surface without structure."""
    change = np.clip(after, 0, 255) - before
    if float(np.abs(change[inside]).mean()) >= SMALLEST_CHANGE:
        return after
    return after + 2 * SMALLEST_CHANGE * _away(before, rng)


def _away(before: Floats, rng: np.random.Generator) -> float:
    """Give the direction, dark or bright, that has room."""
    mean = float(before.mean())
    if mean < 90:
        return 1.0
    return -1.0 if mean > 165 else float(rng.choice((-1.0, 1.0)))


def _blob(side: int, rng: np.random.Generator) -> Floats:
    """Give an irregular round region [side, side], 0 or 1, that fills its circle to a good part."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    angle = np.arctan2(y, x)
    edge = np.full_like(angle, 0.78)
    for wave in range(2, 6):
        edge += rng.uniform(-0.25, 0.25) / wave * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return np.asarray(np.hypot(x, y) < edge, dtype=np.float32)


def _disc(side: int) -> Floats:
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    return np.asarray(np.hypot(x, y) <= 1, dtype=np.float32)


def _largest_piece(shape: Mask) -> Floats:
    count, labels = cv2.connectedComponents(shape.astype(np.uint8), connectivity=8)
    if count < 2:
        return _disc(len(shape))
    sizes = np.bincount(labels.ravel())
    return np.asarray(labels == 1 + int(np.argmax(sizes[1:])), dtype=np.float32)
