"""A CLIP that was adapted: a folder with what was learned, what its text says, and which CLIP it belongs to.

    adapted.json          method, CLIP and the hash of its weights, side, word, and the hashes of what it learned from
    learned.safetensors   prompts and projections by name, and the text's table; nothing of CLIP

The text side is frozen to a table for one word when the folder is written: a box never sees a text tower. CLIP itself
is not copied; it is found again by its name, and refused if its weights are others. Saved is what learned, and nothing
else: MVP-PCLIP's public code saves an old copy of CLIP with it, which undoes its visual prompts at the test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from compile.backbones import BackboneError
from compile.backbones.clip import STAGES, Source, find_clip
from compile.backbones.folder import check_object, read_object

RECORD, LEARNED = "adapted.json", "learned.safetensors"
TABLE = "table"
AdaptMethod = Literal["adaclip", "mvp-pclip"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """What `adapted.json` says."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    method: AdaptMethod
    clip: str  # a folder, or a name on the hub
    clip_sha256: Hash
    side: Annotated[int, Field(ge=16, le=4096)]  # of the pictures learned from, pixels
    word: str  # what the table says is normal or not
    prompting: Literal["static", "image"] = "static"
    seed: int = 0
    auxiliary: list[str]  # names of the sets learned from
    learned_from: list[Hash]  # of their pictures' files


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapted CLIP, not loaded yet."""

    folder: Path
    record: Record
    clip: Source

    @property
    def patch(self) -> int:
        """Side of one, pixels."""
        return self.clip.config.vision_config.patch_size

    @property
    def blocks(self) -> int:
        """How many the image tower has."""
        return self.clip.config.vision_config.num_hidden_layers

    @property
    def width(self) -> int:
        """Of the image tower."""
        return self.clip.config.vision_config.hidden_size

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Of its maps: none for the picture's embedding, and the block that ends each stage; no maps of scans."""
        if self.record.method == "mvp-pclip":
            return ()
        return ((), *((self.blocks // STAGES * (i + 1) - 1,) for i in range(STAGES)))

    @property
    def weights(self) -> tuple[Path, ...]:
        """Their files."""
        return (*self.clip.weights, self.folder / LEARNED)

    @property
    def files(self) -> tuple[Path, ...]:
        """What all of it follows from."""
        return (self.clip.folder / "config.json", self.folder / RECORD, *self.weights)

    def read_learned(self) -> dict[str, Tensor]:
        """Read what was learned, by name, and the table.

        Raises:
            BackboneError: it cannot be read.

        """
        from safetensors import SafetensorError  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415

        try:
            return load_file(self.folder / LEARNED)
        except (OSError, SafetensorError) as error:
            raise BackboneError(f"{self.folder / LEARNED}: cannot be read ({error}). Adapt again.") from error


def fill(module: nn.Module, learned: Mapping[str, Tensor], start: str, folder: Path) -> None:
    """Put what was learned, by names that start so, into a module whose towers stay as they are.

    Raises:
        BackboneError: something is missing, unknown or of another shape.

    """
    own = {name: each for name, each in module.state_dict().items() if ".tower." not in f".{name}"}
    given = {name.removeprefix(start): each for name, each in learned.items() if name.startswith(start)}
    shapes = ({name: tuple(each.shape) for name, each in some.items()} for some in (own, given))
    wanted, found = shapes
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise BackboneError(
            f"{folder / LEARNED}: {start}{wrong[0]} has shape {found.get(wrong[0])}, wanted {wanted.get(wrong[0])}. "
            "Adapt again."
        )
    module.load_state_dict(given, strict=False)


def is_adapted(source: str) -> bool:
    """Tell whether a name is the folder of one."""
    return (Path(source) / RECORD).is_file()


def find_adapted(folder: Path) -> Adapted:
    """Read the record of an adapted CLIP, and find its CLIP.

    Raises:
        BackboneError: the record cannot be read, or its CLIP is not there or another.

    """
    file = folder / RECORD
    record = check_object(Record, read_object(file), file)
    clip = find_clip(record.clip)
    if (found := hash_files(clip.weights)) != record.clip_sha256:
        raise BackboneError(
            f"{file}: was made with weights {record.clip_sha256[:12]} of {record.clip}, which has {found[:12]} now. "
            "Give that CLIP back its weights, or adapt again."
        )
    return Adapted(folder, record, clip)


def write_adapted(folder: Path, record: Record, learned: Mapping[str, Tensor]) -> None:
    """Write the folder; the record last, so that without it there is none."""
    from safetensors.torch import save_file  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: each.detach().contiguous() for name, each in learned.items()}, folder / LEARNED)
    (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def hash_files(files: tuple[Path, ...]) -> str:
    """SHA-256 of the files, one after the other."""
    hashed = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                hashed.update(chunk)
    return hashed.hexdigest()
