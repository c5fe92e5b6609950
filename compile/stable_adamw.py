"""StableAdamW: AdamW whose step shrinks for a tensor that meets gradients larger than its history foresaw.

Wortsman et al. 2023 (arXiv 2304.13013) with AMSGrad, in the form that INP-Former's public code uses: the step size of
each tensor is divided by max(1, RMS(gradient / denominator) / threshold), where the denominator is Adam's own: square
root of the largest second moment so far, corrected for its bias, plus eps. Weight decay is decoupled, scales with the
learning rate alone and reaches every parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class StableAdamW(Optimizer):
    """Defaults are those of INP-Former.

    Args:
        params: to optimise.
        lr: learning rate.
        betas: of the first and second moment.
        eps: added to the denominator.
        weight_decay: decoupled.
        threshold: RMS above which a tensor's step shrinks.

    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        weight_decay: float = 1e-4,
        threshold: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "threshold": threshold}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["first"], state["second"], state["largest"] = (torch.zeros_like(parameter) for _ in range(3))
        state["step"] += 1
        (beta_1, beta_2), first, second = group["betas"], state["first"], state["second"]
        first.lerp_(gradient, 1 - beta_1)
        second.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        torch.maximum(state["largest"], second, out=state["largest"])
        denominator = (state["largest"].sqrt() / math.sqrt(1 - beta_2 ** state["step"])).add_(group["eps"])
        excess = (gradient / denominator).square_().mean().sqrt_() / group["threshold"]
        size = group["lr"] / (1 - beta_1 ** state["step"]) / excess.clamp(min=1)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(size * first / denominator)
