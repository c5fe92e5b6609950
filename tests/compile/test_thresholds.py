"""Thresholds from scores of held-out parts; the scores come from a head that gives each map's largest value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.threshold import CalibrationError
from compile.data import DataSet
from compile.evidence import Evidence
from compile.features import Features
from compile.image_size import SizeChoice
from compile.job import FILES, Clock, Job, Settings
from compile.model import Heads
from compile.split_plan import plan_split
from compile.thresholds import extrapolates, oddest_parts, set_thresholds, warn_of_blindness
from edge.bundle import Source, Spec

SOURCE = Source(height=(128, 128), width=(128, 128), channels=3, white=255)


class Peak(nn.Module):
    def forward(self, maps: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return maps.amax((1, 2, 3)), maps[:, 0]


def job(folder: Path, **wishes: object) -> Job:
    settings = Settings(folder, folder / "x.bundle", **wishes)
    data = DataSet(folder, "flat", [], np.arange(0), [], SOURCE, 128)
    evidence = Evidence("x", "1", 0, data, SizeChoice(128, "asked for"))
    return Job(settings, Clock(lambda *_: None), folder, Spec(None, None, (), (64, 64)), evidence)


def judged(folder: Path, parts: int, groups: NDArray[np.int64] | None = None, **wishes: object) -> Job:
    """A job whose thresholds are set on `parts` pictures with exponential scores, by default one of each part."""
    one = job(folder, **wishes)
    features = Features(folder, list(FILES))
    scores = np.random.default_rng(0).exponential(size=(len(FILES) * parts, 1, 1, 1))
    features.maps, features.pictures = [scores.astype(np.float32)], parts
    groups = np.arange(parts) if groups is None else groups
    plan = plan_split(groups, one.settings.target_false_reject or 0.01, 0)
    with torch.no_grad():
        held = set_thresholds(one, features, plan, Heads([Peak() for _ in plan.folds], Peak()), groups)
    assert sorted(held) == sorted(plan.held)
    return one


class Told(nn.Module):
    def forward(self, maps: Tensor, _: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return maps.amax((1, 2, 3)) + 100 * classes, maps[:, 0]


def test_a_class_is_scored_as_itself(tmp_path: Path) -> None:
    plain = judged(tmp_path, 120)
    features = Features(tmp_path, list(FILES))
    scores = np.random.default_rng(0).random((len(FILES) * 120, 1, 1, 1))
    features.maps, features.pictures = [scores.astype(np.float32)], 120
    plan = plan_split(np.arange(120), 0.01, 0)
    third = replace(plain, class_index=2)
    with torch.no_grad():
        set_thresholds(third, features, plan, Heads([Told() for _ in plan.folds], Told()), np.arange(120))
    assert all(((scores >= 200) & (scores <= 201)).all() for scores in third.evidence.good_scores.values())


def test_pictures_of_one_part_count_as_one_part(tmp_path: Path) -> None:
    found = judged(tmp_path, 120, groups=np.arange(120) // 2)
    for threshold in found.evidence.thresholds.values():
        assert threshold.parts == 60
        assert "120 pictures of 60 parts" in threshold.rule


def test_a_target_beyond_the_parts_is_loosened_and_the_way_out_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, 120, target_false_reject=0.001).evidence.thresholds["float"]
    assert found.target_false_reject == pytest.approx(1 / 121)
    assert "extrapolate with --tail-model" in found.flagged


def test_a_tail_model_reaches_the_target_and_says_what_it_is(tmp_path: Path) -> None:
    found = judged(tmp_path, 120, target_false_reject=0.001, tail_model=True).evidence
    for threshold in found.thresholds.values():
        assert threshold.target_false_reject == 0.001
        assert threshold.approximate
        assert "extrapolated by a tail model" in threshold.flagged
    assert set(found.thresholds) == set(FILES)
    assert "tail model: generalised Pareto" in found.promise
    assert found.thresholds["float"].value > np.sort(found.good_scores["float"])[-2]


def test_a_tail_model_that_is_not_needed_is_not_used(tmp_path: Path) -> None:
    found = judged(tmp_path, 120, target_false_reject=0.05, tail_model=True).evidence
    assert found.thresholds["float"].rank is not None
    assert "--tail-model was not needed: 120 good parts support 5.00%" in found.promise


@pytest.mark.parametrize(("scores", "finds", "warned"), [([0.1, 0.2, 99.0], 1, True), ([0.1, 50.0, 99.0], 2, False)])
def test_every_graph_says_how_many_defects_its_threshold_finds(
    tmp_path: Path, *, scores: list[float], finds: int, warned: bool
) -> None:
    found = judged(tmp_path, 30).evidence
    found.good_names = [f"{i}.png" for i in range(30)]
    found.other_scores, found.other_name = {"float": np.array(scores)}, "painted defects"
    found.warnings = ["another"]
    assert found.defects_json() == {"what": "painted defects", "graphs": {"float": {"found": finds, "of": 3}}}
    warn_of_blindness(found, None)
    assert found.warnings[-1] == "another"
    assert len(found.warnings) == 1 + warned
    if warned:
        assert "FINDS ONLY 1 OF 3 PAINTED DEFECTS" in found.warnings[0]
        oddest = int(np.argmax(found.good_scores["float"]))
        assert f"good parts with the highest scores: {oddest}.png" in found.warnings[0]


def test_the_oddest_parts_are_named_once_each_and_what_the_threshold_would_be_without_them_is_said(
    tmp_path: Path,
) -> None:
    found = judged(tmp_path, 40).evidence
    found.good_names = [f"{i}.png" for i in range(40)]
    found.good_groups = np.repeat(np.arange(20), 2)
    found.good_groups[-2:] = [20, 21]
    scores = np.linspace(1, 2, 40)
    scores[[0, 1, 7]] = 30, 20, 10  # the first two show part 0, the third part 3
    found.good_scores = {"float": scores}
    assert oddest_parts(found, "float") == [0, 7, 39]
    found.thresholds = {"float": replace(found.thresholds["float"], value=15.0, parts=22, rank=21)}
    found.other_scores, found.other_name = {"float": np.array([11.0, 12.0, 16.0])}, "painted defects"
    warn_of_blindness(found, 0.05)
    # 21 parts remain, rank 21 of 21 is asked for: 10 and half its gap to 2
    assert "Without 1 of them it would be 14 and find 1." in found.warnings[0]
    assert found.warnings[0].index("0.png (30)") < found.warnings[0].index("7.png (10)")


def test_too_few_parts_for_a_tail_model_are_said(tmp_path: Path) -> None:
    wanted = job(tmp_path, target_false_reject=0.001, tail_model=True).settings
    with pytest.raises(CalibrationError, match="99 good parts are too few for a tail model: it needs 100"):
        extrapolates(wanted, 99)
    assert extrapolates(wanted, 100)
    assert not extrapolates(wanted, 999)
