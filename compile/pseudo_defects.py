"""Pictures of good parts with painted defects, for a head to learn from: many kinds, clear edges, all sizes.

Beside the kinds of `compile.synthesis` there are whole regions, up to a third of the picture, of fractal noise shape
(as Perlin's in DRAEM) filled with texture: procedural, or from good pictures. Every defect is plainly visible and ends
where its mask ends. Fainter ones, and shading without an edge, were tried and made a head worse than none: it then
finds the specks and shadows of good parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from compile.synthesis import KINDS, SMALLEST_CHANGE, SMALLEST_SIZE, fractal_noise, paint

REGIONS = 0.15  # share of the defects
ON_STRUCTURE = 0.5  # share of the others that lie where the picture has structure: a small part on a wide table is hit
SECOND = 1 / 3  # of the pictures have a second defect
SMALLEST, LARGEST = 1 / 40, 1 / 3  # diameter of a defect, of the picture's side
SMALLEST_AREA, LARGEST_AREA = 0.02, 0.35  # of a region, of the picture
STRIDE = 4  # pixels a side of a mask's cell
Image = NDArray[np.uint8]


def wanted(good: int) -> int:
    """How many pictures to paint for so many good ones."""
    return min(max(2 * good, 400), 1500)


def paint_pictures(
    good: Image, into: Image, seed: int, tick: Callable[[int, int], None] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Paint defects on good pictures in turn, or on evenly many of them where there are more than are wanted.

    Args:
        good: uint8 [n, S, S, 3] RGB.
        into: uint8 [m, S, S, 3], receives the painted pictures.
        seed: fixes all.
        tick: told what is done.

    Returns:
        float32 [m, S / 4, S / 4], rounded up: the share of each cell that is painted. The cells lie where the embedded
        trunk's maps have theirs, centred on the left and upper edge of their span. And int64 [m, 3]: the good pictures
        that each shows something of, the one that it is painted on first; -1 for none.

    """
    covered = []
    sources = np.full((len(into), 3), -1)
    for number in range(len(into)):
        own = number % len(good) if len(into) >= len(good) else number * len(good) // len(into)
        sources[number, 0] = own
        rng = np.random.default_rng([seed, number])
        image = np.array(good[own])
        mask = np.zeros(image.shape[:2], bool)
        for turn in range(1 + int(rng.random() < SECOND)):
            donor = int(rng.integers(len(good)))
            sources[number, 1 + turn] = donor
            image, region = _defect(image, np.array(good[donor]), rng)
            mask |= region
        into[number] = image
        covered.append(cells(mask))
        if tick:
            tick(number + 1, len(into))
    return np.stack(covered), sources


def _defect(image: Image, donor: Image, rng: np.random.Generator) -> tuple[Image, NDArray[np.bool_]]:
    if rng.random() < REGIONS:
        return _region(image, donor, rng)
    side = len(image)
    size = np.exp(rng.uniform(np.log(max(SMALLEST * side, SMALLEST_SIZE)), np.log(LARGEST * side)))
    kind = list(KINDS)[int(rng.integers(len(KINDS)))]
    diameter = round(float(size))
    centre = _on_structure(image, diameter, rng) if rng.random() < ON_STRUCTURE else None
    defect = paint(image, kind, diameter, rng, region=centre, donors=[donor])
    return defect.image, defect.mask


def _on_structure(image: Image, size: int, rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """One pixel, drawn by how much its surroundings' contrast exceeds the picture's median; None where none does."""
    grey = image.mean(2, dtype=np.float32)
    around = (max(len(image) // 40, 3),) * 2
    contrast = np.sqrt(np.clip(cv2.blur(grey**2, around) - cv2.blur(grey, around) ** 2, 0, None))
    weight = np.zeros_like(contrast, np.float64)
    inner = slice(size // 2 + 1, len(image) - size // 2 - 1)
    weight[inner, inner] = np.clip(contrast - np.median(contrast), 0, None)[inner, inner]
    if (total := weight.sum()) == 0:
        return None
    centre = np.zeros(weight.size, bool)
    centre[rng.choice(weight.size, p=weight.ravel() / total)] = True
    return centre.reshape(weight.shape)


def _region(image: Image, donor: Image, rng: np.random.Generator) -> tuple[Image, NDArray[np.bool_]]:
    side = len(image)
    before = image.astype(np.float32)
    y, x = np.mgrid[:side, :side] / side
    shape = fractal_noise(side, int(rng.choice((2, 3, 4, 6))), rng)
    centre, reach = rng.uniform(0.05, 0.95, 2), rng.uniform(0.15, 0.7)
    shape = shape - 2 * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / reach**2
    area = np.exp(rng.uniform(np.log(SMALLEST_AREA), np.log(LARGEST_AREA)))
    mask = shape > np.quantile(shape, 1 - area)
    edge = float(rng.choice((0.0, 1.0, 2.5))) * side / 320
    cover = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), edge) if edge else mask.astype(np.float32)
    filling = _texture(side, rng) if rng.random() < 0.5 else _elsewhere(donor, rng)
    change = np.clip(before + rng.uniform(0.4, 1) * cover[..., None] * (filling - before), 0, 255) - before
    if np.abs(change[mask]).mean() < SMALLEST_CHANGE:
        away = 1.0 if before[mask].mean() < 128 else -1.0
        change = np.clip(before + change + 2 * SMALLEST_CHANGE * away * cover[..., None], 0, 255) - before
    return np.rint(before + change).astype(np.uint8), mask


def _texture(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Clouds, warped stripes or veins of any tone: [side, side, 3]."""
    noise: NDArray[Any] = fractal_noise(side, int(rng.choice((2, 4, 8, 16, 32, 64))), rng)
    turn = int(rng.integers(3))
    if turn == 1:
        y, x = np.mgrid[:side, :side] / side
        angle, waves = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(4), np.log(60)))
        noise = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2) * noise)
    elif turn == 2:
        noise = np.abs(noise) - 0.8
    tint = 1 + rng.uniform(-0.4, 0.4, 3) * (rng.random() < 0.5)
    return np.asarray(rng.uniform(0, 255) + rng.uniform(10, 90) * noise[..., None] * tint, np.float32)


def _elsewhere(donor: Image, rng: np.random.Generator) -> NDArray[np.float32]:
    """A piece of a good picture: turned, mirrored, enlarged, now and then inverted."""
    side = len(donor)
    turned = np.rot90(donor, int(rng.integers(4)))[:, :: int(rng.choice((1, -1)))]
    piece = int(side * np.exp(rng.uniform(np.log(0.4), 0)))
    top, left = rng.integers(0, side - piece + 1, 2)
    cut = np.ascontiguousarray(turned[top : top + piece, left : left + piece])
    enlarged = cv2.resize(cut, (side, side)).astype(np.float32)
    return 255 - enlarged if rng.random() < 0.3 else enlarged


def cells(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bring a mask [S, S] to the share of each cell [S / 4, S / 4] that it covers; they lie as in `paint_pictures`."""
    half = STRIDE // 2
    height, width = (-(-side // STRIDE) for side in mask.shape)
    moved = np.zeros((STRIDE * height, STRIDE * width), np.float32)
    moved[half : half + mask.shape[0], half : half + mask.shape[1]] = mask[: len(moved) - half, : moved.shape[1] - half]
    covered: NDArray[np.float32] = moved.reshape(height, STRIDE, width, STRIDE).mean((1, 3))
    return covered
