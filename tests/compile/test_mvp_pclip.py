"""MVP-PCLIP has the published sizes, its faults are gone, its graph says what torch says and builds."""

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from compile.backbones.clip import CLIP, find_clip, load_clip
from compile.export import export
from compile.methods.adaclip import unit
from compile.methods.mvp_pclip import (
    MVPPCLIP,
    PIXELS,
    VIEWS,
    ViewHead,
    ViewModel,
    describe_object,
    point_margins,
    read_points,
)
from compile.methods.mvp_pclip_fit import LabelledViews, fit_mvp_pclip, objective
from compile.tensorrt_build import build, check_allowed

WORDS = ["cable_gland", "dowel"]


@pytest.fixture(scope="module")
def loaded(clip) -> CLIP:
    return load_clip(find_clip(clip), PIXELS)


@pytest.fixture(scope="module")
def model(loaded) -> MVPPCLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MVPPCLIP(loaded).eval().requires_grad_(requires_grad=False)


def views(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, VIEWS, PIXELS, PIXELS), generator=generator, dtype=torch.uint8)


def places(count: int, side: int = 6, seed: int = 0) -> torch.Tensor:
    """Some pixels, some hidden."""
    found = np.random.default_rng(seed).integers(-9000, PIXELS * PIXELS, (count, VIEWS, side, side))
    return torch.from_numpy(found.clip(-1).astype(np.int32))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_published_model_has_the_published_numbers():
    """MVP-1, of the widths of ViT-L/14-336; how deep it is changes nothing."""
    vision = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "intermediate_size": 4096}
    config = transformers.CLIPConfig(
        vision_config={**vision, "image_size": 336, "patch_size": 14},
        text_config={"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1},
        projection_dim=768,
    )
    with torch.device("meta"):
        learned = MVPPCLIP(CLIP(transformers.CLIPModel(config), PIXELS, None)).learned()

    def total(*starts: str) -> int:
        return sum(each.numel() for name, each in learned.items() if name.startswith(starts))

    assert total("eyes.project.") == 3_148_800
    assert total("eyes.project_views") == 5_315_328
    assert total("eyes.keys") == 4_096
    assert total("reader") == 24_576
    assert total("") == total("eyes", "reader") == 8_492_800


def test_probabilities_have_no_temperature():
    """MVP-2: 0.12 to 0.88, however sure."""
    table = unit(random(40))[:, None] * torch.tensor([-1.0, 1.0])
    found = point_margins(torch.stack([table[:, 0], table[:, 1]])[None], table[None]).sigmoid()
    np.testing.assert_allclose(found[0].numpy(), [0.1192, 0.8808], atol=1e-4)


def test_points_read_what_all_views_and_stages_show():
    """MVP-7: the running sum against 36 vectors, each read from the upsampled map of one view and stage."""
    stages, index = random(2, 4, VIEWS, 16, 8), places(2, 5).flatten(2)
    found, seen = read_points(stages.mean(1), index)
    side = PIXELS
    finer = torch.nn.functional.interpolate(
        stages.flatten(0, 2).transpose(1, 2).reshape(-1, 8, 4, 4), (side, side), mode="bilinear", align_corners=True
    ).reshape(2, 4, VIEWS, 8, side * side)
    for b in range(2):
        for p in range(index.shape[2]):
            shown = [v for v in range(VIEWS) if index[b, v, p] >= 0]
            vectors = [finer[b, s, v, :, index[b, v, p]] for v in shown for s in range(4)]
            torch.testing.assert_close(found[b, p], unit(torch.stack(vectors).mean(0)), rtol=1e-5, atol=1e-5)
            assert seen[b, p] == len(shown)
    assert 0 < float(seen.mean()) < VIEWS
    nothing, none = read_points(stages.mean(1), torch.full_like(index, -1))
    assert not nothing.any()
    assert not none.any()


def test_key_tokens_touch_their_blocks_alone(loaded, model):
    """By hand: appended before the last block of each stage, gone after it."""
    drawn = views(1)
    x = loaded.image.embed(drawn[0, :, :, :, None].expand(-1, -1, -1, 3))
    stages = []
    for i, block in enumerate(loaded.image.blocks):
        if i % 2:
            x = block(torch.cat([x, model.eyes.keys[i // 2].expand(VIEWS, 1, -1)], 1))[:, :-1]
            stages.append(unit(model.eyes.project[i // 2](x[:, 1:])))
        else:
            x = block(x)
    found = model.eyes(drawn)
    torch.testing.assert_close(found.patches[0], torch.stack(stages).mean(0), rtol=1e-5, atol=1e-5)
    last = model.eyes.project_views[8](loaded.image.finish(x)[8])
    torch.testing.assert_close(found.whole[0, 8], unit(last), rtol=1e-5, atol=1e-5)


def test_both_ways_to_read_a_text(loaded):
    """Learned tokens stand between the start and the words; without a mask the padding has a say."""
    sentences = describe_object(loaded, WORDS)
    assert sentences.tokens.shape[:2] == (2, 2)
    torch.manual_seed(0)
    causal, unmasked = MVPPCLIP(loaded, "causal").reader, MVPPCLIP(loaded, "unmasked").reader
    unmasked.load_state_dict(causal.state_dict())
    tables = {reader.attention: reader(sentences).detach() for reader in (causal, unmasked)}
    assert float((tables["causal"] - tables["unmasked"]).abs().max()) > 1e-3
    end = int(sentences.ends[1, 1])
    alone = sentences.tokens[1, 1, : end + 1]
    x = torch.cat([loaded.text.token(alone[:1]), causal.shared, causal.own[1], loaded.text.token(alone[1:])])
    x = (x + loaded.text.places[: len(x)])[None]
    for block in loaded.text.blocks:
        x = block(x, loaded.text.causal(x.shape[1]))
    want = unit(loaded.text.finish(x, torch.tensor([x.shape[1] - 1])))[0]
    torch.testing.assert_close(tables["causal"][1, :, 1], want.detach(), rtol=1e-5, atol=1e-5)


def test_training_reaches_every_part_and_nothing_else(loaded):
    """MVP-5 and MVP-6: the object's projections learn, the same seed gives the same, CLIP stays."""
    before = {name: each.clone() for name, each in loaded.state_dict().items()}
    drawn, index = views(4, seed=2) // 2, places(4, seed=2)
    masks = torch.zeros(4, 6, 6, dtype=torch.bool)
    masks[::2, 2:4, 2:4] = True
    drawn[::2, :, :, :64] = 255
    given = LabelledViews(drawn.numpy(), index.numpy(), masks.numpy(), WORDS, np.array([0, 0, 1, 1]))
    models = [fit_mvp_pclip(loaded, given, seed=1, passes=2, batch=2) for _ in range(2)]
    assert all(torch.equal(each, before[name]) for name, each in loaded.state_dict().items())
    one, same = (each.learned() for each in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        start = MVPPCLIP(loaded)
    assert not [name for name, each in start.learned().items() if torch.equal(each, one[name])]
    tables = describe_object(loaded, WORDS)
    losses = [
        float(objective(each.eyes(drawn), index, masks, each.reader(tables)[torch.tensor([0, 0, 1, 1])]).detach())
        for each in (start, models[0])
    ]
    assert losses[1] < losses[0]


def test_exports_to_what_tensorrt_takes():
    tiny = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.CLIPConfig(
        vision_config={**tiny, "num_hidden_layers": 4, "patch_size": 32, "image_size": 224},
        text_config={**tiny, "num_hidden_layers": 1},
        projection_dim=40,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MVPPCLIP(CLIP(transformers.CLIPModel(config), PIXELS, None))
    table = unit(random(2, 40)).T
    head = ViewHead(ViewModel(model.eyes, table), [(6, 6)], (12, 12), centre=0.5).eval()
    drawn, index, mask = views(3), places(3), torch.ones(3, 12, 12)
    index[1, :, 0, 0] = -1
    names = ["views", "view_index", "mask"]
    graph = export(head, (drawn, index, mask), names, ["score", "map"])
    assert check_allowed(graph) == []
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for some in (slice(0, 1), slice(0, 3)):
        inputs = [each[some] for each in (drawn, index, mask)]
        found = session.run(None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)})
        for got, want in zip(found, head(*inputs), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
    assert head(drawn, index, mask)[1][1, 0, 0] == 0
    assert len(build(graph).engine) > 50_000
