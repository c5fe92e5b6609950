"""Nine shaded pictures of a scan from as many sides (MVP-PCLIP, arXiv 2409.13162), by a z-buffer of our own.

Theirs: pinhole pictures of 224x224 with 60 degrees from top to bottom, one grey on white, shaded by normals (the paper
says depth, its code shades), the cloud turned about its centroid by -15, 0 and 15 degrees about x and then about y. Not
taken over, as faults of the published renderer: it needs a display; it fits another camera to each view; it cuts
positions to whole pixels, half a pixel off on average; points that are scored turn about another centroid than those
that are drawn; and points behind a surface read that surface's pixel.

Ours: one camera for all nine views, as near as the part allows; position rounded to the nearest pixel; a mark on what
is hidden; light from above left at 45 degrees, where a light at the camera would not show a shallow dent; the greys.
Unverified: how CLIP's answers differ between these pictures and Open3D's.

A point is drawn over its neighbouring pixels, too, further where points are sparse, but there gives way to the pixel's
own point unless that lies behind it by more than `BEHIND`. Two surfaces nearer to each other than that hide nothing
of each other; a surface steeper than about 60 degrees to the picture may be marked hidden in part.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.front_end import FrameError

SIDE = 224  # pixels
FOCAL = SIDE / 2 / np.tan(np.pi / 6)  # pixels
CENTRE = (SIDE - 1) / 2  # pixels; whole numbers are the middles of pixels, as in Open3D and OpenCV
INTRINSICS = np.array([[FOCAL, 0, CENTRE], [0, FOCAL, CENTRE], [0, 0, 1]])
TILTS = (0, -15, 15)  # degrees, in the order of the publication: about x, and for each about y
FILLED = 0.9  # of the picture, in the view where the part is largest
NEAREST = 1.25  # radii of the part, from its centroid to the camera
BEHIND = 2.0  # spacings
FURTHEST = 8  # pixels around its own that a point covers
LIGHT = np.array([-0.5, -0.5, -(0.5**0.5)])  # where it comes from, seen from the camera: x right, y down, z away
AMBIENT, GREY, WHITE = 0.2, 204, 255
MOST = 1 << 22  # points: their number and their distance's 31 bits share the 53 bits of a float64
Field = NDArray[np.float32]


class Views(NamedTuple):
    """Nine pictures, and what is where on them.

    `pictures` uint8 [9, 224, 224], 255 where nothing is. `depths` float32 [9, 224, 224]: z from the camera in mm, 0
    where nothing is. `points` int32 [9, 224, 224]: the point that a pixel shows, -1 where nothing is. `pixels` int32
    [9, n]: row * 224 + column of the pixel that shows a point's surface, -1 where it is hidden. `extrinsics` float64
    [9, 4, 4]: from the scan to the camera (x right, y down, z away), as Open3D's; the camera itself is `INTRINSICS`.
    """

    pictures: NDArray[np.uint8]
    depths: Field
    points: NDArray[np.int32]
    pixels: NDArray[np.int32]
    extrinsics: NDArray[np.float64]


def render(points: Field, normals: Field) -> Views:
    """Draw a scan from nine sides.

    Args:
        points: [n, 3], finite, mm; z away from the sensor.
        normals: [n, 3] of length 1 towards the sensor; zeros (not known) are drawn as facing it.

    Raises:
        FrameError: no points, or more than four million.

    """
    if not 0 < len(points) <= MOST:
        raise FrameError(f"{len(points)} points to draw; from 1 to {MOST} are possible")
    middle = points.mean(axis=0, dtype=np.float64)
    turns = np.array([_turn(x, y) for x in TILTS for y in TILTS])
    turned = turns.reshape(-1, 3).astype(np.float32) @ (points - middle.astype(np.float32)).T
    turned = turned.reshape(len(turns), 3, len(points))
    away = _distance(turned)
    turned[:, 2] += np.float32(away)
    reach = _reach(turned[0])
    behind = np.float32(BEHIND * reach * away / FOCAL)
    shades = _shades(normals, turns)
    size = (len(turns), SIDE, SIDE)
    pictures, depths, shown = np.empty(size, np.uint8), np.empty(size, np.float32), np.empty(size, np.int32)
    pixels = np.empty((len(turns), len(points)), np.int32)
    extrinsics = np.tile(np.eye(4), (len(turns), 1, 1))
    for i, (turn, view) in enumerate(zip(turns, turned, strict=True)):
        shown[i], pixels[i] = _draw(view, reach, behind)
        pictures[i] = np.append(shades[i], np.uint8(WHITE))[shown[i]]  # number -1 is the last: white
        depths[i] = np.append(view[2], np.float32(0))[shown[i]]
        extrinsics[i, :3, :3] = turn
        extrinsics[i, :3, 3] = (0, 0, away) - turn @ middle
    return Views(pictures, depths, shown, pixels, extrinsics)


def _turn(x: float, y: float) -> NDArray[np.float64]:
    """Open3D's Rx Ry; about y the other way round, as the publication first flips y and z."""
    (a, b), (c, d) = ((np.cos(angle), np.sin(angle)) for angle in np.deg2rad((x, -y)))
    return np.array([[c, 0, d], [b * d, a, -b * c], [-a * d, b, a * c]])


def _distance(turned: Field) -> float:
    """How far the camera is from the centroid: `FILLED` of the picture at most in any view, and no point beside it."""
    across = np.maximum(np.abs(turned[:, 0]), np.abs(turned[:, 1]))
    fitted = float((across * np.float32(FOCAL / (SIDE / 2 * FILLED)) - turned[:, 2]).max())
    radius = float(np.sqrt(np.square(turned[0]).sum(axis=0).max()))
    return max(fitted, NEAREST * radius, 1e-3)


def _reach(view: Field) -> int:
    """How many pixels around its own a point covers: half of the points' spacing in the view from the sensor."""
    across = np.ptp(view[:2] / view[2], axis=1) * FOCAL
    return int(np.clip(np.ceil((across.prod() / view.shape[1]) ** 0.5 / 2), 1, FURTHEST))


def _shades(normals: Field, turns: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lambert's law with ambient light: uint8 [9, n]."""
    unknown = ~normals.any(axis=1, keepdims=True)
    facing = np.where(unknown, np.array([0, 0, -1], np.float32), normals)
    towards = (LIGHT @ turns).astype(np.float32)  # in the axes of the scan
    lit = np.maximum(towards @ facing.T, 0)
    lit *= np.float32((1 - AMBIENT) * GREY)
    lit += np.float32(AMBIENT * GREY + 0.5)
    shades: NDArray[np.uint8] = np.minimum(lit, GREY).astype(np.uint8)
    return shades


def _draw(view: Field, reach: int, behind: np.float32) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The point that each pixel shows [224, 224], and the pixel that shows each point [n]; -1 for none."""
    scale = np.float32(FOCAL) / view[2]
    column = np.rint(view[0] * scale + np.float32(CENTRE)).astype(np.int32)
    row = np.rint(view[1] * scale + np.float32(CENTRE)).astype(np.int32)
    pixel = row * SIDE + column
    # A number that is smaller for a nearer point, by the order of a positive float's bits, and says which point it is.
    key = view[2].view(np.int32).astype(np.float64) * MOST + np.arange(view.shape[1])
    keys = np.full(SIDE * SIDE, np.inf)
    np.minimum.at(keys, pixel, key)
    around = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    spread = np.asarray(cv2.erode(keys.reshape(SIDE, SIDE), around), np.float64)
    own, near = _point(keys), _point(spread.ravel())
    depth = np.append(view[2], np.float32(np.inf))
    limit = depth[near] + behind
    shown = np.where(depth[own] <= limit, own, near).astype(np.int32).reshape(SIDE, SIDE)
    return shown, np.where(view[2] <= limit[pixel], pixel, np.int32(-1))


def _point(keys: NDArray[np.float64]) -> NDArray[np.int64]:
    empty = keys >= MOST * 2.0**31  # infinite; beyond the border OpenCV has the largest finite number
    point: NDArray[np.int64] = np.where(empty, 0, keys).astype(np.int64) & (MOST - 1)
    point[empty] = -1
    return point
