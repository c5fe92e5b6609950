"""The working folder: one owner, found again under its key, gone when it is of no more use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from compile.backbones.choice import DEFAULT, find_backbone
from compile.data import read_data
from compile.features import Features
from compile.job import Settings
from compile.work import KEY, WorkError, work_key, work_path, working_folder


def interrupt(folder: Path, work: Callable[[], object]) -> None:
    with suppress(KeyboardInterrupt), working_folder(folder, "a"):
        work()
        raise KeyboardInterrupt
    assert folder.exists()


def test_work_is_found_again_under_its_key_alone(tmp_path: Path) -> None:
    folder = work_path(tmp_path / "cap.bundle")
    assert folder == tmp_path / "cap.work"
    interrupt(folder, lambda: (folder / "0.pt").write_bytes(b"half done"))
    interrupt(folder, lambda: (folder / "0.pt").rename(folder / "found"))
    with working_folder(folder, "b"):
        assert [each.name for each in folder.iterdir()] == [KEY]
    assert list(tmp_path.iterdir()) == []


def test_work_that_failed_is_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it fails again"), working_folder(tmp_path / "x.work", "a"):
        raise ValueError("it fails again")
    assert list(tmp_path.iterdir()) == []


def test_work_that_others_may_go_on_with_stays_when_it_fails(tmp_path: Path) -> None:
    folder = tmp_path / "x.work"
    with suppress(ValueError), working_folder(folder, "a", keep=True) as found:
        (found / "run").write_text("done")
        raise ValueError("one of several")
    with working_folder(folder, "a", keep=True) as found:
        assert (found / "run").read_text() == "done"
    assert not folder.exists()


@pytest.mark.parametrize("output", [".", "/"])
def test_a_bundle_needs_a_name(output: str) -> None:
    with pytest.raises(WorkError, match=r"names a folder\. Give the bundle's file"):
        work_path(Path(output))


def test_a_second_compilation_of_one_bundle_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x.work"
    with working_folder(folder, "a"):
        (folder / "mine").touch()
        with pytest.raises(WorkError, match="another run works here"), working_folder(folder, "b"):
            pass
        assert (folder / "mine").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "x.work"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(WorkError, match="is no working folder of beltline"), working_folder(folder, "a"):
        pass
    assert (folder / "thesis.txt").read_text() == "years"
    (tmp_path / "y.work").write_text("a file")
    with pytest.raises(WorkError, match="cannot be used"), working_folder(tmp_path / "y.work", "a"):
        pass


def test_a_kill_while_the_key_was_written_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "x.work"
    folder.mkdir()
    (folder / f".{KEY}.123.part").write_text("ab")
    with working_folder(folder, "abc"):
        assert [each.name for each in folder.iterdir()] == [KEY]


def test_one_that_was_killed_while_it_was_emptied_is_emptied_again(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "x.work"

    def interrupt() -> None:
        for name in ("a", "b", "c"):
            (folder / name).mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), working_folder(folder, "one"):
        interrupt()
    removed = []

    def killed(path: Path, **_: object) -> None:
        removed.append(path)
        if len(removed) > 1:
            raise SystemExit
        path.rmdir()

    with monkeypatch.context() as patch:
        patch.setattr("compile.work.shutil.rmtree", killed)
        with pytest.raises(SystemExit), working_folder(folder, "another"):
            pass
    assert len(list(folder.iterdir())) == 3  # two of three, and the mark
    with working_folder(folder, "one"):  # whose work is gone
        assert [each.name for each in folder.iterdir()] == [KEY]


def test_the_key_follows_wishes_and_pictures(mvtec: Path, vit: Path) -> None:
    wanted = Settings(mvtec, mvtec / "x.bundle", group_by=r"(\d+)")
    data = read_data(mvtec, wanted.group_by)

    def key(settings: Settings = wanted, backbone=DEFAULT, machine: str = "this", side: int = 256) -> str:
        return work_key(settings, [data], backbone, side, machine)

    assert key() == key(replace(wanted, output=mvtec / "y.bundle", name="cap", version="2"))
    others = {key(replace(wanted, seed=1)), key(replace(wanted, fit_steps=30)), key(machine="other")}
    others |= {key(), key(backbone=find_backbone("lite1")), key(side=288)}
    folder = mvtec / "vit"
    shutil.copytree(vit, folder)
    others.add(key(backbone=find_backbone(str(folder))))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-06', '"layer_norm_eps": 1e-05'))
    others.add(key(backbone=find_backbone(str(folder))))
    file = data.good[3]
    file.write_bytes(file.read_bytes() + b"\n")
    assert len({*others, key()}) == 9


def test_maps_that_are_done_are_not_computed_again(tmp_path: Path, trunk: onnx.ModelProto, inputs) -> None:
    pictures = np.stack(inputs[:3])

    def extract(model: onnx.ModelProto) -> Features:
        features = Features(tmp_path, ["float", "int8"])
        features.extract("float", model, pictures, exact=False, threads=1, tick=None)
        return features

    first = [np.array(each) for each in extract(trunk).maps]
    again = extract(onnx.ModelProto())  # which would not run
    assert again.pictures == 3
    assert [each.shape for each in again.maps] == [(6, 40, 16, 16), (6, 112, 8, 8)]
    assert all(np.array_equal(a, b) for a, b in zip(again.maps, first, strict=True))
    again.extract("int8", trunk, pictures, exact=False, threads=1, tick=None)
    assert all(np.array_equal(each[:3], each[3:]) for each in again.maps)
