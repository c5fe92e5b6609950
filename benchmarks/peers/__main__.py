"""Our students beside the models that anomalib exports: time of one 1024x1024 frame, and memory.

    make bench-peers                            # in an environment of its own
    python -m benchmarks.peers [BUNDLE]         # by default what `make demo` left in out/demo

All whole calls (the same reduction of the frame to 256x256, graph, score, map) are timed in turn in one process, so
that a drifting machine touches all alike; a ratio is the median of the ratios of single rounds. Time to the first score
(imports left out) and memory come from processes of their own. How peers are exported: `benchmarks.peers.export`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.peers.subjects import Frame, Subject, export_peers, first_score, open_subject, wide_bundle
from benchmarks.record import Record, budgets, interleaved_ms, median
from edge.bundle import Input

SOURCE = 1024  # pixels a side
THREADS = (1, 2)
PEER = "EfficientAD-S"
ROUNDS = 15
PACKAGES = ("anomalib", "openvino", "torchvision", "timm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("out/demo/surface.bundle"))
    parser.add_argument("--models", type=Path, help="keep the exported models in this folder")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    record = Record("peers")
    record.remarks.append(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    spec = wide_bundle(arguments.bundle).manifest.pictures
    frame = np.random.default_rng(0).integers(0, 256, (SOURCE, SOURCE, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        models, failed = _export(arguments.models or Path(folder))
        students = [
            Subject(f"student {form}", arguments.bundle, "student", threads)
            for form in ("INT8", "float")
            for threads in THREADS
        ]
        peers = [
            Subject(name, path, runtime, threads)
            for name, path in models.items()
            for runtime in ("ONNX Runtime", "OpenVINO")
            for threads in THREADS
        ]
        calls = {str(each): partial(open_subject(each, spec), frame) for each in (*students, *peers)}
        times = interleaved_ms(calls, rounds=arguments.rounds, warm_up=2)
        for subject in (*students, *peers):
            taken = times[str(subject)]
            told = f"{median(taken):.1f} ms, at best {min(taken):.1f}"
            record.words(str(subject), told + (f"; {_alone(subject, spec, frame)}" if subject.threads == 1 else ""))
    for name, why in failed.items():
        record.words(name, f"not measured: {why}")
    record.words("peers in INT8", "not measured: NNCF wants a data module to calibrate on")
    record.remarks.append(f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} processors, this run included")
    _compare(record, students[0], [each for each in peers if each.threads == 1], times)
    return record.finish()


def _export(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """In a process of its own, whose torch leaves no threads and no memory behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(export_peers, (folder,))


def _compare(record: Record, student: Subject, peers: list[Subject], times: dict[str, list[float]]) -> None:
    """The student against the fastest form of one peer, and of all."""
    budget, mine = budgets("peers"), times[str(student)]
    for which, least in ((PEER, budget["least_over_efficientad"]), ("", budget["least_over_fastest"])):
        chosen = [times[str(each)] for each in peers if each.name.startswith(which)]
        if not chosen:
            record.failures.append(f"{which or 'no peer'} was not measured")
            continue
        fastest = min(chosen, key=median)
        name = next(name for name, taken in times.items() if taken is fastest)
        ratio = median([theirs / own for theirs, own in zip(fastest, mine, strict=True)])
        record.figure(f"{name}, over {student.name}", ratio, "x", least=least)
        record.figure("the same, both at their best", min(fastest) / min(mine), "x")


def _alone(subject: Subject, spec: Input, frame: Frame) -> str:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, memory_mb = pool.apply(first_score, (subject, spec, frame))
    return f"first score after {seconds:.2f} s; at most {memory_mb:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
