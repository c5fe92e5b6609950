"""Trunk maps on disk: each picture by one rendering in turn, and not again after a kill."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.backbone import Trunk
from compile.features import Features


def times(factor: float) -> onnx.ModelProto:
    """A trunk whose one map is the picture times a factor."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 3])
    map_ = helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 2, 2, 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["map"]),
    ]
    constant = numpy_helper.from_array(np.float32(factor), "factor")
    graph = helper.make_graph(nodes, "times", [image], [map_], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 80, (5, 2, 2, 3), dtype=np.uint8)


def test_each_picture_is_computed_by_one_rendering_in_turn(tmp_path: Path, pictures: np.ndarray) -> None:
    features = Features(tmp_path, ["in turns"])
    told: list[tuple[int, int]] = []
    features.extract_in_turns(
        {"float": times(1), "int8": times(2), "trt": times(3)},
        pictures,
        threads=1,
        tick=lambda *news: told.append(news),
    )
    factors = np.array([1, 2, 3, 1, 2])[:, None, None, None]
    np.testing.assert_array_equal(features.maps[0], pictures * factors.astype(np.float32))
    assert features.pictures == 5
    assert features.rows_of(np.array([1, 4])).tolist() == [1, 4]
    assert told == [(i, 5) for i in range(1, 6)]


def test_what_is_done_is_not_done_again(tmp_path: Path, pictures: np.ndarray) -> None:
    trunks = {"float": times(1), "int8": times(2)}
    Features(tmp_path, ["in turns"]).extract_in_turns(trunks, pictures, threads=1, tick=None)
    again = Features(tmp_path, ["in turns"])
    again.extract_in_turns({"float": times(7)}, pictures, threads=1, tick=lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(again.maps[0][::2], pictures[::2].astype(np.float32))
    assert again.pictures == 5


def test_torch_computes_in_batches_what_onnx_runtime_does(
    tmp_path: Path, trunk: onnx.ModelProto, inputs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compile.features.BATCH", 2)
    pictures, told = np.stack(inputs[:3]), []
    found = []
    for name, module in (("graph", None), ("module", Trunk())):
        (tmp_path / name).mkdir()
        made = Features(tmp_path / name, ["other", "float"])
        made.extract("other", trunk, pictures[::-1], exact=False, threads=1, tick=None)
        tell = (lambda *news: told.append(news)) if module else None
        made.extract("float", trunk, pictures, exact=False, threads=1, tick=tell, module=module)
        found.append(made.maps)
    assert told == [(2, 3), (3, 3)]
    for by_graph, by_module in zip(*found, strict=True):
        assert by_module.shape[0] == 6
        np.testing.assert_array_equal(by_module[:3], by_graph[:3])
        np.testing.assert_allclose(by_module[3:], by_graph[3:], rtol=1e-3, atol=1e-4)
