"""A bundle that looks at scans on the box: what it says of each kind of scan, good and bad."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.bundle import read_bundle
from edge.check import check_station
from edge.errors import BundleError
from edge.judge import Judged
from edge.scorer import Scorer, ScorerError, slow_step_ms
from edge.settings import BeltSource, Settings, load_settings
from edge.sources import SourceError, open_source
from edge.start import started
from edge.view import wanted
from firmware_bridge.belt.camera import Camera as SimulatedCamera
from firmware_bridge.parts import PartId, Trigger

MakeBundle = Callable[..., Path]
STATION = '[bundle]\npath = "blocks.bundle"\nallow_unsigned = true\n[source]\nkind = "folder"\npath = "parts"\n'


def swapped(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return points[..., [2, 1, 0]]


def bench(folder: Path, scans: dict[str, NDArray[np.float32] | bytes]) -> dict[str, Judged]:
    """What a station says of each file."""
    (folder / "parts").mkdir()
    for name, scan in scans.items():
        file = folder / "parts" / name
        if isinstance(scan, bytes):
            file.write_bytes(scan)
        else:
            np.save(file, scan)
    judged: list[Judged] = []
    with started(settings(folder), on_judged=judged.append) as station:
        station.run()
    return dict(zip(sorted(scans), judged, strict=True))


def settings(folder: Path) -> Settings:
    (folder / "station.toml").write_text(STATION)
    return load_settings(folder / "station.toml")


def test_scans_are_judged_and_bad_ones_are_faults_that_say_why(
    make_scan_bundle: MakeBundle, blocks: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_scan_bundle()
    axes = b"".join(b"property float %c\n" % axis for axis in b"xyz")
    header = b"ply\nformat ascii 1.0\nelement vertex 2\n" + axes + b"end_header\n"
    good = blocks.scan(10, seed=1)
    empty = np.full_like(good, np.nan)
    np.save(tmp_path / "whole.npy", good)
    scans: dict[str, Any] = {
        "0 good.npy": good,
        "1 high.npy": blocks.scan(30, seed=2),
        "2 no return.npy": empty,
        "3 belt alone.npy": blocks.scan(0),
        "4 two parts.npy": blocks.scan(10, 10),
        "5 another size.npy": good[:80],
        "6 millimetres.npy": good * 1000,
        "7 another distance.npy": good + np.array([0, 0, 0.7], np.float32),
        "8 unorganised.ply": header + b"0 0 1\n1 0 1\n",
        "9 swapped.npy": swapped(good),
        "a cut off.npy": (tmp_path / "whole.npy").read_bytes()[:-1000],
        "b sparse.npy": np.where(np.random.default_rng(0).random((*good.shape[:2], 1)) < 0.97, np.nan, good),
        "c good.npy": blocks.scan(10, seed=3),
    }
    found = bench(tmp_path, scans)
    decisions = {name: each.verdict.decision.value for name, each in found.items()}
    assert decisions.pop("0 good.npy") == decisions.pop("c good.npy") == "ACCEPT"
    assert decisions.pop("1 high.npy") == "REJECT"
    assert set(decisions.values()) == {"FAULT"}
    assert {found[name].verdict.reason.value for name in decisions} == {"bad_frame"}
    said = [record.getMessage() for record in caplog.records if "bad_frame" in record.getMessage()]
    for words in (
        "2 no return.npy: scan: an empty scan",
        "3 belt alone.npy: a plane only",
        "4 two parts.npy: two parts in view",
        "5 another size.npy: 128x80 points, the bundle was made from 128x96",
        "6 millimetres.npy: scan: the scan spans 1.2",
        "7 another distance.npy: the scan lies 1100 mm away, the bundle was made from 390 to 400 mm",
        "8 unorganised.ply: scan: an unorganised PLY",
        "9 swapped.npy: scan: swapped axes",
        "b sparse.npy: only 3",
    ):
        assert any(words in each for each in said), (words, said)


def test_the_worst_place_is_told_in_millimetres(make_scan_bundle: MakeBundle, blocks: SimpleNamespace) -> None:
    scorer = Scorer(read_bundle(make_scan_bundle()), "float")
    score = scorer.score(None, blocks.scan(4, x_mm=-12, bump_mm=40) * 1000)
    assert score.worst is not None
    assert (score.worst.x_mm, score.worst.y_mm) == pytest.approx((-2, 10), abs=3)
    assert 355 < score.worst.z_mm < 395
    assert score.worst.width_mm < 16
    assert score.worst.height_mm < 16
    assert set(score.times_ms) == {"front_end", "graph"}


def test_a_scan_and_its_picture_are_both_asked_for_and_must_be_aligned(
    make_scan_bundle: MakeBundle, blocks: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_scan_bundle(image=True)
    scan = blocks.scan(10)
    picture = np.random.default_rng(0).integers(0, 255, scan.shape[:2]).astype(np.uint8)
    parts = {"1 both": picture, "2 other": picture[:64], "3 alone": None}
    (tmp_path / "parts" / "xyz").mkdir(parents=True)
    (tmp_path / "parts" / "rgb").mkdir()
    for name, image in parts.items():
        np.save(tmp_path / "parts" / "xyz" / f"{name}.npy", scan)
        if image is not None:
            assert cv2.imwrite(str(tmp_path / "parts" / "rgb" / f"{name}.png"), image)
    judged: list[Judged] = []
    with started(settings(tmp_path), on_judged=judged.append) as station:
        station.run()
    assert [each.verdict.decision.value for each in judged] == ["ACCEPT", "FAULT", "FAULT"]
    assert [each.picture for each in judged] == ["1 both.png", "2 other.png", "3 alone.npy"]
    assert "128x64 pixels, the bundle was made from 128x96" in caplog.text
    assert "a scan without its picture, and the bundle looks at both" in caplog.text


def test_the_check_shows_the_first_scan(make_scan_bundle: MakeBundle, blocks: SimpleNamespace, tmp_path: Path) -> None:
    make_scan_bundle()
    (tmp_path / "parts").mkdir()
    np.save(tmp_path / "parts" / "1.npy", blocks.scan(10))
    findings = {finding.what: finding for finding in check_station(settings(tmp_path))}
    assert findings["scans"].found.startswith("128 x 96 points, 390 to 400 mm away, in m, background belt")
    assert findings["source"].found.endswith("the first scan is 128 x 96")
    np.save(tmp_path / "parts" / "1.npy", blocks.scan(0))
    [source] = [finding for finding in check_station(settings(tmp_path)) if finding.what == "source"]
    assert not source.ok
    assert "a plane only" in source.found


def test_a_source_of_pictures_is_none_for_scans(make_scan_bundle: MakeBundle, tmp_path: Path) -> None:
    make_scan_bundle()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.png").write_bytes(b"")
    with (
        pytest.raises(SourceError, match="no scans in this folder, and the bundle looks at scans"),
        started(settings(tmp_path)),
    ):
        pass
    (tmp_path / "station.toml").write_text(STATION.replace('"folder"', '"video"'))
    with (
        pytest.raises(SourceError, match="gives pictures alone, and the bundle looks at scans"),
        started(load_settings(tmp_path / "station.toml")),
    ):
        pass


def test_the_belt_simulator_sends_scans(blocks: SimpleNamespace, tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", blocks.scan(10))
    camera = SimulatedCamera(tmp_path / "camera")
    source = open_source(
        BeltSource(kind="belt", socket=tmp_path / "camera", timeout_ms=2000), wanted=wanted(blocks.spec())
    )
    try:
        while not camera.expose(7, 1, time.monotonic_ns(), "", str(tmp_path / "1.npy")):
            time.sleep(0.01)
        frame = None
        while frame is None:
            frame = source.frame(Trigger(PartId(7, 1), 0, 0, 0, time.monotonic_ns()), 0.5)
    finally:
        source.close()
        camera.close()
    assert frame.image is None
    assert frame.name == "1.npy"
    assert frame.scan is not None
    np.testing.assert_array_equal(frame.scan, blocks.scan(10) * np.float32(1000))  # in millimetres


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest, _: manifest.update(schema_version=1), "schema version 1 with a scan"),
        (lambda manifest, _: manifest.update(scan=None), "schema version 3 without a scan"),
        (lambda manifest, _: manifest.update(tensors=[]), "neither a picture nor a scan with its tensors"),
        (lambda manifest, _: manifest["tensors"][0].update(name="voxels"), "tensors.0.name"),
        (lambda manifest, _: manifest["scan"].update(front_end_version=2), "scan.front_end_version"),
        (lambda _, golden: golden["tensors"].pop("mask"), "has not the inputs that the graphs take"),
        (lambda _, golden: golden["tensors"].update(mask="golden/9.npy"), "names golden/9.npy"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    make_scan_bundle: MakeBundle, change: Callable[..., None], says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        read_bundle(make_scan_bundle(change=change))


def test_a_tensor_that_the_front_end_does_not_make_is_refused(make_scan_bundle: MakeBundle) -> None:
    file = make_scan_bundle(change=lambda manifest, _: manifest["tensors"][0].update(shape=[7, 64, 32]))
    with pytest.raises(ScorerError, match=r"declared as \[7, 64, 32\], the front end makes \[7, 64, 64\]"):
        Scorer(read_bundle(file), "float")


def test_what_a_part_costs_is_measured_on_a_scan_that_the_bundle_takes(make_scan_bundle: MakeBundle) -> None:
    assert slow_step_ms(Scorer(read_bundle(make_scan_bundle(image=True)), "float")) > 0
