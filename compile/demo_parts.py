"""The demo's parts: tiles cut from a photographed surface, lying on a dark belt.

The surface is a photograph that scikit-image ships (grey, 512x512). No two parts are the same piece of it: places are
drawn at random, refused where they come close to an earlier part of the same orientation, and then dealt to training
and line by one shuffle, so that the parts of the line are exchangeable with those of training, as the promise behind
the threshold demands. Neighbouring pieces overlap, by three quarters of their area on average: the demo shows that the
line works and keeps its promises, not how well a model does on another surface. Each picture adds what a line adds:
displacement, a small rotation, gain and gradient of the light, sensor noise. Defective parts get one defect of a stated
kind and size.

Files:

    train/0001.png      good parts
    line/0001.bmp       the parts of the line in their order; BMP, because it decodes in a millisecond
    parts.jsonl         {"id": 1, "picture": "line/0001.bmp", "defective": true, "kind": "dent", "size_px": 40} per part

Each picture carries its number in the lowest bits of its first row (red channel, 80 pixels: magic, number, CRC-16, most
significant bit first), far below the noise: the part that a frame shows can be proven from the frame alone.
"""

from __future__ import annotations

import binascii
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from compile.synthesis import Defect, Mask, paint
from edge.errors import BeltlineError
from firmware_bridge.belt.config import TruePart

SIDE = 512  # pixels of a picture
TILE = 392  # pixels of a part in the picture
CUT = 176  # pixels of the photograph that a part covers
APART = 16  # pixels of the photograph between the places of two parts of one orientation
REFUSALS = 2000  # places refused in a row: the photograph is full
TINT = (1.0, 0.74, 0.56)  # red, green, blue: a swapped channel order must show
BELT = 26.0
KINDS = ("scratch", "stain", "chip", "dent", "swap")
SMALLEST_DEFECT = 48  # pixels of a picture
LARGEST_DEFECT = 96
MAGIC = b"BELT"
MARK_BITS = 80
Image = NDArray[np.uint8]


class DemoError(BeltlineError):
    """The parts cannot be made. The message says why."""


@dataclass(frozen=True, slots=True)
class LinePart:
    """One part of the line, as a line of parts.jsonl."""

    id: int
    picture: str  # or its scan; relative to the folder
    defective: bool
    kind: str  # of the defect, or nothing
    size_px: int  # of the defect, or 0; places of a scan
    scan: bool = False

    def on_belt(self, folder: Path) -> TruePart:
        """Put it on the belt simulator."""
        file = str((folder / self.picture).absolute())
        seen = {"scan": file} if self.scan else {"picture": file}
        return TruePart(id=str(self.id), defective=self.defective, **seen)


@dataclass(frozen=True, slots=True)
class _Place:
    x: float  # corner of the cut in the photograph
    y: float
    orientation: int  # 0..7: quarter turns, then mirrored


def make_demo(
    folder: Path, *, train: int = 240, line_good: int = 240, line_defective: int = 60, seed: int = 0
) -> list[LinePart]:
    """Write the demo's pictures and parts.jsonl; the same seed gives the same bytes.

    Returns:
        the line's parts in their order.

    Raises:
        DemoError: more parts than the photograph has room for.

    """
    surface = _surface()
    rng = np.random.default_rng(seed)
    count = train + line_good + line_defective
    places = _places(count, len(surface), rng)
    defective = np.zeros(line_good + line_defective, dtype=bool)
    defective[rng.permutation(defective.size)[:line_defective]] = True
    for name in ("train", "line"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(1, train + 1):
        picture, _ = _photograph(surface, places[number - 1], np.random.default_rng([seed, 0, number]))
        _write(folder / "train" / f"{number:04d}.png", write_mark(picture, number))
    parts, painted = [], 0
    for number in range(1, defective.size + 1):
        generator = np.random.default_rng([seed, 1, number])
        picture, tile = _photograph(surface, places[train + number - 1], generator)
        name, kind, size = f"line/{number:04d}.bmp", "", 0
        if defective[number - 1]:
            defect = _defect(picture, tile, KINDS[painted % len(KINDS)], generator)
            picture, kind, size, painted = defect.image, defect.kind, defect.size_px, painted + 1
        _write(folder / name, write_mark(picture, number))
        parts.append(LinePart(number, name, bool(defective[number - 1]), kind, size))
    lines = "".join(json.dumps(asdict(part)) + "\n" for part in parts)
    (folder / "parts.jsonl").write_text(lines, encoding="utf-8")
    return parts


def read_parts(folder: Path) -> list[LinePart]:
    """Read parts.jsonl."""
    lines = (folder / "parts.jsonl").read_text(encoding="utf-8").splitlines()
    return [LinePart(**json.loads(line)) for line in lines]


def write_mark(image: Image, number: int) -> Image:
    """Give a copy of an RGB picture (at least 80 pixels wide) that carries `number` (u32) in its first row."""
    if image.shape[1] < MARK_BITS:
        raise DemoError(f"picture {image.shape[1]} px wide: the mark takes {MARK_BITS}")
    marked = image.copy()
    marked[0, :MARK_BITS, 0] = (marked[0, :MARK_BITS, 0] & 0xFE) | mark_bits(number)
    return np.asarray(marked)


def read_mark(image: Image) -> int | None:
    """Give the number that an RGB picture carries, or None where it carries none (or was resized or re-encoded)."""
    if image.ndim != 3 or image.shape[1] < MARK_BITS:
        return None
    return read_bits(image[0, :MARK_BITS, 0] & 1)


def mark_bits(number: int) -> NDArray[np.uint8]:
    """Give the 80 bits that stand for a number, 0 or 1 each."""
    body = MAGIC + number.to_bytes(4, "big")
    return np.unpackbits(np.frombuffer(body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big"), dtype=np.uint8))


def read_bits(bits: NDArray[np.integer]) -> int | None:
    """Give the number that 80 bits stand for, or None where they stand for none."""
    found = np.packbits(bits).tobytes()
    body, check = found[:8], found[8:]
    if body[:4] != MAGIC or binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big") != check:
        return None
    return int.from_bytes(body[4:], "big")


def _surface() -> NDArray[np.float32]:
    from skimage import data  # noqa: PLC0415 - only the demo needs it

    return np.asarray(data.brick(), dtype=np.float32)  # type: ignore[no-untyped-call]


def _places(count: int, side: int, rng: np.random.Generator) -> list[_Place]:
    margin = 8  # a turned cut reaches beyond its square
    taken: list[list[tuple[float, float]]] = [[] for _ in range(8)]
    places: list[_Place] = []
    refused = 0
    while refused < REFUSALS:
        orientation = int(rng.integers(8))
        x, y = rng.uniform(margin, side - CUT - margin, 2)
        if any(abs(x - a) < APART and abs(y - b) < APART for a, b in taken[orientation]):
            refused += 1
            continue
        refused = 0
        taken[orientation].append((x, y))
        places.append(_Place(x, y, orientation))
        if len(places) == count:
            return [places[i] for i in rng.permutation(count)]
    raise DemoError(f"{count} parts do not fit: the photograph has room for about {len(places)} of {CUT} px")


def _photograph(surface: NDArray[np.float32], place: _Place, rng: np.random.Generator) -> tuple[Image, Mask]:
    """Take the picture of a part: uint8 [512, 512, 3] and where the part is, bool [512, 512]."""
    angle = np.deg2rad(rng.uniform(-3, 3))
    centre = SIDE / 2 + rng.uniform(-14, 14, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    to_tile = np.hstack([turn, -(turn @ centre)[:, None]]) / TILE  # picture -> tile, -0.5..0.5
    way = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), place.orientation % 4)
    if place.orientation >= 4:
        way = way @ np.diag([-1, 1])
    middle = np.array([place.x, place.y]) + CUT / 2
    to_surface = CUT * way @ to_tile
    to_surface[:, 2] += middle
    texture = cv2.warpAffine(
        surface, to_surface, (SIDE, SIDE), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    outline = np.zeros((TILE + 16, TILE + 16), dtype=np.float32)
    outline[8:-8, 8:-8] = 1
    to_outline = to_tile * TILE
    to_outline[:, 2] += TILE / 2 + 8
    cover = cv2.warpAffine(
        cv2.GaussianBlur(outline, (0, 0), 1.0), to_outline, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    belt = BELT + 3 * cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), dtype=np.float32), (0, 0), 1.5)
    part = np.clip(texture, 0, 255)[..., None] * np.array(TINT, dtype=np.float32)
    scene = belt[..., None] + cover[..., None] * (part - belt[..., None])
    ramp = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    slope = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
    light = np.float32(rng.uniform(0.92, 1.08)) * (1 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :])
    exposed = scene * light[..., None] + 2 * rng.standard_normal(scene.shape, dtype=np.float32)
    return np.clip(np.rint(exposed), 0, 255).astype(np.uint8), np.asarray(cover > 0.99)


def _defect(picture: Image, tile: Mask, kind: str, rng: np.random.Generator) -> Defect:
    size = round(float(np.exp(rng.uniform(np.log(SMALLEST_DEFECT), np.log(LARGEST_DEFECT)))))
    inner = cv2.erode(tile.astype(np.uint8), np.ones((size + 1, size + 1), dtype=np.uint8)) > 0
    return paint(picture, kind, size, rng, region=inner)


def _write(path: Path, image: Image) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise DemoError(f"{path} could not be written")
