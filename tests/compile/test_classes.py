"""Several classes of one bundle, from their folders to the station."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from compile.classes import class_names, class_sources
from compile.data import DataSet, read_data
from compile.job import Settings
from compile.onnx_session import open_session
from compile.pipeline import Compiled, compile_data
from compile.tensorrt_build import build, check_allowed
from edge.cli import FAILED, OK, USAGE, main
from edge.front_end import FrameError, rgb
from edge.scorer import Scorer, preferred

Write = Callable[[Path, NDArray[np.uint8]], Path]


@pytest.fixture(scope="session")
def negatives(photographs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Parts of another class, by a camera without colours: dark where the wall is light, and turned."""
    return np.ascontiguousarray(255 - photographs.transpose(0, 2, 1, 3)[..., 0])


def put(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        picture = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / f"{i:02}.png"), picture)
    return folder


@pytest.fixture(scope="session")
def both(
    tmp_path_factory: pytest.TempPathFactory, photographs: NDArray[np.uint8], negatives: NDArray[np.uint8]
) -> Compiled:
    """A bundle for two classes: `wall`, a flat folder, and `negative` with labelled test pictures."""
    folder = tmp_path_factory.mktemp("both")
    wall = put(folder / "wall", photographs[:20])
    put(folder / "negative" / "train" / "good", negatives[:21])
    put(folder / "negative" / "test" / "good", negatives[30:36])
    torn = negatives[30:36].copy()
    torn[:, 40:90, 40:90] = 0
    put(folder / "negative" / "test" / "torn", torn)
    settings = Settings(
        wall,
        folder / "both.bundle",
        size=128,
        group_by=r"(\d+)",
        method="pnpt",
        fit_steps=20,
        target_false_reject=0.1,
        more=(folder / "negative",),
    )
    return compile_data(settings)


@pytest.mark.slow
def test_a_bundle_for_one_product_is_as_it_was(compiled: Compiled) -> None:
    """Boxes of an older version refuse keys that they do not know."""
    manifest = json.loads(compiled.bundle.read("manifest.json"))
    assert (manifest["schema_version"], manifest["classes"]) == (1, [])
    assert "class_input" not in manifest
    assert b"class_name" not in compiled.bundle.read("golden/golden.json")
    assert set(json.loads(compiled.bundle.read("threshold.json"))) == set(compiled.bundle.manifest.graphs)


@pytest.mark.slow
def test_a_bundle_for_two_has_evidence_of_each(both: Compiled) -> None:
    bundle = both.bundle
    manifest = bundle.manifest
    assert (manifest.schema_version, manifest.classes, manifest.class_input) == (2, ["wall", "negative"], True)
    assert [each["float"].parts for each in bundle.thresholds] == [20, 21]
    assert bundle.thresholds[0]["float"].value != bundle.thresholds[1]["float"].value
    assert [sample.class_name for sample in bundle.golden.samples] == ["wall", "wall", "negative", "negative"]
    parity = json.loads(bundle.read("parity.json"))
    assert parity["wall"]["defects"]["what"] == "painted defects on held-out parts"
    assert parity["negative"]["defects"]["what"] == "defective test pictures"
    assert [row["graph"] for row in parity["negative"]["test"]] == ["torch", "float", "int8", "trt"]
    for name in manifest.classes:
        assert 0 < parity[name]["float"]["score_error_relative"] <= 1e-4
        for graph, found in parity[name]["reduced"].items():
            assert found["kept"] == (graph in manifest.graphs)
    report = both.report.read_text()
    assert report.index("Class wall") < report.index("Class negative") < report.index("All classes")
    for found in both.classes:
        assert f"threshold {found.thresholds['float'].value:.5g}" in report.replace('<td class="n">', "threshold ")
        assert f"{len(found.data.good)} good images" in report


@pytest.mark.slow
def test_each_class_is_scored_by_its_own_normality(
    both: Compiled, photographs: NDArray[np.uint8], negatives: NDArray[np.uint8]
) -> None:
    scorers = [Scorer(both.bundle, "float", class_index=index) for index in (0, 1)]
    for own, other, pictures in ((0, 1, photographs[36:40]), (1, 0, negatives[36:40])):
        for picture in pictures:
            frame = rgb(picture, scorers[own].spec.image)
            assert (
                scorers[own].score_tensors({"image": frame}).value
                < scorers[other].score_tensors({"image": frame}).value
            )


@pytest.mark.slow
def test_each_class_takes_the_frames_of_its_own_camera(
    both: Compiled, photographs: NDArray[np.uint8], negatives: NDArray[np.uint8]
) -> None:
    manifest = json.loads(both.bundle.read("manifest.json"))
    assert [each["channels"] for each in manifest["class_sources"]] == [3, 1]
    assert manifest["input"]["source"]["channels"] == 3
    wall, negative = (Scorer(both.bundle, "float", class_index=index) for index in (0, 1))
    grey = negatives[36]
    coloured = np.repeat(grey[..., None], 3, axis=2)
    assert (
        negative.score(grey).value
        == negative.score_tensors({"image": cv2.resize(coloured, (128, 128), interpolation=cv2.INTER_AREA)}).value
    )
    with pytest.raises(FrameError, match=r"3 channel\(s\), the bundle was made from 1"):
        negative.score(coloured)
    with pytest.raises(FrameError, match=r"1 channel\(s\), the bundle was made from 3"):
        wall.score(grey)
    assert wall.score(photographs[36]).value > 0


@pytest.mark.slow
def test_the_graph_answers_for_each_picture_of_a_batch_as_its_class(
    both: Compiled, photographs: NDArray[np.uint8]
) -> None:
    manifest = both.bundle.manifest
    session = open_session(both.bundle.read("model.onnx"))
    picture = cv2.resize(photographs[0], (128, 128))[None]

    def score(*classes: int) -> list[float]:
        given = {
            "image": picture.repeat(len(classes), axis=0),
            "mask": np.ones((len(classes), manifest.map_height, manifest.map_width), np.float32),
            "class": np.array(classes, np.int64),
        }
        found: list[float] = session.run(["score"], given)[0].tolist()
        return found

    (wall,), (negative,) = score(0), score(1)
    assert negative - wall > 0.01 * wall
    assert score(0, 1, 0) == pytest.approx([wall, negative, wall], rel=1e-5)


@pytest.mark.slow
def test_a_graph_that_is_told_the_class_builds_in_tensorrt(both: Compiled) -> None:
    model = onnx.load_from_string(both.bundle.read("model.onnx"))
    assert {value.name for value in model.graph.input} == {"image", "mask", "class"}
    assert check_allowed(model) == []
    assert len(build(model).engine) > 100_000


@pytest.mark.slow
def test_a_station_runs_the_class_that_it_names(
    both: Compiled, photographs: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "wall", photographs[36:39])
    put(tmp_path / "negative", photographs[36:39, ..., 0])
    file = tmp_path / "station.toml"
    scores = {}
    for index, name in enumerate(both.bundle.manifest.classes):
        file.write_text(
            f'[bundle]\npath = "{both.bundle.path}"\nallow_unsigned = true\n'
            f'class_name = "{name}"\n[source]\nkind = "folder"\npath = "{name}"\n'
        )
        assert main(["run", "--json", str(file)]) == OK
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        rows = [row for row in rows if "score" in row]
        (graph, *_) = preferred(name for name in both.bundle.manifest.graphs if name != "trt")
        assert {row["threshold"] for row in rows} == {both.bundle.thresholds[index][graph].value}
        assert [row["decision"] == "REJECT" for row in rows] == [row["score"] > row["threshold"] for row in rows]
        scores[name] = [row["score"] for row in rows]
    assert all(as_wall < as_other for as_wall, as_other in zip(scores["wall"], scores["negative"], strict=True))
    file.write_text(file.read_text().replace('class_name = "negative"', 'class_name = "gravel"'))
    assert main(["run", str(file)]) == FAILED
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "no class 'gravel'; there are: negative, wall" in said


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["compile", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("folders", "method", "words"),
    [
        (("a/cap", "a/lid"), "varad", "--method varad: makes a model of one product, and 2 folders were given"),
        (("a/cap", "b/cap"), "pnpt", "/a/cap, b/cap: a class is named by its folder, and 'cap' is there twice"),
        (("a/cap", "/"), "pnpt", "/: a class is named by its folder, and '' is no name of 1 to 100"),
        (("a/cap", "a/li\nd"), "pnpt", r"'li\nd' is no name of 1 to 100 printable"),
        (("a/cap", "l" * 101), "pnpt", "is no name of 1 to 100 printable"),
    ],
)
def test_folders_that_are_no_classes_are_refused_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, folders: tuple[str, ...], method: str, words: str
) -> None:
    wishes = ["-o", tmp_path / "x.bundle", "--method", method]
    code, said = refused(capsys, *(tmp_path / folder for folder in folders), *wishes)
    assert (code, words in said.replace(f"{tmp_path}/b", "b")) == (USAGE, True), said


def test_every_class_with_too_few_images_is_named_with_its_count(
    tmp_path: Path, photographs: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [put(tmp_path / f"class{count}", photographs[:count]) for count in (3, 20, 7)]
    code, said = refused(capsys, *folders, "-o", tmp_path / "x.bundle", "--method", "pnpt")
    assert code == FAILED
    assert [line.split(",")[0] for line in said.splitlines()] == [
        f"{folders[0]}: 3 usable good image(s) among 3 file(s)",
        f"{folders[2]}: 7 usable good image(s) among 7 file(s)",
    ]


def test_a_class_has_the_name_that_the_user_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2026-11-23" / "good").mkdir(parents=True)
    (tmp_path / "cap").symlink_to("2026-11-23")
    monkeypatch.chdir(tmp_path / "cap" / "good")
    assert class_names([tmp_path / "cap", Path(".."), Path()]) == ["cap", "2026-11-23", "good"]


def test_classes_of_one_format_share_its_frames(tmp_path: Path, photographs: NDArray[np.uint8], write: Write) -> None:
    def read(name: str, images: NDArray[np.uint8]) -> DataSet:
        for i, image in enumerate(images):
            write(tmp_path / name / f"{i:02}.png", image)
        return read_data(tmp_path / name, r"(\d+)")

    small = read("small", photographs[:20, :100, :120])
    large = read("large", photographs[:20])
    grey = read("grey", np.ascontiguousarray(photographs[:20, ..., 0]))
    assert class_sources([small]) == [small.source]
    first, second = class_sources([large, small])
    assert first == second
    assert (first.height, first.width, first.channels) == ((100, 144), (120, 144), 3)
    assert class_sources([large, grey, small]) == [first, grey.source, first]
