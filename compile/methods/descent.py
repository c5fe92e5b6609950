"""The one way down: every method that is fitted by gradient takes its steps here.

Seeded batches, clipped gradients, a schedule; on the GPU where there is one, through `accelerate`, and then in mixed
precision where the method allows it (bfloat16, or float16 with a scaled loss). On a processor everything is float32 and
the same to the bit as without. Steps that were taken before the process was killed are not taken again
(`compile.methods.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from compile.job import Progress
from compile.methods import FitError
from compile.methods.checkpoint import Checkpoint

LARGEST_GRADIENT = 1.0  # norm
Batch = TypeVar("Batch")


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of rows in rising order, each pass over all `count` rows in an order of its own."""
    order = np.random.default_rng(seed)
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += order.permutation(count).tolist()
        chosen, queue = sorted(set(queue[:size])), queue[size:]
        yield chosen


def device() -> torch.device:
    """Where fits compute: the GPU that is current in this process, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def computing(module: nn.Module) -> Iterator[None]:
    """Let a module answer where fits compute, without gradient and in full float32; it comes back on the CPU."""
    module.to(device())
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        module.to("cpu")


def read(features: Sequence[NDArray[Any]], rows: Any) -> list[Tensor]:
    """Chosen rows of maps, float32, where fits compute."""
    return [torch.from_numpy(np.asarray(each[rows], np.float32)).to(device()) for each in features]


def one_cycle(optimiser: Optimizer, rate: float, steps: int) -> LRScheduler:
    """A rate that rises over the first tenth, where that is a step at least, and falls in a cosine."""
    return OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1 if steps > 10 else 0.0)


def descend(
    model: nn.Module,
    optimiser: Optimizer,
    schedule: LRScheduler,
    order: Iterator[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    steps: int,
    what: str = "fit",
    clip: float = LARGEST_GRADIENT,
    mixed: bool = False,
    progress: Progress | None = None,
) -> None:
    """Take all steps; the model comes back on the CPU.

    Args:
        model: what is fitted.
        optimiser: of its parameters.
        schedule: of the optimiser's rate, one step per step.
        order: what each step's loss is given; the same whenever it is started anew.
        loss: of a batch, a scalar. It may draw from torch's generators.
        steps: how many.
        what: for people.
        clip: norm of all gradients together.
        mixed: whether products may be of half precision on a GPU.
        progress: called with (what, done, of).

    Raises:
        FitError: loss or gradient is not finite.

    """
    accelerator = Accelerator(cpu=device().type == "cpu", mixed_precision=_precision())
    model.to(device())
    stepper = accelerator.prepare_optimizer(optimiser)
    checkpoint = Checkpoint()
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    first = 0
    if (found := checkpoint.read()) is not None:
        first = found["step"]
        for name, part in parts.items():
            part.load_state_dict(found[name])
        _set_random(found["random"])
        if progress is not None:
            progress(what, first, steps)
    for step, batch in zip(range(first, steps), islice(order, first, None), strict=False):
        with accelerator.autocast() if mixed else torch.autocast(device().type, enabled=False):
            value = loss(batch)
        optimiser.zero_grad()
        accelerator.backward(value)
        norm = accelerator.clip_grad_norm_(model.parameters(), clip)
        if not torch.isfinite(value) or (accelerator.scaler is None and not torch.isfinite(norm)):
            raise FitError(
                f"the {what} diverged at step {step} of {steps}: loss {value.item():.3g}, gradient {norm.item():.3g}. "
                "Look at the pictures; another --seed, or fewer --fit-steps, may do."
            )
        stepper.step()
        schedule.step()
        if checkpoint.due or step + 1 == steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.write({**state, "step": step + 1, "random": _random()})
        if progress is not None:
            progress(what, step + 1, steps)
    model.to("cpu")


def _precision() -> str:
    if device().type == "cpu":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _random() -> list[Tensor]:
    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *gpu]


def _set_random(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state(states[1])
