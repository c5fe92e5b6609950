"""The one command: lazy sub-commands, exit codes, one clear line for every known error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import edge.cli
from edge.errors import BeltlineError


def install(monkeypatch: pytest.MonkeyPatch, **commands: object) -> None:
    module = types.ModuleType("made_up_commands")
    for name, function in commands.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "made_up_commands", module)
    found = [EntryPoint(name, f"made_up_commands:{name}", edge.cli.GROUP) for name in commands]
    monkeypatch.setattr(edge.cli, "entry_points", lambda group: found)


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from edge.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'cv2', 'onnxruntime', 'numpy', 'edge.commands.run', 'compile.command'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("run", "compile", "jog-gate", "Exit codes", "3  an optional part"):
        assert word in done.stdout


def test_every_entry_point_has_its_line_of_help() -> None:
    assert {entry.name for entry in edge.cli.entry_points(group=edge.cli.GROUP)} <= set(edge.cli.COMMANDS)


def test_usage_is_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert edge.cli.main([]) == 2
    assert edge.cli.main(["fly"]) == 2
    assert "no command 'fly'" in capsys.readouterr().err

    def greet(name: str) -> None: ...

    install(monkeypatch, greet=greet)
    assert edge.cli.main(["greet"]) == 2
    assert edge.cli.main(["greet", "--loud"]) == 2
    assert edge.cli.main(["greet", "you"]) == 0


def test_known_errors_are_one_line_and_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: str) -> None:
        raise {"known": BeltlineError("x.bundle: damaged [/red]"), "file": FileNotFoundError(2, "gone", "y")}[kind]

    install(monkeypatch, fail=fail)
    assert edge.cli.main(["fail", "known"]) == 1
    assert capsys.readouterr().err == "beltline fail: x.bundle: damaged [/red]\n"
    assert edge.cli.main(["fail", "file"]) == 1
    assert "gone" in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise ZeroDivisionError

    install(monkeypatch, crash=crash)
    with pytest.raises(ZeroDivisionError):
        edge.cli.main(["crash"])


def test_a_missing_extra_prints_its_install_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [EntryPoint("compile", "a_module_that_is_not_there:x", edge.cli.GROUP)]
    monkeypatch.setattr(edge.cli, "entry_points", lambda group: missing)
    assert edge.cli.main(["compile"]) == 3
    assert "pip install 'beltline[compile]'" in capsys.readouterr().err


def test_a_known_error_is_json_too_where_json_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(json: bool = False) -> None:
        raise BeltlineError("no room")

    install(monkeypatch, fail=fail)
    assert edge.cli.main(["fail", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == {"error": "no room"}
    assert told.err == "beltline fail: no room\n"


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.4, 0.8])
@pytest.mark.parametrize(
    "command", [["run", "none.toml"], ["doctor", "--json"], ["compile", "none", "-o", "x.bundle", "--json"]]
)
def test_an_early_interruption_is_one_line(command: list[str], delay_s: float, tmp_path: Path) -> None:
    """At any moment after the interpreter is up; a fast command may have ended by itself, in its own way."""
    ended = {"run": (1,), "doctor": (0, 1), "compile": (1,)}[command[0]]
    begun = f"import os, sys; from edge.cli import main; os.write(1, b'.'); sys.exit(main({command!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", begun], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    assert words.count(b"\n") <= 1, words
    assert b"Traceback" not in words
    assert process.returncode in {130, *ended}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_wrong_station_file_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text("[bundel]\n")
    assert edge.cli.main(["run", str(tmp_path / "s.toml")]) == 1
    assert "did you mean 'bundle'?" in capsys.readouterr().err
