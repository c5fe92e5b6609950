"""The units in an installed root, judged by systemd's own tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from systemd.install import TARGETS, install_units, main

COMMAND = "/srv/line/bin/beltline"
UNITS = ("beltline.service", "beltline-publish.service")
CEILING = {"beltline.service": 20, "beltline-publish.service": 13}  # systemd-analyze security, tenths
KNOWN = Path(__file__).with_name("directives-249.txt")

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the distribution's own units, a stand-in for the command, and what the install function writes."""
    for folder in ("/usr/lib/systemd/system", "/lib/systemd/system"):
        if Path(folder).is_dir():
            shutil.copytree(folder, tmp_path / "usr/lib/systemd/system", symlinks=True, dirs_exist_ok=True)
            break
    command = tmp_path / COMMAND.lstrip("/")
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    install_units(tmp_path, COMMAND)
    return tmp_path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_systemd_finds_nothing_wrong(root: Path) -> None:
    result = run("systemd-analyze", "verify", "--man=no", f"--root={root}", *UNITS)
    assert result.returncode == 0, result.stderr
    assert "beltline" not in result.stderr


def test_the_check_would_notice(root: Path) -> None:
    unit = root / "etc/systemd/system/beltline.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=10", "WatchdogSek=10"))
    assert "WatchdogSek" in run("systemd-analyze", "verify", "--man=no", f"--root={root}", *UNITS).stderr


@pytest.mark.parametrize("unit", UNITS)
def test_the_exposure_stays_below_its_ceiling(root: Path, unit: str) -> None:
    result = run(
        *("systemd-analyze", "security", "--offline=true", f"--root={root}", f"--threshold={CEILING[unit]}", unit)
    )
    assert result.returncode == 0, result.stdout[-600:]


def directives(text: str) -> list[tuple[str, str, str]]:
    """(section, name, value) of each line."""
    found, section = [], ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((section, name, value))
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_every_directive_is_known_to_systemd_249(root: Path, unit: str) -> None:
    known, section = set[tuple[str, str]](), ""
    for line in KNOWN.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif not line.startswith("#"):
            known.add((section, line))
    used = {(s, name) for s, name, _ in directives((root / "etc/systemd/system" / unit).read_text())}
    assert used <= known, used - known
    assert ("[Service]", "ExitType") not in known  # came with 250


@pytest.mark.parametrize("unit", UNITS)
def test_what_the_promises_need_is_there(root: Path, unit: str) -> None:
    lines = directives((root / "etc/systemd/system" / unit).read_text())
    for wanted in (
        ("[Unit]", "StartLimitIntervalSec", "0"),
        ("[Service]", "Type", "notify"),
        ("[Service]", "NotifyAccess", "main"),
        ("[Service]", "Restart", "always"),
        ("[Service]", "User", "beltline"),
        ("[Service]", "ProtectSystem", "strict"),
        ("[Service]", "NoNewPrivileges", "yes"),
        ("[Service]", "StateDirectory", "beltline"),
    ):
        assert wanted in lines
    values = {name: value for _, name, value in lines}
    assert int(values["WatchdogSec"]) >= 5
    assert values["ExecStart"].split() == [COMMAND, values["ExecStart"].split()[1], "/etc/beltline/station.toml"]


def test_user_and_folders_can_be_made(root: Path) -> None:
    for tool, *arguments in (("systemd-sysusers",), ("systemd-tmpfiles", "--create", "--prefix=/etc/beltline")):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
        target = {"systemd-sysusers": "sysusers.d", "systemd-tmpfiles": "tmpfiles.d"}[tool]
        result = run(tool, *arguments, f"--root={root}", str(root / f"etc/{target}/beltline.conf"))
        if tool == "systemd-sysusers":
            assert result.returncode == 0, result.stderr
            assert "beltline:" in (root / "etc/passwd").read_text()
            assert "dialout" in (root / "etc/group").read_text()
        else:
            assert "Unknown" not in result.stderr


def test_every_packaged_file_is_installed() -> None:
    packaged = {file.name for file in (Path(__file__).parents[2] / "systemd").iterdir() if file.suffix != ".py"}
    assert packaged - {"__pycache__"} == set(TARGETS)


@pytest.mark.parametrize("command", ["beltline", "/opt/my line/beltline", "/opt/50%/beltline", "/a\n/b"])
def test_a_command_that_no_unit_can_start_is_refused(tmp_path: Path, command: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a unit"):
        install_units(tmp_path, command)


def test_an_option_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["--help"], 0), (["--root", "x"], 2)):
        monkeypatch.setattr(sys, "argv", ["install", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["install", str(tmp_path / "root")])
    assert main() == 0
    assert all((tmp_path / "root" / target).is_file() for target in TARGETS.values())
