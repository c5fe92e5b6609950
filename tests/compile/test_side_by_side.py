"""Fits side by side end with the bits of one after another, also when they were killed, and end together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from compile.job import Progress
from compile.methods import FitError, checkpoint
from compile.methods.checkpoint import resumable
from compile.methods.descent import batches, descend, one_cycle
from compile.methods.side_by_side import side_by_side

STEPS = 12
DATA = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """Stands in for the death of the process."""


def line(seed: int, rate: float, progress: Progress) -> dict[str, Tensor]:
    with torch.no_grad():
        model = nn.Linear(4, 2)
        model.weight.fill_(0.1 * seed)
        model.bias.zero_()
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    schedule = one_cycle(optimiser, rate, STEPS)
    rows = batches(20, 6, seed)
    descend(model, optimiser, schedule, rows, partial(error, model), steps=STEPS, progress=progress)
    return model.state_dict()


def error(model: nn.Module, rows: list[int]) -> Tensor:
    return (model(DATA[rows]) - DATA[rows, :2]).square().mean()


def lines(*seeds: int) -> list[Callable[[Progress], dict[str, Tensor]]]:
    return [partial(line, seed, 0.1) for seed in seeds]


def same(some: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in a)


def test_they_give_what_one_after_another_gives() -> None:
    alone = [fit(lambda *_: None) for fit in lines(1, 2, 3)]
    assert same(side_by_side(lines(1, 2, 3), None), alone)
    assert not same(alone[:1], alone[1:2])


def test_they_run_at_the_same_time() -> None:
    met = Barrier(2)
    assert side_by_side([lambda _: met.wait(20) + 1, lambda _: met.wait(20) + 1], None) in ([1, 2], [2, 1])


def test_killed_ones_go_on_from_their_own_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)
    whole = side_by_side(lines(1, 2), None)

    def kill(_: str, done: int, __: int) -> None:
        if done == STEPS:  # of 2 * STEPS
            raise Killed

    with pytest.raises(Killed), resumable(tmp_path):
        side_by_side(lines(1, 2), kill)
    told: list[int] = []
    with resumable(tmp_path):
        assert same(side_by_side(lines(1, 2), lambda _, done, __: told.append(done)), whole)
        assert same([line(5, 0.1, lambda *_: None)], [line(5, 0.1, lambda *_: None)])
    assert told[-1] == 2 * STEPS
    assert len(told) < 2 * STEPS  # not from their start
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*.pt")) == [
        "0.pt",
        "1.pt",
        "side 0/0.pt",
        "side 1/0.pt",
    ]


def test_when_one_fails_the_others_end_and_its_reason_is_told() -> None:
    steps: list[int] = []

    def endless(progress: Progress) -> None:
        while True:
            steps.append(0)
            progress("fit", 1, 2)

    def fails(_: Progress) -> None:
        while not steps:
            pass
        raise FitError("diverged")

    with pytest.raises(FitError, match="diverged"):
        side_by_side([endless, fails], None)


def test_whoever_is_told_may_end_them_all() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(lines(1, 2), stop)
