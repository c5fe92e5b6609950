"""A bundle for several classes: a station names its own, and each has its threshold and its golden inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.bundle import read_bundle
from edge.check import check_station
from edge.cli import FAILED, OK, main
from edge.doctor.bundle import chosen_class, graphs
from edge.errors import BundleError
from edge.front_end import FrameError
from edge.scorer import Scorer, ScorerError, slow_step_ms
from edge.settings import load_settings

MakeBundle = Callable[..., Path]
CLASSES = ["lid", "cap"]  # in an order of its own
GREY = {"height": [32, 256], "width": [32, 256], "channels": 1, "white": 255}
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=100)


def rehash(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The same bundle with other words in the manifest, and hashes that hold."""
    manifest = json.loads(files["manifest.json"]) | changes
    outside = {"manifest.json", "manifest.sha256"}
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name not in outside}
    text = json.dumps(manifest).encode()
    return files | {"manifest.json": text, "manifest.sha256": hashlib.sha256(text).hexdigest().encode()}


def test_each_class_has_its_place_and_its_threshold(make_bundle: MakeBundle) -> None:
    bundle = read_bundle(make_bundle(classes=CLASSES))
    assert [bundle.class_index(name) for name in CLASSES] == [0, 1]
    assert [each["float"].value for each in bundle.thresholds] == [0.5, 1.5]
    with pytest.raises(BundleError, match=r"no class 'pot'; there are: cap, lid\. Correct \[bundle\] class_name"):
        bundle.class_index("pot")
    with pytest.raises(BundleError, match=r"for the classes cap, lid\. Say which with \[bundle\] class_name"):
        bundle.class_index(None)


def test_a_bundle_for_one_product_has_nothing_to_choose(make_bundle: MakeBundle) -> None:
    bundle = read_bundle(make_bundle())
    assert bundle.class_index(None) == 0
    with pytest.raises(BundleError, match=r"so no class 'cap'\. Remove \[bundle\] class_name"):
        bundle.class_index("cap")


def test_a_bundle_written_before_there_were_classes_is_read(tmp_path: Path, tiny: SimpleNamespace) -> None:
    def as_before(manifest: dict[str, Any]) -> None:
        del manifest["class_input"]

    files = tiny.files(change=as_before)
    golden = json.loads(files["golden/golden.json"])
    del golden["samples"][0]["class_name"]
    files["golden/golden.json"] = json.dumps(golden).encode()
    assert Scorer(read_bundle(tiny.archive(tmp_path / "old.bundle", rehash(files))), "float").threshold == 0.5


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=2, max_size=3, unique=True))
def test_any_names_are_found_again_in_their_order(tmp_path: Path, tiny: SimpleNamespace, names: list[str]) -> None:
    bundle = read_bundle(tiny.archive(tmp_path / "b.bundle", tiny.files(classes=names)))
    assert [bundle.class_index(name) for name in names] == list(range(len(names)))
    assert [sample.class_name for sample in bundle.golden.samples] == names


@pytest.mark.parametrize(
    ("classes", "changes", "words"),
    [
        (CLASSES, {"classes": ["cap", "cap"]}, "twice"),
        (CLASSES, {"classes": ["cap", ""]}, "classes.1"),
        (CLASSES, {"classes": ["cap", "l\x00d"]}, "classes.1"),
        (CLASSES, {"classes": ["cap", "pot"]}, r"threshold.json is for the classes cap, lid, the bundle for cap, pot"),
        (CLASSES, {"classes": ["cap"]}, r"schema version 2 with 1 class\(es\)"),
        (CLASSES, {"classes": []}, r"schema version 2 with 0 class\(es\)"),
        (CLASSES, {"schema_version": 1}, r"schema version 1 with 2 class\(es\)"),
        (None, {"schema_version": 2}, r"schema version 2 with 0 class\(es\)"),
        (None, {"class_input": True}, "without several classes"),
        (CLASSES, {"class_sources": [GREY]}, r"1 source\(s\) for 2 class\(es\)"),
        (None, {"class_sources": [GREY]}, r"1 source\(s\) for 0 class\(es\)"),
        (CLASSES, {"class_sources": [GREY, {**GREY, "channels": 2}]}, "class_sources.1.channels"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, tiny: SimpleNamespace, classes: list[str] | None, changes: dict[str, Any], words: str
) -> None:
    files = rehash(tiny.files(classes=classes), **changes)
    with pytest.raises(BundleError, match=words):
        read_bundle(tiny.archive(tmp_path / "b.bundle", files))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(["cap", "lid", "pot", ""]), max_size=3, unique=True))
def test_thresholds_and_golden_inputs_are_those_of_the_classes(
    tmp_path: Path, tiny: SimpleNamespace, names: list[str]
) -> None:
    """Whatever other classes they speak of, more or fewer, the bundle is refused."""
    right = set(names) == set(CLASSES)
    files = tiny.files(classes=CLASSES)
    limits, golden = json.loads(files["threshold.json"]), json.loads(files["golden/golden.json"])
    sample = golden["samples"][0]
    others = {
        "threshold.json": dict.fromkeys(names, limits["cap"]),
        "golden/golden.json": {"samples": [sample | {"class_name": name} for name in names]},
    }
    for file, said in others.items():
        archive = tiny.archive(tmp_path / "b.bundle", rehash(files | {file: json.dumps(said).encode()}))
        if right:
            read_bundle(archive)
        else:
            with pytest.raises(BundleError, match=file):
                read_bundle(archive)


def test_a_threshold_that_a_class_lacks_is_refused(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = tiny.files(classes=CLASSES)
    limits = json.loads(files["threshold.json"])
    limits["cap"] = {}
    files["threshold.json"] = json.dumps(limits).encode()
    with pytest.raises(BundleError, match="graph 'float' has no threshold"):
        read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))


def test_a_part_is_scored_as_its_class(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    bundle = read_bundle(make_bundle(classes=CLASSES))
    frame = tiny.picture(150)
    for index, limit in ((0, 0.5), (1, 1.5)):
        scorer = Scorer(bundle, "float", class_index=index)
        assert scorer.threshold == limit
        for _ in range(3):  # the self-tests between take the golden inputs of all classes
            assert scorer.score(frame).value == pytest.approx(tiny.map(frame, index).max(), abs=1e-5)
            scorer.self_test()


@pytest.mark.parametrize("spoilt", [0, 1])
def test_the_self_test_takes_every_class(tmp_path: Path, tiny: SimpleNamespace, spoilt: int) -> None:
    files = tiny.files(classes=CLASSES)
    golden = json.loads(files["golden/golden.json"])
    golden["samples"][spoilt]["scores"]["float"] += 0.01
    files["golden/golden.json"] = json.dumps(golden).encode()
    bundle = read_bundle(tiny.archive(tmp_path / "b.bundle", rehash(files)))
    for index in (0, 1):
        with pytest.raises(ScorerError, match="self-test"):
            Scorer(bundle, "float", class_index=index)


def test_a_graph_and_a_manifest_that_disagree_about_the_class_are_refused(
    make_bundle: MakeBundle, tiny: SimpleNamespace
) -> None:
    deaf = read_bundle(make_bundle(classes=CLASSES, graphs={"float": tiny.graph()}))
    with pytest.raises(ScorerError, match=r"has the inputs \['image', 'mask'\], not \['class', 'image', 'mask'\]"):
        Scorer(deaf, "float")
    asking = read_bundle(make_bundle(graphs={"float": tiny.graph(classes=2)}))
    with pytest.raises(ScorerError, match=r"has the inputs \['class', 'image', 'mask'\], not \['image', 'mask'\]"):
        Scorer(asking, "float")


def test_a_threshold_is_doubted_by_the_golden_inputs_of_its_class(make_bundle: MakeBundle) -> None:
    bundle = read_bundle(make_bundle(classes=CLASSES))
    scores = [sample.scores["float"] for sample in bundle.golden.samples]
    assert scores[1] > 2 * scores[0]
    between = (scores[0] + scores[1]) / 2
    assert Scorer(bundle, "float", class_index=0).doubt(between) is None
    assert "rejects every good golden part" in str(Scorer(bundle, "float", class_index=1).doubt(between))


def test_a_class_takes_frames_of_its_own_format(tmp_path: Path, tiny: SimpleNamespace) -> None:
    files = rehash(tiny.files(classes=CLASSES), class_sources=[{**GREY, "channels": 3}, GREY])
    bundle = read_bundle(tiny.archive(tmp_path / "tiny.bundle", files))
    frame = tiny.picture(150)
    for index, (right, wrong) in enumerate(((frame, frame[..., 0]), (frame[..., 0], frame))):
        scorer = Scorer(bundle, "float", class_index=index)
        assert scorer.score(right).value >= 0
        assert slow_step_ms(scorer) > 0
        with pytest.raises(FrameError, match=r"channel\(s\), the bundle was made from"):
            scorer.score(wrong)


def station(folder: Path, class_name: str) -> Path:
    file = folder / "station.toml"
    file.write_text(
        f'[bundle]\npath = "tiny.bundle"\nallow_unsigned = true\n'
        f'{class_name}\n[source]\nkind = "folder"\npath = "parts"\n'
    )
    return file


def test_the_station_file_picks_the_class(
    tmp_path: Path, make_bundle: MakeBundle, make_parts: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(classes=CLASSES, threshold=0.3)  # and 1.3 for caps
    make_parts(128, 64)
    verdicts = {}
    for name in CLASSES:
        assert main(["run", "--json", str(station(tmp_path, f'class_name = "{name}"'))]) == OK
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        verdicts[name] = [(row["decision"], row["threshold"], row["score"]) for row in rows if "score" in row]
    assert [row[:2] for row in verdicts["lid"]] == [("ACCEPT", 0.3), ("REJECT", 0.3)]
    assert [row[:2] for row in verdicts["cap"]] == [("ACCEPT", 1.3), ("ACCEPT", 1.3)]
    assert verdicts["lid"][1][2] > verdicts["cap"][1][2]


@pytest.mark.parametrize(
    ("line", "words"), [('class_name = "pot"', "there are: cap, lid"), ("", "for the classes cap, lid")]
)
def test_a_class_that_is_not_there_is_said_by_every_command(
    tmp_path: Path,
    make_bundle: MakeBundle,
    make_parts: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    *,
    line: str,
    words: str,
) -> None:
    bundle = read_bundle(make_bundle(classes=CLASSES))
    make_parts(128)
    file = station(tmp_path, line)
    assert main(["run", str(file)]) == FAILED
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    chosen = load_settings(file).bundle.class_name
    assert [words in found.found for found in check_station(load_settings(file)) if not found.ok] == [True]
    assert [(found.level, words in found.found) for found in chosen_class(bundle, chosen)] == [("missing", True)]


def test_the_classes_are_shown(tmp_path: Path, make_bundle: MakeBundle, make_parts: Callable[..., Path]) -> None:
    bundle = read_bundle(make_bundle(classes=CLASSES))
    make_parts(64)
    findings = {found.what: found for found in check_station(load_settings(station(tmp_path, 'class_name = "cap"')))}
    assert findings["class"].found == "cap, of lid, cap"
    assert findings["threshold"].found.startswith("1.5 for")
    assert "lid, cap" in next(found for found in graphs(bundle) if found.what == "classes").found
    assert "cap" in next(chosen_class(bundle, "cap")).found
