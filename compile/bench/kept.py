"""Runs of a comparison, kept until it ends: one that was killed after hours goes on where it was.

Each is a folder of its own: scores.npy, maps.npy and, last of all and at once, run.json, without which it counts as not
done. Who gives the folder answers for it: that the same data, settings and code are behind it (`compile.work`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compile.bench.cost import Cost
from compile.bundle_writer import replacing
from compile.parity import Scored

DONE = "run.json"


class Run(NamedTuple):
    """One fit, measured on the test pictures of one data set."""

    scored: Scored  # maps on disk: those of all methods and seeds together may not fit into memory
    seconds: float  # of the fit
    cost: Cost  # of its graph


def is_kept(folder: Path) -> bool:
    """Whether the run of this folder was done."""
    return (folder / DONE).is_file()


def keep_run(folder: Path, run: Run) -> None:
    """Write a run.

    Raises:
        OSError: there is no room.

    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "scores.npy", run.scored.scores)
    np.save(folder / "maps.npy", run.scored.maps)
    with replacing(folder / DONE, json.dumps({"seconds": run.seconds, "cost": asdict(run.cost)}).encode()):
        pass


def read_run(folder: Path) -> Run:
    """Read what `keep_run` wrote."""
    told = json.loads((folder / DONE).read_text("utf-8"))
    scored = Scored(np.load(folder / "scores.npy"), np.load(folder / "maps.npy", mmap_mode="r"))
    return Run(scored, float(told["seconds"]), Cost(**told["cost"]))
