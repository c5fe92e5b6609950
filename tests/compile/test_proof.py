"""What decides whether a graph is shipped: on a tiny graph, and on a whole compilation whose INT8 was spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from calibration.ranges import Histogram
from calibration.threshold import set_threshold
from compile import model, proof
from compile.data import DataSet, LabelledImage
from compile.evidence import Evidence
from compile.image_size import SizeChoice
from compile.job import FILES, Clock, Job, Settings
from compile.parity import LABELLED, PAINTED, ParityError, of_pictures
from compile.parts import Parts
from compile.pipeline import compile_data
from compile.precision import Rendering, ranges_of
from compile.quantise import Target, render
from edge.bundle import Input, Source, Spec
from edge.view import View

SIDE = 128
MAP = SIDE // 2
SOURCE = Source(height=(SIDE, SIDE), width=(SIDE, SIDE), channels=3, white=255)


def contrast_graph(step: float = 0.0) -> onnx.ModelProto:
    """The distance of each 2x2 block from mid-grey as map, the largest as score; in whole steps where one is given."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "last"], ["grey"]),
        helper.make_node("Transpose", ["grey"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["t"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Sub", ["p", "middle"], ["centred"]),
        helper.make_node("Abs", ["centred"], ["far"]),
        helper.make_node("Squeeze", ["far", "first"], ["m"]),
        helper.make_node("Mul", ["m", "mask"], ["fine"]),
        helper.make_node("Div", ["fine", "step"], ["steps"]),
        helper.make_node("Round", ["steps"], ["whole"]),
        helper.make_node("Mul", ["whole", "step"], ["coarse"]),
        helper.make_node("Identity", ["coarse" if step else "fine"], ["map"]),
        helper.make_node("ReduceMax", ["map", "places"], ["score"], keepdims=0),
    ]
    constants: dict[str, Any] = {
        "last": np.array([3]),
        "first": np.array([1]),
        "places": np.array([1, 2]),
        "middle": np.float32(128),
        "step": np.float32(step or 1),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "contrast",
        [info("image", TensorProto.UINT8, ["b", SIDE, SIDE, 3]), info("mask", TensorProto.FLOAT, ["b", MAP, MAP])],
        [info("score", TensorProto.FLOAT, ["b"]), info("map", TensorProto.FLOAT, ["b", MAP, MAP])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Contrast(nn.Module):
    """The same in torch; `error` is added to the score of any picture with a white corner."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        grey = image.float().mean(3, keepdim=True).permute(0, 3, 1, 2)
        heat = (nn.functional.avg_pool2d(grey, 2) - 128).abs()[:, 0] * mask
        return heat.amax((1, 2)) + self.error * (image[:, 0, 0, 0] == 255), heat


def good_pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Grey with a soft texture of its own strength each."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (count, SIDE, SIDE, 1)) * rng.uniform(3, 6, (count, 1, 1, 1))
    return np.clip(128 + noise.repeat(3, axis=3), 90, 166).astype(np.uint8)


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Job]:
    """Judges `contrast_graph(step)` as reduced graph on 12 good and 12 plainly defective test pictures."""

    def judge(step: float = 0.0, error: float = 0.0) -> Job:
        held = np.abs(good_pictures(60, 1).astype(float).mean(3) - 128)
        blocks = held.reshape(60, MAP, 2, MAP, 2).mean((2, 4)).max((1, 2))
        data = DataSet(tmp_path, "mvtec", [], np.arange(0), [], SOURCE, SIDE)
        evidence = Evidence("x", "1", 0, data, SizeChoice(SIDE, "asked for"))
        job = Job(Settings(tmp_path, tmp_path / "x.bundle"), Clock(lambda *_: None), tmp_path, spec(), evidence)
        evidence.good_scores = {"float": blocks, "int8": np.round(blocks / step) * step if step else blocks}
        evidence.thresholds = dict.fromkeys(("float", "int8"), set_threshold(blocks, 0.05))
        evidence.good_groups = np.arange(60)
        int8 = contrast_graph(step)
        evidence.renderings["int8"] = Rendering(int8, [0.01], [0.1], [])
        pictures = np.concatenate([good_pictures(12, 2), good_pictures(12, 3)])
        pictures[12:, :40, :40] = 255
        images = [LabelledImage(tmp_path / f"{i}.png", "good" if i < 12 else "white", None) for i in range(24)]
        test = proof.Test(images, Parts(of_pictures(pictures, MAP)), [View(image.path) for image in images])
        proof.judge_on_test(job, Contrast(error), {"float": contrast_graph(), "int8": int8}, test)
        return job

    return judge


def spec() -> Spec:
    return Spec(Input(height=SIDE, width=SIDE, source=SOURCE), None, (), (MAP, MAP))


def test_the_whole_test_set_is_compared_with_the_trained_model(judged: Callable[..., Job]) -> None:
    assert judged().evidence.float_parity["pictures"] == 24
    with pytest.raises(ParityError, match=r"differs from the trained model: scores by 0\.0099 relative"):
        judged(error=1.27)


def test_labelled_pictures_that_any_graph_tells_apart_do_not_suffice(judged: Callable[..., Job]) -> None:
    """Steps of 8 keep white corners apart from good parts, whose own order is gone."""
    fine = judged().evidence.reduced["int8"]
    assert fine.kept
    assert LABELLED in fine.evidence
    assert PAINTED in fine.evidence
    coarse = judged(step=8).evidence.reduced["int8"]
    assert (coarse.auroc_float, coarse.auroc_reduced) == (1, 1), "the labelled pictures say nothing"
    assert not coarse.kept
    assert f"on {PAINTED}: " in coarse.reason
    assert "Spearman" in coarse.reason
    assert LABELLED not in coarse.reason


def test_a_graph_over_the_feature_budget_that_was_kept_is_named(judged: Callable[..., Job]) -> None:
    job = judged()
    graphs = {"float": contrast_graph(), "int8": contrast_graph()}
    assert set(proof.drop_refused(job, graphs)) == {"float", "int8"}
    assert job.evidence.warnings == []
    job.evidence.renderings["int8"] = Rendering(graphs["int8"], [0.01, 0.18], [0.2, 0.2], [])
    assert set(proof.drop_refused(job, graphs)) == {"float", "int8"}
    (warning,) = job.evidence.warnings
    assert "model.int8.onnx: rounding changes the trunk's maps by 18%, 15% was wanted" in warning


def test_a_reduced_graph_is_for_all_classes_or_for_none(judged: Callable[..., Job]) -> None:
    fine, coarse = judged().evidence, judged(step=8).evidence
    fine.class_name, coarse.class_name = "cap", "lid"
    reason = coarse.reduced["int8"].reason
    proof.agree([fine, fine])
    assert fine.reduced["int8"].kept
    proof.agree([fine, coarse])
    assert not fine.reduced["int8"].kept
    assert fine.reduced["int8"].reason == "refused for class lid"
    assert coarse.reduced["int8"].reason == reason
    assert set(fine.defects_found()) == {"float"}


@pytest.mark.slow
def test_spoilt_int8_is_refused_and_half_precision_ships_in_its_place(
    tmp_path: Path, photographs: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges far too narrow: activations saturate in both renderings, and with them what tells parts apart.

    For ONNX Runtime nothing is left then; TensorRT gets the trunk in half precision.
    """

    def narrow(
        trunk: onnx.ModelProto, seen: dict[str, Histogram], target: Target, *_: object, **__: object
    ) -> Rendering:
        ranges = {name: (low / 8, high / 8) for name, (low, high) in ranges_of(seen, "mse", target).items()}
        return Rendering(render(trunk, ranges, target), [1.0, 1.0], [1.0, 1.0], [], ranges=ranges)

    monkeypatch.setattr(model, "render_accurately", narrow)
    (tmp_path / "good").mkdir()
    for i, image in enumerate(photographs[:24]):
        cv2.imwrite(str(tmp_path / "good" / f"{i:02}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    settings = Settings(tmp_path / "good", tmp_path / "x.bundle", size=SIDE, group_by=r"(\d+)", fit_steps=24)
    compiled = compile_data(settings)
    bundle, found = compiled.bundle, compiled.evidence
    assert not found.reduced["int8"].kept
    assert "image AUROC falls by" in found.reduced["int8"].reason
    (tried,) = found.renderings["int8"].trials
    assert tried.recipe == "int8, 19 nodes in float", "half of all do not mend it"
    assert "image AUROC falls by" in tried.verdict
    assert tried.verdict != found.reduced["int8"].reason, "the evidence is of the first form again"
    words = f"{FILES['int8']} was left out: {found.reduced['int8'].reason}"
    assert any(warning.startswith(words) for warning in found.warnings)
    assert f"{FILES['int8']} was left out" in compiled.report.read_text()
    assert FILES["int8"] not in bundle.manifest.files
    assert not any(".int8." in file for file in bundle.manifest.files)
    assert set(bundle.manifest.graphs) == set(bundle.thresholds[0]) == {"float", "trt"}
    for sample in bundle.golden.samples:
        assert set(sample.scores) == set(sample.maps) == {"float", "trt"}
    assert set(found.defects_found()) == {"float", "trt"}
    assert b"model.int8.onnx" not in bundle.read("threshold.json")
    assert found.reduced["trt"].kept
    assert found.renderings["trt"].precision == "float16"
    assert bundle.manifest.graphs["trt"].precision.startswith("float16")
    assert any(f"{FILES['trt']} is in half precision with 0 nodes" in warning for warning in found.warnings)
    shipped = onnx.load_from_string(bundle.read(FILES["trt"]))
    assert not any("Quantize" in node.op_type for node in shipped.graph.node)
    assert any(item.data_type == TensorProto.FLOAT16 for item in shipped.graph.initializer)
    assert set(json.loads(bundle.read("calibration.json"))) == {"int8"}
