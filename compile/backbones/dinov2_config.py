"""What `config.json` beside a DINOv2's weights says of it: what the model follows from, checked before it is built.

The file comes from anywhere: types are taken strictly, sizes within bounds, and a model of more numbers than the weight
files have bytes is refused before memory is asked for it. Keys that change nothing here (dropout, initial values, what
other programs noted) are not looked at and reach nobody.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compile.backbones import BackboneError

MODEL_TYPE = "dinov2_with_registers"
SAVED = "Give the folder that `save_pretrained` wrote."
INDEX = "model.safetensors.index.json"


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
    found = _object(file)
    kind = found.get("model_type")
    if kind != MODEL_TYPE:
        raise BackboneError(
            f"{file}: model type {kind!r}, wanted {MODEL_TYPE}, for example facebook/dinov2-with-registers-base."
        )
    try:
        config = Config.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        given = f" (is {str(first['input'])[:40]!r})" if first["type"] != "missing" else ""
        raise BackboneError(f"{file}: {name}: {first['msg']}{given}. {SAVED}") from error
    if config.hidden_size % config.num_attention_heads:
        raise BackboneError(
            f"{file}: width {config.hidden_size} does not split into {config.num_attention_heads} heads. {SAVED}"
        )
    if config.image_size % config.patch_size:
        raise BackboneError(
            f"{file}: image_size {config.image_size} is no multiple of patch_size {config.patch_size}. {SAVED}"
        )
    _check_weights(folder, config)
    return config


def _object(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{file}: cannot be read ({error}). {SAVED}") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{file}: holds no JSON object. {SAVED}")
    return found


def _check_weights(folder: Path, config: Config) -> None:
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only {pickled[0]}, and pickled weights can run code" if pickled else "no weights"
        raise BackboneError(f"{folder}: {found}. Give model.safetensors (`save_pretrained` writes it).")
    size = sum(file.stat().st_size for file in weights)
    if config.numbers > size:
        raise BackboneError(
            f"{folder}: weights and config.json do not match: it describes a model of at least {config.numbers:,} "
            f"numbers, the weights have {size:,} bytes. Fetch config.json and weights again."
        )
    index = folder / INDEX
    if index.exists():
        parts = _object(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
            raise BackboneError(f"{index}: holds no weight_map of file names. {SAVED}")
        if strange := sorted(set(parts.values()) - {file.name for file in weights}):
            raise BackboneError(f"{index}: names {strange[0]!r}, which does not lie beside it. {SAVED}")
