"""The backbones by name: an embedded EfficientNet-Lite, DINOv2 with registers of a folder or the hub, an adapted CLIP.

A backbone gives maps at levels: strides of the picture for a convolutional one, groups of blocks whose outputs are
averaged for a vision transformer, which has one grid for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from compile.anomaly_graph import MAP_LIMIT
from compile.backbone import LITE0, LITES, Lite, Trunk
from compile.backbones import BackboneError
from compile.backbones.adapted import Adapted, find_adapted, hash_files, is_adapted
from compile.backbones.dinov2 import DINOv2, Source, build_dinov2, find_dinov2, runs
from compile.methods.adaclip_graph import build_adaclip

Family = Literal["lite", "vit"]
Level = int | tuple[int, ...]  # a stride, or blocks
FAMILIES: dict[Family, str] = {"lite": "an EfficientNet-Lite", "vit": "a vision transformer"}
BACKBONES = (
    f"The frozen trunk: {', '.join(LITES)}, DINOv2 with registers as a folder or a name on the hub, or the folder of a "
    "CLIP that `beltline adapt` wrote."
)
SMALLEST, LARGEST = 128, 1024  # pixels a side
LITE_STEP, LITE_CELL = 32, 8  # stride 16, twice; stride of the finest map that most methods take


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen trunk, not loaded yet."""

    name: str  # as it was asked for
    source: Lite | Source | Adapted

    @property
    def family(self) -> Family:
        return "lite" if isinstance(self.source, Lite) else "vit"

    @property
    def title(self) -> str:
        """Name it for people."""
        if isinstance(self.source, Lite):
            return f"EfficientNet-{self.source.name.capitalize()}"
        if isinstance(self.source, Adapted):
            return (
                f"CLIP adapted by {self.source.record.method}, {self.source.blocks} blocks of width {self.source.width}"
            )
        return f"DINOv2 with registers, {self.source.blocks} blocks of width {self.source.width}"

    @property
    def step(self) -> int:
        """What the picture's side must be a multiple of, pixels."""
        return LITE_STEP if isinstance(self.source, Lite) else self.source.patch

    @property
    def cell(self) -> int:
        """Side of a cell of its finest map, pixels."""
        return LITE_CELL if isinstance(self.source, Lite) else self.source.patch

    @property
    def sides(self) -> tuple[int, int]:
        """The smallest and the largest side of a picture."""
        return -(-SMALLEST // self.step) * self.step, LARGEST // self.step * self.step

    @property
    def usual_side(self) -> int:
        """Of a picture, where methods are compared; INP-Former's of a vision transformer, an adapted one's own."""
        if isinstance(self.source, Adapted):
            return self.source.record.side
        return 256 if self.family == "lite" else 28 * self.step

    def map_side(self, side: int) -> int:
        """Side of the map for pictures of so many pixels a side; that of a vision transformer is INP-Former's."""
        return min(MAP_LIMIT, side // 2) if self.family == "lite" else MAP_LIMIT

    def groups(self, count: int) -> tuple[tuple[int, ...], ...]:
        """Its tapped blocks in so many groups; none of a convolutional one, its own of an adapted one."""
        if isinstance(self.source, Adapted):
            return self.source.levels
        return () if isinstance(self.source, Lite) else runs(self.source.taps, count)

    def build(self, levels: Sequence[Level], side: int) -> Trunk | DINOv2:
        """Load the trunk for pictures of `side` pixels a side.

        Raises:
            BackboneError: its weights are missing or do not fit.

        """
        if isinstance(self.source, Lite):
            return Trunk(tuple(level for level in levels if isinstance(level, int)), self.source)
        blocks = [level for level in levels if isinstance(level, tuple)]
        if isinstance(self.source, Adapted):
            return cast(DINOv2, build_adaclip(self.source, blocks, side))  # as good a trunk for all who export it
        return build_dinov2(self.source, side, blocks)

    @property
    def files(self) -> tuple[Path, ...]:
        """What its maps follow from: weights, and what says how they are used."""
        if isinstance(self.source, Lite):
            return (self.source.weights,)
        if isinstance(self.source, Adapted):
            return self.source.files
        return (self.source.folder / "config.json", *self.source.weights)

    def digest(self) -> str:
        """SHA-256 of its weights."""
        return hash_files((self.source.weights,) if isinstance(self.source, Lite) else self.source.weights)


DEFAULT = Backbone(LITE0.name, LITE0)


def find_backbone(name: str) -> Backbone:
    """Look a backbone up: a name of `LITES`, a folder, or a name on the Hugging Face hub.

    Raises:
        BackboneError: there is none, or it is neither DINOv2 with registers nor an adapted CLIP.

    """
    if name in LITES:
        return Backbone(name, LITES[name])
    if is_adapted(name):
        return Backbone(name, find_adapted(Path(name)))
    try:
        return Backbone(name, find_dinov2(name))
    except BackboneError as error:
        raise BackboneError(f"--backbone: {error} Embedded are {', '.join(LITES)}.") from error
