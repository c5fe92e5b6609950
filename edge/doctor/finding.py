"""What a look at the box, the station or a bundle found."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "note", "missing"]


class Finding(NamedTuple):
    area: str
    what: str
    found: str
    level: Level = "ok"
