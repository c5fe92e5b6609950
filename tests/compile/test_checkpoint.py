"""A fit that was killed goes on from its checkpoint and ends with the same bits; a damaged one starts anew."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compile.methods import FitError, checkpoint
from compile.methods.checkpoint import resumable
from compile.methods.descent import batches, descend, one_cycle
from compile.methods.inp_former import Size
from compile.methods.inp_former_fit import fit_inp_former
from compile.methods.varad_fit import fit_varad

STEPS = 30


class Killed(BaseException):
    """Stands in for the death of the process, where the real one would cost seconds."""


def descent(stop: int = STEPS, *, started: list[int] | None = None) -> dict[str, Tensor]:
    """Fit a small layer with noise from torch's generator, and stop after so many steps."""
    torch.manual_seed(3)
    model = nn.Linear(4, 2)
    data = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)

    def loss(rows: list[int]) -> Tensor:
        wanted = data[rows, :2] + 0.1 * torch.randn(len(rows), 2)
        return (model(data[rows]) - wanted).square().mean()

    def tell(_: str, done: int, of: int) -> None:
        if started is not None:
            started.append(done)
        if done == stop < of:
            raise Killed

    schedule = one_cycle(optimiser, 0.1, STEPS)
    descend(model, optimiser, schedule, batches(20, 6, 1), loss, steps=STEPS, progress=tell)
    return model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)


@pytest.mark.parametrize("stop", [1, 17, 29])
def test_a_descent_goes_on_to_the_same_bits(tmp_path: Path, eager, stop: int) -> None:
    whole = descent()
    with pytest.raises(Killed), resumable(tmp_path):
        descent(stop)
    told: list[int] = []
    with resumable(tmp_path):
        assert same(descent(started=told), whole)
    assert told[0] == stop - 1 or told[0] == stop
    assert told[-1] == STEPS
    again: list[int] = []
    with resumable(tmp_path):
        assert same(descent(started=again), whole)
    assert again == [STEPS]  # it is not fitted again


def test_without_the_generator_the_bits_would_differ(tmp_path: Path, eager) -> None:
    """The noise matters: a checkpoint that forgets the generator's state is found out."""
    with pytest.raises(Killed), resumable(tmp_path):
        descent(17)
    file = tmp_path / "0.pt"
    state = torch.load(file, weights_only=True)
    torch.manual_seed(9)
    torch.save({**state, "random": [torch.get_rng_state()]}, file)
    with resumable(tmp_path):
        assert not same(descent(), descent())


def test_descents_of_one_fit_do_not_share_a_file(tmp_path: Path) -> None:
    with resumable(tmp_path):
        descent()
        descent()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0.pt", "1.pt"]


def test_a_damaged_checkpoint_starts_the_fit_anew(tmp_path: Path, caplog) -> None:
    with resumable(tmp_path):
        whole = descent()
    file = tmp_path / "0.pt"
    intact = file.read_bytes()
    for damaged in (b"", intact[: len(intact) // 2], b"no checkpoint" * 99, intact[:-30]):
        file.write_bytes(damaged)
        told: list[int] = []
        with caplog.at_level(logging.WARNING), resumable(tmp_path):
            assert same(descent(started=told), whole)
        assert told[0] == 1
        assert "starts anew" in caplog.text
        caplog.clear()


def test_a_checkpoint_cannot_run_code(tmp_path: Path, caplog) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"model": Evil()}, tmp_path / "0.pt")
    with resumable(tmp_path):
        descent()
    assert not (tmp_path / "evil").exists()


def test_a_full_disk_costs_the_checkpoint_alone(tmp_path: Path, eager, caplog) -> None:
    whole = descent()
    with resumable(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        assert same(descent(), whole)
    assert caplog.text.count("goes on without") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fit_that_diverges_says_where(value: float) -> None:
    model = nn.Linear(2, 1)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    order = iter([1.0, 1.0, value, 1.0])
    with pytest.raises(FitError, match=r"the fit diverged at step 2 of 4: loss (nan|inf).*Look at the pictures"):
        descend(
            model,
            optimiser,
            one_cycle(optimiser, 0.1, 4),
            order,
            lambda scale: scale * model(torch.ones(1, 2)).sum().square(),
            steps=4,
        )


def test_a_gradient_that_diverges_with_a_finite_loss_is_found() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(FitError, match=r"gradient (nan|inf)"):
        descend(
            model,
            optimiser,
            one_cycle(optimiser, 0.1, 2),
            iter([0, 1]),
            lambda _: (model.weight.sum() * 0).sqrt(),
            steps=2,
        )


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import torch
from compile.methods import checkpoint
from compile.methods.varad_fit import fit_varad
torch.set_num_threads(1)
checkpoint.EVERY_S, checkpoint.SHARE = 0.0, 0
rng = np.random.default_rng(0)
maps = [rng.normal(size=(12, 8, n, n)).astype(np.float32) for n in (8, 4)]
with checkpoint.resumable(Path(sys.argv[1])):
    model = fit_varad(maps, seed=3, steps=60, progress=lambda *news: print(news[1], flush=True))
torch.save(model.state_dict(), Path(sys.argv[1]) / "model")
"""


def test_a_fit_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def run(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole, first = run("whole"), run("killed")
    assert first.stdout is not None
    for line in first.stdout:
        if int(line) >= 20:
            break
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    told = run("killed").communicate()[0].split()
    assert int(told[0]) >= 20
    assert told[-1] == "60"
    assert whole.communicate()[0].split() == [str(step) for step in range(1, 61)]
    assert (tmp_path / "killed" / "model").read_bytes() == (tmp_path / "whole" / "model").read_bytes()


@pytest.mark.parametrize("method", ["varad", "inp-former"])
def test_checkpoints_leave_a_fit_as_it_is(tmp_path: Path, eager, method: str) -> None:
    rng = np.random.default_rng(0)

    def fit() -> dict[str, Tensor]:
        if method == "varad":
            return fit_varad([rng_maps(8), rng_maps(4)], seed=1, steps=5).state_dict()
        size = Size(width=8, heads=2, prototypes=2, blocks=2, groups=2)
        return fit_inp_former([rng_maps(4), rng_maps(4)], seed=1, steps=5, batch=4, size=size).state_dict()

    fixed = {n: rng.normal(size=(10, 8, n, n)).astype(np.float32) for n in (4, 8)}

    def rng_maps(n: int) -> np.ndarray:
        return fixed[n]

    alone = fit()
    with resumable(tmp_path):
        assert same(fit(), alone)
    with resumable(tmp_path):
        assert same(fit(), alone)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_a_cycle_of_any_length_has_rates(steps: int) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = one_cycle(optimiser, 0.5, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if len(rates) < steps:
            schedule.step()
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[-1] < 0.5
    assert steps <= 10 or max(rates) == pytest.approx(0.5, rel=0.1)
