"""The golden set: reference inputs with what each graph must say of them on the box, and how closely.

Float graphs agree between machines to rounding. An INT8 graph can round a value that lies on an edge the other way on
another processor, which then travels through the trunk: its tolerance is wider, yet far below what a wrong input does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import cv2

from compile.bundle_writer import to_json, to_npy
from compile.job import Graphs
from compile.parity import Inputs, score_all
from compile.proof import open_graph
from edge.bundle import Golden, GoldenSet, GraphName, ScanTensor

FLOAT_SHARE = 1e-3  # of the score, and of the map's peak
REDUCED_SHARE = 0.05


class GoldenInputs(NamedTuple):
    """Golden inputs of one class."""

    inputs: Inputs
    class_name: str = ""
    class_index: int | None = None


def golden_files(graphs: Graphs, of_classes: Sequence[GoldenInputs]) -> dict[str, bytes]:
    """Score the inputs of each class with every graph and pack them: file name -> content."""
    files: dict[str, bytes] = {}
    samples: list[Golden] = []
    for each in of_classes:
        samples += _samples(graphs, each, files, len(samples))
    files["golden/golden.json"] = to_json(GoldenSet(samples=samples).model_dump(mode="json", exclude_defaults=True))
    return files


def _samples(graphs: Graphs, given: GoldenInputs, files: dict[str, bytes], first: int) -> list[Golden]:
    scored = {
        name: score_all(open_graph(name, model.SerializeToString()), given.inputs, class_index=given.class_index)
        for name, model in graphs.items()
    }
    share: dict[GraphName, float] = {name: FLOAT_SHARE if name == "float" else REDUCED_SHARE for name in graphs}
    samples = []
    of_scans = set(given.inputs) - {"image", "mask"}
    for i in range(len(given.inputs["mask"])):
        number = first + i
        image = f"golden/{number}.png" if "image" in given.inputs else ""
        if image:
            picture = cv2.cvtColor(given.inputs["image"][i], cv2.COLOR_RGB2BGR)
            files[image] = cv2.imencode(".png", picture)[1].tobytes()
        tensors = {name: f"golden/{number}.{name}.npy" for name in sorted(of_scans | {"mask"}) if of_scans}
        for name, file in tensors.items():
            files[file] = to_npy(given.inputs[name][i])
        maps: dict[GraphName, str] = {name: f"golden/{number}.{name}.npy" for name in graphs}
        for name, file in maps.items():
            files[file] = to_npy(scored[name].maps[i])
        samples.append(
            Golden(
                image=image,
                tensors=cast("dict[ScanTensor | Literal['mask'], str]", tensors),
                scores={name: float(scored[name].scores[i]) for name in graphs},
                maps=maps,
                score_tolerance={name: share[name] * abs(float(scored[name].scores[i])) for name in graphs},
                map_tolerance={name: share[name] * float(scored[name].maps[i].max()) for name in graphs},
                class_name=given.class_name,
            )
        )
    return samples
