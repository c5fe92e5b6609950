"""Put the units where systemd looks for them: `python -m systemd.install [ROOT]`, as root on the box.

The units are written to start the `beltline` of the environment that runs this. Nothing is enabled or started, and
nothing outside these files is touched; docs/install.md has the commands that follow.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from rich.console import Console

PACKAGED_COMMAND = "/opt/beltline/bin/beltline"
TARGETS = {
    "beltline.service": "etc/systemd/system/beltline.service",
    "beltline-publish.service": "etc/systemd/system/beltline-publish.service",
    "beltline.sysusers.conf": "etc/sysusers.d/beltline.conf",
    "beltline.tmpfiles.conf": "etc/tmpfiles.d/beltline.conf",
    "60-beltline.rules": "etc/udev/rules.d/60-beltline.rules",
}


def install_units(root: Path, command: str) -> list[Path]:
    """Write every file below `root` (`/` on a box); `command` is the absolute path of the `beltline` to start.

    Raises:
        ValueError: the command is not an absolute path without spaces, which a unit could not start.

    """
    if not command.startswith("/") or any(character.isspace() or character in "%\\$" for character in command):
        raise ValueError(f"{command!r} cannot stand in a unit: install into a path without spaces, %, $ or backslashes")
    written = []
    for name, target in TARGETS.items():
        text = files("systemd").joinpath(name).read_text(encoding="utf-8")
        file = root / target
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(PACKAGED_COMMAND, command), encoding="utf-8")
        file.chmod(0o644)
        written.append(file)
    return written


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    parser = argparse.ArgumentParser(
        prog="python -m systemd.install", description="Install the units of this beltline."
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path("/"), help="folder to install below, by default /")
    try:
        written = install_units(parser.parse_args().root, f"{sys.prefix}/bin/beltline")
    except (OSError, ValueError) as error:
        console.print(f"cannot install: {error}. Run it as root on the box.", markup=False)
        return 1
    for file in written:
        console.print(str(file), markup=False)
    console.print("Next: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload; see docs/install.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
