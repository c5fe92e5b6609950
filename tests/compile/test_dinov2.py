"""The DINOv2 trunk gives what `transformers` gives, exports to plain operators, and refuses what is not its kind."""

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compile.backbones import BackboneError
from compile.backbones.dinov2 import BASE, PUBLISHED, DINOv2, ViT, load_dinov2, resize_table
from compile.export import export
from compile.onnx_session import open_session
from compile.tensorrt_build import build, check_allowed

TABLE = 5  # cells a side, of the tiny model's own position table
TAPS = (1, 2, 3, 4)


def config(vit: ViT, **other: object) -> transformers.Dinov2WithRegistersConfig:
    return transformers.Dinov2WithRegistersConfig(
        hidden_size=vit.width,
        num_hidden_layers=vit.blocks,
        num_attention_heads=vit.heads,
        num_register_tokens=vit.registers,
        patch_size=vit.patch,
        image_size=vit.patch * vit.table,
        **other,
    )


@pytest.fixture(scope="module")
def reference() -> transformers.Dinov2WithRegistersModel:
    """A tiny model whose every weight is random: those that start as zeros or ones would hide mistakes."""
    tiny = ViT(width=32, blocks=6, heads=4, taps=TAPS, table=TABLE)
    model = transformers.Dinov2WithRegistersModel(config(tiny)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory) -> Path:
    where: Path = tmp_path_factory.mktemp("dinov2") / "tiny"
    reference.save_pretrained(where)
    return where


def pictures(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8))


def hidden(model: transformers.Dinov2WithRegistersModel, images: Tensor) -> list[Tensor]:
    """The patches of each block's output, as maps [B, C, h, w], by the forward of `transformers`."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
    height, width = images.shape[1] // 14, images.shape[2] // 14
    return [s[:, 5:].transpose(1, 2).reshape(2, -1, height, width) for s in states[1:]]


def test_each_map_is_the_mean_of_its_taps(reference, folder):
    trunk = load_dinov2(folder, 14 * TABLE, taps=TAPS, groups=2)
    images = pictures(14 * TABLE, 14 * TABLE)
    blocks = hidden(reference, images)
    first, second = trunk(images)
    assert trunk.channels == (32, 32)
    assert trunk.grids == ((TABLE, TABLE),) * 2
    torch.testing.assert_close(first, (blocks[1] + blocks[2]) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, (blocks[3] + blocks[4]) / 2, rtol=1e-4, atol=1e-4)


def test_blocks_after_the_last_tap_are_not_kept(folder):
    trunk = load_dinov2(folder, 14 * TABLE, taps=TAPS)
    assert len(trunk.blocks) == 5
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_another_size_runs_with_the_resized_table(reference, folder):
    """The forward of `transformers` with our table in place of its own, which it then has no cause to resize."""
    trunk = load_dinov2(folder, 98, taps=TAPS, groups=1)
    model = transformers.Dinov2WithRegistersModel(config(ViT(32, 6, 4, TAPS, table=7))).eval()
    table = reference.embeddings.position_embeddings
    weights = reference.state_dict()
    weights["embeddings.position_embeddings"] = torch.cat([table[:, :1], resize_table(table[:, 1:], (7, 7))], 1)
    model.load_state_dict(weights)
    images = pictures(98, 98)
    blocks = hidden(model, images)
    torch.testing.assert_close(trunk(images)[0], sum(blocks[1:5]) / 4, rtol=1e-4, atol=1e-4)


def cubic(values: np.ndarray, cells: int, factor: float) -> np.ndarray:
    """Slow: bicubic (a = -0.75) along the first axis, half-pixel centres at a scale of `factor`, edges repeated."""

    def weight(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.25 * t**3 - 2.25 * t**2 + 1
        return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    out = np.zeros((cells, *values.shape[1:]))
    for i in range(cells):
        at = (i + 0.5) / factor - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            out[i] += weight(at - j) * values[min(max(j, 0), len(values) - 1)]
    return out


@pytest.mark.parametrize("grid", [(28, 28), (16, 40)])
def test_the_table_is_resized_as_published(grid):
    """37 cells to 28: a scale of 28.1 / 37, no antialiasing."""
    table = torch.randn(1, 37 * 37, 3, generator=torch.Generator().manual_seed(2))
    square = table.reshape(37, 37, 3).double().numpy()
    rows = cubic(square, grid[0], (grid[0] + 0.1) / 37)
    want = cubic(rows.transpose(1, 0, 2), grid[1], (grid[1] + 0.1) / 37).transpose(1, 0, 2)
    got = resize_table(table, grid).reshape(*grid, 3).double().numpy()
    assert np.abs(got - want).max() < 1e-4
    # Without the offset it would differ by more than rounding.
    other = cubic(cubic(square, grid[0], grid[0] / 37).transpose(1, 0, 2), grid[1], grid[1] / 37).transpose(1, 0, 2)
    assert np.abs(got - other).max() > 1e-2


def test_exports_to_what_tensorrt_takes(folder):
    trunk = load_dinov2(folder, (56, 84), taps=(0, 1))
    images = pictures(56, 84)
    model = export(trunk, (images,), ["image"], ["maps_1", "maps_2"])
    assert check_allowed(model) == []
    assert not {"Resize", "If"} & {node.op_type for node in model.graph.node}
    assert len(build(model).engine) > 50_000
    session = open_session(model)
    for count in (1, 3):
        batch = images[:1].expand(count, -1, -1, -1).contiguous()
        for got, want in zip(session.run(None, {"image": batch.numpy()}), trunk(batch), strict=True):
            assert got.shape == (count, 32, 4, 6)
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-4)


def test_the_base_model_has_its_published_taps():
    with torch.device("meta"):
        model = transformers.Dinov2WithRegistersModel(config(BASE))
    trunk = DINOv2(model.to_empty(device="meta"), (392, 392), [BASE.taps[:4], BASE.taps[4:]])
    assert trunk.levels == ((2, 3, 4, 5), (6, 7, 8, 9))
    assert len(trunk.blocks) == 10
    assert PUBLISHED["facebook/dinov2-with-registers-large"].taps == (4, 6, 8, 10, 12, 14, 16, 18)


def test_loading_says_nothing(folder, capfd, caplog):
    with caplog.at_level(logging.INFO):
        load_dinov2(folder, 70, taps=TAPS)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("size", "taps", "groups", "message"),
    [
        (100, TAPS, 2, r"pictures of 100x100: give multiples of the patch, 14"),
        ((70, 0), TAPS, 2, r"pictures of 70x0"),
        (70, (1, 6), 2, r"name blocks from 0 to 5"),
        (70, (-1, 2), 2, r"name blocks from 0 to 5"),
        (70, (1, 2, 3), 2, r"3 taps in 2 groups"),
        (70, None, 2, r"6 blocks, and no taps are published for so many, only for \[12, 24\]. Give taps"),
    ],
)
def test_bad_wishes_are_named(folder, size, taps, groups, message):
    with pytest.raises(BackboneError, match=message):
        load_dinov2(folder, size, taps=taps, groups=groups)


def test_a_missing_folder_is_named(tmp_path):
    for source in (tmp_path / "none", str(tmp_path / "none"), "./none/there"):
        with pytest.raises(BackboneError, match="no such folder"):
            load_dinov2(source, 70)


def test_the_hub_out_of_reach_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"facebook/none: no such folder, and the hub does not give it"):
        load_dinov2("facebook/none", 70)


def test_another_kind_of_model_is_refused(folder, tmp_path):
    other = copy(folder, tmp_path, model_type="dinov2")
    with pytest.raises(BackboneError, match=r"model type 'dinov2', wanted dinov2_with_registers"):
        load_dinov2(other, 70, taps=TAPS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('"dinov2"', "holds no JSON object"),
        ("{}", "model type None"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_broken_config_is_refused(folder, tmp_path, text, words):
    other = copy(folder, tmp_path)
    (other / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BackboneError, match=rf"config.json: {words}"):
        load_dinov2(other, 70, taps=TAPS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "32"}, r"config.json: hidden_size: .*valid integer \(is '32'\)\. Give the folder"),
        ({"hidden_size": 0}, r"hidden_size: .*greater than or equal to 1 \(is '0'\)"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers: .*less than or equal to 256"),
        (
            {"num_hidden_layers": 250},
            r"describes a model of at least 2,048,800 numbers, the weights have 3\d\d,\d\d\d bytes",
        ),
        ({"num_attention_heads": 5}, "width 32 does not split into 5 heads"),
        ({"num_attention_heads": True}, "num_attention_heads: .*valid integer"),
        ({"patch_size": -14}, "patch_size: .*greater than or equal to 4"),
        ({"patch_size": [14, 14]}, r"patch_size: .*valid integer \(is '\[14, 14\]'\)"),
        ({"image_size": 71}, "image_size 71 is no multiple of patch_size 14"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps: .*finite number"),
        ({"hidden_act": "import os"}, "hidden_act: .*'gelu'"),
        ({"num_channels": 4}, "num_channels: Input should be 3"),
        ({"qkv_bias": "yes"}, "qkv_bias: .*valid boolean"),
        ({"use_swiglu_ffn": True}, r"mlp\.\S+ is missing"),
    ],
)
def test_a_config_that_no_model_has_is_refused_in_one_line(folder, tmp_path, change, words):
    with pytest.raises(BackboneError, match=words) as said:
        load_dinov2(copy(folder, tmp_path, **change), 70, taps=TAPS)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"]
)
def test_a_size_that_is_missing_is_named(folder, tmp_path, missing):
    other = copy(folder, tmp_path)
    config = json.loads((other / "config.json").read_text())
    del config[missing]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=rf"config.json: {missing}: Field required\. Give"):
        load_dinov2(other, 70, taps=TAPS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_whatever_a_config_says_the_trunk_loads_or_says_why_not(folder, tmp_path, draw):
    """Any key may hold anything, or be gone: what is refused is refused with a message of ours."""
    known = json.loads((folder / "config.json").read_text())
    names = draw.draw(st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True))
    gone = draw.draw(st.booleans())
    small = JSON | st.integers(-2, 300)
    changed = {k: v for k, v in known.items() if k not in names}
    changed |= {} if gone else {name: draw.draw(small) for name in names}
    other = tmp_path / "fuzzed"
    other.mkdir(exist_ok=True)
    weights = other / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(folder / "model.safetensors")
    (other / "config.json").write_text(json.dumps(changed))
    try:
        trunk = load_dinov2(other, 70, taps=TAPS)
    except BackboneError as error:
        assert str(other) in str(error)  # noqa: PT017 - either end is right
    else:
        assert [each.shape for each in trunk(pictures(70, 70))] == [(2, 32, 5, 5)] * 2


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "holds no JSON object"),
        ("{}", "holds no weight_map"),
        ('{"weight_map": {"a": 3}}', "holds no weight_map"),
        ('{"weight_map": {"a": "../b.safetensors"}}', r"names '../b.safetensors', which does not lie beside it"),
    ],
)
def test_an_index_of_weights_is_no_more_trusted(folder, tmp_path, index, words):
    other = copy(folder, tmp_path)
    (other / "model.safetensors").rename(other / "model-00001-of-00001.safetensors")
    (other / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BackboneError, match=words):
        load_dinov2(other, 70, taps=TAPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 8}, r"encoder\.layer\.6\.\S+ is missing"),
        ({"num_hidden_layers": 5}, r"encoder\.layer\.5\.\S+ is unknown"),
        ({"image_size": 84}, r"position_embeddings has shape \[1, 26, 32\], wanted \[1, 37, 32\]"),
    ],
)
def test_weights_that_do_not_match_are_named(folder, tmp_path, change, message):
    with pytest.raises(BackboneError, match=message):
        load_dinov2(copy(folder, tmp_path, **change), 70, taps=TAPS)


def test_pickled_weights_are_refused(folder, reference, tmp_path):
    other = copy(folder, tmp_path)
    (other / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="no weights"):
        load_dinov2(other, 70, taps=TAPS)
    torch.save(reference.state_dict(), other / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"only pytorch_model.bin, and pickled weights can run code"):
        load_dinov2(other, 70, taps=TAPS)


def test_truncated_weights_are_refused(folder, tmp_path):
    other = copy(folder, tmp_path)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BackboneError, match=r"cannot be loaded .*\. Fetch config.json and weights again"):
        load_dinov2(other, 70, taps=TAPS)


def copy(folder: Path, tmp_path: Path, **change: object) -> Path:
    """A copy of the folder with another config."""
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    file = other / "config.json"
    stages = {"out_features": None, "out_indices": None, "stage_names": None} if change else {}
    file.write_text(json.dumps(json.loads(file.read_text()) | stages | change))
    return other
