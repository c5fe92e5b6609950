"""The report for people: one self-contained HTML file, figures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files

import cv2
import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from compile.evidence import Evidence, Example

TEMPLATE = "report.html"
MOST_SKIPPED = 200  # rows
GRAPH_NAMES = {
    "torch": "trained model (torch)",
    "float": "model.onnx (float)",
    "int8": "model.int8.onnx (ONNX Runtime)",
    "trt": "model.trt.onnx (TensorRT form, scored by ONNX Runtime)",
}


def render_report(classes: Sequence[Evidence]) -> str:
    """Render the report: HTML with every picture inlined, no script, nothing fetched.

    Args:
        classes: what was found out about each class, the first about the whole too.

    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("compile").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(whole=classes[0], classes=[_shown(each) for each in classes], names=GRAPH_NAMES)


def _shown(evidence: Evidence) -> dict[str, object]:
    peak = max((float(np.quantile(each.map, 0.995)) for each in evidence.examples), default=1.0)
    return {
        "it": evidence,
        "histogram": _histogram(evidence),
        "examples": [
            {
                "title": e.title,
                "score": e.score,
                "images": [_png(each) for each in e.images],
                "overlay": _png(_overlay(e, peak)),
            }
            for e in evidence.examples
        ],
        "skipped": evidence.data.skipped[:MOST_SKIPPED],
        "more_skipped": max(0, len(evidence.data.skipped) - MOST_SKIPPED),
    }


def _histogram(evidence: Evidence) -> str:
    shown = [name for name in evidence.good_scores if name == "float" or evidence.reduced[name].kept]
    figure = Figure(figsize=(8, 2.2 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(np.atleast_1d(figure.subplots(len(shown), 1)), shown, strict=True):
        good, others = evidence.good_scores[name], evidence.other_scores.get(name, np.empty(0))
        limit = evidence.thresholds[name].value
        together = np.concatenate([good, others])
        edges = np.linspace(together.min(), np.quantile(together, 0.98) + 1e-9, 60)
        axes.hist(np.clip(good, None, edges[-1]), edges, alpha=0.7, color="#2a7f62", label="good, not trained on")
        if others.size:
            axes.hist(np.clip(others, None, edges[-1]), edges, alpha=0.5, color="#b3432b", label=evidence.other_name)
        axes.axvline(limit, color="black", linestyle="--", label=f"threshold {limit:.4g}")
        axes.set_title(GRAPH_NAMES[name], fontsize=9)
        axes.set_ylabel("pictures", fontsize=8)
        axes.legend(fontsize=7)
    figure.supxlabel("score (the last bar holds all larger ones)", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode()


def _overlay(example: Example, peak: float) -> NDArray[np.uint8]:
    image = example.images[-1]
    height, width = image.shape[:2]
    heat = cv2.resize(example.map, (width, height), interpolation=cv2.INTER_LINEAR)
    level = np.clip(heat / max(peak, 1e-9) * 255, 0, 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.45, colours, 0.55, 0).astype(np.uint8)


def _png(image: NDArray[np.uint8], side: int = 224) -> str:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()).decode()
