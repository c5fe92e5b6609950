"""Ways to reduce a trunk: which nodes each rounds, and how it is written with some of them kept in float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from compile.compensation import round_trunk
from compile.half import half_nodes, render_half
from compile.quantise import Ranges, Target, quantised_nodes, render

Precision = Literal["int8", "float16"]
Tick = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to reduce a trunk."""

    precision: Precision
    nodes: list[str]  # that it reduces, in the order of the graph
    write: Callable[[Collection[str], Tick | None], onnx.ModelProto]  # told which of them stay in float
    sketch: Callable[[Collection[str]], onnx.ModelProto]  # the same, at once: weights are not refitted

    def alone(self, node: str) -> onnx.ModelProto:
        """Reduce one node and no other."""
        return self.sketch([other for other in self.nodes if other != node])


def int8(trunk: onnx.ModelProto, ranges: Ranges, target: Target, pictures: Sequence[NDArray[np.uint8]]) -> Recipe:
    """INT8 by Q/DQ; the weights are refitted on pictures uint8 [H, W, 3]."""

    def sketch(keep: Collection[str]) -> onnx.ModelProto:
        return render(trunk, ranges, target, keep_float=keep)

    def write(keep: Collection[str], tick: Tick | None) -> onnx.ModelProto:
        rounded = round_trunk(trunk, ranges, target, pictures, keep_float=keep, tick=tick)
        return render(trunk, ranges, target, keep_float=keep, rounded=rounded)

    return Recipe("int8", quantised_nodes(trunk), write, sketch)


def half(trunk: onnx.ModelProto) -> Recipe:
    """FP16 by casts."""

    def sketch(keep: Collection[str]) -> onnx.ModelProto:
        return render_half(trunk, keep_float=keep)

    return Recipe("float16", half_nodes(trunk), lambda keep, _: sketch(keep), sketch)
