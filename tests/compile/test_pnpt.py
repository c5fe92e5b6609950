"""PNPT-style models: exact templates, a decoder that copies nothing, and a class that matters."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compile.export import export
from compile.methods import FitError
from compile.methods.pnpt import PNPT, Attention, Size, cosine_distance, fold, unfold
from compile.methods.pnpt_fit import fit_pnpt
from compile.tensorrt_build import build, check_allowed

SMALL = Size(width=16, heads=2, encoder=1, decoder=1)
CHANNELS = (5, 7)
GRIDS = ((8, 12), (4, 6))
KINDS = 3


def parts(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps of parts of three classes, each with a pattern of its own and noise; and the classes."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.arange(count) % KINDS)
    patterns = np.random.default_rng(7)
    maps = []
    for channels, grid in zip(CHANNELS, GRIDS, strict=True):
        pattern = patterns.normal(0, 1, (KINDS, channels, *grid)) + patterns.normal(0, 0.5, (KINDS, channels, 1, 1))
        noise = rng.normal(0, 0.2, (count, channels, *grid))
        maps.append((pattern[classes] + noise).astype(np.float32))
    return maps, classes


def tensors(maps: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(each) for each in maps]


@pytest.fixture(scope="module")
def fitted() -> PNPT:
    return fit_pnpt(*parts(48, 0), seed=1, steps=150, rate=3e-3, size=SMALL)


@pytest.fixture
def untrained() -> PNPT:
    torch.manual_seed(0)
    model = PNPT(CHANNELS, GRIDS, KINDS, SMALL)
    for i in range(2):
        nn.init.normal_(getattr(model, f"template_{i}"))
    return model.eval().requires_grad_(requires_grad=False)


def test_every_scale_gives_as_many_tokens():
    """PNPT-1: strides 4, 8 and 16 of a picture of 256 pixels give 16x16 tokens each."""
    model = PNPT((3, 4, 5), ((64, 64), (32, 32), (16, 16)), 1, SMALL)
    maps = [torch.zeros(2, c, *g) for c, g in zip((3, 4, 5), model.grids, strict=True)]
    assert [tuple(each.shape) for each in model.embedded(maps)] == [(2, 256, 16)] * 3


def test_templates_are_exact_class_means():
    """PNPT-2, for maps far from zero, with sums over many chunks."""
    maps, classes = parts(50, 3)
    maps = [each + 100 for each in maps]
    model = fit_pnpt(maps, classes, seed=0, steps=1, size=SMALL)
    for i, each in enumerate(maps):
        wanted = np.stack([each[classes == kind].mean(0, dtype=np.float64) for kind in range(KINDS)])
        assert np.abs(getattr(model, f"template_{i}").numpy() / wanted - 1).max() < 1e-6
        standard = (each - getattr(model, f"centre_{i}").numpy()) / getattr(model, f"spread_{i}").numpy()
        assert standard.mean((0, 2, 3)) == pytest.approx(0, abs=1e-3)
        assert standard.std((0, 2, 3)) == pytest.approx(1, abs=1e-3)


def test_nothing_but_attention_leads_from_the_sample_to_the_output(untrained, monkeypatch):
    """PNPT-3: with attention silenced the rebuilt maps depend on the class alone; with it, on the sample too."""
    one, other = tensors(parts(1, 1)[0]), tensors(parts(1, 2)[0])
    first, second = torch.tensor([0]), torch.tensor([1])
    with_attention = [untrained.rebuild(maps, first)[0] for maps in (one, other)]
    assert not torch.equal(*with_attention)
    monkeypatch.setattr(Attention, "forward", lambda self, queries, tokens: torch.zeros_like(queries))
    assert torch.equal(untrained.rebuild(one, first)[0], untrained.rebuild(other, first)[0])
    assert not torch.equal(untrained.rebuild(one, first)[0], untrained.rebuild(one, second)[0])


def test_the_decoder_alone_sees_the_sample_by_attention_only(untrained, monkeypatch):
    """PNPT-3 again, with the encoder left as it is: silence what the decoder takes of the coupled sample."""
    one, classes = tensors(parts(1, 1)[0]), torch.tensor([0])
    monkeypatch.setattr(untrained.encoder[0], "forward", lambda sample, prompt: (sample, prompt))
    moved = [each + 1 for each in one]
    assert not torch.equal(untrained.rebuild(one, classes)[1], untrained.rebuild(moved, classes)[1])
    monkeypatch.setattr(untrained.decoder[0].other, "forward", lambda queries, tokens: torch.zeros_like(queries))
    assert torch.equal(untrained.rebuild(one, classes)[1], untrained.rebuild(moved, classes)[1])


def test_a_wrong_class_raises_the_error_of_a_good_part(fitted):
    """PNPT-4, on pictures not fitted on; the nearest template is the right class."""
    maps, classes = parts(12, 9)
    right = fitted(tensors(maps), torch.from_numpy(classes))
    wrong = fitted(tensors(maps), torch.from_numpy((classes + 1) % KINDS))
    for good, bad in zip(right, wrong, strict=True):
        assert (bad.mean((1, 2)) > 1.5 * good.mean((1, 2))).all()
    assert fitted.nearest(fitted.standardise(tensors(maps))).tolist() == classes.tolist()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_undoes_unfolding(patch):
    """PNPT-5; and a token holds its own cells."""
    maps = torch.randn(2, 3, 8, 12)
    tokens = unfold(maps, patch)
    assert tokens.shape == (2, 96 // patch**2, 3 * patch**2)
    assert torch.equal(fold(tokens, patch, (8, 12)), maps)
    assert torch.equal(tokens[0, 1], maps[0, :, :patch, patch : 2 * patch].flatten())


def test_a_defect_shows_where_it_is(fitted):
    maps, classes = parts(6, 11)
    for each, place in zip(maps, ((5, 8), (2, 4)), strict=True):
        each[0, :, place[0], place[1]] *= -2
    fine, coarse = fitted(tensors(maps), torch.from_numpy(classes))
    assert divmod(int(fine[0].argmax()), 12) == (5, 8)
    assert divmod(int(coarse[0].argmax()), 6) == (2, 4)
    assert coarse[0].max() > 1.5 * coarse[1:].max()


def test_the_nearest_template_is_so_by_angle_not_by_size(untrained):
    maps = [torch.ones(1, c, *g) for c, g in zip(CHANNELS, GRIDS, strict=True)]
    for i, each in enumerate(maps):
        template = getattr(untrained, f"template_{i}")
        template[0], template[1], template[2] = 0.1 * each[0], -each[0], 9 * each[0]
        template[2, 0] *= -1
    assert untrained.nearest(maps).tolist() == [0]


def test_the_distance_is_one_minus_the_cosine():
    a, b = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 3, 4)
    assert torch.allclose(cosine_distance(a, b), 1 - nn.functional.cosine_similarity(a, b), atol=1e-6)
    assert cosine_distance(a, 3 * a).abs().max() < 1e-6
    assert torch.equal(cosine_distance(a * 0, b), torch.ones(2, 3, 4))


def test_the_fit_is_repeatable_and_leaves_the_random_state():
    torch.manual_seed(1)
    before, told = torch.get_rng_state(), []

    def fit(seed: int) -> dict[str, torch.Tensor]:
        model = fit_pnpt(*parts(9, 0), seed=seed, steps=3, size=SMALL, progress=lambda *args: told.append(args))
        return model.state_dict()

    one = fit(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)  # of the caller: without effect
    same, other = fit(4), fit(5)
    assert told[:3] == [("fit", 1, 3), ("fit", 2, 3), ("fit", 3, 3)]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["heads.0.weight"], other["heads.0.weight"])


def test_bad_input_is_refused(fitted):
    maps, classes = parts(6, 0)
    with pytest.raises(ValueError, match=r"classes \[0, 2\]: want all of 0 to 2"):
        fit_pnpt(maps, np.array([0, 0, 0, 2, 2, 2]), seed=0, size=SMALL)
    with pytest.raises(ValueError, match=r"6 classes for features of \[6, 5\] pictures"):
        fit_pnpt([maps[0], maps[1][:5]], classes, seed=0, size=SMALL)
    with pytest.raises(ValueError, match="no multiple of"):
        PNPT(CHANNELS, ((9, 12), (4, 6)), 1)
    with pytest.raises(ValueError, match="no classes"):
        fitted(tensors(maps))
    with pytest.raises(FitError, match="diverged at step"):
        fit_pnpt(maps, classes, seed=0, size=SMALL, rate=1e30, steps=5)
    maps[1][3, 0, 0, 0] = np.inf
    with pytest.raises(FitError, match="not finite"):
        fit_pnpt(maps, classes, seed=0, size=SMALL)


class Graph(nn.Module):
    """The model with its tensors as one flat list, as the exporter wants them."""

    def __init__(self, model: PNPT) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model(inputs[:2], inputs[2]) if self.model.select == "given" else self.model(inputs)


@pytest.mark.parametrize("select", ["given", "nearest"])
def test_exports_to_plain_operators_that_agree_and_build(fitted, select):
    model = PNPT(CHANNELS, GRIDS, KINDS, SMALL, select)
    model.load_state_dict(fitted.state_dict())
    graph = Graph(model.requires_grad_(requires_grad=False))
    maps, classes = parts(3, 5)
    names = ["fine", "coarse", *(["class"] if select == "given" else [])]
    inputs = [*tensors(maps), torch.from_numpy(classes)][: len(names)]
    exported = export(graph, tuple(inputs), names, ["map_fine", "map_coarse"])
    assert check_allowed(exported) == []
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        found = session.run(None, {name: each[:batch].numpy() for name, each in zip(names, inputs, strict=True)})
        for got, want in zip(found, graph(*(each[:batch] for each in inputs)), strict=True):
            assert np.abs(got - want.numpy()).max() <= 1e-4 * float(want.max())
    assert len(build(exported).engine) > 10_000
