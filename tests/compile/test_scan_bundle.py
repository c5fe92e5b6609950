"""From a folder of scans to a bundle, and to the box's verdicts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch import Tensor as Values
from torch import nn

from compile.classes import joint_scans
from compile.command import choose_method
from compile.data import DataError, read_data
from compile.features import Features, on_disk, open_rows
from compile.job import Settings
from compile.parts import load_parts
from compile.pipeline import Compiled, compile_data
from compile.scan_defects import DEPTHS, DIAMETERS, dent
from compile.scan_maps import scan_input
from compile.tensorrt_build import build, check_allowed
from edge.bundle import Spec, Tensor, read_bundle
from edge.cli import OK, main
from edge.prepare import prepare
from edge.scorer import Scorer
from edge.view import View, read_view, wanted


@pytest.fixture(scope="module")
def scans_alone(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "road"
    shutil.copytree(road, folder, ignore=shutil.ignore_patterns("rgb"))
    return folder


@pytest.fixture(scope="module")
def compiled(scans_alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Scans alone, by the method that is taken for them."""
    output = tmp_path_factory.mktemp("out") / "road.bundle"
    method = choose_method(None, None, "lite0", [scans_alone])
    return compile_data(Settings(scans_alone, output, size=128, method=method))


def test_the_default_follows_the_folder(road: Path, scans_alone: Path, tmp_path: Path) -> None:
    assert choose_method(None, None, "lite0", [road]) == "mentor3ad"
    assert choose_method(None, None, "lite0", [road, scans_alone]) == "fpfh"
    assert choose_method(None, None, "lite0", [road, tmp_path]) == "varad"
    assert choose_method("varad", None, "lite0", [road]) == "varad"


@pytest.mark.slow
def test_the_bundle_finds_dents_and_says_what_it_takes(compiled: Compiled) -> None:
    manifest, found = compiled.bundle.manifest, compiled.evidence
    assert (manifest.schema_version, manifest.input, list(manifest.graphs)) == (3, None, ["float"])
    assert manifest.scan is not None
    assert (manifest.scan.front_end, manifest.scan.source.unit, manifest.scan.fpfh_neighbours) == (
        "organised_scan",
        "mm",
        100,
    )
    assert [(tensor.name, tensor.shape) for tensor in manifest.tensors] == [("fpfh", [33, 16, 16])]
    assert all(set(sample.tensors) == {"fpfh", "mask"} for sample in compiled.bundle.golden.samples)
    assert found.float_parity["score_error_relative"] <= 1e-4
    assert [row.graph for row in found.test] == ["torch", "float"]
    assert found.test[1].image_auroc is not None
    assert found.test[1].image_auroc.value > 0.9
    graph = onnx.load_from_string(compiled.bundle.read("model.onnx"))
    assert check_allowed(graph) == []
    build(graph)
    page = compiled.report.read_text()
    assert "with scans in mm" in page
    assert page.count("picture or height") == len(found.examples)


@pytest.mark.slow
def test_the_box_says_what_the_workshop_says(
    compiled: Compiled, scans_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    station = tmp_path / "station.toml"
    source = json.dumps(str(scans_alone / "test" / "dent"))
    station.write_text(
        f"[bundle]\npath = {json.dumps(str(compiled.bundle.path))}\nallow_unsigned = true\n"
        f'[source]\nkind = "folder"\npath = {source}\n'
    )
    assert main(["run", str(station), "--json"]) == OK
    *rows, _ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = compiled.evidence.other_scores["float"]
    np.testing.assert_allclose([row["score"] for row in rows], found, rtol=1e-5)
    assert [row["decision"] == "REJECT" for row in rows] == (found > rows[0]["threshold"]).tolist()
    best = max(rows, key=lambda row: row["score"])
    assert best["worst"]["x_mm"] == pytest.approx(20, abs=25), "where the dents are"


@pytest.mark.slow
def test_a_planted_swap_of_the_tensors_places_shows(compiled: Compiled, scans_alone: Path) -> None:
    scorer = Scorer(read_bundle(compiled.bundle.path), "float")
    view = View(None, next((scans_alone / "test" / "dent" / "xyz").glob("*.tiff")))
    tensors = prepare(*read_view(view, wanted(scorer.spec)), scorer.spec).tensors
    right = scorer.score_tensors(tensors).map
    wrong = scorer.score_tensors(tensors | {"fpfh": tensors["fpfh"].transpose(0, 2, 1)}).map
    assert np.abs(right - wrong).max() > 0.1 * right.max()
    hidden = scorer.score_tensors(tensors | {"mask": np.zeros_like(tensors["mask"])})
    assert hidden.value == 0


def test_parts_that_cannot_be_prepared_are_named(scans_alone: Path, tmp_path: Path) -> None:
    data = read_data(scans_alone)
    source = data.scanned.source(data.good)
    spec = Spec(
        None, scan_input(source, 64, "none", ["geometry"]), (Tensor(name="geometry", shape=[7, 64, 64]),), (32, 32)
    )
    views = [View(None, data.scanned.of[path]) for path in data.good[:3]]
    (tmp_path / "cut.tiff").write_bytes(data.good[0].read_bytes()[:900])
    views[1] = View(None, tmp_path / "cut.tiff")
    parts, kept, skipped = load_parts(views, [spec] * 3, tmp_path / "parts")
    assert kept.tolist() == [0, 2]
    assert [item.path.name for item in skipped] == ["cut.tiff"]
    alone = prepare(*read_view(views[2], wanted(spec)), spec).tensors
    for name, values in parts.take([1]).inputs.items():
        np.testing.assert_array_equal(values[0], alone[name])
    assert [each.shape for each in parts.shown(0)] == [(64, 64, 3)]


def test_classes_in_two_units_are_not_put_together(scans_alone: Path) -> None:
    data = read_data(scans_alone)
    assert joint_scans([data, data]) == data.scanned.source(data.good)
    other = replace(data, scans=replace(data.scanned, unit="m"))
    with pytest.raises(DataError, match="in metres, those of another in millimetres"):
        joint_scans([data, other])


class Seen(nn.Module):
    """Scores the mean of the mask, times the scan's map."""

    def forward(self, trunk: Values, scan: Values, mask: Values) -> tuple[Values, Values]:
        return mask.mean((1, 2)) * scan.mean((1, 2, 3)) + 100 * trunk.mean((1, 2, 3)), mask


class SeenAlone(nn.Module):
    def forward(self, scan: Values, mask: Values) -> tuple[Values, Values]:
        return mask.mean((1, 2)) * scan.mean((1, 2, 3)), mask


def test_maps_of_scans_go_with_every_rendering_and_masks_with_their_parts(tmp_path: Path) -> None:
    scans = on_disk(tmp_path / "fpfh.bin", np.dtype(np.float32), (4, 1, 2, 2))
    scans[:] = np.arange(4).reshape(4, 1, 1, 1)
    masks = np.ones((4, 8, 8), np.float32)
    masks[3, :4] = 0
    features = Features(tmp_path, ["float", "int8"], [scans[:3]], masks)
    features.maps = [np.repeat([0.0, 1.0], 3).reshape(6, 1, 1, 1).astype(np.float32)]
    features.pictures = 3
    rows = np.array([2, 1])
    np.testing.assert_allclose(features.score(Seen(), "float", rows, 8), [2, 1])
    np.testing.assert_allclose(features.score(Seen(), "int8", rows, 8), [102, 101])
    alone = Features(tmp_path, ["float"], [scans], masks)
    opened = open_rows(alone.files, np.array([3, 5, 0]))[0]
    assert np.asarray(opened[:])[:, 0, 0, 0].tolist() == [3, 1, 0]
    np.testing.assert_allclose(alone.score(SeenAlone(), "float", np.array([3, 2]), 8), [1.5, 2])


@pytest.mark.parametrize("seed", range(6))
def test_a_dent_changes_the_distance_alone_and_lies_on_the_part(seed: int) -> None:
    y, x = np.mgrid[:96, :128].astype(np.float32)
    points = np.stack([x / 2, y / 2, np.full_like(x, 400)], axis=2)
    points[::7, ::5] = np.nan
    counts = np.zeros((48, 64), np.float32)
    counts[8:40, 20:60] = 1
    before = points.copy()
    changed, said = dent(points, counts, np.random.default_rng(seed))
    np.testing.assert_array_equal(points, before)
    np.testing.assert_array_equal(changed[..., :2], points[..., :2])
    moved: NDArray[np.float32] = np.nan_to_num(np.abs(changed[..., 2] - 400))
    diameter_mm = float(said.split()[1])
    assert 96 / 2 * DIAMETERS[0] <= diameter_mm * 1.01
    assert diameter_mm <= 96 / 2 * DIAMETERS[1] * 1.01
    assert DEPTHS[0] * 0.9 < moved.max() / diameter_mm < DEPTHS[1] * 1.01
    row, column = np.unravel_index(int(moved.argmax()), moved.shape)
    assert counts[row // 2, column // 2] == 1
    assert (moved > 0.14 * moved.max()).sum() / 4 < np.pi * (diameter_mm / 2) ** 2 * 1.2, "as wide as it says"
    assert ("dent" in said) == (float(np.nanmax(changed[..., 2])) > 400.01)
