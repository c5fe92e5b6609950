"""The reject controller as a process on this machine: compile its C sources, start it, stop it.

The same sources run on the board. Tests, the demo and a box without a board use this process.
"""

from __future__ import annotations

import subprocess
import time
from importlib.resources import as_file, files
from pathlib import Path

CORE = ("wire.c", "rc_parts.c", "rc_gate.c", "rc_messages.c", "reject_controller.c")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


class BuildError(RuntimeError):
    """The C compiler is missing or refused the sources."""


def compile_sources(
    output: Path, sources: tuple[str, ...], flags: tuple[str, ...] = ("-O2",), folder: Path | None = None
) -> Path:
    """Compile controller sources into `output` with `cc`; `folder` replaces the packaged sources.

    Raises BuildError with the compiler's words.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with as_file(files("firmware_bridge") / "controller") as packaged:
        where = folder or packaged
        command = ["cc", *FLAGS, *flags, f"-I{where}", *(str(where / name) for name in sources), "-o", str(output)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise BuildError("no C compiler: `cc` is not on the PATH; install gcc (Debian package `gcc`)") from error
    if done.returncode != 0:
        raise BuildError(f"cc refused the controller ({done.returncode}):\n{done.stderr}")
    return output


def build(folder: Path, flags: tuple[str, ...] = ("-O2",), sources: Path | None = None) -> Path:
    """Compile the host process into `folder`; returns the path of the program."""
    return compile_sources(folder / "reject-controller", (*CORE, "host_port.c"), flags, sources)


def build_library(folder: Path, flags: tuple[str, ...] = ("-O2",), sources: Path | None = None) -> Path:
    """Compile the core alone as a shared library, for ctypes; returns its path."""
    return compile_sources(folder / "libreject_controller.so", CORE, (*flags, "-shared", "-fPIC"), sources)


class HostController:
    """One running controller process: `link` is its serial port, `pins` the belt's socket."""

    def __init__(self, program: Path, link: Path, pins: Path, baud: int = 115200, epoch: int | None = None) -> None:
        self.link = link
        self._command = [str(program), "--link", str(link), "--pins", str(pins), "--baud", str(baud)]
        if epoch is not None:
            self._command += ["--epoch", f"{epoch:08x}"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the controller is not running; call start() first")
        return self._process.pid

    def start(self, timeout_s: float = 5.0) -> None:
        """Start and wait until the serial port exists. Raises RuntimeError when it does not appear in time."""
        before = self._link_identity()
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + timeout_s
        while self._link_identity() in (None, before):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the controller did not open {self.link}; run it by hand: {' '.join(self._command)}"
                )
            time.sleep(0.005)

    def _link_identity(self) -> tuple[int, int] | None:
        """Tells one symbolic link from the next of the same name."""
        try:
            found = self.link.lstat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_ctime_ns

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, timeout_s: float = 2.0) -> None:
        """Ask it to end; kill it when it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
