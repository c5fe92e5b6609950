"""Who this box is at the broker: a client id that no other box or station has and that never changes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def client_id(machine_id: str, site: str, line: str, station: str) -> str:
    """23 letters and digits: what every broker since MQTT 3.1 must accept. The machine id itself stays private."""
    digest = hashlib.sha256(f"beltline\0{machine_id}\0{site}\0{line}\0{station}".encode()).hexdigest()
    return f"beltline{digest[:15]}"


def machine_id(state_dir: Path, files: tuple[Path, ...] = MACHINE_ID_FILES) -> str:
    """The operating system's machine id, or where there is none a random one kept in `state_dir`."""
    own = state_dir / "machine-id"
    for file in (*files, own):
        try:
            found = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if found and found != "uninitialized":
            return found
    fresh = uuid4().hex
    own.write_text(fresh + "\n", encoding="ascii")
    return fresh
