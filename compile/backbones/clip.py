"""CLIP through `transformers`, as two frozen towers whose blocks a method may put prompts between.

The blocks' weights are those of `transformers`; their forward is written out here, for prompts go in between blocks and
the graph should hold plain products. `embed`, the blocks in turn and `finish` are the whole tower: together they give
what `transformers` gives. Stages, as AdaCLIP and MVP-PCLIP tap them: the residual stream after each quarter of the
blocks. The position table is resized once, bicubic with antialiasing at pixel centres, as newer versions of OpenCLIP
do; which way the published results had it is unverified.

Weights are read from safetensors alone, never unpickled. Tested here with small random models against the forward of
`transformers`; no published weights have been run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.backbones import BackboneError
from compile.backbones.clip_config import Config, read_config
from compile.backbones.folder import FILES, INSTALL, find_folder, read_object
from compile.backbones.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import CLIPModel

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of values in [0, 1]
STAGES = 4
WORDS = ("vocab.json", "merges.txt")
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a CLIP lies, and what its configuration says of it."""

    folder: Path
    config: Config

    @property
    def weights(self) -> tuple[Path, ...]:
        """Their files."""
        return tuple(sorted(self.folder.glob("*.safetensors")))


class Sentences(NamedTuple):
    """Tokens int64 [..., S, L], zeros after the end, and int64 [..., S]: where each sentence ends."""

    tokens: Tensor
    ends: Tensor


class Block(nn.Module):
    """Attention and a perceptron, each after its normalisation and beside a residual: [B, L, C] to the same."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads = int(attention.num_heads)
        self.query, self.key, self.value = attention.q_proj, attention.k_proj, attention.v_proj
        self.out = attention.out_proj
        self.norm_attention, self.norm_perceptron = layer.layer_norm1, layer.layer_norm2
        self.wide, self.narrow = layer.mlp.fc1, layer.mlp.fc2
        self.quick = layer.mlp.config.hidden_act == "quick_gelu"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mask: float32 [L, L], added to the attention's logits."""
        normed = self.norm_attention(x)
        q, k, v = (self._split(each(normed)) for each in (self.query, self.key, self.value))
        logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        weights = (logits if mask is None else logits + mask).softmax(3)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        wide = self.wide(self.norm_perceptron(x))
        wide = wide * (1.702 * wide).sigmoid() if self.quick else functional.gelu(wide)
        return cast(Tensor, x + self.narrow(wide))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class ImageTower(nn.Module):
    """image uint8 [B, H, W, 3] RGB -> tokens [B, 1 + h * w, C], CLS first -> embedding [B, D].

    Args:
        model: of `transformers`, with weights.
        side: of the picture, pixels.

    Attributes:
        grid: patches a side.
        width: C.
        stages: blocks (from 0) after each quarter of them.

    """

    first: Tensor
    places: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, model: CLIPModel, side: int) -> None:
        super().__init__()
        vision, embeddings = model.vision_model, model.vision_model.embeddings
        patch = int(vision.config.patch_size)
        if side < patch or side % patch:
            raise BackboneError(f"pictures of {side} pixels a side: give a multiple of the patch, {patch}")
        blocks = int(vision.config.num_hidden_layers)
        if blocks % STAGES:
            raise BackboneError(f"{blocks} blocks: {STAGES} stages want a multiple of {STAGES}")
        self.grid, self.width = side // patch, int(vision.config.hidden_size)
        self.stages = tuple(blocks // STAGES * (i + 1) - 1 for i in range(STAGES))
        self.patches = embeddings.patch_embedding
        self.norm_first, self.norm_last = vision.pre_layrnorm, vision.post_layernorm
        self.blocks = nn.ModuleList(Block(layer) for layer in vision.encoder.layers)
        self.projection = model.visual_projection
        table = embeddings.position_embedding.weight.detach()
        self.register_buffer("first", embeddings.class_embedding.detach() + table[0])
        self.register_buffer("places", resize_table(table[1:], self.grid))
        self.register_buffer("mean", 255 * torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(STD).reshape(3, 1, 1)), persistent=False)

    def embed(self, image: Tensor) -> Tensor:
        pixels = (image.float().permute(0, 3, 1, 2) - self.mean) * self.scale  # cast first: TensorRT moves no bytes
        x = self.patches(pixels).flatten(2).transpose(1, 2) + self.places
        return cast(Tensor, self.norm_first(torch.cat([self.first.expand(x.shape[0], 1, -1), x], 1)))

    def finish(self, x: Tensor) -> Tensor:
        """Give the embedding of the first token, not normalised."""
        return cast(Tensor, self.projection(self.norm_last(x[:, 0])))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.finish(x)


class TextTower(nn.Module):
    """Tokens int64 [S, L] -> [S, L, C] -> embedding [S, D] of the token that ends each sentence."""

    places: Tensor

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        text = model.text_model
        self.width, self.longest = int(text.config.hidden_size), int(text.config.max_position_embeddings)
        self.token = text.embeddings.token_embedding
        self.blocks = nn.ModuleList(Block(layer) for layer in text.encoder.layers)
        self.norm_last, self.projection = text.final_layer_norm, model.text_projection
        self.register_buffer("places", text.embeddings.position_embedding.weight.detach())

    def embed(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.token(tokens) + self.places[: tokens.shape[-1]])

    def causal(self, length: int) -> Tensor:
        """Mask [L, L]: no token sees a later one."""
        return torch.full((length, length), -math.inf, device=self.places.device).triu(1)

    def finish(self, x: Tensor, ends: Tensor) -> Tensor:
        """Give the embeddings, not normalised."""
        return cast(Tensor, self.projection(self.norm_last(x[torch.arange(len(x), device=x.device), ends])))

    def forward(self, sentences: Sentences) -> Tensor:
        x = self.embed(sentences.tokens)
        mask = self.causal(x.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return self.finish(x, sentences.ends)


class CLIP(nn.Module):
    """Both towers, frozen. `width` is D, of the embeddings that they share."""

    def __init__(self, model: CLIPModel, side: int, tokenizer: Any) -> None:
        super().__init__()
        self.image, self.text = ImageTower(model, side), TextTower(model)
        self.width = int(model.projection_dim)
        self._tokenizer = tokenizer
        self.eval().requires_grad_(requires_grad=False)

    def sentences(self, texts: Sequence[str]) -> Sentences:
        """Turn texts into tokens, as many for each as the longest has.

        Raises:
            BackboneError: one has more than the model takes.

        """
        found = [list(each) for each in self._tokenizer(list(texts))["input_ids"]]
        length = max(map(len, found))
        if length > self.text.longest:
            raise BackboneError(f"a text of {length} tokens: the model takes {self.text.longest}. Give a shorter word.")
        tokens = torch.tensor([each + [0] * (length - len(each)) for each in found])
        return Sentences(tokens, torch.tensor([len(each) - 1 for each in found]))


def resize_table(table: Tensor, grid: int) -> Tensor:
    """Resize the places of a square position table [n * n, C] to [grid * grid, C]."""
    side = math.isqrt(table.shape[0])
    if side == grid:
        return table.clone()
    square = table.float().T.reshape(1, -1, side, side)
    resized = functional.interpolate(square, (grid, grid), mode="bicubic", antialias=True)
    return resized[0].flatten(1).T.contiguous()


def find_clip(source: str | Path) -> Source:
    """Find a CLIP in a folder, or fetch it from the hub, and read its configuration; its weights are not read yet.

    Args:
        source: a folder with config.json, safetensors, vocab.json and merges.txt, or a name on the Hugging Face hub.

    Raises:
        BackboneError: no such folder or name, another kind of model, pickled weights, `transformers` not installed.

    """
    folder = find_folder(source, (*FILES, *WORDS))
    config = read_config(folder)
    if find_spec("transformers") is None:
        raise BackboneError(f"{source}: {INSTALL}")
    return Source(folder, config)


def load_clip(source: Source, side: int) -> CLIP:
    """Load both towers for pictures of `side` pixels a side.

    Raises:
        BackboneError: weights or words that do not fit the configuration, a side that is no multiple of the patch.

    """
    import transformers  # noqa: PLC0415 - slow to import

    checked = source.config
    config = transformers.CLIPConfig(
        vision_config=checked.vision_config.model_dump(),
        text_config=checked.text_config.model_dump() | _ends(checked.text_config.vocab_size),
        projection_dim=checked.projection_dim,
    )
    model = load_pretrained(transformers.CLIPModel, config, source.folder, beside=("position_ids",))
    return CLIP(model, side, _load_tokenizer(source.folder, checked.text_config.vocab_size))


def _ends(vocabulary: int) -> dict[str, int]:
    """The last two words, as in CLIP's own vocabulary; nothing here looks at them, but others would warn."""
    return {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}


def _load_tokenizer(folder: Path, vocabulary: int) -> Any:
    import transformers  # noqa: PLC0415 - slow to import

    if missing := [name for name in WORDS if not (folder / name).is_file()]:
        raise BackboneError(f"{folder}: {' and '.join(missing)} not there: the words that a text is made of. Add them.")
    words = read_object(folder / WORDS[0])
    if set(words.values()) - set(range(vocabulary)) or not {START, END} <= set(words):
        raise BackboneError(f"{folder}: {WORDS[0]} and weights of {vocabulary} words do not match. Fetch both again.")
    lines = (folder / WORDS[1]).read_text("utf-8", "replace").splitlines()
    merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((pair for pair in merges if len(pair) != 2 or not {*pair, "".join(pair)} <= set(words)), None):
        raise BackboneError(f"{folder}: {WORDS[1]} joins {wrong}, which {WORDS[0]} does not know. Fetch both again.")
    return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
