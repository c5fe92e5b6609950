"""Methods that look at scans, from a folder to the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from compile.bench import run
from compile.bench.run import Wanted, run_bench
from compile.data import DataError, read_data
from compile.job import Settings
from compile.scan_maps import load_scan_maps
from compile.wishes import WishError, check_wishes
from edge.bundle import ScanInput
from edge.cli import OK, main
from edge.organised_scan.front_end import organised_scan
from edge.scans.read import read_points

GOOD = 21  # scans of `road`


@pytest.mark.slow
def test_btf_and_fpfh_see_what_no_picture_shows(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = {}
    export = run.export_graph
    monkeypatch.setattr(
        run, "export_graph", lambda method, *rest: graphs.setdefault(method.levels, export(method, *rest))
    )
    wishes = ["--methods", "fpfh,btf", "--size", "128", "-o", str(tmp_path), "--json"]
    assert main(["bench", str(road), *wishes]) == OK
    assert "The unit of the scans is mm" in str(json.loads(capsys.readouterr().out)["remarks"])
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    figures = {row["method"]: float(row["I-AUROC"]) for row in rows if row["mask_rule"] == "half"}
    assert figures["fpfh"] == 1
    assert figures["btf"] > 0.9
    session = ort.InferenceSession(graphs[()].SerializeToString(), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"fpfh", "mask"}


def test_scan_maps_are_what_the_box_makes(road: Path, tmp_path: Path) -> None:
    data = read_data(road)
    spec = ScanInput(
        height=64, width=64, background="none", fpfh_cells=16, fpfh_neighbours=16, source=data.scanned.source(data.good)
    )
    broken = data.scanned.of[data.good[1]]
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[:500])
        found = load_scan_maps(data.good, data.scanned, spec, ("fpfh", "geometry"), tmp_path, tick=None)
    finally:
        broken.write_bytes(whole)
    assert found.kept == [0, *range(2, GOOD)]
    assert [item.path for item in found.skipped] == [data.good[1]]
    assert (found.maps["fpfh"].shape, found.maps["geometry"].shape) == ((GOOD - 1, 33, 16, 16), (GOOD - 1, 7, 64, 64))
    third = organised_scan(read_points(data.scanned.of[data.good[3]]), spec)
    np.testing.assert_array_equal(np.moveaxis(found.maps["fpfh"][2], 0, 2), third.fpfh)


def test_a_set_of_pictures_has_nothing_for_a_method_of_scans(
    mvtec_pictures: Path,
) -> None:
    with pytest.raises(DataError, match="holds no scans, and a method looks at them"):
        run_bench(Wanted([mvtec_pictures], ["fpfh"], size=128), lambda *_: None)


@pytest.fixture
def mvtec_pictures(tmp_path: Path, photographs: np.ndarray, write: Callable[..., Path]) -> Path:
    for i, image in enumerate(photographs[:24]):
        part = "train/good" if i < 20 else "test/good" if i < 22 else "test/bad"
        write(tmp_path / "wall" / part / f"{i}.png", image)
    return tmp_path / "wall"


def test_a_background_is_of_scans_alone(road: Path, tmp_path: Path) -> None:
    with pytest.raises(WishError, match="--background belt: --method varad looks at no scan"):
        check_wishes(Settings(road, tmp_path / "x.bundle", background="belt"))
