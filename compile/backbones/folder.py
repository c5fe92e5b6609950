"""Folders as `transformers` saves models: found or fetched, and what lies in them checked before it is built.

The files come from anywhere: an object is an object, and a model of more numbers than the weight files have bytes is
refused before memory is asked for it. Weights are read from safetensors alone, never unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from compile.backbones import BackboneError

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
INDEX = "model.safetensors.index.json"
SAVED = "Give the folder that `save_pretrained` wrote."
INSTALL = "it needs transformers: pip install 'beltline[compile]'"
Checked = TypeVar("Checked", bound=BaseModel)


def find_folder(source: str | Path, files: tuple[str, ...] = FILES) -> Path:
    """Give the folder of a source, fetched from the hub where it is a name.

    Raises:
        BackboneError: no such folder or name, `transformers` not installed.

    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise BackboneError(f"{source}: no such folder. Give one with config.json and safetensors, or owner/name.")
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    except ImportError as error:
        raise BackboneError(f"{source}: {INSTALL}") from error
    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BackboneError(
            f"{source}: no such folder, and the hub does not give it ({type(error).__name__}). Check the name and the "
            "connection, or give a folder with config.json and safetensors."
        ) from error


def read_object(file: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        BackboneError: not readable, or no object.

    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{file}: cannot be read ({error}). {SAVED}") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{file}: holds no JSON object. {SAVED}")
    return found


def check_object(model: type[Checked], found: dict[str, object], file: Path) -> Checked:
    """Check what a configuration says.

    Raises:
        BackboneError: names the first key that no model has so.

    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        given = f" (is {str(first['input'])[:40]!r})" if first["type"] != "missing" else ""
        raise BackboneError(f"{file}: {name}: {first['msg']}{given}. {SAVED}") from error


def check_weights(folder: Path, numbers: int) -> None:
    """Refuse a folder without weights, or with too few bytes of them for so many numbers.

    Raises:
        BackboneError: it is refused.

    """
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only {pickled[0]}, and pickled weights can run code" if pickled else "no weights"
        raise BackboneError(f"{folder}: {found}. Give model.safetensors (`save_pretrained` writes it).")
    size = sum(file.stat().st_size for file in weights)
    if numbers > size:
        raise BackboneError(
            f"{folder}: weights and config.json do not match: it describes a model of at least {numbers:,} "
            f"numbers, the weights have {size:,} bytes. Fetch config.json and weights again."
        )
    index = folder / INDEX
    if index.exists():
        parts = read_object(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
            raise BackboneError(f"{index}: holds no weight_map of file names. {SAVED}")
        if strange := sorted(set(parts.values()) - {file.name for file in weights}):
            raise BackboneError(f"{index}: names {strange[0]!r}, which does not lie beside it. {SAVED}")
