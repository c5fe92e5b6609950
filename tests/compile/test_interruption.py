"""`beltline compile`, interrupted while its fits run in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LIMIT_S = 120


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_compilation_that_is_interrupted_leaves_nothing(
    tmp_path: Path, photographs, write, *, number: signal.Signals, code: int
) -> None:
    for i, image in enumerate(photographs[:20]):
        write(tmp_path / "good" / f"{i:02}.png", image)
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    output.mkdir()
    arguments = [str(tmp_path / "good"), "-o", str(output / "x.bundle"), "--size", "128", "--fit-steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "compile", *arguments, "--group-by", r"(\d+)", "--json"],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: process.poll() is not None or workers(process.pid) != [], "no fit began")
        fits = workers(process.pid)
        time.sleep(2)  # the fits run
        process.send_signal(number)
        told, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, said) == (code, "beltline compile: interrupted, nothing was written\n")
    assert json.loads(told) == {"error": "interrupted, nothing was written"}
    assert list(scratch.glob("beltline-*")) == []
    assert list(output.iterdir()) == []
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in fits), "a worker lives on")
