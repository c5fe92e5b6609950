"""The scorer on a real ONNX Runtime: the contract, the self-test, and answers that are none."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge.bundle import Source, read_bundle
from edge.frame import Score
from edge.front_end import FrameError, rgb
from edge.picture import Picture
from edge.scorer import BadScoreError, Scorer, ScorerError, choose_scorer, preferred, slow_step_ms

MakeBundle = Callable[..., Path]


def test_the_answer_is_the_graphs(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    scorer = Scorer(read_bundle(make_bundle()), "float")
    for seed, size in ((1, 64), (2, 128)):
        frame = tiny.picture(150, seed, size)
        tensor = rgb(frame, scorer.bundle.manifest.input)
        score = scorer.score(frame)
        np.testing.assert_allclose(score.map, tiny.map(tensor), atol=1e-5)
        assert score.value == pytest.approx(tiny.map(tensor).max(), abs=1e-5)
        assert score.input_crc32 == zlib.crc32(tensor.tobytes())
        assert score.graph == scorer.bundle.manifest.files["model.onnx"]
        assert set(score.times_ms) == {"front_end", "graph"}


def test_a_map_outlives_the_next_score(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    scorer = Scorer(read_bundle(make_bundle()), "float")
    first = scorer.score(tiny.picture(200))
    kept = first.map.copy()
    scorer.score(tiny.picture(30))
    np.testing.assert_array_equal(first.map, kept)


def test_bgr_instead_of_rgb_shows(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    scorer = Scorer(read_bundle(make_bundle()), "float")
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[..., 0], frame[:8] = 255, 60
    assert abs(scorer.score(frame).value - scorer.score(frame[..., ::-1]).value) > 0.1


def test_a_graph_that_answers_otherwise_than_when_proven_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(ScorerError, match=r"self-test.*golden/0\.png.*choose another graph"):
        Scorer(read_bundle(make_bundle(golden_shift=0.01)), "float")


def test_a_graph_with_the_right_score_and_another_map_is_refused(
    make_bundle: MakeBundle, tiny: SimpleNamespace
) -> None:
    with pytest.raises(ScorerError, match=r"self-test.*draws a map of golden/0\.png that differs by 0\.\d+, allowed"):
        Scorer(read_bundle(make_bundle(graphs={"float": with_another_map(tiny.graph())})), "float")


def with_another_map(graph: bytes) -> bytes:
    """The same score, but its map is half of what the score was taken from."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "map" else name for name in node.output]
        node.input[:] = ["whole" if name == "map" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    model.graph.node.append(helper.make_node("Mul", ["whole", "half"], ["map"]))
    data: bytes = model.SerializeToString()
    return data


def test_auto_takes_the_reduced_graph_whatever_the_clock_says(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    """Each graph has its own threshold: a busy moment at the start must not decide verdicts."""
    for graphs in (
        {"float": with_copies(tiny.graph(), 400), "int8": tiny.graph()},
        {"float": tiny.graph(), "int8": with_copies(tiny.graph(), 400)},
    ):
        assert choose_scorer(read_bundle(make_bundle(graphs=graphs)), "auto").graph == "int8"
    assert choose_scorer(read_bundle(make_bundle(graphs={"float": tiny.graph()})), "auto").graph == "float"


def test_auto_takes_none_that_breaks_its_promise(
    make_bundle: MakeBundle, tiny: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = {"float": tiny.graph(), "int8": tiny.graph(gain=1.5), "trt": tiny.graph()}
    bundle = read_bundle(make_bundle(graphs=graphs))
    scorer = choose_scorer(bundle, "auto")
    assert scorer.graph == "float"
    assert "graph 'int8' is not used: self-test" in caplog.text
    with pytest.raises(ScorerError, match="self-test"):
        choose_scorer(bundle, "int8")


def test_a_graph_that_is_not_there_is_named(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    bundle = read_bundle(make_bundle(graphs={"float": tiny.graph(), "trt": tiny.graph()}))
    for wanted in ("int8", "trt"):
        with pytest.raises(ScorerError, match=f"no graph '{wanted}' for ONNX Runtime; there are: float"):
            choose_scorer(bundle, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_an_error(make_bundle: MakeBundle, tiny: SimpleNamespace, bad: float) -> None:
    scorer = Scorer(read_bundle(make_bundle(graphs={"float": with_pole(tiny.graph(), bad)})), "float")
    with pytest.raises(BadScoreError, match="not finite"):
        scorer.score(tiny.picture(0))


def with_copies(graph: bytes, copies: int) -> bytes:
    """The same answer, but slower: the map is negated twice, again and again."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.output[:] = ["n0" if name == "map" else name for name in node.output]
    scored = model.graph.node.pop()
    for turn in range(2 * copies):
        model.graph.node.append(helper.make_node("Neg", [f"n{turn}"], [f"n{turn + 1}"]))
    model.graph.node.append(helper.make_node("Identity", [f"n{2 * copies}"], ["map"]))
    model.graph.node.append(scored)
    data: bytes = model.SerializeToString()
    return data


def with_pole(graph: bytes, bad: float) -> bytes:
    """The same graph, but its map holds `bad` wherever it would exceed 0.9."""
    model = onnx.load_from_string(graph)
    for name, value in (("limit", 0.9), ("bad", bad)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    for node in model.graph.node:
        node.output[:] = ["clean" if name == "map" else name for name in node.output]
        node.input[:] = ["clean" if name == "map" else name for name in node.input]
    model.graph.node.insert(len(model.graph.node), helper.make_node("Greater", ["clean", "limit"], ["high"]))
    model.graph.node.append(helper.make_node("Where", ["high", "bad", "clean"], ["map"]))
    data: bytes = model.SerializeToString()
    return data


def test_a_frame_of_another_kind_is_not_scored(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    source = Source(height=(64, 64), width=(64, 64), channels=3)
    scorer = Scorer(read_bundle(make_bundle(source=source)), "float")
    with pytest.raises(FrameError, match="128x128"):
        scorer.score(tiny.picture(128, size=128))


def renamed(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    model.graph.output[0].name = "anomaly"
    model.graph.node[-1].output[0] = "anomaly"
    data: bytes = model.SerializeToString()
    return data


def float_input(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    data: bytes = model.SerializeToString()
    return data


def other_size(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, "'anomaly'"),
        (float_input, "tensor"),
        (other_size, "image|loaded"),
        (lambda graph: graph[: len(graph) // 2], "cannot be loaded"),
        (lambda _: b"", "cannot be loaded"),
    ],
)
def test_a_graph_outside_the_contract_is_refused(
    make_bundle: MakeBundle, tiny: SimpleNamespace, spoil: Callable[[bytes], bytes], message: str
) -> None:
    bundle = read_bundle(make_bundle(graphs={"float": spoil(tiny.graph())}))
    with pytest.raises(ScorerError, match=message):
        Scorer(bundle, "float")


def test_a_hiccup_of_the_box_does_not_count_as_the_recipes_step(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(read_bundle(make_bundle()), "float")
    really_score, calls = scorer.score, 0

    def score(frame: Picture, scan: None) -> Score:
        nonlocal calls
        calls += 1
        if calls in (3, 20):
            time.sleep(0.3)
        return really_score(frame)

    monkeypatch.setattr(scorer, "score", score)
    assert slow_step_ms(scorer) < 250
    monkeypatch.setattr(scorer, "score", lambda *_: time.sleep(0.01))
    assert slow_step_ms(scorer) >= 10


def test_reduced_graphs_come_first() -> None:
    assert preferred(["float", "int8"]) == preferred(["int8", "float"]) == ["int8", "float"]
