"""INP-Former computes what its description says, number by number, and exports to plain operators."""

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor
from torch.nn import functional

from compile.export import export
from compile.methods.inp_former import (
    GuidedBlock,
    INPFormer,
    Size,
    ZeroShot,
    assigned,
    cosine_distance,
    mean,
    nearest,
    residual,
    to_tokens,
)
from compile.methods.inp_former_map import map_operator, published_head
from compile.onnx_session import open_session
from compile.tensorrt_build import build, check_allowed

Weights = dict[str, NDArray[np.float64]]
TINY = Size(width=16, heads=4, prototypes=3, blocks=4, groups=2)
GRID = (3, 5)


def tiny(size: Size = TINY, spread: float = 0.5) -> INPFormer:
    """With every weight random: those that start as zeros or ones would hide mistakes."""
    torch.manual_seed(0)
    model = INPFormer(size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return model.eval().requires_grad_(requires_grad=False)


def maps(count: int = 2, groups: int = 2, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, width, *GRID, generator=generator) + 0.5 for _ in range(groups)]


# The same model once more, in NumPy, one picture and one head at a time.


def linear(w: Weights, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w: Weights, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    hidden = linear(w, f"{name}.0", x)
    return linear(w, f"{name}.2", hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))))


def attend(w: Weights, name: str, x: NDArray[np.float64], y: NDArray[np.float64], scale=None) -> NDArray[np.float64]:
    """Softmax attention, or with `scale` the ReLU of scaled cosines."""
    q = linear(w, f"{name}.query", layer_norm(w, f"{name}.norm", x))
    kv = linear(w, f"{name}.key_value", layer_norm(w, f"{name}.norm", y))
    k, v = kv[:, :16], kv[:, 16:]
    heads = []
    for h in range(4):
        qh, kh, vh = (a[:, 4 * h : 4 * h + 4] for a in (q, k, v))
        if scale is None:
            logits = np.exp(qh @ kh.T / 2)
            weights = logits / logits.sum(1, keepdims=True)
        else:
            lengths = np.linalg.norm(qh, axis=1)[:, None] * np.linalg.norm(kh, axis=1)
            weights = np.maximum(scale[h] * (qh @ kh.T) / lengths, 0)
        heads.append(weights @ vh)
    return linear(w, f"{name}.out", np.concatenate(heads, 1))


def slow(w: Weights, groups: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Group features [N, 16] of one picture to its distances [N]."""
    fused = (groups[0] + groups[1]) / 2
    p = w["tokens"] + attend(w, "extractor", w["tokens"], fused)
    p = p + mlp(w, "extractor.mlp", layer_norm(w, "extractor.norm_mlp", p))
    x = mlp(w, "bottleneck", fused)
    outputs = []
    for b in range(4):
        x = attend(w, f"decoder.{b}", x, p, w[f"decoder.{b}.scale"].ravel())
        x = x + mlp(w, f"decoder.{b}.mlp", layer_norm(w, f"decoder.{b}.norm_mlp", x))
        outputs.append(x)
    rebuilt = [(outputs[3] + outputs[2]) / 2, (outputs[1] + outputs[0]) / 2]
    cosines = [
        (e * d).sum(1) / np.linalg.norm(e, axis=1) / np.linalg.norm(d, axis=1)
        for e, d in zip(groups, rebuilt, strict=True)
    ]
    return 1 - (cosines[0] + cosines[1]) / 2


def test_computes_what_its_description_says():
    model, features = tiny(), maps()
    (found,) = model(features)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for i in range(2):
        want = slow(weights, [f[i].flatten(1).T.double().numpy() for f in features])
        np.testing.assert_allclose(found[i].flatten().numpy(), want, atol=2e-5)
    assert found.shape == (2, *GRID)


def test_starts_as_published():
    torch.manual_seed(0)
    model = INPFormer(Size(width=64, heads=4)).requires_grad_(requires_grad=False)
    weight = model.decoder[0].query.weight
    assert float(weight.abs().max()) <= 0.03
    assert float(weight.std()) == pytest.approx(0.01, rel=0.05)
    assert float(model.bottleneck[0].bias.abs().max()) == 0
    assert float(model.tokens.std()) == pytest.approx(1, rel=0.1)
    assert torch.equal(model.decoder[0].scale, torch.ones(4, 1, 1))


def test_a_token_whose_cosines_are_all_negative_leaves_only_biases():
    block = GuidedBlock(TINY).eval()
    torch.nn.init.zeros_(block.query.weight)
    torch.nn.init.ones_(block.query.bias)
    torch.nn.init.zeros_(block.key_value.weight)
    torch.nn.init.constant_(block.key_value.bias, -1.0)
    torch.nn.init.ones_(block.out.bias)
    with torch.no_grad():
        found = block(torch.randn(1, 7, 16), torch.randn(1, 3, 16))
        want = block.widen(torch.ones(1, 7, 16))
    torch.testing.assert_close(found, want)


def test_padded_keys_change_nothing():
    """Zero keys have cosine 0 with everything, and ReLU keeps nothing of it."""
    features, padded = maps(), tiny(Size(width=16, heads=4, prototypes=3, blocks=4, keys=8))
    torch.testing.assert_close(padded(features)[0], tiny()(features)[0], rtol=0, atol=1e-6)


def test_padding_the_prototypes_instead_would_change_the_map():
    """A zero prototype gets a key from the biases of normalisation and projection."""
    block, x = tiny().decoder[0], torch.randn(1, 7, 16)
    prototypes = torch.randn(1, 3, 16)
    padded = functional.pad(prototypes, (0, 0, 0, 5))
    assert float((block(x, padded) - block(x, prototypes)).abs().max()) > 0.01


def test_nearest_prototype_is_that_of_the_broadcast_form():
    fused, prototypes = torch.randn(2, 50, 16), torch.randn(2, 6, 16)
    cosines = functional.cosine_similarity(fused[:, :, None], prototypes[:, None], dim=3)
    torch.testing.assert_close(nearest(fused, prototypes), (1 - cosines).amin(2), rtol=0, atol=1e-5)
    soft = (cosines.softmax(2)[..., None] * prototypes[:, None]).sum(2)
    torch.testing.assert_close(assigned(fused, prototypes), soft, rtol=0, atol=1e-5)


def test_zeros_are_at_distance_one_with_a_finite_gradient():
    x = torch.zeros(1, 1, 16, requires_grad=True)
    found = cosine_distance(x, torch.ones(1, 1, 16))
    found.sum().backward()
    assert found.item() == 1
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("soft", [False, True])
def test_zero_shot_map_is_the_distance_to_the_prototypes(soft):
    model, features = tiny(), maps()
    fused = mean(to_tokens(features))
    prototypes = model.prototypes(fused)
    target = assigned(fused, prototypes) if soft else None
    cosines = functional.cosine_similarity(fused[:, :, None], prototypes[:, None], dim=3)
    want = 1 - (cosines.amax(2) if target is None else functional.cosine_similarity(fused, target, dim=2))
    (found,) = ZeroShot(model, soft=soft)(features)
    torch.testing.assert_close(found, want.reshape(2, *GRID), rtol=0, atol=1e-5)


def test_the_residual_trains_no_reconstruction():
    model, features = tiny().requires_grad_(), maps()
    head = torch.nn.Linear(16, 1)
    groups = to_tokens(features)
    rebuilt = model.rebuild(mean(groups), model.prototypes(mean(groups)))
    seen = residual(groups, rebuilt)
    head(seen).sum().backward()
    assert head.weight.grad is not None
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []
    distance = 1 - sum(functional.cosine_similarity(e, d, dim=2) for e, d in zip(groups, rebuilt, strict=True)) / 2
    error = sum((e - d).abs() for e, d in zip(groups, rebuilt, strict=True)) / 2
    torch.testing.assert_close(seen, (distance[..., None] * error).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"width": 16, "heads": 3}, "16 does not split into 3 heads"), ({"blocks": 5}, "5 decoder blocks do not split")],
)
def test_sizes_that_do_not_split_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Size(**wrong)


class Both(torch.nn.Module):
    """The head of reconstruction and the head of zero shots, exported at once to save time."""

    def __init__(self, model: INPFormer) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(published_head(each, GRID) for each in (model, ZeroShot(model, soft=True)))

    def forward(self, first: Tensor, second: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return sum((head(first, second, mask) for head in self.heads), ())


def test_exports_to_what_tensorrt_takes():
    heads = Both(tiny(Size(width=16, heads=4, prototypes=3, blocks=2, keys=8))).eval()
    example = (*maps(), torch.rand(2, 256, 256))
    model: onnx.ModelProto = export(heads, example, ["one", "two", "mask"], ["score", "map", "zero_score", "zero_map"])
    assert check_allowed(model) == []
    assert "Resize" not in {node.op_type for node in model.graph.node}
    assert len(build(model).engine) > 10_000
    session = open_session(model)
    for rows in ([0], [1, 0, 1]):
        inputs = [each[rows] for each in example]
        got = session.run(None, {name: x.numpy() for name, x in zip(["one", "two", "mask"], inputs, strict=True)})
        for found, want in zip(got, heads(*inputs), strict=True):
            np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-5)


def by_steps(distances: Tensor, padding: str) -> Tensor:
    """Resize to 392, resize to 256, blur: one after the other."""
    full = functional.interpolate(distances[:, None], (392, 392), mode="bilinear", align_corners=True)
    small = functional.interpolate(full, (256, 256), mode="bilinear", align_corners=False)
    x = torch.arange(5, dtype=distances.dtype) - 2
    kernel = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 4.0**2))
    mode = {"zero": "constant", "replicate": "replicate"}[padding]
    return functional.conv2d(functional.pad(small, (2, 2, 2, 2), mode=mode), (kernel / kernel.sum())[None, None])[:, 0]


@pytest.mark.parametrize("padding", ["zero", "replicate"])
def test_one_operator_is_all_the_steps_of_the_map(padding):
    distances = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(3))
    head = published_head(torch.nn.Identity(), (28, 28), padding=padding)
    score, heat = head(distances, torch.ones(2, 256, 256))
    want = by_steps(distances, padding)
    torch.testing.assert_close(heat, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(score, want.flatten(1).sort(1).values[:, -655:].mean(1), rtol=0, atol=1e-5)


def test_zero_padding_darkens_the_rim_and_replicating_does_not():
    gains = map_operator(28, 392, 256, padding="zero").sum(1)
    assert gains[:4].numpy() == pytest.approx([0.606, 0.812, 1, 1], abs=1e-3)
    assert gains.flip(0).numpy() == pytest.approx(gains.numpy(), abs=1e-6)
    assert map_operator(28, 392, 256).sum(1).numpy() == pytest.approx(np.ones(256), abs=1e-6)
