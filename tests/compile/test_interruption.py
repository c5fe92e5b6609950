"""`beltline compile`, interrupted while its fits run in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LIMIT_S = 120


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def workers(parent: int) -> list[int]:
    """Give the processes that fit for `parent`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            status = (folder / "status").read_text()
        except OSError:
            continue
        if b"spawn_main" in command and f"PPid:\t{parent}\n" in status:
            found.append(int(folder.name))
    return found


@pytest.fixture
def fitting(tmp_path: Path, photographs, write) -> Iterator[subprocess.Popen[str]]:
    """A compilation whose fits run."""
    for i, image in enumerate(photographs[:20]):
        write(tmp_path / "good" / f"{i:02}.png", image)
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    output.mkdir()
    arguments = [
        str(tmp_path / "good"),
        "-o",
        str(output / "x.bundle"),
        "--size",
        "128",
        "--fit-steps",
        "100000",
        "--method",
        "varad",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "compile", *arguments, "--group-by", r"(\d+)", "--json"],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: process.poll() is not None or workers(process.pid) != [], "no fit began")
        time.sleep(2)  # the fits run
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_compilation_that_is_interrupted_leaves_its_work_alone(
    tmp_path: Path, fitting: subprocess.Popen[str], *, number: signal.Signals, code: int
) -> None:
    fits = workers(fitting.pid)
    fitting.send_signal(number)
    told, said = fitting.communicate(timeout=20)
    words = f"interrupted, nothing was written; the same command goes on from {tmp_path / 'out' / 'x.work'}"
    assert (fitting.returncode, said) == (code, f"beltline compile: {words}\n")
    assert json.loads(told) == {"error": words}
    assert list((tmp_path / "scratch").glob("beltline-*")) == []
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["x.work"]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in fits), "a worker lives on")


def test_no_fit_outlives_a_compilation_that_is_killed(fitting: subprocess.Popen[str]) -> None:
    fits = workers(fitting.pid)
    assert fits
    fitting.kill()
    wait_for(lambda: not any(alive(pid) for pid in fits), "a worker lives on", limit_s=10)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
