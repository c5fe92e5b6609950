from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from compile.methods.registry import METHODS
from compile.pipeline import Compiled
from compile.tensorrt_build import build, check_allowed
from edge.bundle import read_bundle
from edge.cli import FAILED, OK, USAGE, main
from edge.scorer import Scorer


@pytest.mark.slow
def test_a_folder_with_labels_becomes_a_bundle_in_one_json_document(mvtec: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "wall.bundle"
    wishes = ["--size", "128", "--fit-steps", "24", "--target-false-reject", "0.1", "--group-by", r"(\d+)"]
    assert main(["compile", str(mvtec), "-o", str(output), "--json", *wishes]) == OK
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert told["id"] == read_bundle(output).id
    assert told["good_parts"] == 20
    assert told["defects"]["what"] == "defective test pictures"
    assert set(told["defects"]["graphs"]) == set(told["thresholds"])
    row = next(row for row in told["parity"]["test"] if row["graph"] == "float")
    assert told["defects"]["graphs"]["float"] == {"found": 10 - row["defective_accepted"], "of": 10}
    rows = {row["graph"]: row for row in told["parity"]["test"]}
    assert list(rows) == ["torch", "float", "int8", "trt"]
    assert rows["torch"]["image_auroc"]["value"] == pytest.approx(rows["float"]["image_auroc"]["value"], abs=1e-9)
    assert rows["float"]["image_auroc"]["value"] > 0.9
    assert rows["float"]["pixel_auroc"]["value"] > 0.9
    assert rows["float"]["aupro"]["interval"][0] <= rows["float"]["aupro"]["value"]
    assert told["parity"]["engine"] == "not run"
    assert told["parity"]["float"]["score_error_relative"] <= 1e-4
    assert told["thresholds"]["float"]["approximate"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_another_method_makes_a_bundle_that_the_box_runs(mvtec: Path, tmp_path: Path, capsys) -> None:
    method = "patchcore"
    output = tmp_path / "wall.bundle"
    wishes = ["--size", "128", "--fit-steps", "20", "--target-false-reject", "0.1", "--group-by", r"(\d+)"]
    assert main(["compile", str(mvtec), "-o", str(output), "--json", "--method", method, *wishes]) == OK
    told = json.loads(capsys.readouterr().out)
    bundle = read_bundle(output)
    assert bundle.manifest.method == told["method"] == METHODS[method].title
    assert bundle.manifest.score == METHODS[method].score
    rows = {row["graph"]: row for row in told["parity"]["test"]}
    assert rows["torch"]["image_auroc"]["value"] == pytest.approx(rows["float"]["image_auroc"]["value"], abs=1e-9)
    assert rows["float"]["image_auroc"]["value"] > 0.9
    image = cv2.cvtColor(cv2.imread(str(mvtec / "test" / "good" / "0.png")), cv2.COLOR_BGR2RGB)
    for name in ("float", "int8"):
        if name in bundle.manifest.graphs:
            found = Scorer(bundle, name).score(image)
            assert np.isfinite(found.value)
            assert found.map.shape == (bundle.manifest.map_height, bundle.manifest.map_width)


@pytest.mark.slow
def test_the_bundle_of_a_flat_folder_runs_on_the_box(compiled: Compiled, photographs) -> None:
    bundle = compiled.bundle
    for name in ("float", "int8"):
        if name in bundle.manifest.graphs:
            scorer = Scorer(bundle, name)
            good, torn = scorer.score(photographs[24]), photographs[24].copy()
            torn[40:90, 40:90] = 0
            assert scorer.score(torn).value > good.value
            assert good.map.shape == (bundle.manifest.map_height, bundle.manifest.map_width)


@pytest.mark.slow
def test_graphs_for_tensorrt_are_allowed_and_build(compiled: Compiled) -> None:
    for name in ("model.onnx", "model.trt.onnx"):
        if name in compiled.bundle.manifest.files:
            model = onnx.load_from_string(compiled.bundle.read(name))
            assert check_allowed(model) == []
            assert len(build(model).engine) > 100_000


@pytest.mark.slow
def test_a_golden_set_tells_another_channel_order(compiled: Compiled) -> None:
    golden = compiled.bundle.golden.samples[0]
    raw = np.frombuffer(compiled.bundle.read(golden.image), np.uint8)
    swapped = cv2.imdecode(raw, cv2.IMREAD_COLOR)  # BGR where RGB is right
    found = Scorer(compiled.bundle, "float").score_tensors({"image": swapped})
    assert abs(found.value - golden.scores["float"]) > golden.score_tolerance["float"]


@pytest.mark.slow
def test_reduced_graphs_are_in_the_bundle_exactly_when_they_are_proven(compiled: Compiled) -> None:
    reduced = json.loads(compiled.bundle.read("parity.json"))["reduced"]
    assert set(reduced) == {"int8", "trt"}
    for name, found in reduced.items():
        assert found["kept"] == (name in compiled.bundle.manifest.graphs)
        inside = found["image_auroc_loss"] <= 0.005 and found["spearman"] >= 0.99
        assert found["kept"] == inside, found
        assert found["kept"] or any(found["reason"] in warning for warning in compiled.evidence.warnings)


def run(capsys, *arguments: object) -> tuple[int, str]:
    """Run a compilation that fails; stdout must hold the error as one JSON document."""
    code = main(["compile", *map(str, arguments), "--json"])
    told, said = capsys.readouterr()
    assert "Traceback" not in said
    plain = " ".join(said.replace("│", " ").split())
    assert " ".join(json.loads(told)["error"].split()) in plain
    assert list(json.loads(told)) == ["error"]
    return code, plain


def test_three_images_are_one_clear_line(tmp_path: Path, photographs, write, capsys) -> None:
    for i in range(3):
        write(tmp_path / "few" / f"{i}.png", photographs[i])
    code, said = run(capsys, tmp_path / "few", "-o", tmp_path / "x.bundle")
    assert code == FAILED
    assert said == (
        f"beltline compile: {tmp_path}/few: 3 usable good image(s) among 3 file(s), at least 20 are needed. "
        "Add images of good parts: also a method that is fitted on few takes its threshold from them."
    )
    assert not (tmp_path / "x.bundle").exists()


def test_a_missing_folder_and_a_bad_place_are_said(tmp_path: Path, capsys) -> None:
    code, said = run(capsys, tmp_path / "nowhere", "-o", tmp_path / "x.bundle")
    assert (code, "no such folder" in said) == (FAILED, True)
    code, said = run(capsys, tmp_path, "-o", tmp_path / "no" / "x.bundle")
    assert (code, "does not exist" in said) == (FAILED, True)


def test_copies_that_are_said_to_be_different_parts_are_found_out(tmp_path: Path, photographs, write, capsys) -> None:
    for i in range(24):
        write(tmp_path / "one" / f"{i}.png", photographs[i % 3])
    code, said = run(capsys, tmp_path / "one", "-o", tmp_path / "x.bundle", "--group-by", r"(\d+)", "--size", "128")
    assert code == FAILED
    assert "of them copies of others, are too few to calibrate INT8 on: at least 8 different ones are needed" in said
    assert not (tmp_path / "x.bundle").exists()


def test_pictures_of_too_few_parts_are_said(tmp_path: Path, photographs, write, capsys) -> None:
    for i in range(24):
        write(tmp_path / "one" / f"a{i % 4}-{i}.png", photographs[i])
    code, said = run(capsys, tmp_path / "one", "-o", tmp_path / "x.bundle", "--group-by", r"(a\d)")
    assert code == FAILED
    assert "24 usable images show only 4 different parts, at least 20 are needed" in said


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (["--size", "7"], "--size 7: give a multiple of 32 from 128 to 1024"),
        (["--smallest-defect", "5e-324"], "--smallest-defect 5e-324: give a diameter of at least 1 source pixel"),
        (["--smallest-defect", "nan"], "--smallest-defect nan: give a diameter"),
        (["--budget-ms", "inf"], "--budget-ms inf: give milliseconds above zero"),
        (["--target-false-reject", "1.5"], "--target-false-reject 1.5: must lie between 1e-06 and 1"),
        (["--seed", "-5"], "--seed -5: give a whole number from 0"),
        (["--fit-steps", "0"], "--fit-steps 0: at least 20"),
        (["--method", "sam"], "--method: no method 'sam'. There are: patchcore"),
        (["--name", "cap\n2"], r"--name 'cap\n2': give 1 to 100 printable characters"),
        (["--name", "c" * 101], "ccc': give 1 to 100 printable characters (101 were given)"),
        (["--version", ""], "--version '': give 1 to 100 printable"),
        (["--version", "\udc80"], r"--version '\udc80': give 1 to 100 printable"),
        (["-o", "cap.work"], "-o cap.work: the working folder would lie there. Name the bundle NAME.bundle."),
        (["-o", "ca\tp.bundle"], r"-o 'ca\tp': give 1 to 100 printable"),
        (["--group-by", "(a"], "--group-by '(a': give near-duplicates or folder, or a regular expression"),
    ],
)
def test_wishes_that_make_no_sense_are_said_before_anything_is_read(tmp_path: Path, capsys, *, wish, words) -> None:
    unread = tmp_path / "nowhere"  # reading it would fail with another message
    found, said = run(capsys, unread, "-o", tmp_path / "x.bundle", *wish)
    assert (found, words in said) == (USAGE, True), said
