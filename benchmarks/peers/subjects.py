"""Whatever is timed, as one call: a camera frame in, an answer out."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge.bundle import Bundle, Input, read_bundle
from edge.front_end import rgb
from edge.scorer import Scorer

Frame = NDArray[np.uint8]
Call = Callable[[Frame], Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on a runtime with so many threads."""

    name: str
    path: Path  # a peer's ONNX file, or the bundle
    runtime: Literal["ONNX Runtime", "OpenVINO", "student"]
    threads: int

    def __str__(self) -> str:
        runtime = "ONNX Runtime" if self.runtime == "student" else self.runtime
        return f"{self.name}, {runtime}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def export_peers(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Export the peers, see `benchmarks.peers.export`, which imports torch."""
    from benchmarks.peers.export import export  # noqa: PLC0415

    return export(folder)


def open_subject(subject: Subject, spec: Input) -> Call:
    """Open it; a peer's frames are reduced by the front end of our students, so that this costs all the same."""
    if subject.runtime == "student":
        scorer = Scorer(wide_bundle(subject.path), "int8" if "INT8" in subject.name else "float", subject.threads)
        return scorer.score
    run = _openvino(subject) if subject.runtime == "OpenVINO" else _onnx_runtime(subject)

    def call(frame: Frame) -> Any:
        return run((rgb(frame, spec).transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32, copy=False))

    return call


def wide_bundle(path: Path) -> Bundle:
    """Read a bundle that takes colour frames of any size."""
    bundle = read_bundle(path)
    given = bundle.manifest.pictures
    source = given.source.model_copy(update={"height": (1, 4096), "width": (1, 4096), "channels": 3})
    wide = given.model_copy(update={"source": source})
    bundle.manifest = bundle.manifest.model_copy(update={"input": wide})
    return bundle


def first_score(subject: Subject, spec: Input, frame: Frame) -> tuple[float, float]:
    """Open it in this process, which did nothing else, and score once: seconds, and the most memory it took, MB."""
    if subject.runtime == "OpenVINO":
        importlib.import_module("openvino")
    started = time.perf_counter()
    open_subject(subject, spec)(frame)
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return seconds, int(status["VmHWM"].split()[0]) / 1000


def _onnx_runtime(subject: Subject) -> Callable[[NDArray[np.float32]], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = subject.threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(subject.path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda image: session.run(None, {given.name: image})


def _openvino(subject: Subject) -> Callable[[NDArray[np.float32]], Any]:
    import openvino  # noqa: PLC0415 - a process of our students is measured without it

    wishes = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(subject.threads)}
    compiled = openvino.Core().compile_model(subject.path.with_suffix(".xml"), "CPU", wishes)
    return lambda image: compiled([image])
