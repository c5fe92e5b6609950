"""The heads of a cross-fit: what each was fitted on, and what its deviations were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.data import DataSet
from compile.evidence import Evidence
from compile.features import Features, on_disk
from compile.fitting import one_thread
from compile.image_size import SizeChoice
from compile.job import Clock, Job, Settings
from compile.methods.method import Method, Samples
from compile.methods.registry import METHODS
from compile.methods.student import Student
from compile.model import Heads, PaintedPictures, TeacherMaps, fit_heads
from compile.split_plan import SplitPlan, plan_split
from compile.standardise import Standardised
from edge.bundle import Input, Source, Spec

PARTS = 30
SHAPES = ((4, 4, 4), (6, 2, 2))  # channels, height, width
SOURCE = Source(height=(32, 32), width=(32, 32), channels=3, white=255)


def heads(folder: Path, odd: int | None, plan: SplitPlan) -> Heads:
    """Fit on noise, part `odd` twenty times as loud."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    features = Features(folder, ["float"])
    features.pictures = PARTS
    for i, shape in enumerate(SHAPES):
        maps = on_disk(features._path(i), np.dtype(np.float32), (PARTS, *shape))
        maps[:] = rng.normal(size=maps.shape)
        if odd is not None:
            maps[odd] *= 20
        features.maps.append(maps)
    with one_thread():
        return fit_heads(_job(folder), features, plan)


def _job(folder: Path, method: str = "varad") -> Job:
    data = DataSet(folder, "flat", [], np.arange(0), [], SOURCE, 32)
    evidence = Evidence("x", "1", 0, data, SizeChoice(32, "asked for"))
    settings = Settings(folder, folder / "x.bundle", method=method, fit_steps=20)
    spec = Spec(Input(height=32, width=32, source=SOURCE), None, (), (16, 16))
    return Job(settings, Clock(lambda *_: None), folder, spec, evidence, threads=1)


def deviations(found: Heads) -> list[float]:
    models = [cast(Standardised, head.model) for head in (*found.folds, found.shipped)]
    return [float(model.deviation(0).mean()) for model in models]


def test_a_folds_own_pictures_take_no_part_in_its_deviations(tmp_path: Path) -> None:
    plan = plan_split(np.arange(PARTS), 0.01, 0)
    own = 2
    quiet = deviations(heads(tmp_path / "quiet", None, plan))
    loud = deviations(heads(tmp_path / "loud", int(plan.folds[own][1][0]), plan))
    ratios = [b / a for a, b in zip(quiet, loud, strict=True)]
    # the fold that holds the loud part out was fitted without it and is measured on the others alone
    assert ratios[own] == min(ratios)
    assert all(ratio > 5 * ratios[own] for i, ratio in enumerate(ratios) if i != own)


TRUNK_SHAPES = ((40, 8, 8), (112, 4, 4), (320, 2, 2))  # of strides 8, 16 and 32
ORDER = np.arange(PARTS)
HALF = SplitPlan([(ORDER[:20], ORDER[20:])], cross_fitted=False, words="")


def noise(folder: Path, renderings: Sequence[str], strides: int) -> Features:
    """Maps of so many strides that hold nothing."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    each = Features(folder, renderings)
    each.pictures = PARTS
    for i, shape in enumerate(TRUNK_SHAPES[:strides]):
        maps = on_disk(each._path(i), np.dtype(np.float32), (len(renderings) * PARTS, *shape))
        maps[:] = rng.normal(size=maps.shape)
        each.maps.append(maps)
    return each


def covered() -> NDArray[np.float32]:
    return (np.random.default_rng(1).random((PARTS, 16, 16)) > 0.7).astype(np.float32)


def test_a_method_of_three_strides_learns_from_painted_defects(tmp_path: Path) -> None:
    features = [noise(tmp_path / name, ["float"], 3) for name in ("good", "painted")]
    job = _job(tmp_path, method="inp-former-pp")
    with one_thread():
        found = fit_heads(job, features[0], HALF, PaintedPictures(features[1], covered(), ORDER[:, None]))
    assert found.folds == [found.shipped]
    assert job.evidence.fit_steps == 60  # of the reconstruction, and of two heads
    score, heat = found.shipped(*(torch.from_numpy(each[:2]) for each in features[0].maps), torch.ones(2, 16, 16))
    assert torch.equal(score, heat.flatten(1).amax(1))


def test_a_student_ships_alone_and_its_teacher_sees_more_strides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, taught = (
        [noise(tmp_path / f"{who} {name}", renderings, strides) for name in ("good", "painted")]
        for who, renderings, strides in (("student", ["float", "int8"], 2), ("teacher", ["float"], 3))
    )
    seen = []
    fit_teacher = METHODS["inp-former-pp"].fit

    def fit(samples: Samples, *others: Any) -> nn.Module:
        seen.append([each.shape for each in (*samples.good, *samples.painted)])
        return fit_teacher(samples, *others)

    monkeypatch.setitem(METHODS, "inp-former-pp", replace(METHODS["inp-former-pp"], fit=fit))
    teacher = TeacherMaps(taught[0], taught[1])
    job = _job(tmp_path, method="varad-from-inp-former-pp")
    with one_thread():
        found = fit_heads(job, own[0], HALF, PaintedPictures(own[1], covered(), ORDER[:, None], teacher))
    assert seen == [[(20, *shape) for shape in TRUNK_SHAPES] * 2]
    assert isinstance(found.shipped.model, Student)
    assert job.evidence.fit_steps == 40  # of VarAD and of the readout
    score, heat = found.shipped(*(torch.from_numpy(each[:2]) for each in own[0].maps), torch.ones(2, 16, 16))
    assert torch.equal(score, heat.flatten(1).amax(1))


def test_one_teacher_serves_all_folds_and_each_reads_of_its_own_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, taught = (
        [noise(tmp_path / f"{who} {name}", ["float"], strides) for name in ("good", "painted")]
        for who, strides in (("student", 2), ("teacher", 3))
    )
    fitted, read = [], []

    class First(nn.Module):
        """What tells the picture, everywhere."""

        def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
            return (features[1].square().mean((1, 2, 3), keepdim=True)[:, 0].expand(-1, 4, 4),)

    def fit_teacher(samples: Samples, *_: object) -> nn.Module:
        fitted.append(samples.good[0].shape[0])
        return First()

    def fit_student(samples: Samples, *_: object) -> nn.Module:
        assert samples.lessons is not None
        for maps, lesson in zip((samples.good, samples.painted), samples.lessons, strict=True):
            rows = np.arange(maps[1].shape[0])
            assert lesson.scores.shape == (len(rows),)
            np.testing.assert_allclose(lesson.scores[rows], np.square(maps[1][rows]).mean((1, 2, 3)), rtol=1e-5)
            read.append(len(rows))
        return First()

    taught[0].maps[1][:], taught[1].maps[1][:] = own[0].maps[1], own[1].maps[1]
    teacher = Method("teacher", fit_teacher, (8, 16, 32), top=0.0)
    student = Method("student", fit_student, painted=True, teacher=teacher)
    monkeypatch.setitem(METHODS, "student", student)
    plan = SplitPlan([(ORDER[:20], ORDER[20:]), (ORDER[10:], ORDER[:10])], cross_fitted=True, words="")
    painted = PaintedPictures(own[1], covered(), ORDER[:, None], TeacherMaps(*taught))
    fit_heads(_job(tmp_path, method="student"), own[0], plan, painted)
    assert fitted == [PARTS]
    assert read == [20, 20, PARTS - 10, PARTS - 10, PARTS, PARTS]


def test_a_fit_meets_all_classes_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Sum(nn.Module):
        def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
            return (features[0].sum(1),)

    def fit(samples: Samples, *_: object) -> nn.Module:
        seen.append((samples.good[0][np.arange(len(samples.classes))].ravel(), samples.classes))
        return Sum()

    monkeypatch.setitem(METHODS, "asking", Method("asking", fit, levels=(16,), several=True))
    classes = np.repeat([0, 1, 2], 10)
    features = Features(tmp_path, ["float", "int8"])
    features.pictures = 30
    features.maps = [on_disk(features._path(0), np.dtype(np.float32), (60, 1, 1, 1))]
    features.maps[0][:, 0, 0, 0] = np.tile(classes, 2)
    order = np.arange(30)
    plan = SplitPlan([(order[order % 2 == 0], order[order % 2 == 1])], cross_fitted=False, words="")
    fit_heads(_job(tmp_path, "asking"), features, plan, classes=classes)
    ((maps, told),) = seen
    np.testing.assert_array_equal(maps, told)
    assert len(told) == 30
    assert set(told[:8]) == {0, 1, 2}


def test_no_fit_sees_a_defect_painted_on_a_part_that_it_must_not_know(tmp_path: Path) -> None:
    features = Features(tmp_path, ["float", "int8"])
    features.pictures = 5
    features.maps = [on_disk(features._path(0), np.dtype(np.float32), (10, 1, 1, 1))]
    covered = np.arange(5, dtype=np.float32)[:, None, None]
    sources = np.array([[0, 2, -1], [1, 0, -1], [2, -1, -1], [0, 0, 1], [2, 0, 2]])  # what it is painted on, donors
    found = PaintedPictures(features, covered, sources).maps_on(np.array([0, 2]))
    assert found.rows.tolist() == [0, 2, 4, 5, 7, 9]
    assert found.covered.ravel().tolist() == [0, 2, 4]


def test_no_fit_sees_a_real_defect_of_a_part_that_it_must_not_know(tmp_path: Path) -> None:
    features = Features(tmp_path, ["float"])
    features.pictures = 6
    features.maps = [on_disk(features._path(0), np.dtype(np.float32), (6, 1, 1, 1))]
    covered = np.arange(6, dtype=np.float32)[:, None, None]
    shown = np.array([[False, True, False], [True, False, True], [False, False, False]])
    painted = PaintedPictures(features, covered, np.arange(3)[:, None], shown=shown)  # rows 3, 4 and 5 are real
    assert set(painted.on(np.array([0, 2]))) == {0, 2, 4, 5}
    assert set(painted.on(np.array([0, 1]))) == {0, 1, 3, 5}
    assert set(painted.maps_on(np.array([1])).covered.ravel()) == {1, 3, 5}


def test_held_out_pictures_take_no_part_in_the_deviations(tmp_path: Path) -> None:
    order = np.arange(PARTS)
    plan = SplitPlan([(order[:20], order[20:])], cross_fitted=False, words="")
    quiet, loud = (deviations(heads(tmp_path / str(odd), odd, plan)) for odd in (None, 25))
    assert quiet == loud
