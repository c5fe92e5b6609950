"""The selective scan (Mamba-2, SSD): h[t] = exp(a[t]) h[t-1] + b[t] x[t]^T,  y[t] = h[t]^T c[t].

A loop over t exports badly and runs slowly, and the popular closed forms divide by cumulative products or subtract long
cumulative sums, which loses every digit when small and large steps mix. This form is exact and plain matrix products:

1. Within a chunk of steps, y = (C B^T * D) X with D[i, j] = exp(a[j+1] + ... + a[i]), lower triangular.
2. Each chunk leaves a state. Over a group of chunks at a time the same masked product carries states on, then the
   groups are the chunks of the next level, until one group is left: cost and memory stay linear in the length.

Every exponent is the sum of exactly the steps it spans, made by one product with a constant 0/1 matrix. All products
are three-dimensional, for five-dimensional ones do not build in TensorRT; no Loop, Scan, CumSum or division.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelectiveScan(nn.Module):
    """Scans G independent sequences from state zero.

    Args:
        chunk: steps per chunk.
        group: chunks per group of the recursion between chunks.

    """

    def __init__(self, chunk: int = 16, group: int = 16) -> None:
        super().__init__()
        self.within = Decay(chunk)
        self.between = Decay(group)

    def forward(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Inputs x [G, L, P], already multiplied by their step sizes; log decays a [G, L], at most 0; input and output
        directions b and c [G, L, N]. Returns y [G, L, P]; y[t] depends on steps 0..t only.
        """
        chunk, length, width, state = self.within.size, x.shape[1], x.shape[2], b.shape[2]
        count = -(-length // chunk)
        x, b, c = (_pad(v, count * chunk).reshape(-1, chunk, v.shape[2]) for v in (x, b, c))
        a = _pad(a[..., None], count * chunk).reshape(-1, chunk)

        decay = self.within(a)  # [G*count, chunk, chunk]
        y = (c @ b.transpose(1, 2) * decay) @ x
        if count > 1:
            left = (b * widen(decay[:, -1, :, None], state)).transpose(
                1, 2
            ) @ x  # [G*count, N, P]: what each chunk adds to the state
            entering = self._enter(left.reshape(-1, count, state * width), a.sum(1).reshape(-1, count))
            y = y + (c * widen(self.within.through(a), state)) @ entering.reshape(-1, state, width)
        out: Tensor = y.reshape(-1, count * chunk, width)[:, :length]
        return out

    def _enter(self, left: Tensor, total: Tensor) -> Tensor:
        """State [G, K, S] that enters each chunk. left [G, K, S]: the chunks' own; total [G, K]: their log decays."""
        count, size = left.shape[1], left.shape[2]
        group = min(count, self.between.size)
        groups = -(-count // group)
        left = _pad(left, groups * group).reshape(-1, group, size)
        total = _pad(total[..., None], groups * group).reshape(-1, group)
        decay = self.between(total)  # [G*groups, group, group]
        # What enters chunk i is what chunk i - 1 left: the same rows, one further down.
        state = functional.pad(decay[:, :-1], (0, 0, 1, 0)) @ left
        if groups > 1:
            ends = decay[:, -1:] @ left
            above = self._enter(ends.reshape(-1, groups, size), total.sum(1).reshape(-1, groups))
            through = functional.pad(total[:, :-1], (1, 0))
            state = state + self.between.through(through) * above.reshape(-1, 1, size)
        return state.reshape(-1, groups * group, size)[:, :count]


class Decay(nn.Module):
    """Decay between any two of at most `size` steps, from sums of the log decays between them."""

    spans: Tensor
    lower: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        k, i, j = torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")
        self.register_buffer("spans", ((k > j) & (k <= i)).to(torch.float32), persistent=False)
        self.register_buffer("lower", torch.ones(size, size).tril(), persistent=False)

    def forward(self, a: Tensor) -> Tensor:
        """[n, Q] log decays to [n, Q, Q]: exp(a[j+1] + ... + a[i]) at (i, j) for j <= i, zero above the diagonal."""
        n = a.shape[1]
        spans = self.spans[:n, :n, :n].reshape(n, n * n)
        return torch.exp(a @ spans).reshape(-1, n, n) * self.lower[:n, :n]

    def through(self, a: Tensor) -> Tensor:
        """[n, Q] log decays to [n, Q, 1]: exp(a[0] + ... + a[i])."""
        n = a.shape[1]
        return torch.exp(a @ self.lower[:n, :n].T)[..., None]


def widen(v: Tensor, width: int) -> Tensor:
    """[G, L] to [G, L, width] by a product: runtimes broadcast along a short last axis at half the speed."""
    return (v.reshape(-1, 1) @ v.new_ones(1, width)).reshape(-1, v.shape[1], width)


def _pad(v: Tensor, length: int) -> Tensor:
    """Zero steps at the end of axis 1: they change nothing before them."""
    return v if v.shape[1] == length else functional.pad(v, (0, 0, 0, length - v.shape[1]))
