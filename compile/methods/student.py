"""The lightweight VarAD with what a teacher taught it: its own surprise, and a readout that corrects it.

VarAD alone is blind to what is surprising nowhere in particular, such as a change of surface over a third of the part,
and finds everything surprising where parts turn. The readout sees the trunk's maps and VarAD's surprise, with a context
as wide as the trunk's next stride, which the student does not compute; it is small and purely convolutional. Surprise
is counted in what is usual on good parts, everywhere the same: deviations at each place, as VarAD alone has them, tell
less of a part that turns. Ours; no paper's. Fitted by `compile.methods.distil`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.anomaly_graph import finer
from compile.methods.varad import VarAD

WIDTH, DEPTH = 64, 2
START = 0.5  # of the score of a good part, that the usual surprise is worth before the fit


class Readout(nn.Module):
    """Maps of strides 8 and 16 and both surprises to a correction [B, h, w] and what it was read from, at stride 8.

    Args:
        shapes: channels, height and width of the trunk's maps.

    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        for i, (channels, *_) in enumerate(shapes):
            self.register_buffer(f"mean_{i}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"deviation_{i}", torch.ones(channels, 1, 1))
        _, height, width = shapes[1]
        for name, grid in (("rows", height), ("columns", width)):
            for stride, factor in ((16, 2), (32, 4)):
                raised = finer(grid * 2 // factor, factor)
                constant = (raised if name == "rows" else raised.T).contiguous()
                self.register_buffer(f"{name}_{stride}", constant, persistent=False)
        self.enter = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels, *_ in shapes)
        self.surprise = nn.Conv2d(2, WIDTH, 1)
        self.context = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(shapes[1][0], WIDTH, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )
        self.around = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(DEPTH))
        self.leave = nn.Conv2d(WIDTH, 1, 1)
        for each in self.leave.parameters():
            nn.init.zeros_(each)

    def forward(self, features: Sequence[Tensor], surprises: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        fine, coarse = (
            (each - getattr(self, f"mean_{i}")) / getattr(self, f"deviation_{i}") for i, each in enumerate(features)
        )
        surprise = torch.stack([surprises[0], self.raise_(surprises[1], 16)], 1) - 1
        x = self.enter[0](fine) + self.raise_(self.enter[1](coarse), 16) + self.surprise(surprise)
        x = functional.relu(x + self.raise_(self.context(coarse), 32))
        for each in self.around:
            x = x + functional.relu(each(x))
        return self.leave(x)[:, 0], x

    def raise_(self, x: Tensor, stride: int) -> Tensor:
        """A map of this stride [..., h, w] on the grid of stride 8."""
        found: Tensor = getattr(self, f"rows_{stride}") @ x @ getattr(self, f"columns_{stride}")
        return found


class Student(nn.Module):
    """Trunk maps of strides 8 and 16 to one map [B, h, w] at stride 8, at least 0; a good part's largest is about 1.

    Args:
        varad: fitted alone.
        usual: its mean discrepancy on good pictures, of each hierarchy [2].
        shapes: channels, height and width of the trunk's maps.

    """

    usual: Tensor

    def __init__(self, varad: VarAD, usual: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.varad = varad
        self.register_buffer("usual", usual)
        self.readout = Readout(shapes)
        self.weight = nn.Parameter(torch.tensor(START))

    def surprises(self, features: Sequence[Tensor]) -> list[Tensor]:
        """VarAD's discrepancy of each hierarchy, [B, h, w] and [B, h / 2, w / 2], as multiples of the usual one."""
        return [each / self.usual[i] for i, each in enumerate(self.varad(features))]

    def corrected(self, features: Sequence[Tensor], surprises: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The map, and what the readout read it from [B, C, h, w], of VarAD's surprises."""
        correction, seen = self.readout(features, surprises)
        surprise = (surprises[0] + self.readout.raise_(surprises[1], 16)) / 2
        return functional.relu(self.weight * surprise + correction), seen

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.corrected(features, self.surprises(features))[:1]
