"""VarAD: how surprising is each visual token, given all tokens before it?

The paper's (Cao et al., IEEE TII, arXiv 2412.17263): tokens of several hierarchies of a frozen backbone, an adapter per
hierarchy, scanning in several directions, a selective state-space model (Mamba) that predicts each token from ALL
preceding ones, and the discrepancy between predicted and original tokens as the anomaly score. Its constants are not
public; this is VarAD-style with constants unverified, not a reproduction.

Ours: the Mamba-2 form of the scan (`compile.scan`); a convolutional trunk; and probability in place of a bare distance.
The model predicts the mean and one scale of the next token and is fitted by maximum likelihood, so that the
discrepancy is counted in standard deviations: an unpredictable but normal texture is no anomaly. The adapter is a
linear map that starts as whitening; its log-determinant in the likelihood pays for every direction that it would
shrink, which is what keeps it from collapsing the task to a constant. A token of the fine hierarchy holds 2x2 cells, so
that all hierarchies have one token length; the symmetric form of whitening keeps each of its channels near its own
cell, whose share of the discrepancy is told apart again.

There are two sizes of the one implementation. The lightweight one is what a box beside a belt has time for. The full
one has three hierarchies of the convolutional trunk, as many as the paper is said to have, and four of a vision
transformer; and twice the width and state. It leaves out the trunk's stride 4, whose cells see little more than an edge
and which would double the maps on disk (6 MB more per picture of 1024 pixels and rendering).

One step t of one direction sees the projections of token t - 1 (a learned BOS vector at t = 0), so token t itself can
never reach its own prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.scan import SelectiveScan, widen

DIRECTIONS = 4  # rows forward, rows backward, columns forward, columns backward
TAPS = 4  # of the causal convolution
LOG_SCALE = 2.5  # predicted log scales stay within +-LOG_SCALE
CONTEXT_NOISE = 0.2  # on whitened context tokens while fitting: regularises, and covers quantisation noise
SMOOTHING = 1.0  # standard deviation of the Gaussian over the discrepancy, in tokens


@dataclass(frozen=True)
class Size:
    """One hierarchy's tokens and state-space block."""

    fold: int  # cells per token side
    width: int
    heads: int
    state: int


LIGHT = Size(fold=1, width=64, heads=4, state=16)
FULL = Size(fold=1, width=128, heads=4, state=32)
SIZES = (replace(LIGHT, fold=2), LIGHT)  # strides 8 and 16
FULL_SIZES = (replace(FULL, fold=2), FULL, FULL)  # strides 8, 16 and 32


def scan_orders(height: int, width: int) -> Tensor:
    """int64 [4, L]: the cell (row-major number) that each step of each direction visits."""
    rows = torch.arange(height * width)
    columns = rows.reshape(height, width).T.reshape(-1)
    return torch.stack([rows, rows.flip(0), columns, columns.flip(0)])


class Stream(nn.Module):
    """One hierarchy: adapter, state-space block and readout, for maps of one fixed size.

    Args:
        channels: of the trunk's map.
        grid: its height and width.
        size: of the block.

    """

    orders: Tensor
    previous: Tensor
    back: Tensor
    before: Tensor
    enter: Tensor
    leave: Tensor
    places: Tensor
    centre: Tensor
    whitening: Tensor
    blur_rows: Tensor
    blur_columns: Tensor
    per_cell: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], size: Size) -> None:
        super().__init__()
        fold, width, keys = size.fold, size.width, size.heads * size.state
        if grid[0] % fold or grid[1] % fold:
            raise ValueError(f"trunk map of {grid} cells does not fold by {fold}: use an image size divisible by 16")
        self.size = size
        self.grid = (grid[0] // fold, grid[1] // fold)  # of tokens
        self.channels = channels * fold**2  # of a token
        self.parts = [width, width, width, keys, keys, size.heads]  # residual, gate, x, B, C, step
        orders = scan_orders(*self.grid)
        length = orders.shape[1]
        steps = orders.argsort(1)  # at which step each cell is visited
        previous = torch.cat([torch.full((DIRECTIONS, 1), length), orders[:, :-1]], 1)
        direction, head = torch.arange(DIRECTIONS)[:, None, None], torch.arange(size.heads)
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("previous", previous, persistent=False)
        self.register_buffer("back", (steps + torch.arange(DIRECTIONS)[:, None] * length).reshape(-1), persistent=False)
        self.register_buffer("before", previous.gather(1, steps).reshape(-1), persistent=False)
        enter = previous[:, None, :] * size.heads + head[:, None]
        self.register_buffer("enter", enter.reshape(-1), persistent=False)
        leave = (direction * size.heads + head) * length + steps[:, :, None]
        self.register_buffer("leave", leave.reshape(-1), persistent=False)
        self.register_buffer("places", _places(*self.grid), persistent=False)
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(self.channels))
        self.register_buffer("blur_rows", _gaussian(grid[0], SMOOTHING * fold), persistent=False)
        self.register_buffer("blur_columns", _gaussian(grid[1], SMOOTHING * fold).T.contiguous(), persistent=False)
        self.register_buffer("per_cell", torch.eye(fold**2).repeat(channels, 1) / channels, persistent=False)
        self.scan = SelectiveScan()
        self.adapter = nn.Parameter(torch.eye(self.channels))
        self.embed = nn.Linear(self.channels, width)
        self.in_proj = nn.Linear(width, sum(self.parts) - width)
        self.place = nn.Linear(self.places.shape[1], sum(self.parts) - width + keys, bias=False)
        self.bos = nn.Parameter(torch.zeros(sum(self.parts)))
        self.direction = nn.Parameter(torch.zeros(DIRECTIONS, 1, sum(self.parts)))
        self.conv = nn.Parameter(torch.zeros(TAPS, width))
        self.log_rate = nn.Parameter(torch.zeros(size.heads))
        self.skip = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, width)
        self.readout = nn.Linear(width, self.channels + 1)

    def adapt(self, feature: Tensor) -> Tensor:
        """Trunk map [B, C, h, w] to adapted tokens [B, L, C * fold^2], row-major; a token's channels: channel, cell."""
        fold = self.size.fold
        kernel = (self.whitening @ self.adapter).T.reshape(self.channels, -1, fold, fold)
        offset = -(kernel.sum((2, 3)) @ self.centre)
        return functional.conv2d(feature, kernel, offset, stride=fold).flatten(2).transpose(1, 2)

    def predict(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, 4, L, C] and negative log scale [B, 4, L] of each token, from those before it in each direction."""
        size, width = self.size, self.size.width
        length, each = tokens.shape[1], width // size.heads
        outer, inner = self._offsets()
        embedded = functional.pad(self.embed(tokens), (0, 0, 0, 1))  # the row of zeros is for BOS
        projected = functional.silu(embedded) @ self.in_proj.weight.T
        gate, *parts = projected.split(self.parts[1:], 2)  # type: ignore[no-untyped-call]
        x, b, c, step = (self._enter(v, offset) for v, offset in zip(parts, inner, strict=True))

        past = functional.pad(x, (0, 0, TAPS - 1, 0)).reshape(-1, size.heads, length + TAPS - 1, each)
        taps = self._per_head(self.conv)
        x = functional.silu(
            past[:, :, :length] * taps[0]
            + past[:, :, 1 : length + 1] * taps[1]
            + past[:, :, 2 : length + 2] * taps[2]
            + past[:, :, 3:] * taps[3]
        )
        dt = _softplus(step.squeeze(2))
        rate = -torch.exp(self.log_rate).reshape(-1, 1)
        a = (dt.reshape(-1, size.heads, length) * rate).reshape(-1, length)
        y: Tensor = self.scan(x.reshape(-1, length, each) * widen(dt, each), a, b, c)
        y = y.reshape(x.shape) + x * self._per_head(self.skip)
        # Back to the order of the picture, all heads of a step together.
        y = y.reshape(-1, DIRECTIONS * size.heads * length, each).index_select(1, self.leave).reshape(-1, width)
        residual, gate = (
            (v.index_select(1, self.before) + offset).reshape(-1, width)
            for v, offset in zip((embedded, gate), outer, strict=True)
        )
        y = _rms(y * functional.silu(gate))
        hidden = _rms(residual + self.out_proj(y))
        weights, biases = self.readout.weight, self.readout.bias
        mean = functional.linear(hidden, weights[1:], biases[1:])
        raw = functional.linear(hidden, weights[:1] / -LOG_SCALE, biases[:1] / -LOG_SCALE)
        shape = (-1, DIRECTIONS, length)
        return mean.reshape(*shape, self.channels), LOG_SCALE * torch.tanh(raw.reshape(shape))

    def _offsets(self) -> tuple[list[Tensor], list[Tensor]]:
        """What each step adds to the projections of the token before it: bias, place, direction, and BOS at the first.

        Those of residual and gate are [4L, n] in the order of the picture, those of x, B, C and step are [4HL, n] in
        the order of the scan. They depend on weights alone: runtimes compute them once, at loading.
        """
        keys, heads = self.size.heads * self.size.state, self.size.heads
        place = self.place(self.places)
        rows = functional.pad(place[:, :-keys] + self.in_proj.bias, (self.size.width, 0))
        seen = torch.cat([rows, self.bos[None]]).index_select(0, self.previous.reshape(-1))
        seen = seen.reshape(DIRECTIONS, -1, sum(self.parts)) + self.direction
        residual, gate, x, b, c, step = seen.split(self.parts, 2)  # type: ignore[no-untyped-call]
        c = c + place[:, -keys:].index_select(0, self.orders.reshape(-1)).reshape(c.shape)
        outer = [v.flatten(0, 1).index_select(0, self.back) for v in (residual, gate)]
        inner = [v.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 2) for v in (x, b, c, step)]
        return outer, inner

    def _enter(self, v: Tensor, offset: Tensor) -> Tensor:
        """[B, L + 1, H*n] in the order of the picture to [B*4*H, L, n], the step before in the order of the scan."""
        n = offset.shape[1]
        rows = v.reshape(-1, v.shape[1] * self.size.heads, n).index_select(1, self.enter) + offset
        return rows.reshape(-1, v.shape[1] - 1, n)

    def _per_head(self, v: Tensor) -> Tensor:
        """Weights [..., H*n] to [..., H, L, n]: repeated, for runtimes are slow to broadcast a short last axis."""
        v = v.reshape(*v.shape[:-1], self.size.heads, 1, -1)
        return v.expand(*v.shape[:-2], self.orders.shape[1], -1)

    def nll(self, feature: Tensor) -> Tensor:
        """Negative log likelihood per channel of the whitened tokens, up to a constant; a scalar."""
        tokens = self.adapt(feature)
        # Drawn on the CPU, the same everywhere; randn_like would keep the transposed layout, ten times as slow.
        noise = torch.randn(tokens.shape).to(tokens.device)
        mean, sharpness = self.predict(tokens + CONTEXT_NOISE * noise)
        error = (tokens[:, None] - mean) * torch.exp(sharpness).unsqueeze(3)
        volume = torch.linalg.slogdet(self.adapter)[1] / tokens.shape[2]
        out: Tensor = 0.5 * error.square().mean() - sharpness.mean() - volume
        return out

    def forward(self, feature: Tensor) -> Tensor:
        """Trunk map [B, C, h, w] to the discrepancy [B, h, w].

        Squared error in predicted standard deviations, mean over channels and directions, smoothed.
        """
        tokens = self.adapt(feature)
        mean, sharpness = self.predict(tokens)
        error = tokens[:, None] - mean
        cells = (error * error).reshape(-1, self.channels) @ self.per_cell
        cells = cells.reshape(-1, DIRECTIONS, tokens.shape[1], self.size.fold**2)
        cells = (cells * torch.exp(2 * sharpness).unsqueeze(3)).mean(1)
        grid = cells.transpose(1, 2).reshape(-1, self.size.fold**2, *self.grid)
        return self.blur_rows @ functional.pixel_shuffle(grid, self.size.fold)[:, 0] @ self.blur_columns


class VarAD(nn.Module):
    """The head: one `Stream` per hierarchy. Made by `compile.methods.varad_fit`."""

    def __init__(
        self, channels: Sequence[int], grids: Sequence[tuple[int, int]], sizes: Sequence[Size] = SIZES
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleList(Stream(c, g, s) for c, g, s in zip(channels, grids, sizes, strict=True))

    def hierarchies(self) -> list[Stream]:
        return [cast(Stream, stream) for stream in self.streams]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Trunk maps to one discrepancy map [B, h, w] per hierarchy."""
        return tuple(stream(feature) for stream, feature in zip(self.hierarchies(), features, strict=True))


def _places(height: int, width: int) -> Tensor:
    """[L, 16]: sine and cosine of each cell's row and column at four wavelengths, relative to the picture."""

    def waves(n: int) -> Tensor:
        phase = math.pi * (torch.arange(n, dtype=torch.float32) + 0.5)[:, None] / n * torch.tensor([1.0, 2, 4, 8])
        return torch.cat([phase.sin(), phase.cos()], 1)

    rows, columns = waves(height)[:, None].expand(-1, width, -1), waves(width).expand(height, -1, -1)
    return torch.cat([rows, columns], 2).reshape(height * width, -1)


def _gaussian(size: int, sigma: float) -> Tensor:
    """[size, size]: a Gaussian of sigma cells as a product; rows sum to one at the borders too."""
    at = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float()


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digits also where it is small, of operations that every runtime has made fast."""
    small = torch.exp(-x.abs())
    one = 1 + small
    return x.clamp(min=0) + torch.log(one) - ((one - 1) - small) / one


def _rms(x: Tensor) -> Tensor:
    """Root-mean-square normalisation; its gain lies in the linear map that follows."""
    return x * torch.rsqrt((x * x).mean(-1) + 1e-5).unsqueeze(-1)
