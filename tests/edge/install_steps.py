"""Cut an operation off before each of its steps on the disk; a script, so that what it forks has one thread.

    install_steps.py STATION.toml BUNDLE install|rollback|fail kill|full|trace

The state folder is made anew for each step: `before` is copied to the folder that the station names. Each step is
printed as one JSON line. Audit hooks see every open for writing, rename, removal, link and folder made; `os.fsync` is
wrapped, as it has no hook. `kill` ends the process there with SIGKILL, `full` lets the step fail with ENOSPC, `trace`
cuts nothing off.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import edge.speed
from edge.errors import BeltlineError
from edge.install import install, rollback
from edge.installed import read_state
from edge.load import bundle_path, load
from edge.settings import load_settings
from edge.trial import begin, switch_back

EVENTS = ("os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "open")

logging.disable()
edge.speed.MEASURE_NS, edge.speed.MEASURE_AT_LEAST = 0, 1
station, bundle, operation, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
settings = load_settings(station)
state_folder = settings.paths.bundles.parent


def operate() -> None:
    if operation == "install":
        install(settings, bundle)
    elif operation == "rollback":
        rollback(settings)
    else:
        state = read_state(settings.paths.bundles)
        assert state
        switch_back(settings, state.current, "made up")


def cut_off(step: int, trace: list[tuple[str, str]]) -> None:
    """From the `step`-th change of the disk on, it takes no more."""

    def happens(event: str, path: str) -> None:
        trace.append((event, path))
        if len(trace) > step:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if event not in ("os.remove", "os.rmdir"):  # what a full disk still does
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = str(arguments[1 if event in ("os.rename", "os.symlink") else 0])
        if path.startswith(str(state_folder)) or not path.startswith("/"):  # relative: of a folder that is removed
            happens(event, path)

    sys.addaudithook(hook)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        happens("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    os.fsync = fsync


def forked(work: Any) -> tuple[int, dict[str, Any]]:
    """Run in a process of its own; its exit status and what it told."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        told: dict[str, Any] = {}
        code = 2
        try:
            work(told)
            code = 0
        except (BeltlineError, OSError) as error:
            told["error"], code = str(error), 1
        finally:
            os.write(writer, json.dumps(told).encode())
            os._exit(code)
    os.close(writer)
    text = os.read(reader, 60_000)  # a pipe holds 65,536 bytes
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(text) if text else {}


def first(told: dict[str, Any], step: int) -> None:
    trace: list[tuple[str, str]] = []
    told["trace"] = trace
    cut_off(step, trace)
    operate()


def boot(told: dict[str, Any]) -> None:
    """What a station does at its start and at its end."""
    bundle, trial = begin(settings)
    if trial:
        with trial:
            load(settings, bundle)
    told["runs"] = load(settings, bundle_path(settings)).chosen.scorer.bundle.id
    told["links"] = {
        name: str((settings.paths.bundles / name).readlink())
        for name in ("current", "previous")
        if (settings.paths.bundles / name).is_symlink()
    }


def again(told: dict[str, Any]) -> None:
    install(settings, bundle)
    told["files"] = sorted(str(file.relative_to(state_folder)) for file in state_folder.rglob("*"))


for step in [1000] if how == "trace" else range(1000):
    shutil.rmtree(state_folder, ignore_errors=True)
    shutil.copytree(station.with_name("before"), state_folder, symlinks=True)
    status, told = forked(lambda told, step=step: first(told, step))
    left = sorted(str(file.relative_to(state_folder)) for file in state_folder.rglob("*"))
    state = read_state(settings.paths.bundles)
    line = {"step": step, "status": status, "said": told.get("error", ""), "left": left}
    line["state"] = state.model_dump() if state else None
    for work in (boot, again):
        line |= forked(work)[1]
    line["trace"] = told.get("trace")
    print(json.dumps(line), flush=True)
    if status == 0:
        break
