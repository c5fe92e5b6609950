"""AdaCLIP has the published sizes, prompts go where they belong, batches and cached texts change nothing."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from compile.anomaly_graph import AnomalyGraph, AnomalyHead
from compile.backbones.clip import CLIP, Sentences, find_clip, load_clip
from compile.export import export
from compile.methods.adaclip import DEPTH, LENGTH, AdaCLIP, margins, run_prompted, run_prompted_text, unit
from compile.methods.adaclip_fit import Auxiliary, fit_adaclip, objective, tokens_of
from compile.methods.adaclip_fuse import CHOSEN, cluster, fuse
from compile.methods.adaclip_graph import SIGMA, AdaHead, AdaTrunk
from compile.methods.clip_states import COUNTS, describe
from compile.tensorrt_build import build, check_allowed

SIDE = 64
WORDS = ["cap", "wood-plank"]


@pytest.fixture(scope="module")
def loaded(clip) -> CLIP:
    return load_clip(find_clip(clip), SIDE)


def made(loaded: CLIP, prompting) -> AdaCLIP:
    """A model whose prompts are large enough to be seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AdaCLIP(loaded, prompting).eval().requires_grad_(requires_grad=False)
        for name, each in model.learned().items():
            each.add_(0.3 * torch.randn(each.shape)) if "static" in name else None
    return model


def pictures(count: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_published_model_has_the_published_numbers():
    """ADA-1, of the widths of ViT-L/14-336; how deep it is changes nothing."""
    config = transformers.CLIPConfig(
        vision_config={
            "hidden_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1},
        projection_dim=768,
    )
    with torch.device("meta"):
        clip = CLIP(transformers.CLIPModel(config), 336, None)
        counts = {
            prompting: {name: each.numel() for name, each in AdaCLIP(clip, prompting).learned().items()}
            for prompting in ("static", "full")
        }

    def total(prompting: str, part: str) -> int:
        return sum(count for name, count in counts[prompting].items() if part in name)

    assert total("full", "static") == 35_840
    assert total("full", "eyes.project.") == 3_148_800
    assert total("full", "eyes.project_whole") == 590_592
    assert total("full", "eyes.dynamic") == 3_937_280
    assert total("full", "reader.dynamic") == 2_952_960
    assert total("full", "") == 10_665_472
    assert total("static", "") == 35_840 + 3_148_800 + 590_592


def test_the_map_is_the_published_one():
    """ADA-2: (p_abnormal + 1 - p_normal) / 2 of the softmax is the sigmoid of the margin."""
    features, table = unit(random(2, 5, 40)), unit(random(2, 2, 40, seed=1)).transpose(1, 2)
    normal, abnormal = (100 * features @ table).softmax(2).unbind(2)
    torch.testing.assert_close(margins(features, table).sigmoid(), (abnormal + 1 - normal) / 2)


@pytest.mark.parametrize("prompting", ["static", "image"])
def test_a_cached_text_is_the_text(loaded, prompting):
    """ADA-3: the table is of the words alone; in the published form it is of the picture, too."""
    sentences = tokens_of(loaded, WORDS)
    model, words = made(loaded, prompting), torch.tensor([1, 0, 1])
    images = pictures(3)
    cached = model.reader(sentences)
    assert torch.equal(model.table(sentences, words, images), cached[words])
    full = made(loaded, "full")
    one, other = (full.table(sentences, words[:1], each[None]) for each in images[:2])
    assert float((one - other).abs().max()) > 1e-3


def test_the_mean_of_the_top_is_what_clusters_come_to():
    """ADA-4."""
    patches = unit(random(2, 4, 300, 40) + random(2, 1, 1, 40, seed=2))
    whole, margin = unit(random(2, 40, seed=3)), random(2, 300, seed=4)
    found = {how: fuse(whole, patches, margin, how) for how in ("mean", "code", "paper", "none")}
    assert torch.equal(found["none"], whole)
    assert float((found["mean"] * found["code"]).sum(1).min()) > 0.99
    top = margin.argsort(1, descending=True)[:, :CHOSEN]
    want = torch.stack([patches[i][:, rows].mean((0, 1)) for i, rows in enumerate(top)])
    torch.testing.assert_close(found["mean"], unit(0.2 * unit(want) + 0.8 * whole))


def test_the_papers_fusion_takes_the_worst_cluster():
    centres = unit(random(3, 40))
    of = torch.arange(60) % 3
    patches = (centres[of] + 0.01 * random(60, 40, seed=1))[None, None].expand(1, 4, -1, -1)
    margin = torch.where(of == 1, 3.0, -3.0)[None]
    whole = unit(random(1, 40, seed=2))
    found = fuse(whole, patches, margin, "paper")
    assert float((found * unit(0.2 * centres[1] + 0.8 * whole)).sum()) > 0.99


def test_clusters_are_found():
    centres = 9 * random(20, 6)
    of = torch.arange(100) % 20
    labels = cluster(centres[of] + 0.1 * random(100, 6, seed=1))
    assert all(len(labels[of == i].unique()) == 1 for i in range(20))
    assert len(labels.unique()) == 20


def test_masked_patches_have_no_say():
    patches, whole = unit(random(1, 4, 16, 40)), unit(random(1, 40, seed=1))
    margin, seen = random(1, 16, seed=2), (torch.arange(16) < 6).float()[None]
    want = fuse(whole, patches[:, :, :6], margin[:, :6], "mean")
    torch.testing.assert_close(fuse(whole, patches, margin, "mean", seen), want)
    assert torch.isfinite(fuse(whole, patches, margin, "mean", 0 * seen)).all()


def test_sentences_are_the_published_ones():
    """ADA-5."""
    found = describe("wood-plank")
    assert COUNTS == (28, 20)
    assert len(set(found)) == 48
    assert found[0] == "a bad photo of a wood plank."
    assert found[28] == "a bad photo of a damaged wood plank."
    assert found[-1] == "a cropped photo of the wood plank with damage."


@pytest.mark.parametrize("prompting", ["static", "image", "full"])
def test_a_batch_is_its_pictures(loaded, prompting):
    """ADA-6, of different words."""
    model, images, sentences = made(loaded, prompting), pictures(), tokens_of(loaded, WORDS)
    words = torch.tensor([1, 0])
    seen, table = model.eyes(images), model.table(sentences, words, images)
    for i in range(2):
        alone = model.eyes(images[i : i + 1])
        torch.testing.assert_close(seen.patches[i : i + 1], alone.patches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen.whole[i : i + 1], alone.whole, rtol=1e-5, atol=1e-5)
        own = model.table(sentences, words[i : i + 1], images[i : i + 1])
        torch.testing.assert_close(table[i : i + 1], own, rtol=1e-5, atol=1e-5)


def test_without_prompts_it_is_clip(loaded):
    """ADA-7."""
    images, sentences = pictures(), loaded.sentences(describe("cap"))
    _, whole = run_prompted(loaded.image, images, [])
    assert torch.equal(whole, loaded.image(images))
    assert torch.equal(run_prompted_text(loaded.text, sentences, []), loaded.text(sentences))


def test_prompts_go_where_they_belong(loaded):
    """By hand: appended at block 1, put anew until block 4, flowing on; in texts over words 1 to 5 from block 2 on."""
    model, images = made(loaded, "static"), pictures()
    x = loaded.image.embed(images)
    for i, block in enumerate(loaded.image.blocks):
        if i < DEPTH:
            x = torch.cat([x[:, :17], model.eyes.static[i].expand(2, -1, -1)], 1)
        assert x.shape[1] == 17 + LENGTH
        x = block(x)
        if i == 5:
            torch.testing.assert_close(model.eyes(images).patches[:, 2], unit(model.eyes.project[2](x[:, 1:17])))
    sentences = loaded.sentences(["a bad photo of a cap."])
    x, mask = loaded.text.embed(sentences.tokens), loaded.text.causal(len(sentences.tokens[0]))
    for i, block in enumerate(loaded.text.blocks):
        if i in (1, 2, 3):
            x[:, 1:6] = model.reader.static[i]
        x = block(x, mask)
    want = loaded.text.finish(x, sentences.ends)
    torch.testing.assert_close(run_prompted_text(loaded.text, sentences, list(model.reader.static)), want)


def auxiliary(count: int = 8) -> Auxiliary:
    """Noise, half of it with a bright square."""
    images, masks = pictures(count, seed=5).numpy().copy() // 2, np.zeros((count, SIDE, SIDE), bool)
    for i in range(0, count, 2):
        masks[i, 8 * i % 32 : 8 * i % 32 + 24, 20:44] = True
    images[masks] = 255
    return Auxiliary(images, masks, WORDS, np.arange(count) // 4 % 2)


@pytest.mark.parametrize("prompting", ["static", "full"])
def test_training_learns_and_touches_prompts_alone(loaded, prompting):
    before = {name: each.clone() for name, each in loaded.state_dict().items()}
    given, sentences = auxiliary(), tokens_of(loaded, WORDS)
    told: list[tuple[str, int, int]] = []
    models = [
        fit_adaclip(loaded, given, seed=seed, prompting=prompting, passes=passes, progress=lambda *t: told.append(t))
        for seed, passes in ((0, 6), (0, 6))
    ]
    assert told[11] == ("adapt", 12, 12)
    assert all(torch.equal(each, before[name]) for name, each in loaded.state_dict().items())
    one, same = (each.learned() for each in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    losses = []
    for model in (AdaCLIP(loaded, prompting), models[0]):
        images = torch.from_numpy(given.pictures)
        seen = model.eyes(images)
        table = model.table(sentences, torch.from_numpy(given.word_of), images)
        by_stage, whole = margins(seen.patches, table), margins(seen.whole[:, None], table)[:, 0]
        losses.append(float(objective(by_stage, whole, torch.from_numpy(given.masks)).detach()))
    assert losses[1] < 0.8 * losses[0]


def test_exports_to_what_tensorrt_takes(loaded):
    model = made(loaded, "static")
    table = model.reader(tokens_of(loaded, ["cap"]))[0]
    trunk = AdaTrunk(model.eyes)
    head = AnomalyHead(AdaHead(table, 4, SIDE), [(SIDE, SIDE)], (32, 32), smoothing=SIGMA * 32)
    graph = AnomalyGraph(trunk, head)
    images, mask = pictures(3), torch.ones(3, 32, 32)
    mask[:, :, :16] = 0
    exported = export(graph, (images, mask), ["image", "mask"], ["score", "map"])
    assert check_allowed(exported) == []
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    for some in (slice(0, 1), slice(0, 3)):
        inputs = {"image": images[some].numpy(), "mask": mask[some].numpy()}
        for got, want in zip(session.run(None, inputs), graph(images[some], mask[some]), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    assert not graph(images, mask)[1][:, :, :16].any()
    assert len(build(exported).engine) > 50_000


def test_the_map_is_upsampled_corners_on_corners(loaded):
    model = made(loaded, "static")
    table = model.reader(tokens_of(loaded, ["cap"]))[0]
    features = AdaTrunk(model.eyes)(pictures())
    (found,) = AdaHead(table, 4, SIDE)(features)
    logits = torch.stack([(each.permute(0, 2, 3, 1) @ (100 * table)) for each in features[1:]]).mean(0)
    finer = torch.nn.functional.interpolate(logits.permute(0, 3, 1, 2), SIDE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, finer.softmax(1)[:, 1], rtol=1e-4, atol=1e-5)


def test_the_score_ranks_as_the_published_probability(loaded):
    model = made(loaded, "static")
    table = model.reader(tokens_of(loaded, ["cap"]))[0]
    features = AdaTrunk(model.eyes)(pictures(6))
    score = AdaHead(table, 4, SIDE, "none").image_score(features, [], [torch.ones(6, SIDE, SIDE)])
    published = (100 * features[0].flatten(1).double() @ table.double()).softmax(1)[:, 1]
    assert score.argsort().tolist() == published.argsort().tolist()
    torch.testing.assert_close(published, (400 * (score.double() - 0.5)).sigmoid(), rtol=1e-3, atol=1e-4)


def test_sentences_may_differ_in_length(loaded):
    """Zeros after the end change no embedding."""
    model = made(loaded, "static")
    both, alone = tokens_of(loaded, ["a", "a long word"]), tokens_of(loaded, ["a"])
    assert both.tokens.shape[2] > alone.tokens.shape[2]
    first = Sentences(both.tokens[:1], both.ends[:1])
    torch.testing.assert_close(model.reader(first), model.reader(alone), rtol=1e-5, atol=1e-5)
    assert math.isclose(float(model.reader(alone).norm(dim=1).mean()), 1, rel_tol=1e-5)
