"""A rendered set of screws, 1024 px: small, rotated, metallic, where reconstruction from weak features fails first.

Each picture is one screw at any angle and roll on a bright table: a body of revolution with a helical thread, lit by
two lamps that stay where they are while the screw turns, with a brushed surface, displacement, gain, blur and sensor
noise. Five kinds of defects, 16 to 70 px of 1024, each with its mask. Layout as MVTec AD; a seed fixes the pictures.
Nothing is tuned on it: it is there to be watched.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 1024
HALF = 96  # pixels: half the height of the strip that a screw is drawn on
LENGTH = 620
TIP, THREAD_END, NECK_END, HEAD_END = 40, 370, 470, 540  # pixels along the axis, from the left
THREAD, NECK, HEAD = 34.0, 27.0, 72.0  # radii
DEPTH, PITCH = 9.0, 33.0
TRAIN, GOOD, DEFECTIVE = 240, 60, 100
Floats = NDArray[np.float64]
Image = NDArray[np.uint8]
U, V = np.meshgrid(np.arange(LENGTH) - 40.0, np.arange(2 * HALF) - HALF + 0.5)  # along and across the axis


def make_screws(
    folder: Path, *, train: int = TRAIN, good: int = GOOD, defective: int = DEFECTIVE, seed: int = 0
) -> None:
    """Write train/good, test/KIND and ground_truth/KIND as PNG files."""
    kinds = list(DEFECTS)
    jobs = [("train/good", "", i) for i in range(train)] + [("test/good", "", i) for i in range(good)]
    jobs += [(f"test/{kinds[i % len(kinds)]}", kinds[i % len(kinds)], i // len(kinds)) for i in range(defective)]
    for place, kind, number in jobs:
        code = 0 if place == "train/good" else 1 + (kinds.index(kind) + 1 if kind else 0)
        image, mask = photograph(kind, np.random.default_rng([seed, code, number]))
        _write(folder / place / f"{number:03d}.png", image)
        if kind:
            _write(folder / "ground_truth" / kind / f"{number:03d}_mask.png", mask.astype(np.uint8) * 255)


def photograph(kind: str, rng: np.random.Generator) -> tuple[Image, NDArray[np.bool_]]:
    """Take the picture of a screw, uint8 [1024, 1024], and where its defect is; `kind` is of `DEFECTS`, or empty."""
    angle, roll = rng.uniform(0, 2 * np.pi), rng.uniform()
    radius = profile(roll)
    tone = np.zeros_like(U)
    bend = np.zeros(LENGTH)
    where = np.zeros(U.shape, bool)
    brushed = cv2.GaussianBlur(rng.standard_normal(U.shape), (0, 0), 0.8, sigmaY=6.0)
    if kind:
        radius, tone, bend, where = DEFECTS[kind](radius, rng)
    shade, cover = _shade(radius, angle, tone + 0.22 * brushed)
    where &= (cover > 0.5) | (profile(roll) > np.abs(V))
    if bend.any():
        shade, cover, where = (_bent(each, bend) for each in (shade, cover, where.astype(float)))
    turn = _place(angle, SIDE / 2 + rng.uniform(-60, 60, 2))
    flat = cv2.INTER_LINEAR
    covered = cv2.warpAffine(cover, turn, (SIDE, SIDE), flags=flat)
    metal = cv2.warpAffine(shade, turn, (SIDE, SIDE), flags=flat, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(np.asarray(where, float), turn, (SIDE, SIDE), flags=flat) > 0.5
    ramp = np.linspace(-0.5, 0.5, SIDE)
    slope = rng.uniform(-12, 12, 2)
    table = 196 + slope[0] * ramp[:, None] + slope[1] * ramp + rng.normal(0, 1)
    shadow = cv2.GaussianBlur(np.roll(covered, (9, 6), (0, 1)), (0, 0), 9)
    scene = table * (1 - 0.35 * shadow)
    scene += covered * (metal - scene)
    scene = cv2.GaussianBlur(scene * rng.uniform(0.92, 1.08), (0, 0), rng.uniform(0.6, 1.1))
    scene = scene + rng.normal(0, 2.0, scene.shape)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8), mask


def profile(roll: float) -> Floats:
    """Radius of the surface seen at each pixel of the strip, in pixels; `roll` is in turns."""
    seen = np.arcsin(np.clip(V / THREAD, -1, 1)) / (2 * np.pi)
    thread = DEPTH * (2 * np.abs((U / PITCH + seen + roll) % 1 - 0.5) - 0.5)
    core = np.interp(
        U,
        [0, TIP, THREAD_END, THREAD_END + 6, NECK_END, NECK_END + 1, NECK_END + 14, HEAD_END - 10, HEAD_END],
        [4, THREAD, THREAD, NECK, NECK, HEAD - 12, HEAD, HEAD, HEAD - 10],
    )
    threaded = np.clip((U - 8) / TIP, 0, 1) * np.clip((THREAD_END - U) / 12, 0, 1)
    return np.where((U < 0) | (U > HEAD_END), 0.0, core + thread * threaded)


def _shade(radius: Floats, angle: float, tone: Floats) -> tuple[Floats, Floats]:
    """Grey value and cover [2 HALF, LENGTH] of a strip that lies at `angle` in the picture."""
    height = np.sqrt(np.clip(radius**2 - V**2, 0, None))
    along, across = np.gradient(cv2.GaussianBlur(height, (0, 0), 1.0))[::-1]
    size = np.sqrt(along**2 + across**2 + 1)
    x, y, z = -along / size, -across / size, 1 / size
    grey = 25 + 60 * z
    for lamp, strength, sharpness in ((2.2, 130.0, 3.0), (-0.5, 160.0, 9.0)):
        lit = x * np.cos(lamp - angle) + y * np.sin(lamp - angle)
        grey += strength * np.clip(0.55 * lit + 0.8 * z, 0, 1) ** sharpness
    cover = cv2.GaussianBlur((radius > np.abs(V)).astype(float), (0, 0), 0.7)
    return np.clip(grey * (1 + tone), 5, 250), cover


def _place(angle: float, centre: Floats) -> Floats:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.hstack([turn, (centre - turn @ [LENGTH / 2, HALF])[:, None]])


def _bent(strip: Floats, bend: Floats) -> Floats:
    x, y = np.meshgrid(np.arange(LENGTH, dtype=np.float32), np.arange(2 * HALF, dtype=np.float32))
    return np.asarray(cv2.remap(strip, x, (y - bend).astype(np.float32), cv2.INTER_LINEAR), np.float64)


def _write(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path} could not be written")


Changed = tuple[Floats, Floats, Floats, NDArray[np.bool_]]  # radius, tone, bend along the axis, where


def _scratch(radius: Floats, rng: np.random.Generator, u: float, v: float) -> Changed:
    angle, long, wide = rng.uniform(0.3, 2.8), rng.uniform(24, 50), rng.uniform(1.2, 2.4)
    across = (U - u) * np.sin(angle) - (V - v) * np.cos(angle)
    within = np.abs((U - u) * np.cos(angle) + (V - v) * np.sin(angle)) < long / 2
    line = np.exp(-((across / wide) ** 2)) * within
    tone = rng.choice([-0.6, 0.9]) * line
    return radius, tone, np.zeros(LENGTH), line > 0.1


def _scratch_head(radius: Floats, rng: np.random.Generator) -> Changed:
    return _scratch(radius, rng, rng.uniform(NECK_END + 20, HEAD_END - 20), rng.uniform(-40, 40))


def _scratch_neck(radius: Floats, rng: np.random.Generator) -> Changed:
    return _scratch(radius, rng, rng.uniform(THREAD_END + 20, NECK_END - 20), rng.uniform(-12, 12))


def _thread_side(radius: Floats, rng: np.random.Generator) -> Changed:
    """Crests worn off on one side."""
    u, side, long = rng.uniform(90, 330), rng.choice([-1, 1]), rng.uniform(24, 60)
    where = (np.abs(U - u) < long / 2) & (V * side > THREAD * 0.45) & (radius > 0)
    return np.where(where, np.minimum(radius, THREAD - DEPTH / 2), radius), 0 * U, np.zeros(LENGTH), where


def _thread_top(radius: Floats, rng: np.random.Generator) -> Changed:
    """A nick knocked into the thread where it faces the camera."""
    u, v, wide = rng.uniform(80, 340), rng.uniform(-18, 18), rng.uniform(8, 14)
    dent = np.exp(-(((U - u) / wide) ** 2 + ((V - v) / wide) ** 2))
    return radius - 8 * dent * (radius > 0), -0.35 * dent, np.zeros(LENGTH), dent > 0.3


def _front(radius: Floats, rng: np.random.Generator) -> Changed:
    """A bent tip."""
    reach, by = rng.uniform(50, 80), rng.choice([-1, 1]) * rng.uniform(9, 18)
    bend = by * np.clip((reach - (np.arange(LENGTH) - 40.0)) / reach, 0, 1) ** 2
    return radius, 0 * U, bend, (reach * 0.7 > U) & (radius > np.abs(V))


DEFECTS: dict[str, Callable[[Floats, np.random.Generator], Changed]] = {
    "scratch_head": _scratch_head,
    "scratch_neck": _scratch_neck,
    "thread_side": _thread_side,
    "thread_top": _thread_top,
    "front": _front,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screws", description="Render the screws.")
    parser.add_argument("folder", type=Path)
    make_screws(parser.parse_args().folder)
