"""What `config.json` beside a DINOv2's weights says of it: what the model follows from, checked before it is built.

The file comes from anywhere: types are taken strictly, sizes within bounds. Keys that change nothing here (dropout,
initial values, what other programs noted) are not looked at and reach nobody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from compile.backbones import BackboneError
from compile.backbones.folder import SAVED, check_object, check_weights, read_object

MODEL_TYPE = "dinov2_with_registers"


class Config(BaseModel):
    """Sizes of the model; those without a default have none that could be meant."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    hidden_size: Annotated[int, Field(ge=1, le=8192)]
    num_hidden_layers: Annotated[int, Field(ge=1, le=256)]
    num_attention_heads: Annotated[int, Field(ge=1, le=256)]
    patch_size: Annotated[int, Field(ge=4, le=32)]  # so that pictures of some size are a multiple of it
    image_size: Annotated[int, Field(ge=4, le=8192)]  # of the position table, pixels
    num_register_tokens: Annotated[int, Field(ge=0, le=256)] = 4
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] = 4
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, le=0.1)] = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_channels: Literal[3] = 3

    @property
    def numbers(self) -> int:
        """Weights that a model of these sizes has at least: of its blocks and its position table."""
        table = (self.image_size // self.patch_size) ** 2
        return self.num_hidden_layers * (4 + self.mlp_ratio) * self.hidden_size**2 + table * self.hidden_size


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
            f"{file}: model type {kind!r}, wanted {MODEL_TYPE}, for example facebook/dinov2-with-registers-base."
        )
    config = check_object(Config, found, file)
    if config.hidden_size % config.num_attention_heads:
        raise BackboneError(
            f"{file}: width {config.hidden_size} does not split into {config.num_attention_heads} heads. {SAVED}"
        )
    if config.image_size % config.patch_size:
        raise BackboneError(
            f"{file}: image_size {config.image_size} is no multiple of patch_size {config.patch_size}. {SAVED}"
        )
    check_weights(folder, config.numbers)
    return config
