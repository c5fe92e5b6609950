"""Depth images become clouds by the camera that took them.

The camera stands in `intrinsics.json`, beside the images or in one of the folders above: `fx`, `fy`, `cx`, `cy` in
pixels (the centre of the first pixel is 0, 0), the `width` and `height` they are for, and where the samples are counts
the `depth_scale`, what one count is in metres or millimetres. A sample is the distance along the optical axis; 0 is no
return.

Eyecandies (Bonfiglioli et al. 2022) has 16-bit PNG `NAME_depth.png` whose whole range means the least and largest depth
of that image, named in `NAME_info_depth.yaml` as `min` and `max`: there 0 is a depth, too.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.front_end import FrameError

INTRINSICS = "intrinsics.json"
FOLDERS_UP = 4  # a set's own folder above train/good/xyz
LARGEST_FILE = 1 << 16  # bytes, of either text
RANGE = re.compile(r"^\s*(min|max):\s*([-+0-9.eE]{1,40})\s*$", re.MULTILINE)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pixel = Annotated[float, Field(allow_inf_nan=False)]


class Intrinsics(BaseModel):
    """A pinhole camera without distortion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int
    height: int
    fx: Positive
    fy: Positive
    cx: Pixel
    cy: Pixel
    depth_scale: Positive = 1.0


def find_intrinsics(image: Path) -> Intrinsics:
    """Read the camera of a depth image.

    Raises:
        FrameError: there is none, or it is damaged.

    """
    folders = [image.absolute().parent, *image.absolute().parent.parents][: FOLDERS_UP + 1]
    file = next((folder / INTRINSICS for folder in folders if (folder / INTRINSICS).is_file()), None)
    if file is None:
        raise FrameError(f"a depth image, but no {INTRINSICS} (width, height, fx, fy, cx, cy) beside it or above")
    try:
        return Intrinsics.model_validate_json(_text(file))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise FrameError(f"{file}: {place}: {first['msg'].lower()}") from error


def find_range(image: Path) -> tuple[float, float] | None:
    """Give the least and largest depth of an Eyecandies image, in metres; None where it is none.

    Raises:
        FrameError: the file that names them is damaged.

    """
    file = image.with_name(f"{image.stem.removesuffix('_depth')}_info_depth.yaml")
    if not file.is_file():
        return None
    found = [(key, _number(value)) for key, value in RANGE.findall(_text(file))]
    ends = dict(found)
    if len(found) != 2 or len(ends) != 2 or not 0 <= ends["min"] < ends["max"] < math.inf:
        raise FrameError(f"{file}: no `min` and `max` of a range of depths")
    return ends["min"], ends["max"]


def depth_to_points(depth: NDArray[Any], image: Path) -> NDArray[np.float32]:
    """Back-project a depth image [H, W], float or uint16, that was read from the file `image`: float32 [H, W, 3].

    Raises:
        FrameError: the camera is unknown, or is for images of another size.

    """
    camera = find_intrinsics(image)
    height, width = depth.shape
    if (width, height) != (camera.width, camera.height):
        raise FrameError(
            f"a depth image of {width}x{height} pixels, {INTRINSICS} is for {camera.width}x{camera.height}"
        )
    if depth.dtype == np.uint16 and (ends := find_range(image)):
        z = depth.astype(np.float32) * np.float32((ends[1] - ends[0]) / 65535) + np.float32(ends[0])
    else:
        z = depth.astype(np.float32) * np.float32(camera.depth_scale)
    x = z * ((np.arange(width) - camera.cx) / camera.fx).astype(np.float32)
    y = z * ((np.arange(height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
    return np.stack([x, y, z], axis=2)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise FrameError(f"{file}: larger than {LARGEST_FILE} bytes, no description of a depth image")
        return file.read_text("utf-8", "replace")
    except OSError as error:
        raise FrameError(f"{file}: {error.strerror or error}") from error


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
