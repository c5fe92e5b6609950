"""GLFM: objects are routed to their class's bank, which alone says what is usual; and as a graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compile.anomaly_graph import AnomalyHead
from compile.export import export
from compile.methods.glfm import GLFM, Extractor, object_size
from compile.methods.glfm_banks import Banks, choose_entries, fill_banks, k_means
from compile.methods.glfm_fit import adaptation_loss, fit_glfm, routing_accuracy
from compile.methods.method import Samples, fit_alone
from compile.methods.registry import SCAN_METHODS
from compile.onnx_session import open_session
from compile.tensorrt_build import build, check_allowed

SIDE, EACH = 128, 6
NAMES = ["scan", "geometry", "mask"]
Maps = list[np.ndarray]


def surfaces(kind: int, count: int, seed: int, *, odd: bool = False) -> Maps:
    """Kind 0 is smooth, kind 1 is ribbed. An odd one has ribs in a corner, or none there: usual for the other kind."""
    rng = np.random.default_rng([seed, kind])
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    ribs = np.zeros((count, SIDE, SIDE), np.float32) + (kind == 1)
    if odd:
        ribs[:, 24:96, 24:96] = kind == 0
    wave = np.sin(x / 1.5 + rng.uniform(0, 6, (count, 1, 1)))
    z = ribs * wave + 0.002 * x * rng.normal(0, 1, (count, 1, 1)) + rng.normal(0, 0.03, ribs.shape)
    points = np.stack([np.broadcast_to(x, z.shape), np.broadcast_to(y, z.shape), z], 3)
    scan = points - points.mean((1, 2), keepdims=True)
    slope, bend = np.gradient(z, axis=2), ribs * wave
    geometry = np.stack([-z, slope, 0 * z, -np.ones_like(z), bend, bend, np.abs(bend)], 1)
    return [scan.astype(np.float32), geometry.astype(np.float32)]


def joined(*parts: Maps) -> Maps:
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def tensors(maps: Maps) -> list[Tensor]:
    return [torch.from_numpy(each) for each in maps]


CLASSES = np.repeat([0, 1], EACH)


@pytest.fixture(scope="module")
def good() -> Maps:
    return joined(surfaces(0, EACH, 0), surfaces(1, EACH, 0))


@pytest.fixture(scope="module")
def model(good: Maps) -> GLFM:
    return fit_glfm(good, CLASSES, seed=0, steps=10)


@pytest.mark.parametrize("choice", ["k-means", "k-centre"])
def test_every_object_goes_to_its_class(good: Maps, choice: str) -> None:
    model = fit_glfm(good, CLASSES, seed=0, steps=0, choice=choice)
    test = tensors(joined(surfaces(0, 8, 5), surfaces(1, 8, 5)))
    taught = model.route(tensors(good)).numpy()
    found = routing_accuracy(model.route(test).numpy(), np.repeat([0, 1], 8), taught, CLASSES)
    assert found == {0: 1.0, 1: 1.0}


def test_classes_that_are_not_told_apart_are_named(good: Maps, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "compile.methods.glfm_fit"):
        fit_glfm(good, CLASSES, seed=0, steps=0)
        fit_glfm(good, CLASSES, seed=0, steps=0, entries=1)
    fine, mixed = caplog.records
    assert (fine.levelname, "100.0% of class 0, 100.0% of class 1" in fine.getMessage()) == ("INFO", True)
    assert (mixed.levelname, "0.0% of class 1" in mixed.getMessage()) == ("WARNING", True)


def test_an_entry_belongs_to_the_class_of_most_of_its_objects() -> None:
    taught, classes = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    found = routing_accuracy(np.array([0, 1, 1, 1, 2]), np.array([0, 0, 1, 1, 1]), taught, classes)
    assert found == {0: 0.5, 1: pytest.approx(2 / 3)}


def test_what_is_usual_in_another_class_is_odd_here(good: Maps, model: GLFM) -> None:
    """With one bank for all, ribs on a smooth part are nothing unusual: the confusion that routing is for."""
    mixed = fit_glfm(good, CLASSES, seed=0, steps=10, entries=1)
    for kind in (0, 1):
        usual, odd = tensors(surfaces(kind, 8, 6)), tensors(surfaces(kind, 8, 6, odd=True))
        apart = [float(each(odd)[0][:, 7, 7].mean() / each(usual)[0][:, 7, 7].mean()) for each in (model, mixed)]
        assert apart[0] > 1.5
        assert apart[0] > 1.5 * apart[1]


def test_the_bank_of_the_route_alone_is_searched() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, local = torch.randn(3, 7, 4, generator=generator), torch.randn(3, 5, 4, generator=generator)
    maps, entries = [nn.Linear(4, 4) for _ in range(3)], torch.randn(3, 6, generator=generator)
    route = torch.tensor([2, 0, 2])
    found = Banks(entries, maps, vectors)(local, route)
    own = torch.stack([maps[r](each) for r, each in zip(route.tolist(), local, strict=True)])
    torch.testing.assert_close(found, torch.cdist(own, vectors[route]).amin(2))
    changed = vectors.clone()
    changed[1] = maps[1](local[0, 0])
    assert torch.equal(Banks(entries, maps, changed)(local, route), found)


def test_an_entry_without_objects_is_dropped() -> None:
    whole, local = torch.tensor([[0.0], [0.1], [5.0]]), [torch.randn(9, 4), torch.randn(9, 4), torch.randn(14, 4)]
    entries = torch.tensor([[0.0], [99.0], [5.0]])
    banks = fill_banks(entries, whole, local, torch.Generator().manual_seed(0))
    assert banks.entries.tolist() == [[0.0], [5.0]]
    assert banks.route(whole).tolist() == [0, 0, 1]
    assert banks(torch.stack([local[2], local[2]]), torch.tensor([1, 1])).amin() < 1e-4
    assert banks.vectors.shape[:2] == (2, 1)  # a tenth of 18 and of 14


def test_k_means_finds_groups_and_k_centre_gives_objects() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0], [9, 0], [0, 9]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 20, 2, generator=generator)).reshape(-1, 2)
    found = k_means(points, 3, generator)
    assert torch.cdist(middles, found).amin(1).max() < 0.1
    chosen = choose_entries(points, 3, "k-centre", generator)
    assert all((points == each).all(1).any() for each in chosen)
    assert torch.cdist(middles, chosen).amin(1).max() < 1
    assert len(choose_entries(points[:2], 3, "k-means", generator)) == 2


def test_the_loss_is_focal_and_dice() -> None:
    logits, moved = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1.0, 0.0])
    odd = logits.softmax(1)[:, 1]
    right = torch.stack([odd[0], 1 - odd[1]])
    wanted = -((1 - right) ** 2 * right.log()).mean() + 1 - (2 * odd[0] + 1) / (odd.sum() + 1 + 1)
    assert float(adaptation_loss(logits, moved)) == pytest.approx(float(wanted), abs=1e-3)


def test_the_adaptation_tells_bumps_and_begins_with_nothing(good: Maps) -> None:
    raw = torch.randn(5, 42)
    fresh = Extractor(42)
    for tap in fresh.taps(raw):
        assert torch.equal(tap, fresh.whiten(raw))
    adapted = fit_glfm(good, seed=0, steps=10).extractor
    assert all(block.out.weight.abs().max() > 0 for block in adapted.blocks)


def test_the_size_of_an_object_counts_what_is_there() -> None:
    scan = torch.zeros(1, 4, 4, 3)
    scan[0, :2, 0] = torch.tensor([[3.0, 0, 4], [-3.0, 0, -4]])
    assert object_size(scan).tolist() == pytest.approx([5])
    assert object_size(0 * scan).tolist() == [0]


def test_a_fit_is_the_same_again_and_leaves_the_generator_alone(good: Maps) -> None:
    state = torch.get_rng_state()
    first, again = (fit_glfm(good, CLASSES, seed=3, steps=2) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for (name, a), (_, b) in zip(first.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def head(good: Maps) -> AnomalyHead:
    method = SCAN_METHODS["glfm"]
    fitted = fit_alone(method, Samples(good, classes=CLASSES), 0, 5, None)
    return replace(method, smoothing=2.0).head(fitted, good, (SIDE, SIDE))


@pytest.fixture(scope="module")
def graph(head: AnomalyHead) -> onnx.ModelProto:
    return export(head, (*tensors(surfaces(0, 2, 1)), torch.ones(2, SIDE, SIDE)), NAMES, ["score", "map"])


def test_the_exported_head_says_what_torch_says(head: AnomalyHead, graph: onnx.ModelProto) -> None:
    assert check_allowed(graph) == []
    session = open_session(graph)
    for count in (1, 3):
        maps = [*joined(surfaces(0, count, 11, odd=True), surfaces(1, 1, 11)), np.ones((count + 1, SIDE, SIDE))]
        maps = [each.astype(np.float32) for each in maps]
        for each in (maps[0].transpose(0, 3, 1, 2), maps[1]):
            each[:, :, :9, :20] = 0  # no returns
        maps[2][:, 40:] = 0
        found = session.run(["score", "map"], dict(zip(NAMES, maps, strict=True)))
        for a, b in zip(found, head(*tensors(maps)), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4 * float(b.abs().max()))
            assert np.isfinite(a).all()


@pytest.mark.slow
def test_the_head_builds_in_tensorrt(graph: onnx.ModelProto) -> None:
    assert len(build(graph).engine) > 10_000
