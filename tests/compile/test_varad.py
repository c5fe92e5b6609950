"""VarAD sees every earlier token and never the one it predicts; its fit is repeatable and refuses to collapse."""

import numpy as np
import pytest
import torch

from compile.export import export
from compile.methods import FitError, varad_fit
from compile.methods.method import Samples
from compile.methods.registry import VIT_METHODS, find_method
from compile.methods.varad import Size, Stream, VarAD, scan_orders
from compile.methods.varad_fit import check_adapters, fit_varad
from compile.onnx_session import open_session
from compile.standardise import BASE, Standardised, measure_spread
from compile.tensorrt_build import check_allowed

SMALL = (Size(fold=2, width=16, heads=2, state=8), Size(fold=1, width=16, heads=2, state=8))
GRIDS = ((8, 12), (4, 6))
CHANNELS = (5, 7)


def textures(count: int, seed: int) -> list[np.ndarray]:
    """Correlated noise, one array of maps per hierarchy: neighbours tell about each other."""
    g = torch.Generator().manual_seed(seed)
    maps = []
    for channels, grid in zip(CHANNELS, GRIDS, strict=True):
        noise = torch.randn(count, channels, grid[0] + 4, grid[1] + 4, generator=g)
        maps.append(torch.nn.functional.avg_pool2d(noise, 5, 1).numpy())
    return maps


@pytest.fixture(scope="module")
def fitted() -> VarAD:
    return fit_varad(textures(128, 0), seed=3, steps=120, sizes=SMALL)


def stream(grid: tuple[int, int] = (3, 5), fold: int = 1) -> Stream:
    torch.manual_seed(0)
    made = Stream(4, (grid[0] * fold, grid[1] * fold), Size(fold=fold, width=16, heads=2, state=8))
    for parameter in (made.conv, made.direction, made.bos):
        torch.nn.init.normal_(parameter)
    return made.eval()


def scanned(one: Stream, prediction: torch.Tensor) -> torch.Tensor:
    """Predictions for one picture in the order of each direction's steps: [4, L, C] or [4, L]."""
    return torch.stack([each[order] for each, order in zip(prediction[0], one.orders, strict=True)])


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 8)])
def test_order_and_its_inverse_are_identity(grid):
    orders = scan_orders(*grid)
    for order in orders:
        assert torch.equal(order[order.argsort()], torch.arange(grid[0] * grid[1]))
    one = stream(grid)
    length, heads = grid[0] * grid[1], one.size.heads
    scan = torch.arange(4 * heads * length).reshape(4, heads, length)
    found = scan.reshape(-1)[one.leave].reshape(4, length, heads)
    for direction, order in enumerate(one.orders):
        assert torch.equal(found[direction][order], scan[direction].T)
        assert torch.equal(one.before.reshape(4, length)[direction][order], one.previous[direction])


def test_directions_walk_rows_and_columns_both_ways():
    rows, rows_back, columns, columns_back = scan_orders(2, 3).tolist()
    assert rows == [0, 1, 2, 3, 4, 5]
    assert columns == [0, 3, 1, 4, 2, 5]
    assert rows_back == rows[::-1]
    assert columns_back == columns[::-1]


@pytest.mark.parametrize("at", [0, 1, 7, 14])
@pytest.mark.parametrize("direction", range(4))
def test_a_prediction_sees_all_tokens_before_it_and_not_its_own(direction, at):
    """Editing the token of step `at` moves all later predictions, and not one bit of the others."""
    one = stream()
    tokens = torch.randn(1, 15, 4, generator=torch.Generator().manual_seed(1))
    edited = tokens.clone()
    edited[0, one.orders[direction, at]] += 1.0
    for both in zip(one.predict(tokens), one.predict(edited), strict=True):
        before, after = (scanned(one, v)[direction] for v in both)
        assert torch.equal(before[: at + 1], after[: at + 1])
        moved = (before != after).flatten(1).any(1) if before.ndim > 1 else before != after
        assert moved[at + 1 :].all()


@pytest.mark.parametrize(("backward", "forward"), [(1, 0), (3, 2)])
def test_a_reversed_direction_is_the_forward_one_on_the_flipped_picture(backward, forward):
    one = stream()
    with torch.no_grad():
        one.direction.zero_()
        one.place.weight.zero_()  # else the same token at another place is another token
    tokens = torch.randn(1, 15, 4, generator=torch.Generator().manual_seed(2))
    flipped = tokens.flip(1)
    for on_picture, on_flipped in zip(one.predict(tokens), one.predict(flipped), strict=True):
        there, back = scanned(one, on_flipped)[forward], scanned(one, on_picture)[backward]
        assert torch.allclose(back, there, rtol=0, atol=1e-6)


def test_columns_are_rows_of_the_transposed_picture():
    tall, wide = stream((3, 5)), stream((5, 3))
    wide.load_state_dict(tall.state_dict())
    for one in (tall, wide):
        with torch.no_grad():
            one.direction.zero_()
            one.place.weight.zero_()
    picture = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(2))
    on_tall = scanned(tall, tall.predict(picture.reshape(1, 15, 4))[0])
    on_wide = scanned(wide, wide.predict(picture.transpose(1, 2).reshape(1, 15, 4))[0])
    assert torch.allclose(on_tall[2], on_wide[0], rtol=0, atol=1e-6)


def test_a_folded_token_holds_its_cells_and_the_map_returns_them():
    """One odd cell in the trunk map raises the discrepancy most at that very cell."""
    one = stream((4, 4), fold=2)
    one.blur_rows, one.blur_columns = torch.eye(8), torch.eye(8)
    feature = torch.zeros(1, 4, 8, 8)
    for row, column in ((0, 0), (3, 4), (6, 7)):
        odd = feature.clone()
        odd[0, :, row, column] = 30.0
        found = one(odd)[0]
        assert found.shape == (8, 8)
        assert divmod(int(found.argmax()), 8) == (row, column)


def test_refuses_a_grid_that_does_not_fold():
    with pytest.raises(ValueError, match="divisible by 16"):
        Stream(4, (7, 8), Size(fold=2, width=16, heads=2, state=8))


def test_starts_from_whitened_tokens(monkeypatch):
    """Before any step the adapter is the identity: tokens of unit covariance, up to the floor."""
    monkeypatch.setattr(varad_fit, "WHITEN_FLOOR", 0.0)
    features = textures(200, 0)
    with torch.no_grad():
        one = Stream(7, GRIDS[1], SMALL[1])
        varad_fit._start(one, features[1])
        tokens = one.adapt(torch.from_numpy(features[1])).reshape(-1, 7)
    assert torch.allclose(tokens.T @ tokens / len(tokens), torch.eye(7), atol=2e-3)


def test_learns_to_predict(fitted):
    """The context says something: the fitted likelihood beats the start's, on pictures not fitted on."""
    held = [torch.from_numpy(f) for f in textures(24, 9)]
    start = fit_varad(textures(128, 0), seed=3, steps=1, sizes=SMALL)
    for before, after, feature in zip(start.hierarchies(), fitted.hierarchies(), held, strict=True):
        torch.manual_seed(0)
        assert float(after.nll(feature)) < float(before.nll(feature)) - 0.03


def test_good_parts_lie_at_base_and_odd_ones_above(fitted):
    good = [torch.from_numpy(f) for f in textures(32, 5)]
    model = Standardised(fitted, [measure_spread(fitted, textures(128, 0))])
    for found in model(good):
        assert float(found.min()) >= 0
        assert float(found.mean()) == pytest.approx(BASE, abs=0.5)
    odd = [f.clone() for f in good]
    odd[0][:, :, 2:4, 4:6] *= -4
    odd[1][:, :, 1, 2] *= -4
    for before, after in zip(model(good), model(odd), strict=True):
        assert float((after - before).amax((1, 2)).min()) > 1


def test_same_seed_same_bits_and_the_callers_generator_untouched():
    torch.manual_seed(11)
    torch.set_num_threads(1)
    state = torch.random.get_rng_state()
    first, again, other = (fit_varad(textures(8, 0), seed=s, steps=5, sizes=SMALL).state_dict() for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_reads_memory_maps_of_half_precision_and_reports_progress(tmp_path):
    maps = []
    for i, array in enumerate(textures(6, 0)):
        np.save(tmp_path / f"{i}.npy", array.astype(np.float16))
        maps.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    seen: list[tuple[str, int, int]] = []
    fit_varad(maps, seed=0, steps=3, sizes=SMALL, progress=lambda *step: seen.append(step))
    assert seen == [("fit", 1, 3), ("fit", 2, 3), ("fit", 3, 3)]


@pytest.mark.parametrize(("count", "allowed", "taken"), [(6, 9, 9), (6, 99, 20), (24, 99, 48)])
def test_few_pictures_get_few_steps(monkeypatch, count, allowed, taken):
    monkeypatch.setattr(varad_fit, "LEAST_STEPS", 20)
    seen: list[int] = []
    fit_varad(textures(count, 0), seed=0, steps=allowed, sizes=SMALL, progress=lambda _, done, of: seen.append(of))
    assert seen == [taken] * taken
    assert varad_fit.steps_for(count, GRIDS[1], allowed) == taken


def test_a_diverging_fit_says_so():
    broken = textures(8, 0)
    broken[1][3, 0, 0, 0] = np.inf
    with pytest.raises(FitError, match="not finite"):
        fit_varad(broken, seed=0, steps=3, sizes=SMALL)
    with pytest.raises(FitError, match="diverged at step"):
        fit_varad(textures(8, 0), seed=0, steps=50, rate=1e6, sizes=SMALL)


def test_refuses_no_pictures_and_unequal_counts():
    with pytest.raises(ValueError, match="images"):
        fit_varad([f[:0] for f in textures(2, 0)], seed=0, sizes=SMALL)
    with pytest.raises(ValueError, match="images"):
        fit_varad([textures(2, 0)[0], textures(3, 0)[1]], seed=0, sizes=SMALL)


def test_the_likelihood_resists_collapse(fitted):
    """Shrinking the adapter makes tokens easier to predict, and still costs likelihood."""
    one, feature = fitted.hierarchies()[1], torch.from_numpy(textures(24, 0)[1])
    torch.manual_seed(0)
    before = float(one.nll(feature))
    kept = one.adapter.detach().clone()
    one.adapter.data = kept * 0.05
    torch.manual_seed(0)
    after = float(one.nll(feature))
    one.adapter.data = kept
    assert after > before + 0.5


def test_without_the_determinant_the_planted_collapse_is_caught(monkeypatch):
    monkeypatch.setattr(torch.linalg, "slogdet", lambda matrix: (None, matrix.new_zeros(())))
    monkeypatch.setattr(varad_fit, "LEAST_STEPS", 300)
    with pytest.raises(FitError, match="collapsed"):
        fit_varad(textures(24, 0), seed=0, steps=300, rate=3e-2, sizes=SMALL)


def test_a_planted_collapse_is_caught(fitted):
    check_adapters(fitted)
    one = fitted.hierarchies()[0]
    kept = one.adapter.detach().clone()
    one.adapter.data = kept.clone()
    one.adapter.data[:, 3] = 0.0
    with pytest.raises(FitError, match="hierarchy 0 collapsed"):
        check_adapters(fitted)
    one.adapter.data = kept


def test_the_full_size_is_fitted_and_exports():
    """On maps as the trunk gives them at 128 pixels; noise of their own keeps whitening well conditioned."""
    method = find_method("varad-full")
    assert (method.levels, len(VIT_METHODS["varad-full"].fit.keywords["sizes"])) == ((8, 16, 32), 4)
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(12, c, n, n)).astype(np.float32) for c, n in ((40, 16), (112, 8), (320, 4))]
    model = method.fit(Samples(maps), 0, 20, None)
    assert sum(p.numel() for p in model.parameters()) > 2 * sum(
        p.numel() for p in VarAD((40, 112), ((16, 16), (8, 8))).parameters()
    )
    head = method.head(model, maps, (64, 64))
    inputs = (*(torch.from_numpy(each[:3]) for each in maps), torch.ones(3, 64, 64))
    names = ["maps_8", "maps_16", "maps_32", "mask"]
    graph = export(head, inputs, names, ["score", "map"])
    assert check_allowed(graph) == []
    feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    with torch.no_grad():
        wanted = head(*inputs)
    for got, want in zip(open_session(graph).run(None, feed), wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4 * float(want.abs().max()))
