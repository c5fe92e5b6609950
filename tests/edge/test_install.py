"""Install and roll back: what holds in the end, and whatever cuts it off on the way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.bundle import read_bundle
from edge.cli import main
from edge.errors import BeltlineError
from edge.install import install, rollback
from edge.installed import State, Trial, archive, changing, read_state, save
from edge.keys import new_key, read_private
from edge.load import bundle_path, load
from edge.lock import hold
from edge.settings import Settings, load_settings
from edge.signature import sign
from edge.speed import Measured, choose, read_speed, write_speed

STATION = """
[bundle]
keys = "keys"
{bundle}
[source]
kind = "folder"
path = "."
[paths]
journal = "journal.db"
control = "control.sock"
bundles = "state/bundles"
engines = "state/engines"
{reject}
"""
STEPS = Path(__file__).with_name("install_steps.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.speed.MEASURE_NS", 0)
    monkeypatch.setattr("edge.speed.MEASURE_AT_LEAST", 1)


class Box:
    """A station's file, its key folder, and bundles that somebody of its list has signed."""

    def __init__(self, folder: Path, tiny: SimpleNamespace) -> None:
        self.folder, self.tiny = folder, tiny
        (folder / "keys").mkdir()
        new_key(folder / "keys" / "workshop.key")
        self.private = read_private(folder / "keys" / "workshop.key")
        self.station()

    def station(self, bundle: str = "", reject: str = "") -> None:
        self.file = self.folder / "station.toml"
        self.file.write_text(STATION.format(bundle=bundle, reject=reject))

    @property
    def settings(self) -> Settings:
        return load_settings(self.file)

    @property
    def bundles(self) -> Path:
        return self.settings.paths.bundles

    def bundle(self, number: int, **options: Any) -> Path:
        """The n-th product's bundle; its threshold tells it from the others."""
        path = self.tiny.archive(self.folder / f"{number}.bundle", self.tiny.files(threshold=0.1 * number, **options))
        bundle = read_bundle(path)
        path.write_bytes(bundle.archive(sign(bundle.id, self.private)))
        return path

    def install(self, number: int, **options: Any) -> str:
        return install(self.settings, self.bundle(number, **options)).bundle.id

    def state(self) -> State:
        state = read_state(self.bundles)
        assert state
        return state

    def passed(self) -> None:
        with changing(self.bundles) as state:
            assert state
            save(self.bundles, state.model_copy(update={"trial": None}))

    def files(self) -> set[str]:
        return {str(file.relative_to(self.folder / "state")) for file in (self.folder / "state").rglob("*")}


@pytest.fixture
def box(tmp_path: Path, tiny: SimpleNamespace) -> Box:
    return Box(tmp_path, tiny)


def expected(*identities: str) -> set[str]:
    """Every file of a tidy box with these bundles."""
    return {
        *("bundles", "bundles/install.lock", "bundles/installed.json", "bundles/current", "engines"),
        *(["bundles/previous"] if len(identities) > 1 else []),
        *(f"bundles/{identity}.bundle" for identity in identities),
        *(f"engines/{identity}" for identity in identities),
        *(f"engines/{identity}/speed.json" for identity in identities),
    }


def test_the_first_bundle_is_in_place_without_a_trial(box: Box) -> None:
    first = box.install(1)
    state = box.state()
    assert (state.current, state.previous, state.trial) == (first, None, None)
    assert bundle_path(box.settings) == archive(box.bundles, first)
    assert (box.bundles / "current").resolve() == archive(box.bundles, first)
    assert load(box.settings, bundle_path(box.settings)).signature == "signed by workshop"
    assert box.files() == expected(first)


def test_the_next_one_is_on_trial_and_an_unproven_one_is_never_gone_back_to(box: Box) -> None:
    first = box.install(1)
    second = box.install(2)
    assert box.state().trial == Trial(back_to=first)
    third = box.install(3)
    state = box.state()
    assert (state.current, state.previous, state.trial) == (third, first, Trial(back_to=first))
    assert box.files() == expected(third, first)
    assert second not in {third, first}
    box.passed()
    fourth = box.install(4)
    assert box.state().trial == Trial(back_to=third, back_previous=first)
    assert box.files() == expected(fourth, third, first)
    assert (box.bundles / "previous").resolve() == archive(box.bundles, third)


def test_the_one_before_on_trial_again_does_not_come_back_to_itself(box: Box) -> None:
    first, second = box.install(1), box.install(2)
    box.passed()
    assert box.install(1) == first
    assert box.state().trial == Trial(back_to=second, back_previous=None)
    assert box.files() == expected(first, second)


def test_roll_back_swaps_two_proven_bundles_and_undoes_an_install_on_trial(box: Box) -> None:
    first, second = box.install(1), box.install(2)
    box.passed()
    assert rollback(box.settings).current == first
    assert box.state().previous == second
    assert (box.bundles / "current").resolve() == archive(box.bundles, first)
    assert rollback(box.settings).current == second
    third = box.install(3)
    state = rollback(box.settings)
    assert (state.current, state.previous, state.trial) == (second, first, None)
    assert state.last
    assert (state.last.bundle, state.last.result) == (third, "rolled back")


def test_installing_what_is_in_place_measures_again_and_changes_nothing(box: Box) -> None:
    box.install(1)
    second = box.install(2)
    before = box.state()
    assert install(box.settings, box.bundle(2)).bundle.id == second
    assert box.state() == before
    assert install(box.settings, box.bundle(1)).state.trial is None  # the proven one: as good as a roll-back


def test_there_may_be_nothing_to_go_back_to(box: Box) -> None:
    with pytest.raises(BeltlineError, match="nothing is installed"):
        rollback(box.settings)
    box.install(1)
    with pytest.raises(BeltlineError, match="no former bundle"):
        rollback(box.settings)
    damaged = box.install(2)
    box.passed()
    raw = bytearray(archive(box.bundles, box.state().previous or "").read_bytes())
    raw[5000] ^= 1
    archive(box.bundles, box.state().previous or "").write_bytes(raw)
    with pytest.raises(BeltlineError, match="damaged"):
        rollback(box.settings)
    assert box.state().current == damaged


def unsigned(box: Box) -> Path:
    path: Path = box.tiny.archive(box.folder / "unsigned.bundle", box.tiny.files())
    return path


def stranger(box: Box) -> Path:
    path = box.bundle(7)
    new_key(box.folder / "stranger.key")
    bundle = read_bundle(path)
    path.write_bytes(bundle.archive(sign(bundle.id, read_private(box.folder / "stranger.key"))))
    return path


def flipped(box: Box) -> Path:
    path = box.bundle(7)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (unsigned, "unsigned"),
        (stranger, "which this box does not list"),
        (flipped, "damaged"),
        (lambda box: box.bundle(7, golden_shift=1.0), "no graph can be trusted on this box"),
        (lambda box: box.bundle(7, classes=["cap", "lid"]), "Say which with"),
        (lambda box: box.folder / "nowhere.bundle", "no such bundle"),
        (lambda box: Path("/dev/zero"), "no file"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(
    box: Box, make: Callable[[Box], Path], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    box.install(1)
    before = box.files(), (box.bundles / "installed.json").read_bytes()
    assert main(["install", str(make(box)), str(box.file), "--json"]) == 1
    out, err = capsys.readouterr()
    assert says in err
    assert err.count("\n") == 1
    assert says in json.loads(out)["error"]
    assert (box.files(), (box.bundles / "installed.json").read_bytes()) == before


def test_a_graph_too_slow_for_the_step_limit_is_refused(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    link = '[reject]\nkind = "link"\nport = "x"\ndecision_distance_counts = 8\ngate_distance_counts = 10\n'
    window = "gate_window_before_counts = 1\ngate_window_after_counts = 1\nmin_part_spacing_counts = 2\n"
    box.station(reject=link + window)
    first = box.install(1)
    monkeypatch.setattr("edge.load.slow_step_ms", lambda _: 1000.0)
    with pytest.raises(BeltlineError, match="step_limit_ms"):
        box.install(2)
    assert box.files() == expected(first)


def test_two_installs_at_once(box: Box) -> None:
    first = box.install(1)
    with hold(box.bundles / "install", "held"), pytest.raises(BeltlineError, match="another install is running"):
        box.install(2)
    assert box.files() == expected(first)
    assert box.install(2) == box.state().current


def test_two_installs_race_as_processes(box: Box) -> None:
    box.install(1)
    slow = "import edge.speed; edge.speed.MEASURE_NS = 10**9; from edge.cli import main; import sys; "
    commands = [
        [sys.executable, "-c", f"{slow} sys.exit(main({['install', str(box.bundle(number)), str(box.file)]}))"]
        for number in (2, 3)
    ]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=60)[1] for process in running]
    codes = [process.returncode for process in running]
    assert sorted(codes) in ([0, 0], [0, 1])  # one after the other where the second was late
    assert all("another install is running" in error for code, error in zip(codes, errors, strict=True) if code)
    assert load(box.settings, bundle_path(box.settings))
    assert len(list(box.bundles.glob("*.bundle"))) == 2


def test_the_folder_of_another_user_is_left_to_them(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    box.install(1)
    os.chown(box.bundles, 65534, 65534)
    before = box.files()
    assert main(["install", str(box.bundle(2)), str(box.file)]) == 1
    assert "belongs to nobody, as whom the station runs. Use: sudo -u nobody" in capsys.readouterr().err
    assert main(["rollback", str(box.file)]) == 1
    assert box.files() == before


def test_a_real_limit_of_the_system_is_as_a_full_disk(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    first = box.install(1)
    second = box.bundle(2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        code = main(["install", str(second), str(box.file)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert code == 1
    assert "is not installed, and what was in place still is" in capsys.readouterr().err
    assert box.files() == expected(first)


def steps(box: Box, operation: str, how: str) -> list[dict[str, Any]]:
    """Cut the operation off before each of its steps; the last line is of the one that was left alone."""
    (box.folder / "state").rename(box.folder / "before")
    command = [sys.executable, str(STEPS), str(box.file), str(box.bundle(3)), operation, how]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["status"] == 0
    return lines


def links(current: str, previous: str | None) -> dict[str, str]:
    return {"current": f"{current}.bundle"} | ({"previous": f"{previous}.bundle"} if previous else {})


@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("operation", ["install", "rollback", "fail"])
def test_an_operation_cut_off_at_any_step_leaves_the_old_or_the_new(box: Box, operation: str, how: str) -> None:
    first, second = box.install(1), box.install(2)
    if operation != "fail":
        box.passed()
    third = read_bundle(box.bundle(3)).id
    old = (second, first)
    new = {"install": (third, second), "rollback": (first, second), "fail": (first, None)}[operation]
    seen = []
    for line in steps(box, operation, how):
        at = f"{operation}, {how} before step {line['step']}"
        found = line["state"]["current"], line["state"]["previous"]
        assert found in (old, new), at
        seen.append(found)
        if how == "kill":
            assert line["status"] in (-signal.SIGKILL, 0), at
        else:
            assert (line["status"] == 0) == (found == new), at
            assert line["status"] == 0 or "No space left on device" in line["said"], at
            assert not [name for name in line["left"] if third in name and line["status"]], at
        assert line["runs"] == found[0], at
        assert line["links"] == links(*found), at
        assert line["files"], at
        assert not [name for name in line["files"] if name.endswith(".new")], at
        assert f"bundles/{third}.bundle" in line["files"], at
    assert seen == sorted(seen, key=lambda found: found == new)  # once changed it stays so
    assert len(seen) > 3
    assert seen[0] == old
    assert seen[-1] == new


def test_nothing_takes_its_name_before_it_is_on_the_disk(box: Box) -> None:
    box.install(1)
    box.install(2)
    box.passed()
    (line,) = steps(box, "install", "trace")
    trace: list[list[str]] = line["trace"]
    renamed = [(at, Path(path)) for at, (event, path) in enumerate(trace) if event == "os.rename"]
    assert {path.name for _, path in renamed} >= {"installed.json", "current", "previous", "speed.json"}
    for at, path in renamed:
        if path.name not in ("current", "previous"):
            assert ["fsync", f"{path}.new"] in trace[:at], path
        later = [event for event in trace[at + 1 :] if event[0] in ("fsync", "os.rename")]
        assert later[0] == ["fsync", str(path.parent)], path


def test_speed_decides_once_and_only_where_it_was_measured(
    box: Box, tiny: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    first = box.install(1, graphs={"float": tiny.graph(), "int8": tiny.graph()})
    engines = box.settings.paths.engines
    speed = read_speed(engines, first)
    assert speed
    assert speed.holds
    assert set(speed.graphs) == {"float", "int8"}
    for graph in ("float", "int8"):
        write_speed(engines, first, speed.model_copy(update={"graph": graph}))
        assert load(box.settings, bundle_path(box.settings)).chosen.scorer.graph == graph
    write_speed(engines, first, speed.model_copy(update={"graph": "float", "processor": "another"}))
    assert load(box.settings, bundle_path(box.settings)).chosen.scorer.graph == "int8"
    assert "install the bundle again" in caplog.text
    (engines / first / "speed.json").write_text("{")
    assert load(box.settings, bundle_path(box.settings)).chosen.scorer.graph == "int8"


@pytest.mark.parametrize(
    ("float_ms", "int8_ms", "chosen"),
    [(2.0, 1.0, "int8"), (1.0, 1.05, "int8"), (1.0, 1.2, "float"), (1, None, "float")],
)
def test_a_reduced_graph_is_taken_unless_another_is_a_tenth_faster(
    float_ms: float, int8_ms: float | None, chosen: str
) -> None:
    assert choose({"float": Measured(p50_ms=float_ms), "int8": Measured(p50_ms=int8_ms)}) == chosen


def test_a_damaged_state_is_read_from_the_links(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    first, second = box.install(1), box.install(2)
    (box.bundles / "installed.json").write_bytes(b"\0" * 300)
    assert (box.state().current, box.state().previous) == (second, first)
    assert "the links stand in for it" in caplog.text
    assert bundle_path(box.settings).stem == second


def test_the_commands_tell(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundles", str(box.file)]) == 0
    assert "nothing is installed" in capsys.readouterr().out
    first = box.install(1)
    assert main(["install", str(box.bundle(2)), str(box.file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    second = told["current"]
    assert told["previous"] == first
    assert (told["signature"], told["used"], told["speed"]["graph"]) == ("signed by workshop", True, "float")
    assert main(["bundles", str(box.file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {row["id"]: row["role"] for row in shown["bundles"]} == {first: "previous", second: "current"}
    main(["doctor", str(box.file), "--json"])
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out) if row["area"] == "bundle"}
    assert found["signature"]["found"] == "signed by workshop"
    assert found["installed"]["found"] == f"{second[:12]}, before it {first[:12]}"
    assert "100 parts; else" in found["trial"]["found"]
    assert "chosen: float" in found["speed at install"]["found"]
    assert found["would run"]["found"] == "graph float, as chosen at the install"
    assert main(["rollback", str(box.file)]) == 0
    assert f"bundle {first[:12]} is in place again" in capsys.readouterr().out
    box.station(bundle='path = "1.bundle"')
    assert main(["bundles", str(box.file)]) == 0
    assert "not used: the station file has [bundle] path" in " ".join(capsys.readouterr().out.split())
