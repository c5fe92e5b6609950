"""The golden set: reference inputs with what each graph must say of them on the box, and how closely.

Float graphs agree between machines to rounding. An INT8 graph can round a value that lies on an edge the other way on
another processor, which then travels through the trunk: its tolerance is wider, yet far below what a wrong input does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from compile.bundle_writer import to_json, to_npy
from compile.job import Graphs
from compile.parity import score_all
from compile.proof import open_graph
from edge.bundle import Golden, GoldenSet, GraphName

FLOAT_SHARE = 1e-3  # of the score, and of the map's peak
REDUCED_SHARE = 0.05


class Inputs(NamedTuple):
    """Golden inputs of one class: uint8 [n, H, W, 3]."""

    pictures: NDArray[np.uint8]
    class_name: str = ""
    class_index: int | None = None


def golden_files(graphs: Graphs, inputs: Sequence[Inputs], map_side: int) -> dict[str, bytes]:
    """Score the inputs of each class with every graph and pack them: file name -> content."""
    files: dict[str, bytes] = {}
    samples: list[Golden] = []
    for each in inputs:
        samples += _samples(graphs, each, map_side, files, len(samples))
    files["golden/golden.json"] = to_json(GoldenSet(samples=samples).model_dump(mode="json", exclude_defaults=True))
    return files


def _samples(graphs: Graphs, inputs: Inputs, map_side: int, files: dict[str, bytes], first: int) -> list[Golden]:
    scored = {
        name: score_all(
            open_graph(name, model.SerializeToString()), inputs.pictures, map_side, class_index=inputs.class_index
        )
        for name, model in graphs.items()
    }
    share: dict[GraphName, float] = {name: FLOAT_SHARE if name == "float" else REDUCED_SHARE for name in graphs}
    samples = []
    for i, picture in enumerate(inputs.pictures):
        number = first + i
        image = f"golden/{number}.png"
        files[image] = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        maps: dict[GraphName, str] = {name: f"golden/{number}.{name}.npy" for name in graphs}
        for name, file in maps.items():
            files[file] = to_npy(scored[name].maps[i])
        samples.append(
            Golden(
                image=image,
                scores={name: float(scored[name].scores[i]) for name in graphs},
                maps=maps,
                score_tolerance={name: share[name] * abs(float(scored[name].scores[i])) for name in graphs},
                map_tolerance={name: share[name] * float(scored[name].maps[i].max()) for name in graphs},
                class_name=inputs.class_name,
            )
        )
    return samples
