"""Parts as the graphs see them, and as people do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.features import Tick, on_disk
from compile.listing import Skipped
from compile.parity import Inputs
from edge.bundle import Spec
from edge.front_end import FrameError
from edge.organised_scan.draw import draw_height
from edge.prepare import Ready, prepare
from edge.view import View, read_view, wanted


@dataclass(frozen=True, slots=True)
class Parts:
    """n parts: the graphs' `inputs`, and where they look at scans the `heights` to be shown, uint8 [n, H, W, 3]."""

    inputs: Inputs
    heights: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.inputs["mask"])

    def take(self, rows: Any) -> Parts:
        """Choose some, by a slice or numbers."""
        heights = None if self.heights is None else self.heights[rows]
        return Parts({name: values[rows] for name, values in self.inputs.items()}, heights)

    def shown(self, row: int) -> list[NDArray[np.uint8]]:
        """What people are shown of one: its picture, its height, or both; uint8 [H, W, 3]."""
        seen = [self.inputs.get("image"), self.heights]
        return [each[row] for each in seen if each is not None]


def joined(some: Sequence[Parts]) -> Parts:
    """Put parts one after the other."""
    inputs = {name: np.concatenate([each.inputs[name] for each in some]) for name in some[0].inputs}
    heights = [each.heights for each in some if each.heights is not None]
    return Parts(inputs, np.concatenate(heights) if heights else None)


def put_together(ready: Sequence[Ready]) -> Parts:
    """Make parts of what was prepared one by one; at least one."""
    inputs = {name: np.stack([each.tensors[name] for each in ready]) for name in ready[0].tensors}
    heights = [draw_height(each.scan) for each in ready if each.scan]
    return Parts(inputs, np.stack(heights) if heights else None)


def load_parts(
    views: Sequence[View], specs: Sequence[Spec], folder: Path, tick: Tick | None = None
) -> tuple[Parts, NDArray[np.int64], list[Skipped]]:
    """Prepare parts as the box does, told something of each.

    Args:
        views: their files.
        specs: one for each, of the same tensors.
        folder: where the arrays lie; it is made.
        tick: told what is done.

    Returns:
        the parts, mapped from files; which of `views` they are; and what was skipped.

    """
    folder.mkdir(exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {}
    kept: list[int] = []
    skipped = []
    for position, (view, spec) in enumerate(zip(views, specs, strict=True)):
        try:
            ready = prepare(*read_view(view, wanted(spec)), spec)
        except (OSError, FrameError) as error:
            skipped.append(Skipped(view.file, str(error)))
        else:
            made = ready.tensors | ({"height": draw_height(ready.scan)} if ready.scan else {})
            for name, values in made.items():
                if name not in arrays:
                    arrays[name] = on_disk(folder / f"{name}.bin", values.dtype, (len(views), *values.shape))
                arrays[name][len(kept)] = values
            kept.append(position)
        if tick:
            tick(position + 1, len(views))
    found = {name: array[: len(kept)] for name, array in arrays.items()} or {"mask": np.zeros((0, 0, 0), np.float32)}
    heights = found.pop("height", None)
    return Parts(found, heights), np.array(kept, np.int64), skipped
