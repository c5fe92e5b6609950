"""Point-MAE: its published counts and checkpoint, its loss, and its own pre-training on a few small clouds."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from compile.methods import FitError, checkpoint
from compile.methods.checkpoint import resumable
from compile.methods.point_mae import PointEncoder, describe_patches, load_point_mae
from compile.methods.point_mae_fit import MaskedAutoencoder, chamfer, pretrain

SMALL = {"width": 24, "depth": 2, "heads": 2, "groups": 16, "neighbours": 8}


class Killed(BaseException):
    """Stands in for the death of the process."""


def count(*parts: torch.nn.Module) -> int:
    return sum(each.numel() for part in parts for each in part.parameters())


@pytest.fixture(scope="module")
def clouds() -> list[np.ndarray]:
    """Caps of spheres, each of its own radius."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        flat = rng.uniform(-30, 30, (300, 2))
        points = np.column_stack([flat, (flat**2).sum(1) / rng.uniform(80, 120)])
        found.append((points - points.mean(0)).astype(np.float32))
    return found


def test_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        whole = PointEncoder()
    assert count(whole.encoder) == 494_464
    assert count(whole.pos_embed) == 50_048
    assert count(whole.blocks.blocks[0]) == 1_773_312
    assert count(whole) == 21_825_024
    assert count(whole.encoder, whole.pos_embed, *whole.blocks.blocks[:2]) == 4_091_136
    with torch.device("meta"):
        taught = MaskedAutoencoder(whole)
    assert count(taught) - count(whole) == 384 + 50_048 + 4 * 1_773_312 + 768 + 385 * 3 * 128


def test_1024_groups_of_128_give_what_glfm_takes() -> None:
    with torch.device("meta"):
        found = PointEncoder(depth=2)(torch.empty(1, 1024, 128, 3), torch.empty(1, 1024, 3))
    assert found.shape == (1, 1024, 768)


def test_the_position_is_added_before_every_block() -> None:
    torch.manual_seed(0)
    encoder = PointEncoder(24, 2, 2).eval()
    groups, centres = torch.randn(2, 5, 8, 3), torch.randn(2, 5, 3)
    places = encoder.pos_embed(centres)
    first = encoder.blocks.blocks[0](encoder.encoder(groups) + places)
    second = encoder.blocks.blocks[1](first + places)
    wanted = torch.cat([encoder.norm(first), encoder.norm(second)], 2)
    torch.testing.assert_close(encoder(groups, centres), wanted)
    turned = encoder(groups[:, :, torch.randperm(8)], centres)
    torch.testing.assert_close(turned, wanted)  # a group has no order


def published(encoder: PointEncoder, prefix: str = "module.MAE_encoder.") -> dict[str, object]:
    state = OrderedDict((f"{prefix}{name}", each) for name, each in encoder.state_dict().items())
    state["module.mask_token"] = torch.zeros(1, 1, 24)
    return {"base_model": state, "optimizer": {"state": {}}, "epoch": 300, "metrics": {"acc": 0.9}}


@pytest.mark.parametrize("prefix", ["module.MAE_encoder.", "MAE_encoder."])
def test_a_published_checkpoint_is_loaded(tmp_path: Path, prefix: str) -> None:
    wanted = PointEncoder(24, 2, 2)
    torch.save(published(wanted, prefix), tmp_path / "pretrain.pth")
    found = load_point_mae(tmp_path / "pretrain.pth", PointEncoder(24, 2, 2))
    for (name, a), (_, b) in zip(found.state_dict().items(), wanted.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("unpickled",))


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = PointEncoder(24, 2, 2)
    cases = {
        "a structure": published(PointEncoder(24, 3, 2)),
        "no base_model": {"model": {}},
        "read safely": {"base_model": {}, "metrics": Code()},
    }
    for words, held in cases.items():
        torch.save(held, tmp_path / "x.pth")
        with pytest.raises(FitError, match=words.removeprefix("a ")):
            load_point_mae(tmp_path / "x.pth", fresh)
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(FitError, match="read safely"):
        load_point_mae(tmp_path / "none.pth", fresh)


def test_chamfer_by_hand() -> None:
    a, b = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    a[0, 1, 0], b[0, 1, 1] = 3, 1
    assert float(chamfer(a, b)) == pytest.approx((0 + 9) / 2 + (0 + 1) / 2)


def test_the_encoder_never_sees_what_is_hidden() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(PointEncoder(24, 2, 2), 8).eval()
    groups, centres, order = torch.randn(1, 10, 8, 3), torch.randn(1, 10, 3), torch.arange(10)[None]
    told = []
    model.increase_dim.register_forward_hook(lambda _, __, out: told.append(out.detach()))
    model(groups, centres, order)
    other = groups.clone()
    other[:, 4:] += 1  # six of ten are hidden
    model(other, centres, order)
    assert told[0].shape == (1, 6, 24)
    assert torch.equal(*told)
    other[:, 3] += 1
    model(other, centres, order)
    assert not torch.allclose(told[0], told[2])


@pytest.fixture(scope="module")
def taught(clouds: list[np.ndarray]) -> PointEncoder:
    return pretrain(clouds, seed=0, steps=12, **SMALL)[0]


def test_pre_training_goes_on_to_the_same_bits(
    clouds: list[np.ndarray], taught: PointEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)

    def stop(_: str, done: int, __: int) -> None:
        if done == 7:
            raise Killed

    with pytest.raises(Killed), resumable(tmp_path):
        pretrain(clouds, seed=0, steps=12, progress=stop, **SMALL)
    told: list[int] = []
    with resumable(tmp_path):
        again = pretrain(clouds, seed=0, steps=12, progress=lambda _, done, __: told.append(done), **SMALL)[0]
    assert told[0] in {6, 7}
    for (name, a), (_, b) in zip(again.state_dict().items(), taught.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_pre_training_learns_in_any_unit(clouds: list[np.ndarray]) -> None:
    losses: list[float] = []
    whole = MaskedAutoencoder.forward

    def kept(self: MaskedAutoencoder, *args: torch.Tensor) -> torch.Tensor:
        found = whole(self, *args)
        losses.append(float(found.detach()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedAutoencoder, "forward", kept)
        scale = pretrain([each / 1024 for each in clouds], seed=0, steps=35, **SMALL)[1]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert scale == pytest.approx(np.mean([np.linalg.norm(each, axis=1).max() for each in clouds]) / 1024, rel=1e-5)
    with pytest.raises(FitError, match="no cloud"):
        pretrain([], seed=0)


def test_a_patch_is_the_mean_of_its_points(clouds: list[np.ndarray], taught: PointEncoder) -> None:
    found = describe_patches(taught, clouds[0] / 40, groups=16, neighbours=8)
    assert found.shape == (16, 48)
    constant = PointEncoder(24, 2, 2).eval()
    with torch.no_grad():
        constant.norm.weight.zero_()
        constant.norm.bias.fill_(3)
    torch.testing.assert_close(
        describe_patches(constant, clouds[0], groups=16, neighbours=8), torch.full((16, 48), 3.0)
    )
