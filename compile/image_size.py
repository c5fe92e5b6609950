"""Choose the side of the graph's square input from the source, the smallest defect and the time there is."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import onnx

from compile.backbones.choice import DEFAULT, Backbone
from compile.onnx_session import open_session
from edge.errors import BeltlineError

ASSUMED_DEFECT = 20.0  # source pixels, where nobody stated it; the size then stays within the next two
DEFAULT_SMALLEST, DEFAULT_LARGEST = 256, 384


class ImageSizeError(BeltlineError):
    """No image size fits. The message says which wish to change."""


@dataclass(frozen=True, slots=True)
class SizeChoice:
    """The side in pixels, why, and what people must know."""

    size: int
    explanation: str
    warning: str = ""


def choose_size(
    longer_side: int,
    *,
    size: int | None = None,
    smallest_defect_px: float | None = None,
    budget_ms: float | None = None,
    ms_per_megapixel: float | None = None,
    backbone: Backbone = DEFAULT,
) -> SizeChoice:
    """Choose the input's side, such that the smallest defect covers a cell of the backbone's finest map.

    Args:
        longer_side: of the largest source picture, pixels; the picture is stretched to a square.
        size: asked for, of those that the backbone takes: then nothing is chosen.
        smallest_defect_px: diameter of the smallest defect that must be found, source pixels; at least 1.
        budget_ms: time for the graph on one thread, finite and above zero.
        ms_per_megapixel: of the graph on this machine; needed with a budget.
        backbone: whose step, cell and limits count.

    Raises:
        ImageSizeError: the budget is too small for the smallest input.

    """
    cell, step, (smallest, largest) = backbone.cell, backbone.step, backbone.sides
    if size is not None:
        missed = _missed(size, longer_side, smallest_defect_px, cell)
        return SizeChoice(size, f"{size} px was asked for with --size.", missed)
    defect = smallest_defect_px if smallest_defect_px is not None else ASSUMED_DEFECT
    chosen = _up(cell * longer_side / defect, step)
    stated = "stated" if smallest_defect_px is not None else "not stated and taken"
    words = [f"The smallest defect is {stated} to be {defect:.3g} px of the source's {longer_side} px."]
    words.append(f"It must cover {cell} px of the input: {chosen} px.")
    least, most = _up(DEFAULT_SMALLEST, step), _up(DEFAULT_LARGEST, step)
    if smallest_defect_px is None and not least <= chosen <= most:
        chosen = min(max(chosen, least), most)
        words.append(
            f"While it is not stated the input has {least} to {most} px: {chosen} px; "
            "--smallest-defect says what the product needs."
        )
    if chosen > _up(longer_side, step):
        chosen = _up(longer_side, step)
        words.append(f"The source has no more than {longer_side} px: {chosen} px.")
    chosen = min(max(chosen, smallest), largest)
    if budget_ms is not None:
        assert ms_per_megapixel is not None
        affordable = int(min((budget_ms / ms_per_megapixel * 1e6) ** 0.5, largest)) // step * step
        words.append(
            f"{budget_ms:g} ms pay for {affordable} px here ({ms_per_megapixel:.0f} ms per megapixel, one thread)."
        )
        if affordable < smallest:
            time_ms = smallest**2 * ms_per_megapixel / 1e6
            raise ImageSizeError(
                f"--budget-ms {budget_ms:g}: {smallest} px take {time_ms:.1f} ms here. Allow more time."
            )
        chosen = min(chosen, affordable)
    words.append(f"Chosen: {chosen} px.")
    return SizeChoice(chosen, " ".join(words), _missed(chosen, longer_side, smallest_defect_px, cell))


def measure_ms_per_megapixel(trunk: onnx.ModelProto, head_share: float, runs: int = 9) -> float:
    """Time of the float graph on this machine, one thread: the trunk measured, the head by its share of that.

    A float upper bound: INT8, where it is kept, is faster.
    """
    session = open_session(trunk)
    value = trunk.graph.input[0]
    height, width = (axis.dim_value for axis in value.type.tensor_type.shape.dim[1:3])
    image = np.full((1, height, width, 3), 128, np.uint8)
    times = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        session.run(None, {value.name: image})
        times.append((time.perf_counter() - started) * 1000)
    return float(statistics.median(times[2:]) * (1 + head_share) / (height * width / 1e6))


def _up(pixels: float, step: int) -> int:
    return int(-(-pixels // step) * step)


def _missed(size: int, longer_side: int, defect: float | None, cell: int) -> str:
    seen = cell * longer_side / size
    if defect is None or seen <= defect * 1.0001:
        return ""
    return (
        f"At {size} px only defects from {seen:.0f} source pixels on cover a whole cell; the smallest stated has "
        f"{defect:g}. Smaller ones may be missed."
    )
