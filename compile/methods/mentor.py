"""Mentor3AD: picture and surface tell each other, guided by a mentor that has seen both (arXiv 2505.21420).

The paper's full text is not public (the record is reported as withdrawn); known are its abstract and second-hand notes,
so this is mentor-guided crossmodal mapping after them, no reproduction, and claims none of its figures. Theirs: the
Mentor of Fusion Module (a network per modality, one that joins both to a narrow mentor feature, and a contrastive loss
between the two modalities of one cell against all other cells), the Mentor of Guidance Module (source and mentor
together tell the other modality), and a Voting Module. It joins M3DM's fusion and CFM's mapping: `CFM` is what is left
without mentor and votes.

Ours: all sizes, the embedded cells, the votes' formula, and what the mentor is fitted for. It sees what it helps to
tell, so it could pass a defect on and hide it. The aligned features are fitted by contrast alone and then frozen; what
joins them is narrow and learns to guide; and the residual is counted in deviations of good parts, in which a direction
that the mentor passes on weighs as much as any other. What that leaves of a defect in one modality is measured
(docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.methods.cells import Cells, Pair
from compile.methods.mapping import Mapping
from compile.methods.voting import Deviation, Voting

ALIGNED = 64  # numbers in which the modalities are compared
MENTOR = 16  # numbers of the mentor
HIDDEN = 128
TEMPERATURE = 0.07  # M3DM has 1


class Fusion(nn.Module):
    """Mentor of Fusion: both modalities of a cell in one space, and the mentor from both.

    Args:
        picture: numbers that a cell's picture has.
        surface: the same of its surface.

    """

    def __init__(self, picture: int, surface: int) -> None:
        super().__init__()
        self.picture, self.surface = _align(picture), _align(surface)
        self.join = nn.Sequential(nn.Linear(2 * ALIGNED, ALIGNED), nn.GELU(), nn.Linear(ALIGNED, MENTOR))

    def align(self, cells: Pair) -> tuple[Tensor, Tensor]:
        """Both modalities [..., ALIGNED], of length 1."""
        found = self.picture(cells.picture), self.surface(cells.surface)
        return functional.normalize(found[0], dim=-1), functional.normalize(found[1], dim=-1)

    def mentor(self, aligned: tuple[Tensor, Tensor]) -> Tensor:
        """Mentor [..., MENTOR] of a mean square of 1."""
        return functional.normalize(self.join(torch.cat(aligned, -1)), dim=-1) * math.sqrt(MENTOR)


def _align(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, ALIGNED))


def contrast(aligned: tuple[Tensor, Tensor], temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE of features [n, C] of length 1, both ways: each cell's own other modality against those of all others."""
    alike = aligned[0] @ aligned[1].T / temperature
    own = torch.arange(len(alike), device=alike.device)
    return (functional.cross_entropy(alike, own) + functional.cross_entropy(alike.T, own)) / 2


class Guidance(nn.Module):
    """Mentor of Guidance: each modality told from the other and the mentor. Without a mentor it is CFM's mapping."""

    def __init__(self, picture: int, surface: int) -> None:
        super().__init__()
        self.to_picture = Mapping(surface, picture, HIDDEN, mentor=MENTOR)
        self.to_surface = Mapping(picture, surface, HIDDEN, mentor=MENTOR)

    def forward(self, cells: Pair, mentor: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is left of picture [..., P] and surface [..., S] once it is told."""
        return (
            cells.picture - self.to_picture(cells.surface, mentor),
            cells.surface - self.to_surface(cells.picture, mentor),
        )


class Mentor3AD(nn.Module):
    """Maps of a scan to one map [B, h, w]: the length of the votes above what is usual, 0 where there is no surface.

    Args:
        cells: of the maps.
        guided: whether the mentor guides; without, each modality is told from the other alone.

    """

    def __init__(self, cells: Cells, *, guided: bool = True) -> None:
        super().__init__()
        widths = cells.picture.out_features, cells.surface.out_features
        self.cells, self.guided = cells, guided
        self.fusion, self.guidance = Fusion(*widths), Guidance(*widths)
        self.deviations = nn.ModuleList(Deviation(width) for width in widths)
        self.voting = Voting()

    def residuals(self, seen: Pair, aligned: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.guidance(seen, self.fusion.mentor(aligned) if self.guided else None)
        return found

    def votes(self, seen: Pair) -> Tensor:
        """Votes [..., 3] about cells: picture, surface, disagreement."""
        aligned = self.fusion.align(seen)
        parts = zip(self.deviations, self.residuals(seen, aligned), strict=True)
        return torch.stack([*(count(left) for count, left in parts), 1 - (aligned[0] * aligned[1]).sum(-1)], -1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        seen = self.cells(features)
        return ((self.voting(self.votes(seen)) * seen.known).reshape(-1, *self.cells.grid),)
