from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compile.backbone import Trunk
from compile.export import IR_VERSION, OPSET, export, join
from compile.onnx_session import open_session


class Mean(nn.Module):
    """A head of the same shape as the real one: any number of maps, then the mask."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        first, second, mask = inputs
        heat = first.mean(1)[:, :8, :8] * mask + second.mean((1, 2, 3))[:, None, None]
        return heat.amax((1, 2)), heat


@pytest.fixture(scope="module")
def head() -> onnx.ModelProto:
    maps = (torch.zeros(2, 40, 16, 16), torch.zeros(2, 112, 8, 8), torch.ones(2, 8, 8))
    return export(Mean(), maps, ["maps_8", "maps_16", "mask"], ["score", "map"])


def test_the_trunk_says_what_torch_says_at_any_batch(trunk, inputs) -> None:
    session = open_session(trunk)
    for batch in (1, 3):
        images = np.stack(inputs[:batch])
        expected = [each.numpy() for each in Trunk()(torch.from_numpy(images))]
        for found, wanted in zip(session.run(None, {"image": images}), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_file_format_is_the_oldest_box_s(trunk) -> None:
    assert [(entry.domain, entry.version) for entry in trunk.opset_import] == [("", OPSET)]
    assert trunk.ir_version == IR_VERSION
    assert trunk.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_value for axis in trunk.graph.input[0].type.tensor_type.shape.dim] == [0, 128, 128, 3]
    assert all(not tensor.external_data for tensor in trunk.graph.initializer)


def test_no_path_of_the_machine_travels_along(trunk, head) -> None:
    for text in (b"/site-packages/", b"/home/", b"/root/", b".py", b"torch.nn"):
        assert text not in trunk.SerializeToString()
        assert text not in join(trunk, head).SerializeToString()


def test_the_joined_graph_keeps_the_contract_and_the_answer(trunk, head, inputs) -> None:
    joined = join(trunk, head)
    assert [value.name for value in joined.graph.input] == ["image", "mask"]
    assert [value.name for value in joined.graph.output] == ["score", "map"]
    images, mask = np.stack(inputs[:2]), np.ones((2, 8, 8), np.float32)
    mask[1, 2:5] = 0
    maps = open_session(trunk).run(None, {"image": images})
    expected = open_session(head).run(None, {"maps_8": maps[0], "maps_16": maps[1], "mask": mask})
    found = open_session(joined).run(["score", "map"], {"image": images, "mask": mask})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_exporting_twice_gives_the_same_bytes(trunk) -> None:
    again = export(Trunk(), (torch.zeros(2, 128, 128, 3, dtype=torch.uint8),), ["image"], ["maps_8", "maps_16"])
    assert again.SerializeToString(deterministic=True) == trunk.SerializeToString(deterministic=True)
