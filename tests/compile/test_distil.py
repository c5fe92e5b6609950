"""Distillation: the student says what its teacher says, also where VarAD alone is blind."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from typer import BadParameter

from compile.anomaly_graph import AnomalyHead
from compile.command import choose_method
from compile.features import FeatureFiles, open_rows
from compile.methods import FitError
from compile.methods.distil import Lesson, fit_student, read_lesson, teach
from compile.methods.method import Method, Samples, fit_alone
from compile.methods.registry import METHODS, TAUGHT, UnknownMethodError, find_method
from compile.methods.student import Student
from compile.methods.teacher import ask as ask_teacher

SHAPES = [(4, 8, 12), (6, 4, 6)]  # of strides 8 and 16
COARSE = (5, 2, 3)  # of stride 32, which only the teacher sees
Maps = list[NDArray[np.float32]]


def maps_of(count: int, seed: int) -> Maps:
    """All strides show the same few patterns; those of stride 16 carry the shape of the picture, too."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7)
    mixed = rng.normal(size=(count, 3))
    return [
        np.asarray(
            (mixed @ patterns.normal(size=(3, shape[0])))[:, :, None, None] + 0.2 * rng.normal(size=(count, *shape)),
            np.float32,
        )
        for shape in (*SHAPES, COARSE)
    ]


def spoilt(count: int, seed: int) -> tuple[Maps, NDArray[np.int64]]:
    """One quarter of each picture is shifted in all strides; and in which column of stride 32 it is."""
    maps, rng = maps_of(count, seed), np.random.default_rng(seed)
    column = rng.integers(0, 3, count)
    for i, at in enumerate(column):
        for each in maps:
            step = each.shape[3] // 3
            each[i, :, : each.shape[2] // 2, at * step : (at + 1) * step] += 3.0
    return maps, column


class Teacher(nn.Module):
    """How far a cell of stride 32 lies from zero."""

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (features[2].square().mean(1),)

    def tokens(self, features: Sequence[Tensor]) -> Tensor:
        return torch.nn.functional.interpolate(features[2], scale_factor=2.0)


def ask(maps: Sequence[NDArray[Any]], model: nn.Module | None = None) -> Lesson:
    head = AnomalyHead(model or Teacher(), [COARSE[1:]], (16, 24), top=0.0)
    return answers(head, maps)


def answers(head: AnomalyHead, maps: Sequence[NDArray[Any]]) -> Lesson:
    with tempfile.TemporaryDirectory() as folder:
        files = teach(head, maps, Path(folder))
        return Lesson(*(each[:].copy() for each in open_rows(files, np.arange(len(maps[0])))))


@pytest.fixture(scope="module")
def student() -> Student:
    good, (odd, _) = maps_of(40, 0), spoilt(60, 1)
    return fit_student(good[:2], odd[:2], ask(good), ask(odd), seed=0, steps=120)


def test_a_lesson_is_the_teachers_map_at_the_cells_its_score_and_its_tokens() -> None:
    maps = maps_of(11, 3)
    lesson = ask(maps)
    head = AnomalyHead(Teacher(), [COARSE[1:]], (16, 24), top=0.0)
    score, heat = head(*(torch.from_numpy(each) for each in maps), torch.ones(11, 16, 24))
    assert np.allclose(lesson.scores, score)
    assert lesson.maps.shape == (11, 8, 12)
    around = heat[:, 5:7, 9:11].mean((1, 2))  # cell 3, 5 lies where pixels 5, 6 and 9, 10 meet
    assert np.allclose(lesson.maps[:, 3, 5], around, atol=1e-6)
    assert lesson.tokens is not None
    assert lesson.tokens.shape == (11, 5, 4, 6)
    plain = nn.Module()
    plain.forward = Teacher().forward  # type: ignore[method-assign]
    assert ask(maps, plain).tokens is None


def test_the_student_says_what_the_teacher_says_of_pictures_it_never_saw(student: Student) -> None:
    good, (odd, column) = maps_of(30, 10), spoilt(30, 11)
    shown = [torch.from_numpy(np.concatenate([a, b])) for a, b in zip(good[:2], odd[:2], strict=True)]
    (found,) = student(shown)
    said = np.concatenate([ask(good).maps, ask(odd).maps])
    assert found.shape == (60, 8, 12)
    assert found.min() >= 0
    assert np.corrcoef(found.flatten(), said.flatten())[0, 1] > 0.8
    defective = np.arange(60) >= 30
    assert roc_auc_score(defective, found.amax((1, 2))) > 0.9
    assert float(found[:30].amax((1, 2)).median()) == pytest.approx(1.0, abs=0.4)  # the unit
    hottest = found[30:].mean(1).reshape(30, 3, 4).mean(2).argmax(1)
    assert (hottest.numpy() == column).mean() > 0.9


def test_varad_stays_as_it_is_fitted_alone(student: Student) -> None:
    good = maps_of(40, 0)
    alone = METHODS["varad"].fit(Samples(good[:2]), 0, 120, None)
    for name, value in alone.state_dict().items():
        assert torch.equal(student.varad.state_dict()[name], value), name


def test_renderings_are_asked_about_as_one_picture() -> None:
    """A lesson of one answer per picture teaches, to the bit, what one of an answer per rendering does."""
    good, (odd, _) = maps_of(20, 0), spoilt(20, 1)
    twice = [np.concatenate([each, each]) for each in good[:2]]
    once, said = ask(good), ask(odd)
    assert once.tokens is not None
    each_one = Lesson(*(np.concatenate([answer, answer]) for answer in (once.scores, once.maps, once.tokens)))
    found, expected = (
        fit_student(twice, odd[:2], lesson, said, seed=0, steps=5).state_dict() for lesson in (once, each_one)
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_seed_fixes_the_fit_and_touches_nobody_elses() -> None:
    good, (odd, _) = maps_of(20, 0), spoilt(20, 1)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again, other = (
        fit_student(good[:2], odd[:2], ask(good), ask(odd), seed=seed, steps=3).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["readout.around.0.weight"], other["readout.around.0.weight"])


def test_a_teacher_that_says_nonsense_ends_the_fit() -> None:
    good, (odd, _) = maps_of(20, 0), spoilt(20, 1)
    lesson = ask(odd)
    with pytest.raises(FitError, match="diverged"):
        fit_student(
            good[:2], odd[:2], ask(good), replace(lesson, maps=lesson.maps * np.float32("nan")), seed=0, steps=3
        )


def test_any_method_may_teach_and_the_student_takes_its_own_strides() -> None:
    method = find_method("varad-from-inp-former-pp")
    assert method.levels == (8, 16)
    assert method.teacher is not None
    assert method.teacher.levels == (8, 16, 32)
    assert "INP-Former++" in method.title
    for nobody in ("nobody", f"{TAUGHT}grnr", "varad"):  # a student teaches nobody, and VarAD not itself
        with pytest.raises(UnknownMethodError, match=f"no method '{nobody}'"):
            find_method(f"{TAUGHT}{nobody}")


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("varad")])
def test_every_method_gives_a_lesson(name: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(40, 8, 8), (112, 4, 4), (320, 2, 2)]
    good, odd = ([rng.normal(size=(12, *shape)).astype(np.float32) for shape in shapes] for _ in range(2))
    method = METHODS[name]
    levels = [each for each, stride in zip(good, (8, 16, 32), strict=True) if stride in method.levels]
    samples = Samples(levels, odd[: len(levels)], np.ones((12, 16, 16), np.float32))
    head = method.head(fit_alone(method, samples, 0, 2, None), levels, (16, 16))
    lesson = answers(head, levels)
    assert lesson.maps.shape == (12, 8, 8)
    assert np.isfinite(lesson.maps).all()
    assert lesson.tokens is None or lesson.tokens.shape[2:] == (4, 4)


def test_a_teacher_without_a_scale_is_refused() -> None:
    good, (odd, _) = maps_of(20, 0), spoilt(20, 1)
    quiet = replace(ask(good), maps=np.zeros((20, 8, 12), np.float32))
    with pytest.raises(FitError, match="no scale"):
        fit_student(good[:2], odd[:2], quiet, ask(odd), seed=0, steps=3)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((None, None, "lite0"), "varad-from-inp-former-pp"),
        ((None, None, "lite2"), "varad-from-inp-former-pp"),
        ((None, None, "some/vit"), "varad"),  # which has no students
        (("varad", None, "lite0"), "varad"),
        ((None, "none", "lite0"), "varad"),
        (("varad", "grnr", "lite0"), "varad-from-grnr"),
        ((None, "grnr", "lite0"), "varad-from-grnr"),
        (("pnpt", None, "lite0"), "pnpt"),
        (("pnpt", "none", "lite0"), "pnpt"),
    ],
)
def test_a_student_is_compiled_where_nothing_else_is_said(
    options: tuple[str | None, str | None, str], name: str, tmp_path: Path
) -> None:
    assert choose_method(*options, [tmp_path]) == name


def test_a_student_is_of_one_product_and_varad_alone_can_be_taught(tmp_path: Path) -> None:
    assert choose_method(None, None, "lite0", [tmp_path, tmp_path]) == "varad"
    with pytest.raises(BadParameter, match="varad alone"):
        choose_method("pnpt", "grnr", "lite0", [tmp_path])


def test_a_teacher_is_asked_once_and_a_student_learns_from_its_answers(tmp_path: Path) -> None:
    def fit(samples: Samples, seed: int, steps: int | None, progress: object) -> nn.Module:
        return Teacher()

    three = Method("Three", fit, (8, 16, 32), top=0.0)
    good, (odd, _) = [each[:, :, :8, :8] for each in maps_of(20, 0)], spoilt(20, 1)
    odd = [each[:, :, :8, :8] for each in odd]
    good, odd = ([part[0], part[1][:, :, :4, :4], part[2][:, :, :2, :2]] for part in (good, odd))
    files = ask_teacher(three, Samples(good, odd), tmp_path, seed=0, steps=3, progress=None)
    before = [path.stat().st_mtime_ns for each in files for path in each.paths]
    again = ask_teacher(three, Samples(good, odd), tmp_path, seed=0, steps=3, progress=None)
    assert [path.stat().st_mtime_ns for each in again for path in each.paths] == before
    lessons = (read_lesson(files[0], np.arange(20)), read_lesson(files[1], np.arange(10)))
    model = find_method(f"{TAUGHT}grnr").fit(
        Samples(good[:2], [each[:10] for each in odd[:2]], lessons=lessons), 0, 3, None
    )
    assert isinstance(model, Student)


def test_a_bank_that_teaches_is_asked_as_if_it_had_not_seen_the_picture(tmp_path: Path) -> None:
    """A bank says 0 of every patch that it keeps: the student would learn that the rarest good patches are the best."""
    good, fresh, bank = maps_of(24, 0)[:2], maps_of(24, 9)[:2], METHODS["patchcore"]
    head = bank.head(bank.fit(Samples(good), 0, None, None), good, (16, 24))
    assert float(answers(head, good).maps.max()) < 1e-3  # every patch is in the bank
    said = ask_teacher(bank, Samples(good, fresh), tmp_path, seed=0, steps=None, progress=None)
    seen, unseen = (read_whole(each) for each in said)
    assert float(seen.maps.min()) > 0.1
    assert float(np.median(seen.scores)) == pytest.approx(float(np.median(unseen.scores)), rel=0.2)


def read_whole(files: FeatureFiles) -> Lesson:
    return Lesson(*(each[:] for each in open_rows(files, np.arange(files.shapes[0][0]))))


@pytest.mark.slow
def test_it_exports_and_builds(student: Student, check_export: Callable[..., None]) -> None:
    maps = maps_of(2, 5)[:2]
    head = AnomalyHead(student, [(8, 12)], (32, 48), top=0.0, smoothing=1.5).eval()
    inputs = (*(torch.from_numpy(each) for each in maps), torch.ones(2, 32, 48))
    check_export(head, inputs)
