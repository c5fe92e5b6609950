"""The scan is exact, causal, differentiable, linear in length, and exports to plain operators."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compile.scan import SelectiveScan


@pytest.fixture(scope="module")
def scan() -> SelectiveScan:
    return SelectiveScan()


def loop(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The definition, in float64, one step after the other."""
    x, a, b, c = (v.double() for v in (x, a, b, c))
    state = x.new_zeros(x.shape[0], b.shape[2], x.shape[2])
    steps = []
    for t in range(x.shape[1]):
        state = torch.exp(a[:, t])[:, None, None] * state + b[:, t, :, None] * x[:, t, None]
        steps.append((state * c[:, t, :, None]).sum(1))
    return torch.stack(steps, 1)


STEPS = {
    "up to 0.1": lambda u: 10 ** (2 * u - 3),
    "up to 1": lambda u: 10 ** (3 * u - 3),
    "small": lambda u: torch.full_like(u, 1e-4),
    "1e-4 and 200 mixed": lambda u: torch.where(u < 0.02, 200.0, 1e-4),
    "1e-4 then 200 by turns": lambda u: torch.where(torch.arange(u.shape[1]) % 2 == 0, 1e-4, 200.0).expand_as(u),
}


def problem(length: int, steps: str, *, scaled: bool, sequences: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(length)
    dt = STEPS[steps](torch.rand(sequences, length, generator=g))
    x, b, c = (torch.randn(sequences, length, n, generator=g) for n in (24, 16, 16))
    return x * dt[..., None] if scaled else x, -dt, b, c


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("length", [1, 31, 33, 784, 4096])
def test_equals_the_loop(scan, length, steps, scaled):
    inputs = problem(length, steps, scaled=scaled)
    want = loop(*inputs)
    assert float((scan(*inputs) - want).abs().max() / want.abs().max()) <= 1e-5


@pytest.mark.parametrize("scaled", [True, False])
def test_equals_the_loop_over_16384_steps(scan, scaled):
    inputs = problem(16384, "1e-4 and 200 mixed", scaled=scaled)
    want = loop(*inputs)
    assert float((scan(*inputs) - want).abs().max() / want.abs().max()) <= 1e-5


@pytest.mark.parametrize("at", [0, 1, 31, 32, 255, 256, 600])
def test_causal(scan, at):
    """Editing step `at` changes no earlier output, not in the last bit, and does change its own."""
    x, a, b, c = problem(784, "up to 1", scaled=True)
    before = scan(x, a, b, c)
    x, a, b, c = (v.clone() for v in (x, a, b, c))
    for v in (x, b, c):
        v[:, at:] = torch.randn_like(v[:, at:])
    a[:, at:] = -3.0
    after = scan(x, a, b, c)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])


def test_remembers_across_all_chunks(scan):
    """Without decay, the first input still reaches the last output."""
    x, b, c = torch.zeros(1, 5000, 1), torch.ones(1, 5000, 1), torch.ones(1, 5000, 1)
    x[0, 0] = 1.0
    assert torch.allclose(scan(x, torch.zeros(1, 5000), b, c), torch.ones(1, 5000, 1))


def test_gradients_are_those_of_the_loop(scan):
    inputs = problem(300, "up to 1", scaled=True)
    weight = torch.randn(2, 300, 24, generator=torch.Generator().manual_seed(1))
    grads = []
    for function in (scan, loop):
        leaves = [v.clone().requires_grad_() for v in inputs]
        grads.append(torch.autograd.grad((function(*leaves) * weight).sum(), leaves))
    for got, want in zip(*grads, strict=True):
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5


def test_gradients_stay_finite_at_extreme_steps(scan):
    leaves = [v.requires_grad_() for v in problem(784, "1e-4 and 200 mixed", scaled=True)]
    scan(*leaves).square().mean().backward()
    assert all(torch.isfinite(v.grad).all() for v in leaves)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Length -> ONNX file of the scan alone."""
    folder = tmp_path_factory.mktemp("scan")
    files = {}
    for length in (784, 1024, 4096, 16384):
        file = folder / f"{length}.onnx"
        inputs = problem(length, "1e-4 and 200 mixed", scaled=True)
        program = torch.onnx.export(
            SelectiveScan().eval(), inputs, dynamo=True, opset_version=18, verbose=False, input_names=list("xabc")
        )
        program.save(file, external_data=False)
        files[length] = file
    return files


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_exports_to_plain_products(exported):
    for length, file in exported.items():
        model = onnx.load(file)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"Loop", "Scan", "If", "CumSum", "Div", "Einsum"}, kinds
        assert {node.domain for node in model.graph.node} == {""}
        inputs = problem(length, "1e-4 and 200 mixed", scaled=True)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {n: v.numpy() for n, v in zip("xabc", inputs, strict=True)})
        want = loop(*inputs).numpy()
        assert np.abs(got - want).max() / np.abs(want).max() <= 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_cost_is_linear_in_length(exported):
    """Multiply-adds and activation bytes of the exported graph: four times the steps, four times the cost."""
    cost = {length: _cost(onnx.load(file)) for length, file in exported.items()}
    for measure in (0, 1):
        for short, long in ((1024, 4096), (4096, 16384)):
            assert cost[long][measure] / cost[short][measure] == pytest.approx(4, rel=0.02)


def _cost(model: onnx.ModelProto) -> tuple[int, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes |= {v.name: list(v.dims) for v in graph.initializer}
    products = sum(
        math.prod(shapes[n.output[0]]) * shapes[n.input[0]][-1] for n in graph.node if n.op_type in ("MatMul", "Gemm")
    )
    memory = sum(4 * math.prod(shapes[o]) for n in graph.node for o in n.output if n.op_type != "Reshape")
    assert products > 0
    assert memory > 0
    return products, memory
