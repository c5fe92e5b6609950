"""One model of several data sets, few shots and no shot: what is fitted on what, and measured on what."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compile.bench.run import Wanted, run_bench
from compile.bench.settings import Entry, Joined
from compile.methods.few_shot import VARIANTS
from compile.methods.method import Method, Samples, Shots
from compile.methods.registry import METHODS
from edge.cli import OK, USAGE, main


class Named(nn.Module):
    """A method that must be told the class, and scores nothing but that."""

    takes_class = True

    def forward(self, features: list[Tensor], classes: Tensor) -> tuple[Tensor]:
        return (features[0].mean(1) * 0 + classes[:, None, None].float() + 1,)


class Loudness(nn.Module):
    def forward(self, features: list[Tensor]) -> tuple[Tensor]:
        return (features[0].abs().mean(1),)


class Doubled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: list[Tensor]) -> tuple[Tensor]:
        return (2 * self.model(features)[0],)


@pytest.fixture
def grey(mvtec: Path) -> Path:
    """The same parts as a camera without colours sees them, and of another size."""
    folder = mvtec.parent / "grey"
    for file in mvtec.rglob("*.png"):
        path = folder / file.relative_to(mvtec)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)[:128, :136])
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch) -> None:
    """What takes the most time is tested elsewhere."""
    monkeypatch.setattr("compile.bench.figures.IMAGE_RESAMPLES", 5)
    monkeypatch.setattr("compile.bench.figures.PIXEL_RESAMPLES", 2)


def test_joined_rows_are_those_of_all_arrays_in_turn() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.random((count, 2, 3), dtype=np.float32) for count in (4, 1, 3)]
    joined, whole = Joined(parts), np.concatenate(parts)
    assert joined.shape == (8, 2, 3)
    for index in (5, np.int64(3), slice(2, 7), [7, 0, 4, 4], np.array([[1, 5], [6, 2]]), slice(0, 0)):
        np.testing.assert_array_equal(joined[index], whole[index])


def test_each_setting_fits_on_its_data_sets() -> None:
    entry = Entry("x", Method("x", METHODS["grnr"].fit))
    assert entry.turns(3, together=False) == [([0], [0]), ([1], [1]), ([2], [2])]
    assert entry.turns(3, together=True) == [([0, 1, 2], [0, 1, 2])]
    zero = Entry("inp-former", METHODS["inp-former"], 0)
    assert zero.turns(3, together=True) == [([1, 2], [0]), ([0, 2], [1]), ([0, 1], [2])]
    assert not Entry("grnr", METHODS["grnr"], 0).transferred
    assert [Entry("x", METHODS["grnr"], count).label for count in (None, 0, 1, 4)] == [
        "x",
        "x, 0 shots",
        "x, 1 shot",
        "x, 4 shots",
    ]


@pytest.mark.slow
def test_one_model_of_grey_and_coloured_sets_is_measured_on_each_as_its_class(
    mvtec: Path, grey: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    given: list[Samples] = []

    def fit(samples: Samples, *_: object) -> nn.Module:
        given.append(samples)
        return Named()

    monkeypatch.setitem(METHODS, "named", Method("named", fit, levels=(16,), top=0.0, several=True, painted=True))
    monkeypatch.setattr("compile.bench.data.wanted", lambda good: 3)
    wishes = ["--together", "--methods", "named", "--size", "128", "-o", str(tmp_path), "--json"]
    assert main(["bench", str(mvtec), str(grey), *wishes]) == OK
    told = json.loads(capsys.readouterr().out)
    assert told["together"] is True
    assert [(row["data"], row["method"], row["shots"]) for row in told["rows"]] == [
        ("wall", "named", None),
        ("grey", "named", None),
    ]
    (samples,) = given
    assert samples.good[0].shape == (40, 112, 8, 8)
    assert samples.painted[0].shape == (6, 112, 8, 8)
    assert samples.covered is not None
    assert samples.covered.shape == (6, 32, 32)
    classes = samples.classes
    assert classes is not None
    assert np.bincount(classes).tolist() == [20, 20]
    assert 0 < classes[:20].sum() < 20  # in random order
    first = {tuple(each.ravel()[:9]) for each in samples.good[0][np.flatnonzero(classes == 0)]}
    assert first.isdisjoint({tuple(each.ravel()[:9]) for each in samples.good[0][np.flatnonzero(classes == 1)]})
    text = (tmp_path / "bench.txt").read_text()
    assert "1 seed, one model of 2 data sets" in text
    assert "plain mean over 2 data sets" in text
    assert {row["together"] for row in csv.DictReader((tmp_path / "bench.csv").read_text().splitlines())} == {"1"}


@pytest.mark.slow
def test_the_graph_is_told_which_set_a_picture_is_of(mvtec: Path, grey: Path, monkeypatch) -> None:
    seen: dict[str, set[float]] = {}

    def show(data, scored, chosen):
        seen[data.name] = set(scored["named"].scores)

    monkeypatch.setitem(METHODS, "named", Method("named", lambda *_: Named(), levels=(16,), top=0.0, several=True))
    monkeypatch.setattr("compile.bench.run.show", show)
    run_bench(Wanted([mvtec, grey], ["named"], size=128, together=True), lambda *_: None)
    assert seen == {"wall": {1.0}, "grey": {2.0}}


@pytest.mark.slow
def test_few_shots_are_drawn_by_the_seed_and_no_shot_means_the_other_sets(mvtec: Path, grey: Path, monkeypatch) -> None:
    given: list[tuple[int, Samples]] = []

    def fit(samples: Samples, seed: int, *_: object) -> nn.Module:
        given.append((seed, samples))
        return Loudness()

    shots = Shots(fit, variants=True, transfer=Doubled)
    monkeypatch.setitem(METHODS, "loud", Method("loud", fit, levels=(16,), top=0.0, several=True, shots=shots))
    wanted = Wanted([mvtec, grey], ["loud"], size=128, seeds=2, shots=[0, 2])
    results = run_bench(wanted, lambda *_: None)
    assert [(row.data, row.label) for row in results.rows] == [
        ("wall", "loud, 0 shots"),
        ("wall", "loud, 2 shots"),
        ("grey", "loud, 0 shots"),
        ("grey", "loud, 2 shots"),
    ]
    assert [(seed, samples.good[0].shape[0]) for seed, samples in given] == [
        *((seed, 20) for seed in (0, 1, 0, 1)),
        *((seed, 2 * VARIANTS) for seed in (0, 1, 0, 1)),
    ]
    on_grey, on_wall, drawn, again = (given[i][1].good[0] for i in (0, 2, 4, 5))
    known = [np.asarray(on_wall[i]) for i in range(20)]
    assert not any(np.array_equal(on_grey[0], each) for each in known)
    pictures = [
        [i for i, each in enumerate(known) if np.allclose(each, some[k * VARIANTS], atol=1e-3)]
        for some in (drawn, again)
        for k in (0, 1)
    ]
    assert all(len(each) == 1 for each in pictures), pictures
    assert pictures[:2] != pictures[2:]


@pytest.mark.slow
def test_inp_former_does_with_one_picture_of_each_set(mvtec: Path, grey: Path) -> None:
    wanted = Wanted([mvtec, grey], ["inp-former"], size=128, fit_steps=2, shots=[1], together=True)
    first, second = run_bench(wanted, lambda *_: None).rows
    assert (first.fit_s, first.cost) == (second.fit_s, second.cost)
    assert first.figures != second.figures


def test_grnr_measures_the_shots_that_it_is_given() -> None:
    maps = [np.random.default_rng(i).random((4, 6, s, s), dtype=np.float32) for i, s in enumerate((16, 8))]
    for shots, expected in ((0, False), (4, True), (None, False)):
        samples = Samples([each[: shots or 0] if shots is not None else each for each in maps])
        model = Entry("grnr", METHODS["grnr"], shots).fit(samples, 0, None, lambda *_: None)
        assert any("expected" in name for name in model.state_dict()) == expected


@pytest.mark.parametrize(
    ("sets", "wish", "words"),
    [
        (1, ["--together"], "--together: is one model of several data sets, and one was given"),
        (2, ["--together", "--methods", "grnr,varad"], "--together: varad makes a model of one product"),
        (1, ["--shots", "two"], "--shots 'two': give whole numbers"),
        (1, ["--shots", "-1", "--methods", "grnr"], "--shots -1: give 0 to 20"),
        (1, ["--shots", "21", "--methods", "grnr"], "--shots 21: give 0 to 20"),
        (
            1,
            ["--shots", "4", "--methods", "pnpt"],
            "--shots 4: pnpt cannot be fitted on so few. Leave it out; these can: patchcore, grnr,",
        ),
        (1, ["--shots", "0", "--methods", "patchcore"], "--shots 0: patchcore cannot be fitted on so few"),
        (1, ["--shots", "0", "--methods", "inp-former"], "--shots 0: inp-former is then fitted on the other data sets"),
    ],
)
def test_settings_that_cannot_be_are_refused_unread(tmp_path: Path, capsys, *, sets, wish, words) -> None:
    folders = [str(tmp_path / f"set{i}") for i in range(sets)]
    assert main(["bench", *folders, "-o", str(tmp_path / "out"), *wish, "--json"]) == USAGE
    assert words in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.slow
def test_zero_shots_of_inp_former_look_at_prototypes_alone(check_export) -> None:
    torch.manual_seed(0)
    maps = [
        np.random.default_rng(i).random((4, c, s, s), dtype=np.float32)
        for i, (c, s) in enumerate(((40, 16), (112, 8), (320, 4)))
    ]
    method = METHODS["inp-former"]
    model = method.fit(Samples(maps), 0, 2, None)
    assert method.shots is not None
    assert method.shots.transfer is not None
    zero = method.shots.transfer(model)
    features = [torch.from_numpy(each) for each in maps]
    check_export(method.head(zero, maps, (64, 64)), [*(each[:1] for each in features), torch.ones(1, 64, 64)])
    (before,) = zero(features)
    with torch.no_grad():
        for each in (*model.model.decoder.parameters(), *model.model.bottleneck.parameters()):
            each.zero_()
    torch.testing.assert_close(zero(features)[0], before)
    with torch.no_grad():
        model.model.tokens.mul_(-1)
    assert not torch.allclose(zero(features)[0], before)
