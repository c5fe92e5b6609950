"""What `config.json` beside a CLIP's weights says of it, checked before it is built.

Keys that are missing have the defaults of `transformers`; old files say some of them a second time under
`vision_config_dict` and `text_config_dict`, which win, as there. The number of the token that ends a sentence is not
looked at: OpenAI's own files have it wrong, and it is always the one the tokenizer puts there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from compile.backbones import BackboneError
from compile.backbones.folder import SAVED, check_object, check_weights, read_object

MODEL_TYPE = "clip"
Width = Annotated[int, Field(ge=1, le=8192)]
Count = Annotated[int, Field(ge=1, le=256)]


class _Tower(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    num_hidden_layers: Count = 12
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, le=0.1)] = 1e-5


class Vision(_Tower):
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Count = 12
    num_channels: Literal[3] = 3
    image_size: Annotated[int, Field(ge=4, le=8192)] = 224  # of the position table, pixels
    patch_size: Annotated[int, Field(ge=4, le=32)] = 32


class Text(_Tower):
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_attention_heads: Count = 8
    vocab_size: Annotated[int, Field(ge=3, le=10**6)] = 49408
    max_position_embeddings: Annotated[int, Field(ge=8, le=4096)] = 77  # tokens of a sentence


class Config(BaseModel):
    """Sizes of both towers, and of the space that they share."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    vision_config: Vision = Vision()
    text_config: Text = Text()
    projection_dim: Width = 512

    @property
    def numbers(self) -> int:
        """Weights that a model of these sizes has at least."""
        towers: tuple[Vision | Text, ...] = (self.vision_config, self.text_config)
        blocks = sum(
            each.num_hidden_layers * (4 * each.hidden_size + 2 * each.intermediate_size) * each.hidden_size
            for each in towers
        )
        return blocks + self.text_config.vocab_size * self.text_config.hidden_size


def read_config(folder: Path) -> Config:
    """Read and check the configuration of a folder, and that weights lie there.

    Raises:
        BackboneError: not readable, another kind of model, sizes that are none or not those of the weights, no weights.

    """
    file = folder / "config.json"
    found = read_object(file)
    kind = found.get("model_type")
    if kind != MODEL_TYPE:
        raise BackboneError(
            f"{file}: model type {kind!r}, wanted {MODEL_TYPE}, for example openai/clip-vit-large-patch14-336."
        )
    for name in ("vision_config", "text_config"):
        own, again = found.get(name), found.get(f"{name}_dict")
        if isinstance(again, dict):
            found[name] = (own if isinstance(own, dict) else {}) | again
    config = check_object(Config, found, file)
    for tower in (config.vision_config, config.text_config):
        if tower.hidden_size % tower.num_attention_heads:
            raise BackboneError(
                f"{file}: width {tower.hidden_size} does not split into {tower.num_attention_heads} heads. {SAVED}"
            )
    if config.vision_config.image_size % config.vision_config.patch_size:
        raise BackboneError(
            f"{file}: image_size {config.vision_config.image_size} is no multiple of patch_size "
            f"{config.vision_config.patch_size}. {SAVED}"
        )
    check_weights(folder, config.numbers)
    return config
