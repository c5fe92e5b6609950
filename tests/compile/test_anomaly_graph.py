"""The whole graph keeps the contract, exports to plain operators, agrees with torch, and costs what its pixels cost."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import shape_inference
from skimage import data

from compile.anomaly_graph import MAP_LIMIT, TOP_LIMIT, AnomalyGraph, AnomalyHead, top_count
from compile.backbone import Trunk
from compile.export import export, join
from compile.methods.varad import VarAD
from compile.methods.varad_fit import fit_varad
from compile.standardise import BASE, Standardised, measure_spread
from compile.tensorrt_build import check_allowed
from edge.bundle import Input, Source
from edge.front_end import rgb

NAMES = ["maps_8", "maps_16"]


def pictures(count: int, side: int = 64) -> torch.Tensor:
    """Cut-outs of a photograph in colour, uint8 [count, side, side, 3]."""
    image = data.coffee()
    spec = Input(height=side, width=side, source=Source(height=(1, 999), width=(1, 999), channels=3))
    cuts = np.random.default_rng(0).integers(0, 250, (count, 2))
    return torch.from_numpy(np.stack([rgb(image[y : y + 128, x : x + 128].copy(), spec) for y, x in cuts]))


def map_side(side: int) -> int:
    return min(MAP_LIMIT, side // 2)


def untrained(side: int) -> AnomalyGraph:
    """The graph of a given size with arbitrary weights and the map that `beltline compile` gives it."""
    trunk = Trunk()
    grids = [(math.ceil(side / s), math.ceil(side / s)) for s in trunk.levels]
    torch.manual_seed(0)
    model = VarAD(trunk.channels, grids)
    for stream in model.hierarchies():
        torch.nn.init.normal_(stream.conv, std=0.5)
    return AnomalyGraph(
        trunk, AnomalyHead(model.requires_grad_(requires_grad=False), grids, (map_side(side), map_side(side)))
    )


@pytest.fixture(scope="module")
def graph() -> AnomalyGraph:
    trunk = Trunk()
    features = [m.numpy() for m in trunk(pictures(24))]
    model = fit_varad(features, seed=0, steps=40)
    standardised = Standardised(model, [measure_spread(model, features)])
    return AnomalyGraph(trunk, AnomalyHead(standardised, [f.shape[2:] for f in features], (16, 16)))


@pytest.fixture(scope="module")
def joined(graph) -> onnx.ModelProto:
    """Trunk and head exported apart and joined, as a bundle carries them."""
    images = pictures(2)
    trunk = export(graph.trunk, (images,), ["image"], NAMES)
    head = export(graph.head, (*graph.trunk(images), torch.ones(2, 16, 16)), [*NAMES, "mask"], ["score", "map"])
    return join(trunk, head)


def run(model: onnx.ModelProto, images: torch.Tensor, mask: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    out: list[np.ndarray] = session.run(["score", "map"], {"image": images.numpy(), "mask": mask.numpy()})
    return out


def test_keeps_the_contract(graph):
    score, heat = graph(pictures(3), torch.ones(3, 16, 16))
    assert score.shape == (3,)
    assert heat.shape == (3, 16, 16)
    assert score.dtype == heat.dtype == torch.float32
    assert float(heat.min()) >= 0


def test_score_is_the_mean_of_the_map_s_top(graph):
    score, heat = graph(pictures(3), torch.ones(3, 16, 16))
    assert graph.head.top == int(0.01 * 16 * 16)
    for s, h in zip(score, heat, strict=True):
        assert float(s) == pytest.approx(float(h.flatten().sort().values[-graph.head.top :].mean()), rel=1e-6)
    assert AnomalyHead(torch.nn.Identity(), [(8, 8)], (256, 256), top=0.5).top == TOP_LIMIT


def test_the_top_hundredth_has_as_many_pixels_as_published():
    assert top_count((256, 256), 0.01) == 655
    assert top_count((392, 392), 0.01) == 1536
    assert top_count((256, 256), 0) == 1  # the maximum


def test_smoothing_spreads_a_point_as_a_gaussian_and_keeps_a_flat_map():
    heads = [AnomalyHead(torch.nn.Identity(), [(64, 64)], (64, 64), smoothing=s) for s in (0.0, 3.0)]
    point = torch.zeros(1, 64, 64)
    point[0, 30, 34] = 1
    sharp, smooth = (head(point, torch.ones(1, 64, 64))[1][0] for head in heads)
    grid = torch.arange(64.0)
    for axis in (0, 1):
        variances = [float((h.sum(axis) * (grid - (h.sum(axis) * grid).sum()) ** 2).sum()) for h in (sharp, smooth)]
        assert variances[1] - variances[0] == pytest.approx(9, rel=0.01)
    flat = heads[1](torch.ones(1, 64, 64), torch.ones(1, 64, 64))[1]
    torch.testing.assert_close(flat, torch.ones(1, 64, 64))


def test_what_the_mask_hides_does_not_count(graph):
    images = pictures(1)
    _, heat = graph(images, torch.ones(1, 16, 16))
    worst = divmod(int(heat.argmax()), 16)
    mask = torch.ones(1, 16, 16)
    mask[0, worst[0], worst[1]] = 0
    score, masked = graph(images, mask)
    assert float(masked[0, worst[0], worst[1]]) == 0
    assert torch.equal(masked, heat * mask)
    assert float(graph(images, torch.zeros(1, 16, 16))[0]) == 0
    assert float(score) < float(graph(images, torch.ones(1, 16, 16))[0])


def test_a_defect_shows_where_it_is():
    """An impulse in a hierarchy's map comes out at its place in the picture, in both hierarchies alike."""
    for cells in (16, 32):
        head = AnomalyHead(torch.nn.Identity(), [(cells, cells)], (64, 64))
        surprise = torch.zeros(1, cells, cells)
        surprise[0, cells // 4, cells // 2] = 1.0  # evenly padded strides: centred at 16 and 32 of 64
        _, heat = head.eval()(surprise, torch.ones(1, 64, 64))
        rows, columns = heat[0].sum(1), heat[0].sum(0)
        at = torch.arange(64) + 0.5
        assert float((rows * at).sum() / rows.sum()) == pytest.approx(16, abs=0.01)
        assert float((columns * at).sum() / columns.sum()) == pytest.approx(32, abs=0.01)


def test_blue_for_red_is_an_anomaly(graph):
    images = pictures(8)
    right, swapped = (graph(i, torch.ones(8, 16, 16))[0] for i in (images, images.flip(3)))
    assert float(right.mean()) < BASE + 5
    assert float((swapped - right).min()) > 1


def test_refuses_a_map_beyond_the_limit():
    with pytest.raises(ValueError, match="at most 256"):
        AnomalyHead(torch.nn.Identity(), [(8, 8)], (257, 64))


def test_joined_export_says_what_torch_says(graph, joined):
    """Scores, labels at any threshold, maps: for any batch."""
    for count in (1, 5):
        images, mask = pictures(count), torch.ones(count, 16, 16)
        mask[:, :4] = 0
        for got, want in zip(run(joined, images, mask), graph(images, mask), strict=True):
            assert np.abs(got - want.numpy()).max() <= 1e-4 * np.abs(want.numpy()).max()


def test_export_is_plain(joined):
    kinds = {node.op_type for node in joined.graph.node}
    assert not kinds & {"Loop", "Scan", "If", "CumSum", "Einsum", "NonZero", "GatherND", "ScatterND"}, kinds
    assert {node.domain for node in joined.graph.node} == {""}
    assert {(o.domain, o.version) for o in joined.opset_import} == {("", 18)}
    assert joined.ir_version <= 10
    assert joined.functions == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cost_grows_with_the_pixels_and_no_faster():
    """Multiply-adds and activation bytes of the whole exported graph, 256 to 512 to 1024 pixels a side, with maps of
    128, 256 and 256."""
    cost = {}
    for side in (256, 512, 1024):
        graph = untrained(side)
        image = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        model = export(
            graph, (image, torch.ones(2, map_side(side), map_side(side))), ["image", "mask"], ["score", "map"]
        )
        cost[side] = _cost(model)
    for small, large in ((256, 512), (512, 1024)):
        for measure in (0, 1):
            assert cost[large][measure] / cost[small][measure] == pytest.approx(4, rel=0.02)


def _cost(model: onnx.ModelProto) -> tuple[int, int]:
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {v.name: list(v.dims) for v in graph.initializer}
    products = sum(_products(node, shapes) for node in graph.node)
    memory = sum(4 * math.prod(shapes[name]) for node in _moving(graph) for name in node.output)
    return products, memory


def _products(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    out = math.prod(shapes[node.output[0]])
    if node.op_type in ("MatMul", "Gemm"):
        return out * shapes[node.input[0]][-1]
    return out * math.prod(shapes[node.input[1]][1:]) if node.op_type == "Conv" else 0


def _moving(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes that make activations: not views, and not what depends on weights alone (computed once, at loading)."""
    fixed = {v.name for v in graph.initializer}
    for node in graph.node:
        if all(name in fixed or not name for name in node.input):
            fixed.update(node.output)
        elif node.op_type not in ("Reshape", "Unsqueeze", "Squeeze"):
            yield node


def test_every_operator_is_one_that_tensorrt_10_3_takes(joined):
    assert check_allowed(joined) == []


@pytest.mark.slow
def test_builds_in_tensorrt(joined):
    """Strongly typed, for SM86, on a machine with no GPU: judged by the plan, whatever the driver complains of."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(joined.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        shape = tuple(network.get_input(i).shape)[1:]
        profile.set_shape(network.get_input(i).name, (1, *shape), (1, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 1_000_000
