"""The one command: lazy sub-commands, exit codes, one clear line for every known error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
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


@pytest.mark.parametrize(("command", "words"), [("run", "without a [reject] table"), ("publish", "with [mqtt]")])
def test_help_loses_no_words_in_brackets(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.cli.main([command, "--help"]) == 0
    assert words in " ".join(capsys.readouterr().out.replace("│", " ").split())


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


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["fail", "--json"], 1, "no room"),
        (["fail", "--json", "--size", "x"], 2, "Invalid value for '--size'"),
        (["fail", "--json", "--loud"], 2, "No such option: --loud"),
        (["fly", "--json"], 2, "no command 'fly'. There are: bare, fail."),
        (["bare", "--json"], 3, "'beltline[bare]'"),
    ],
)
def test_an_error_is_json_too_where_json_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], code: int, says: str
) -> None:
    def fail(json: bool = False, size: int = 0) -> None:
        raise BeltlineError("no room")

    install(monkeypatch, fail=fail)
    missing = EntryPoint("bare", "a_module_that_is_not_there:x", edge.cli.GROUP)
    known = edge.cli.entry_points(group=edge.cli.GROUP)
    monkeypatch.setattr(edge.cli, "entry_points", lambda group: [*known, missing])
    assert edge.cli.main(command) == code
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert list(document) == ["error"]
    assert says in document["error"]
    assert says in told.err
    assert edge.cli.main([word for word in command if word != "--json"]) == code
    assert capsys.readouterr().out == ""


def test_an_error_may_have_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        error = BeltlineError("ended")
        error.exit_code = 143
        raise error

    install(monkeypatch, fail=fail)
    assert edge.cli.main(["fail"]) == 143
    assert 143 in edge.cli.EXIT_CODES


def test_an_interruption_before_the_command_is_known_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.cli, "entry_points", lambda group: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # these tests may run in a script's background
    try:
        assert edge.cli.main(["run", "none.toml"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "beltline: interrupted\n"


def interrupted(folder: Path, module: str, before: str = "") -> tuple[int, str]:
    """What ends a process whose command is the function `command` of a module, and what it says."""
    (folder / "made_up.py").write_text(f"import signal\n{module}\n")
    begun = (
        "import sys, signal, atexit, edge.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from importlib.metadata import EntryPoint\n"
        "edge.cli.entry_points = lambda group: [EntryPoint('made-up', 'made_up:command', group)]\n"
        f"{before}\n"
        "sys.exit(edge.cli.main(['made-up']))"
    )
    done = subprocess.run([sys.executable, "-c", begun], capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode, done.stderr


def test_an_interruption_while_a_command_is_imported_is_one_line(tmp_path: Path) -> None:
    """Extension modules make an ImportError of it."""
    module = (
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    raise ImportError('cannot import _core') from None\n"
        "def command(): ..."
    )
    assert interrupted(tmp_path, module) == (130, "beltline: interrupted\n")


def test_a_command_in_a_scripts_background_is_not_interrupted(tmp_path: Path) -> None:
    """The shell lets it ignore the Ctrl-C that is meant for the foreground, while it is imported too."""
    module = "signal.raise_signal(signal.SIGINT)\ndef command(): ..."
    assert interrupted(tmp_path, module, "signal.signal(signal.SIGINT, signal.SIG_IGN)") == (0, "")


def test_an_interruption_while_the_process_ends_changes_nothing(tmp_path: Path) -> None:
    late = "atexit.register(signal.raise_signal, signal.SIGINT)"  # runs after what is registered later
    assert interrupted(tmp_path, "def command(): ...", late) == (0, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_wrong_station_file_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text("[bundel]\n")
    assert edge.cli.main(["run", str(tmp_path / "s.toml")]) == 1
    assert "did you mean 'bundle'?" in capsys.readouterr().err
