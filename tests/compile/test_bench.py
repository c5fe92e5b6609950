from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compile.bench.figures import FIGURES, IMAGE, PIXEL, compare_images, compare_pixels, estimate
from compile.bench.run import Wanted, run_bench
from compile.data import DataError
from compile.methods.method import Method, Samples
from compile.methods.registry import METHODS
from compile.metrics import pixel_metrics
from compile.parity import Scored
from edge.cli import FAILED, OK, USAGE, main

COSTS = {"parameters", "macs", "latency_ms", "memory_mb"}


class Loudness(nn.Module):
    """The simplest of methods: how far each cell's features lie from those of a good picture, drawn by the seed."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("like", like)

    def forward(self, features: list[Tensor]) -> tuple[Tensor]:
        return ((features[0] - self.like).abs().mean(1),)


def fit_loudness(samples, seed, steps, progress) -> Loudness:
    chosen = np.random.default_rng(seed).integers(0, samples.good[0].shape[0])
    return Loudness(torch.from_numpy(np.array(samples.good[0][chosen])))


def remembering(given: list[Samples]) -> Callable[..., Loudness]:
    """Fit, and keep what was given."""

    def fit(samples: Samples, seed, steps, progress) -> Loudness:
        given.append(samples)
        return fit_loudness(samples, seed, steps, progress)

    return fit


@pytest.mark.slow
def test_defects_that_one_method_learns_from_leave_the_test_of_all(mvtec: Path, tmp_path, monkeypatch, capsys) -> None:
    given: list[Samples] = []
    monkeypatch.setitem(
        METHODS, "learning", Method("learning", remembering(given), levels=(16,), top=0.0, painted=True)
    )
    monkeypatch.setitem(METHODS, "quiet", Method("quiet", fit_loudness, levels=(16,), top=0.0))
    monkeypatch.setattr("compile.bench.data.wanted", lambda good: 8)
    wishes = ["--methods", "quiet,learning", "--size", "128", "-o", str(tmp_path), "--json"]
    assert main(["bench", str(mvtec), *wishes, "--learn-defects", "3"]) == OK
    told = json.loads(capsys.readouterr().out)
    assert told["test"]["wall"]["defective"] == 7
    assert told["learned_defects"] == 3
    assert any("3 labelled defect(s) were drawn by seed 0" in each for each in told["remarks"]["wall"])
    assert ", 3 defects learned from" in (tmp_path / "bench.txt").read_text()
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert {row["learned_defects"] for row in rows} == {"3"}
    (samples,) = given
    assert samples.painted[0].shape == (8 + 2 * 3, 112, 8, 8)
    assert samples.covered.shape == (14, 32, 32)
    assert np.array_equal(samples.covered[8:11], samples.covered[11:])
    assert np.array_equal(samples.painted[0][[8, 9, 10]], samples.painted[0][[11, 12, 13]])
    assert (samples.covered[8:].max((1, 2)) == 1).all()
    code, said = refused(capsys, mvtec, *wishes[:-1], "--learn-defects", "10")
    assert (code, "0 defective test pictures that can be read, once 10 are learned from" in said) == (FAILED, True), (
        said
    )


@pytest.mark.slow
def test_a_student_and_its_teacher_learn_from_the_same_defects(mvtec: Path, monkeypatch) -> None:
    """The lesson's rows are those of the pictures, painted and real."""
    given: list[Samples] = []
    lessons: list[tuple[int, int]] = []

    def fit_student(features, painted, good, odd, **_: object) -> nn.Module:
        lessons.append((good.maps.shape[0], odd.maps.shape[0]))
        (samples,) = given
        (heat,) = Loudness(torch.zeros(40, 16, 16))([torch.from_numpy(np.asarray(painted[0][:], np.float32))])
        assert samples.painted[0].shape[0] == painted[0].shape[0] == 14
        assert np.corrcoef(odd.maps[:].mean((1, 2)), heat.mean((1, 2)))[0, 1] > 0.99
        return Loudness(torch.zeros(40, 16, 16))

    def fit(samples: Samples, *_: object) -> nn.Module:
        given.append(samples)
        return Loudness(torch.zeros(40, 16, 16))

    monkeypatch.setitem(METHODS, "loud", Method("loud", fit, levels=(8,), top=0.0, painted=True))
    monkeypatch.setattr("compile.methods.fits.fit_student", fit_student)
    monkeypatch.setattr("compile.bench.data.wanted", lambda good: 8)
    (row,) = run_bench(Wanted([mvtec], ["varad-from-loud"], size=128, learn_defects=3), lambda *_: None).rows
    assert lessons == [(20, 8 + 2 * 3)]
    assert row.method == "varad-from-loud"


@pytest.mark.slow
def test_a_method_that_learns_from_painted_defects_is_given_some(mvtec: Path, monkeypatch) -> None:
    given: list[Samples] = []
    fit = remembering(given)
    monkeypatch.setitem(METHODS, "loudness", Method("loudness", fit, levels=(16,), top=0.0, painted=True))
    monkeypatch.setitem(METHODS, "quiet", Method("loudness", fit, levels=(16,), top=0.0))
    monkeypatch.setattr("compile.bench.data.wanted", lambda good: good + 3)
    run_bench(Wanted([mvtec], ["loudness", "quiet"], size=128), lambda *_: None)
    assert len(given) == 2
    for samples in given:
        assert samples.good[0].shape == (20, 112, 8, 8)
        assert samples.painted[0].shape == (23, 112, 8, 8)
        assert samples.covered.shape == (23, 32, 32)
        assert 0 < samples.covered.mean() < 0.5
        good = samples.good[0][0]
        there = samples.painted[0][0]
        changed = np.abs(there - good).mean(0)
        hidden = samples.covered[0].reshape(8, 4, 8, 4).mean((1, 3)) > 0.5
        if hidden.any():
            assert changed[hidden].mean() > changed[~hidden].mean()


@pytest.mark.slow
def test_a_comparison_that_was_stopped_goes_on(mvtec: Path, tmp_path: Path, monkeypatch) -> None:
    """Also with further methods: a run that is done is not done again."""
    seeds: list[int] = []

    def fit(samples: Samples, seed: int, *_: object) -> nn.Module:
        if seed == stop:
            raise KeyboardInterrupt
        seeds.append(seed)
        return fit_loudness(samples, seed, None, None)

    for name in ("loud", "quiet"):
        monkeypatch.setitem(METHODS, name, Method(name, fit, levels=(16,), top=0.0))
    work, stop = tmp_path / "bench.work", 1
    wanted = Wanted([mvtec], ["loud"], size=128, seeds=2, work=work)
    with pytest.raises(KeyboardInterrupt):
        run_bench(wanted, lambda *_: None)
    stop = -1
    (whole,) = run_bench(replace(wanted, work=None), lambda *_: None).rows
    del seeds[:]
    loud, quiet = run_bench(replace(wanted, methods=["loud", "quiet"]), lambda *_: None).rows
    assert seeds == [1, 0, 1]
    assert loud.figures == whole.figures == quiet.figures
    assert quiet.differences["half"]["I-AUROC"].value == 0
    assert not work.exists()


@pytest.mark.slow
def test_methods_are_compared_in_one_table(mvtec: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(METHODS, "loudness", Method("loudness", fit_loudness, levels=(16,), top=0.0))
    (mvtec / "ground_truth" / "hole" / "3_mask.png").unlink()
    output = tmp_path / "out" / "bench"
    wishes = ["--methods", "patchcore, loudness", "--size", "128", "--seeds", "2", "-o", str(output), "--json"]
    assert main(["bench", str(mvtec), *wishes]) == OK
    told, said = capsys.readouterr()
    assert said == ""
    told = json.loads(told)
    assert told["test"] == {"wall": {"good": 10, "defective": 10}}
    assert any("1 of 20 test pictures have a defect but no mask" in each for each in told["remarks"]["wall"])
    first, second = told["rows"]
    assert (first["method"], second["method"]) == ("patchcore", "loudness")
    assert first["differences"] == {}
    for row in (first, second):
        assert set(row["cost"]) == COSTS
        assert all(value > 0 for value in row["cost"].values())
        for rule in ("paper_nonzero", "half"):
            assert list(row["figures"][rule]) == list(FIGURES)
            assert all(0 < each["mean"] <= 1 and each["spread"] >= 0 for each in row["figures"][rule].values())
    assert first["figures"]["half"]["I-AUROC"]["mean"] > 0.95
    assert first["figures"]["half"]["P-AUROC"]["mean"] > 0.95
    assert first["figures"]["half"]["P-AP"] != first["figures"]["paper_nonzero"]["P-AP"]
    assert first["figures"]["half"]["I-AP"] == first["figures"]["paper_nonzero"]["I-AP"]
    assert second["figures"]["half"]["P-AUROC"]["spread"] > 0
    for name, difference in second["differences"]["half"].items():
        means = [row["figures"]["half"][name]["mean"] for row in (second, first)]
        assert difference["value"] == pytest.approx(means[0] - means[1], abs=1e-9)
        assert difference["interval"][0] <= difference["interval"][1]
    # PatchCore keeps all 5120 patches of 152 channels; its graph compares 256 patches of a picture with each.
    more = {name: first["cost"][name] - second["cost"][name] for name in ("parameters", "macs")}
    assert more["parameters"] == 5120 * 152 - 112 * 64
    assert more["macs"] == pytest.approx(256 * 5120 * 152, rel=0.05)
    assert first["cost"]["latency_ms"] > second["cost"]["latency_ms"]

    assert told["files"] == [str(output / name) for name in ("bench.txt", "bench.csv", "maps.html")]
    rows = list(csv.DictReader((output / "bench.csv").read_text().splitlines()))
    assert [(row["mask_rule"], row["method"]) for row in rows] == [
        (rule, method) for method in ("patchcore", "loudness") for rule in ("paper_nonzero", "half")
    ]
    assert float(rows[3]["AUPRO"]) == pytest.approx(second["figures"]["half"]["AUPRO"]["mean"], abs=1e-5)
    assert float(rows[3]["P-AP high"]) == pytest.approx(second["differences"]["half"]["P-AP"]["interval"][1], abs=1e-5)
    assert rows[0]["P-AP difference"] == ""
    text = (output / "bench.txt").read_text()
    assert f"{first['figures']['half']['AUPRO']['mean']:.4f}" in text
    assert "threshold 0.5" in text
    page = (output / "maps.html").read_text()
    assert page.count("<img") == (10 + 4) * 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert not re.search(r"https?:|<script|<link", page)


def refused(capsys, *arguments: object) -> tuple[int, str]:
    """Run a comparison that fails; stdout must hold the error as one JSON document."""
    code = main(["bench", *map(str, arguments), "--json"])
    told, said = capsys.readouterr()
    assert "Traceback" not in said
    assert list(json.loads(told)) == ["error"]
    return code, json.loads(told)["error"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            ["--methods", "patchcore,sam"],
            f"--methods: no method 'sam'. There are: {', '.join(METHODS)}",
        ),
        (["--methods", ","], "--methods: give at least one"),
        (["--methods", "varad,patchcore,varad"], "--methods: 'varad' was given twice"),
        (["--size", "100"], "--size 100: give a multiple of 32 from 128 to 1024"),
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--learn-defects", "-1"], "--learn-defects -1: give how many"),
    ],
)
def test_wishes_that_make_no_sense_are_said_before_anything_is_read(tmp_path: Path, capsys, *, wish, words) -> None:
    code, said = refused(capsys, tmp_path / "nowhere", "-o", tmp_path / "out", *wish)
    assert (code, words in said) == (USAGE, True), said


@pytest.mark.parametrize("missing", ["good", "hole"])
def test_a_set_with_one_kind_of_test_pictures_is_refused(mvtec: Path, tmp_path: Path, capsys, missing: str) -> None:
    for file in (mvtec / "test" / missing).iterdir():
        file.unlink()
    code, said = refused(capsys, mvtec, "-o", tmp_path / "out", "--size", 128, "--methods", "patchcore")
    counts = "0 good and 10 defective" if missing == "good" else "10 good and 0 defective"
    assert (code, f"{mvtec}: {counts} test pictures" in said) == (FAILED, True), said


def test_too_few_images_and_a_missing_folder_are_said(mvtec: Path, tmp_path: Path, capsys) -> None:
    for i in range(3):
        (mvtec / "train" / "good" / f"{i:02}.png").unlink()
    for folder, words in ((mvtec, "17 usable good image(s)"), (tmp_path / "nowhere", "no such folder")):
        code, said = refused(capsys, folder, "-o", tmp_path / "out", "--size", 128, "--methods", "patchcore")
        assert (code, words in said) == (FAILED, True), said


def test_few_shots_need_no_more_good_pictures_than_they_are(mvtec: Path) -> None:
    for path in sorted((mvtec / "train" / "good").iterdir())[2:]:
        path.unlink()
    (row,) = run_bench(Wanted([mvtec], ["grnr"], size=128, shots=[2]), lambda *_: None).rows
    assert row.shots == 2
    with pytest.raises(DataError, match=r"2 usable good image\(s\) among 2 file\(s\), at least 3 are needed\. Add"):
        run_bench(Wanted([mvtec], ["grnr"], size=128, shots=[3]), lambda *_: None)


def test_a_mask_of_another_size_is_refused(mvtec: Path, tmp_path: Path, write, capsys) -> None:
    path = write(mvtec / "ground_truth" / "hole" / "4_mask.png", np.full((72, 144), 255, np.uint8))
    code, said = refused(capsys, mvtec, "-o", tmp_path / "out", "--size", 128, "--methods", "patchcore")
    assert code == FAILED
    assert f"{path}: the mask has 144x72 pixels, its picture {mvtec / 'test' / 'hole' / '4.png'} has 144x144" in said


def scored(seed: int) -> Scored:
    rng = np.random.default_rng(seed)
    return Scored(rng.random(12), rng.random((12, 8, 8)).astype(np.float32))


def test_figures_are_means_over_seeds_with_their_spread() -> None:
    runs, defective = [scored(seed) for seed in range(3)], np.arange(12) >= 6
    masks = [np.full((8, 8), bool(d)) & (np.arange(8) < 3) for d in defective]
    found = estimate(runs, defective, masks)
    assert list(found) == list(FIGURES)
    each = [pixel_metrics(list(run.maps), masks).aupro for run in runs]
    assert found["AUPRO"].mean == pytest.approx(np.mean(each))
    assert found["AUPRO"].spread == pytest.approx(np.std(each, ddof=1))
    assert estimate(runs[:1], defective, masks)["AUPRO"].spread is None
    same = compare_images(runs, runs, defective) | compare_pixels(runs, runs, masks)
    assert list(same) == list(FIGURES)
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in same.values())


def test_without_any_mask_there_are_image_figures_alone() -> None:
    runs, defective = [scored(0)], np.arange(12) >= 6
    masks = [None if d else np.zeros((8, 8), bool) for d in defective]
    assert list(estimate(runs, defective, masks)) == list(IMAGE)
    assert compare_pixels(runs, runs, masks) == {}
    assert set(PIXEL).isdisjoint(compare_images(runs, runs, defective))
