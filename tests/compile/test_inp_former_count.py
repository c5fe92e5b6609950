"""Parameters and multiply-accumulates, by formula as published and by counting the models themselves."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from compile.backbones.dinov2 import BASE, LARGE, SMALL, DINOv2, ViT
from compile.methods.inp_former import INPFormer, Size
from compile.methods.inp_former_count import count_macs, count_parameters

GRID = (28, 28)  # 392 pixels a side


def published(vit: ViT) -> Size:
    return Size(width=vit.width, heads=vit.heads)


def encoder(vit: ViT) -> transformers.Dinov2WithRegistersModel:
    """Without memory."""
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=vit.width,
        num_hidden_layers=vit.blocks,
        num_attention_heads=vit.heads,
        patch_size=vit.patch,
        image_size=vit.patch * vit.table,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        return transformers.Dinov2WithRegistersModel(config)


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_base_model_has_the_published_parameters():
    found = count_parameters(BASE, published(BASE))
    assert found.trainable == 68_517_984
    assert found.full == 155_101_536
    assert found.used == 140_922_720
    assert found.paper == 139_870_560


def test_the_base_model_has_the_published_macs():
    found = count_macs(BASE, published(BASE), GRID)
    assert found.paper == 97_973_600_256
    assert found.full == 107_535_522_816
    parts = [found.encoder_layers + found.encoder_attention, found.extractor, found.bottleneck, found.decoder]
    assert [round(part / 1e9, 1) for part in parts] == [65.8, 1.0, 3.7, 37.1]


def test_small_and_large_models_agree_with_their_published_counts():
    found, macs = count_parameters(SMALL, published(SMALL)), count_macs(SMALL, published(SMALL), GRID)
    assert [round(n / 1e6, 1) for n in (found.full, found.trainable)] == [39.2, 17.2]
    assert [round(n / 1e9, 1) for n in (macs.paper, macs.encoder_attention)] == [24.6, 4.8]
    found, macs = count_parameters(LARGE, published(LARGE)), count_macs(LARGE, published(LARGE), GRID)
    assert [round(n / 1e6, 1) for n in (found.full, found.trainable)] == [426.1, 121.8]
    assert [round(n / 1e9) for n in (macs.paper, macs.encoder_attention)] == [263, 24]


@pytest.mark.parametrize("vit", [SMALL, BASE, LARGE], ids=["small", "base", "large"])
def test_the_models_themselves_have_these_parameters(vit):
    whole = encoder(vit)
    with torch.device("meta"):
        model = INPFormer(published(vit))
    found = count_parameters(vit, published(vit))
    assert numbers(model) == found.trainable
    assert numbers(whole) == found.encoder
    assert sum(numbers(block) for block in whole.encoder.layer[vit.used :]) == found.unused
    assert whole.embeddings.position_embeddings.numel() == found.table


def test_the_models_themselves_do_these_macs():
    """Counted by torch while the base model runs on 392 pixels, on the meta device."""
    trunk = DINOv2(encoder(BASE), (392, 392), [BASE.taps[:4], BASE.taps[4:]]).to("meta")
    with torch.device("meta"):
        model = INPFormer().eval().requires_grad_(requires_grad=False)
    found = count_macs(BASE, published(BASE), GRID)
    with FlopCounterMode(display=False) as counter:
        maps = trunk(torch.zeros(1, 392, 392, 3, dtype=torch.uint8, device="meta"))
    assert counter.get_total_flops() == 2 * (found.encoder_layers + found.encoder_attention)
    with FlopCounterMode(display=False) as counter:
        model(maps)
    assert counter.get_total_flops() == 2 * (found.extractor + found.bottleneck + found.decoder)
