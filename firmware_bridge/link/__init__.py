"""`link`: the box's side of the serial line to the reject controller."""

from firmware_bridge.link.link import Link
from firmware_bridge.link.settings import LinkSettings

__all__ = ["Link", "LinkSettings"]
