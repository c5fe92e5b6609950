"""CLIP's towers give what `transformers` gives, its words are tokens as OpenAI has them, bad folders are named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from compile.backbones import BackboneError
from compile.backbones.clip import MEAN, STD, find_clip, load_clip, resize_table
from compile.backbones.clip_config import Config

SIDE = 64


@pytest.fixture(scope="module")
def loaded(clip):
    return load_clip(find_clip(clip), SIDE)


@pytest.fixture(scope="module")
def reference(clip):
    return transformers.CLIPModel.from_pretrained(clip).eval()


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_image_tower_is_that_of_transformers(loaded, reference):
    images = pictures()
    pixels = ((images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = reference.vision_model(pixels, output_hidden_states=True)
        want = reference.visual_projection(found.pooler_output)
        torch.testing.assert_close(loaded.image(images), want, rtol=1e-4, atol=1e-4)
        x = loaded.image.embed(images)
        for block, state in zip(loaded.image.blocks, found.hidden_states[1:], strict=True):
            x = block(x)
            torch.testing.assert_close(x, state, rtol=1e-4, atol=1e-4)


def test_the_text_tower_is_that_of_transformers(loaded, reference):
    """The end is found where the tokenizer put it, whatever the file's eos_token_id says; padding changes nothing."""
    texts = ["a photo of a flaw.", "cap 3"]
    sentences = loaded.sentences(texts)
    with torch.no_grad():
        for i, end in enumerate(sentences.ends.tolist()):
            alone = reference.text_model(input_ids=sentences.tokens[i : i + 1, : end + 1]).last_hidden_state[:, -1]
            want = reference.text_projection(alone)
            torch.testing.assert_close(loaded.text(sentences)[i : i + 1], want, rtol=1e-4, atol=1e-4)


def test_words_become_tokens(loaded, clip):
    vocabulary = json.loads((clip / "vocab.json").read_text())
    (tokens,), (end,) = loaded.sentences(["Flaw  cap."])
    names = ["<|startoftext|>", "flaw</w>", "c", "a", "p</w>", ".</w>", "<|endoftext|>"]
    assert tokens.tolist() == [vocabulary[name] for name in names]
    assert end == 6
    with pytest.raises(BackboneError, match=r"a text of \d+ tokens: the model takes 77"):
        loaded.sentences(["c" * 90])


def test_stages_are_the_quarters(loaded):
    assert loaded.image.stages == (1, 3, 5, 7)


def test_nothing_of_it_learns(loaded):
    assert not any(each.requires_grad for each in loaded.parameters())


def test_another_side_resizes_the_table(clip, reference):
    tower = load_clip(find_clip(clip), 96).image
    table = reference.vision_model.embeddings.position_embedding.weight
    assert tower.places.shape == (36, 32)
    assert torch.equal(resize_table(table[1:].detach(), 4), table[1:])
    assert float(tower.places.mean()) == pytest.approx(float(table[1:].detach().mean()), abs=0.05)
    with pytest.raises(BackboneError, match="pictures of 100 pixels a side: give a multiple of the patch, 16"):
        load_clip(find_clip(clip), 100)


def test_published_sizes_are_taken():
    """ViT-L/14-336 says its sizes twice, ViT-B/16 leaves out what is usual."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = Config.model_validate({"vision_config": {**large, "image_size": 336, "patch_size": 14}})
    assert config.vision_config.num_hidden_layers == 24
    assert config.text_config.max_position_embeddings == 77
    assert Config.model_validate({"vision_config": {"patch_size": 16}}).projection_dim == 512


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "siglip"}, "model type 'siglip', wanted clip"),
        ({"vision_config_dict": {"hidden_size": 30.5}}, r"vision_config.hidden_size: .*\(is '30.5'\)"),
        ({"vision_config_dict": {"num_attention_heads": 5}}, "width 32 does not split into 5 heads"),
        ({"vision_config_dict": {"image_size": 65}}, "image_size 65 is no multiple of patch_size 16"),
        ({"vision_config_dict": {"image_size": 96}}, r"position_embedding.weight has shape \[17, 32\]"),
        ({"text_config_dict": {"vocab_size": 10**6}}, r"describes a model of at least 24,0\d\d,\d\d\d numbers"),
        ({"text_config_dict": {"hidden_act": "relu"}}, "hidden_act"),
    ],
)
def test_a_folder_that_is_no_clip_is_refused(clip, tmp_path, change, words):
    other = copy(clip, tmp_path)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BackboneError, match=words) as said:
        load_clip(find_clip(other), SIDE)
    assert str(other) in str(said.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("vocab.json", '{"a": 0, ', "vocab.json: cannot be read"),
        ("vocab.json", '{"a": 0}', "vocab.json and weights of 79 words do not match"),
        ("merges.txt", "f l\nq zz\n", r"merges.txt joins \['q', 'zz'\], which vocab.json does not know"),
    ],
)
def test_broken_words_are_refused(clip, tmp_path, name, text, words):
    other = copy(clip, tmp_path)
    (other / name).write_text(text)
    with pytest.raises(BackboneError, match=words):
        load_clip(find_clip(other), SIDE)
    (other / name).unlink()
    with pytest.raises(BackboneError, match=f"{name} not there: the words that a text is made of"):
        load_clip(find_clip(other), SIDE)


def copy(folder: Path, tmp_path: Path) -> Path:
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    return other
