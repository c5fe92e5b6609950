"""The parts of the demo with scans: buns on a belt, as a depth sensor sees them from above.

No two are alike: radii, turn, place, height, lumps and crust are drawn for each. The sensor adds noise, places without
a return, more of them on steep flanks, and a slightly tilted belt. Defective parts get one defect of a stated kind and
size: a dent, a bump or a cut. Drawn and rendered here, so that the demo shows that the line
works and keeps its promises, not how well a model does on real scans.

Files, as `compile.demo_parts` has them, with 16-bit depth images in place of pictures:

    intrinsics.json          of the sensor; one count of depth is 0.01 mm
    train/0001_depth.png     good parts
    line/0001_depth.png      the parts of the line in their order
    parts.jsonl              one line per part

Each scan carries its number in the lowest bits of the counts of its first row, far below the noise.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from compile.demo_parts import MARK_BITS, DemoError, LinePart, mark_bits, read_bits
from compile.synthesis import fractal_noise

WIDTH, HEIGHT = 320, 240  # places
DISTANCE, FOCAL = 400.0, 900.0  # mm, pixels
COUNT = 0.01  # mm
PLACE = DISTANCE / FOCAL  # mm between neighbours on the belt
NOISE = 0.05  # mm
KINDS = ("dent", "bump", "cut")
SMALLEST_DEFECT, LARGEST_DEFECT = 32, 56  # places: 14 to 25 mm
DEPTH = 0.2  # of the defect's size
Floats = NDArray[np.float32]
Depth = NDArray[np.uint16]


def make_demo_scans(
    folder: Path, *, train: int = 120, line_good: int = 120, line_defective: int = 30, seed: int = 0
) -> list[LinePart]:
    """Write the demo's scans and parts.jsonl; the same seed gives the same bytes.

    Returns:
        the line's parts in their order.

    Raises:
        DemoError: a file cannot be written.

    """
    for name in ("train", "line"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    camera = {"width": WIDTH, "height": HEIGHT, "fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    (folder / "intrinsics.json").write_text(json.dumps(camera | {"depth_scale": COUNT}), encoding="utf-8")
    for number in range(1, train + 1):
        scan, _ = scan_bun(np.random.default_rng([seed, 0, number]))
        _write(folder / "train" / f"{number:04d}_depth.png", mark_scan(scan, number))
    defective = np.random.default_rng(seed).permutation(line_good + line_defective) < line_defective
    parts: list[LinePart] = []
    for number, bad in enumerate(defective.tolist(), start=1):
        kind = KINDS[sum(part.defective for part in parts) % len(KINDS)] if bad else ""
        scan, size = scan_bun(np.random.default_rng([seed, 1, number]), kind)
        name = f"line/{number:04d}_depth.png"
        _write(folder / name, mark_scan(scan, number))
        parts.append(LinePart(number, name, bad, kind, size, scan=True))
    lines = "".join(json.dumps(asdict(part)) + "\n" for part in parts)
    (folder / "parts.jsonl").write_text(lines, encoding="utf-8")
    return parts


def scan_bun(rng: np.random.Generator, kind: str = "") -> tuple[Depth, int]:
    """Scan one part, with a defect where a kind is named: uint16 [240, 320] in counts, 0 where there is no return.

    Returns:
        the scan, and the defect's size in places, 0 for none.

    """
    v, u = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    x, y = (u - WIDTH / 2) * PLACE, (v - HEIGHT / 2) * PLACE  # on the belt, mm
    middle, turn = rng.uniform(-6, 6, 2), rng.uniform(0, np.pi)
    along = (x - middle[0]) * np.cos(turn) + (y - middle[1]) * np.sin(turn)
    across = (y - middle[1]) * np.cos(turn) - (x - middle[0]) * np.sin(turn)
    radii = rng.uniform(38, 43), rng.uniform(32, 37)
    away = np.hypot(along / radii[0], across / radii[1]) * (1 + 0.02 * fractal_noise(WIDTH, 3, rng)[:HEIGHT])
    bun = np.float32(rng.uniform(17, 20)) * np.sqrt(np.maximum(1 - away.astype(np.float32) ** 2, 0))
    bun += (0.4 * fractal_noise(WIDTH, 8, rng) + 0.08 * fractal_noise(WIDTH, 64, rng))[:HEIGHT] * (bun > 0)
    size = round(float(np.exp(rng.uniform(np.log(SMALLEST_DEFECT), np.log(LARGEST_DEFECT))))) if kind else 0
    if kind:
        bun = _spoil(bun, kind, size, rng)
    tilt = rng.uniform(-0.005, 0.005, 2)
    z = DISTANCE + tilt[0] * x + tilt[1] * y - np.maximum(bun, 0) + rng.normal(0, NOISE, bun.shape)
    steep = np.hypot(cv2.Sobel(bun, cv2.CV_32F, 1, 0), cv2.Sobel(bun, cv2.CV_32F, 0, 1)) / (8 * PLACE)
    counts = np.rint(z / COUNT).astype(np.uint16)
    counts[rng.random(bun.shape) < 0.005 + 0.25 * np.clip(steep - 2, 0, 2)] = 0
    return counts, size


def _spoil(bun: Floats, kind: str, size: int, rng: np.random.Generator) -> Floats:
    """Change a bun's height by one defect, half as far from the rim as it is wide."""
    v, u = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    body = (bun > 0).astype(np.uint8)
    inner = cv2.erode(body, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    middle_v, middle_u = divmod(int(rng.choice(np.flatnonzero(inner))), WIDTH)
    du, dv = u - middle_u, v - middle_v
    if kind == "cut":
        angle = rng.uniform(0, np.pi)
        along, across = du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)
        shape = np.exp(-((across / (size / 10)) ** 2) / 2) * (np.abs(along) < size / 2)
    else:
        shape = np.exp(-(du**2 + dv**2) / (2 * (size / 4) ** 2))
    depth = DEPTH * size * PLACE * (1 if kind == "bump" else -1)
    return np.asarray(np.where(bun > 0, np.maximum(bun + depth * shape, 0.5), bun), np.float32)


def mark_scan(scan: Depth, number: int) -> Depth:
    """Give a copy of a scan that carries `number` (u32) in its first row, which all has returns then."""
    marked: Depth = scan.copy()
    row = scan[0, :MARK_BITS].astype(np.int64)
    row[row == 0] = round(DISTANCE / COUNT)
    marked[0, :MARK_BITS] = (row & ~1) | mark_bits(number)
    return marked


def read_scan_mark(scan: Depth) -> int | None:
    """Give the number that a scan carries, or None where it carries none."""
    return read_bits(scan[0, :MARK_BITS] & 1)


def _write(path: Path, scan: Depth) -> None:
    if not cv2.imwrite(str(path), scan):
        raise DemoError(f"{path} could not be written")
